#include "common/vault/vault_client.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/deadline.h"
#include "common/base/lasting_failure.h"
#include "common/base/status_macros.h"
#include "common/vault/fd_socket.h"

namespace moebius {
namespace {

constexpr absl::Duration kReportTimeout = absl::Seconds(5);

absl::Span<const std::byte> BytesOf(const VaultMessage& message) {
  return {reinterpret_cast<const std::byte*>(&message), sizeof(message)};
}

int64_t MonotonicNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// The text of a message from outside, which may not be terminated.
std::string TextOf(const VaultMessage& message) {
  return std::string(message.text, strnlen(message.text, sizeof(message.text)));
}

// An answer belongs to `request` when it names the same region, or process.
// Asking again after giving up can meet the answer to the first request: that
// is as good.
bool Answers(const VaultMessage& answer, const VaultMessage& request) {
  return answer.region == request.region && answer.rank == request.rank &&
         answer.pid == request.pid &&
         answer.answers == static_cast<uint8_t>(request.type);
}

}  // namespace

absl::StatusOr<std::unique_ptr<VaultClient>> VaultClient::Connect(
    const std::string& directory, Rank rank, absl::Duration timeout) {
  ASSIGN_OR_RETURN(
      UniqueFd socket,
      ConnectUnix(directory + "/" + std::string(kVaultSocketName), timeout));
  return std::unique_ptr<VaultClient>(new VaultClient(std::move(socket), rank));
}

absl::StatusOr<VaultClient::Answer> VaultClient::Ask(
    const VaultMessage& request, int attach, absl::Duration timeout) {
  const Deadline deadline = Deadline::After(timeout);
  absl::MutexLock lock(&asking_);
  RETURN_IF_ERROR(
      SendPacket(socket_.get(), BytesOf(request), attach, deadline.left()));
  for (;;) {
    VaultMessage answer;
    auto packet = ReceivePacket(
        socket_.get(), {reinterpret_cast<std::byte*>(&answer), sizeof(answer)},
        deadline.left());
    if (!packet.ok()) {
      if (absl::IsInvalidArgument(packet.status())) {
        return absl::InternalError(packet.status().message());
      }
      return absl::Status(packet.status().code(),
                          absl::StrCat("vault: ", packet.status().message()));
    }
    if (packet->size_bytes != sizeof(answer) ||
        answer.type != VaultMessageType::kDescriptor) {
      return absl::InternalError("vault: not an answer");
    }
    if (!Answers(answer, request)) {
      if (deadline.expired()) {
        return absl::DeadlineExceededError("vault: no answer in time");
      }
      continue;
    }
    if (!answer.ok) {
      const std::string text = absl::StrCat("vault: ", TextOf(answer));
      return request.type == VaultMessageType::kWithdraw
                 ? absl::NotFoundError(text)
                 : absl::FailedPreconditionError(text);
    }
    return Answer{answer, std::move(packet->attached)};
  }
}

absl::StatusOr<RegionDescriptor> VaultClient::AskForRegion(
    const VaultMessage& request, absl::Duration timeout) {
  ASSIGN_OR_RETURN(Answer answer, Ask(request, -1, timeout));
  if (!answer.attached) {
    return absl::InternalError("vault: an answer without a descriptor");
  }
  if (static_cast<int>(answer.message.region_class) >= kNumRegionClasses) {
    return absl::InternalError("vault: no such class");
  }
  return RegionDescriptor{std::move(answer.attached), answer.message.size_bytes,
                          answer.message.region_class};
}

absl::Status VaultClient::Deposit(RegionKind kind, RegionClass region_class,
                                  int fd, uint64_t size_bytes,
                                  absl::Duration timeout) {
  VaultMessage request;
  request.type = VaultMessageType::kDeposit;
  request.region = kind;
  request.rank = rank_;
  request.region_class = region_class;
  request.size_bytes = size_bytes;
  return Ask(request, fd, timeout).status();
}

absl::StatusOr<RegionDescriptor> VaultClient::Withdraw(RegionKind kind,
                                                       absl::Duration timeout) {
  VaultMessage request;
  request.type = VaultMessageType::kWithdraw;
  request.region = kind;
  request.rank = rank_;
  return AskForRegion(request, timeout);
}

absl::StatusOr<RegionDescriptor> VaultClient::Borrow(RegionKind kind, Rank rank,
                                                     absl::Duration timeout) {
  VaultMessage request;
  request.type = VaultMessageType::kBorrow;
  request.region = kind;
  request.rank = rank;
  return AskForRegion(request, timeout);
}

absl::Status VaultClient::Report(const VaultMessage& message,
                                 absl::Duration timeout) {
  return SendPacket(socket_.get(), BytesOf(message), -1, timeout);
}

absl::Status VaultClient::Progress(uint64_t done_bytes, uint64_t total_bytes) {
  const bool last = done_bytes >= total_bytes;
  const int64_t now = MonotonicNanoseconds();
  int64_t due = next_progress_ns_.load(std::memory_order_relaxed);
  if (!last) {
    if (now < due) return absl::OkStatus();
    const int64_t next = now + absl::ToInt64Nanoseconds(kProgressPeriod);
    // Of several loading threads one sends.
    if (!next_progress_ns_.compare_exchange_strong(due, next,
                                                   std::memory_order_relaxed)) {
      return absl::OkStatus();
    }
  }
  VaultMessage message;
  message.type = VaultMessageType::kProgress;
  message.rank = rank_;
  message.done_bytes = std::min(done_bytes, total_bytes);
  message.size_bytes = total_bytes;
  const absl::Status sent =
      Report(message, last ? kReportTimeout : absl::ZeroDuration());
  if (!last && absl::IsDeadlineExceeded(sent)) return absl::OkStatus();
  return sent;
}

absl::Status VaultClient::Ready(int port, int admin_port, uint64_t checkpoint) {
  VaultMessage message;
  message.type = VaultMessageType::kReady;
  message.rank = rank_;
  message.port = port;
  message.admin_port = admin_port;
  message.checkpoint = checkpoint;
  return Report(message, kReportTimeout);
}

absl::Status VaultClient::Replace(Rank rank, Incarnation incarnation) {
  VaultMessage message;
  message.type = VaultMessageType::kReplace;
  message.rank = rank;
  message.incarnation = incarnation.value;
  return Report(message, kReportTimeout);
}

absl::StatusOr<std::optional<Rank>> VaultClient::WhoIs(pid_t pid,
                                                       absl::Duration timeout) {
  VaultMessage request;
  request.type = VaultMessageType::kWhoIs;
  request.rank = rank_;
  request.pid = pid;
  ASSIGN_OR_RETURN(const Answer answer, Ask(request, -1, timeout));
  const Rank rank = answer.message.speaks_for;
  if (rank < 0) return std::nullopt;
  if (rank >= kMaxRanks) return absl::InternalError("vault: no such rank");
  return rank;
}

absl::StatusOr<WorkerNews> VaultClient::NewsOf(Rank rank,
                                               absl::Duration timeout) {
  VaultMessage request;
  request.type = VaultMessageType::kTrouble;
  request.rank = rank;
  ASSIGN_OR_RETURN(const Answer answer, Ask(request, -1, timeout));
  WorkerNews news;
  news.incarnation = Incarnation{answer.message.incarnation};
  news.trouble = TextOf(answer.message);
  news.total_bytes = answer.message.size_bytes;
  news.done_bytes = std::min(answer.message.done_bytes, news.total_bytes);
  return news;
}

absl::Status VaultClient::StrayStop() {
  VaultMessage message;
  message.type = VaultMessageType::kStrayStop;
  message.rank = rank_;
  return Report(message, kReportTimeout);
}

absl::Status VaultClient::Alive() {
  VaultMessage message;
  message.type = VaultMessageType::kAlive;
  message.rank = rank_;
  return Report(message, absl::ZeroDuration());
}

absl::Status VaultClient::Failed(const absl::Status& why) {
  VaultMessage message;
  message.type = VaultMessageType::kFailed;
  message.rank = rank_;
  message.lasting = IsLasting(why) ? 1 : 0;
  SetText({why.message().data(), why.message().size()}, &message);
  return Report(message, kReportTimeout);
}

}  // namespace moebius
