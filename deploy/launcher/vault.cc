#include "deploy/launcher/vault.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/errno_status.h"
#include "common/base/logging.h"
#include "common/base/printable.h"
#include "common/base/status_macros.h"
#include "common/vault/fd_socket.h"
#include "deploy/launcher/vault_checks.h"

namespace moebius {
namespace {

// Ids of what epoll watches; connections are numbered from kFirstConnection.
constexpr uint64_t kListenerId = 0;
constexpr uint64_t kWakeId = 1;
constexpr uint64_t kFirstConnection = 2;

VaultMessage AnswerTo(const VaultMessage& request) {
  VaultMessage answer;
  answer.type = VaultMessageType::kDescriptor;
  answer.region = request.region;
  answer.answers = static_cast<uint8_t>(request.type);
  answer.rank = request.rank;
  answer.pid = request.pid;
  answer.ok = 1;
  return answer;
}

absl::Status SendAnswer(int socket, const VaultMessage& answer, int attach) {
  return SendPacket(
      socket, {reinterpret_cast<const std::byte*>(&answer), sizeof(answer)},
      attach, absl::ZeroDuration());
}

absl::Status Answer(int socket, const VaultMessage& request, int attach,
                    const KeptRegion& kept) {
  VaultMessage answer = AnswerTo(request);
  answer.size_bytes = kept.size_bytes;
  answer.region_class = kept.region_class;
  return SendAnswer(socket, answer, attach);
}

absl::Status Refuse(int socket, const VaultMessage& request,
                    absl::string_view why) {
  VaultMessage answer = AnswerTo(request);
  answer.ok = 0;
  SetText({why.data(), why.size()}, &answer);
  return SendAnswer(socket, answer, -1);
}

}  // namespace

// --- start and end ---------------------------------------------------------

Vault::Vault(Callback on_report, VaultOptions options)
    : on_report_(std::move(on_report)),
      options_(options),
      next_id_(kFirstConnection) {}

absl::StatusOr<std::unique_ptr<Vault>> Vault::Start(
    const std::string& directory, Callback on_report, VaultOptions options) {
  std::unique_ptr<Vault> vault(new Vault(std::move(on_report), options));
  RETURN_IF_ERROR(vault->Open(directory));
  vault->thread_ = std::thread([v = vault.get()] { v->ThreadMain(); });
  return vault;
}

absl::Status Vault::Open(const std::string& directory) {
  RETURN_IF_ERROR(CheckVaultDirectory(directory));
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return ErrnoStatus("epoll_create1");
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return ErrnoStatus("eventfd");
  {
    absl::MutexLock lock(&mutex_);
    spare_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!spare_) return ErrnoStatus("/dev/null");
  }
  const std::string path = directory + "/" + std::string(kVaultSocketName);
  ASSIGN_OR_RETURN(listener_, ListenUnix(path, kMaxConnections));
  path_ = path;
  RETURN_IF_ERROR(Watch(wake_.get(), kWakeId));
  return Watch(listener_.get(), kListenerId);
}

Vault::~Vault() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) {
    Wake();
    thread_.join();
  }
  {
    absl::MutexLock lock(&mutex_);
    while (!connections_.empty()) Close(connections_.begin());
  }
  if (!path_.empty()) ::unlink(path_.c_str());
}

absl::StatusOr<bool> Vault::Restore() {
  struct stat info;
  if (::lstat(path_.c_str(), &info) == 0) return false;
  ASSIGN_OR_RETURN(UniqueFd listener, ListenUnix(path_, kMaxConnections));
  absl::MutexLock lock(&mutex_);
  AcceptAll();  // those that have found the old one
  RETURN_IF_ERROR(Watch(listener.get(), kListenerId));
  listener_ = std::move(listener);
  return true;
}

void Vault::Wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the thread is awake.
  [[maybe_unused]] const ssize_t written =
      ::write(wake_.get(), &one, sizeof(one));
}

absl::Status Vault::Watch(int fd, uint64_t id) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = id;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return ErrnoStatus("epoll_ctl");
  }
  return absl::OkStatus();
}

void Vault::ThreadMain() {
  std::array<epoll_event, kMaxConnections + 2> events;
  for (;;) {
    int timeout_ms = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      timeout_ms = PollTimeoutMs();
    }
    const int ready = ::epoll_wait(epoll_.get(), events.data(),
                                   static_cast<int>(events.size()), timeout_ms);
    std::vector<VaultReport> reports;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_) return;
      for (int i = 0; i < ready; ++i) {
        const uint64_t id = events[i].data.u64;
        if (id == kListenerId) {
          AcceptAll();
        } else if (id == kWakeId) {
          uint64_t count = 0;
          [[maybe_unused]] const ssize_t size =
              ::read(wake_.get(), &count, sizeof(count));
        } else {
          Serve(id);
        }
      }
      ExpireStrangers();
      reports.swap(reports_);
    }
    for (const VaultReport& report : reports) on_report_(report);
  }
}

// --- who may speak ---------------------------------------------------------

void Vault::Allow(pid_t pid, Rank rank, uint64_t incarnation) {
  CHECK(pid > 0 && rank >= -1 && rank < kMaxRanks);
  {
    absl::MutexLock lock(&mutex_);
    std::vector<pid_t> replaced;
    for (const auto& [other, speaker] : speakers_) {
      if (other == pid || speaker.rank == rank) replaced.push_back(other);
    }
    // `pid` may be connected already, as a stranger: only its former self goes.
    for (pid_t other : replaced) RemoveSpeaker(other);
    speakers_[pid] = Speaker{.rank = rank, .incarnation = incarnation};
    for (auto& [id, connection] : connections_) {
      if (connection.pid == pid) {
        connection.rank = rank;
        // Not watched until now, so that a stranger's messages wait unread.
        if (const absl::Status watched = Watch(connection.socket.get(), id);
            !watched.ok()) {
          LogError("vault: ", watched.ToString());
        }
      }
    }
  }
  Wake();
}

LastWords Vault::RemoveSpeaker(pid_t pid) {
  const auto speaker = speakers_.find(pid);
  if (speaker == speakers_.end()) return {};
  std::vector<uint64_t> ids;
  for (auto& [id, connection] : connections_) {
    if (connection.pid == pid && connection.rank) ids.push_back(id);
  }
  for (uint64_t id : ids) {
    // Its last words may lie unread; anything else it asked for is void.
    Connection& connection = connections_.at(id);
    for (int i = 0; i < kMaxMessagesARound; ++i) {
      VaultMessage message;
      const auto packet = ReceivePacket(
          connection.socket.get(),
          {reinterpret_cast<std::byte*>(&message), sizeof(message)},
          absl::ZeroDuration());
      if (!packet.ok() || packet->size_bytes != sizeof(message)) break;
      if (message.type != VaultMessageType::kFailed) continue;
      if (message.rank == connection.rank &&
          CheckVaultMessage(message, static_cast<bool>(packet->attached))
              .ok()) {
        HandleReport(connection, message).IgnoreError();
      }
    }
    Close(connections_.find(id));
  }
  const auto kept = kept_.find(speaker->second.rank);
  if (kept != kept_.end()) DropHandles(kept->second);
  LastWords last_words = std::move(speaker->second.last_words);
  speakers_.erase(speaker);
  return last_words;
}

LastWords Vault::Disallow(pid_t pid) {
  LastWords last_words;
  {
    absl::MutexLock lock(&mutex_);
    AcceptAll();  // it may have connected, spoken and died just now
    last_words = RemoveSpeaker(pid);
  }
  Wake();  // delivers what RemoveSpeaker still read
  return last_words;
}

void Vault::AcceptAll() {
  // A round accepts as many as can be kept; the rest are met in the next.
  for (int i = 0; i < kMaxConnections; ++i) {
    auto socket = AcceptUnix(listener_.get());
    if (socket.ok()) {
      AddConnection(*std::move(socket));
      continue;
    }
    if (absl::IsUnavailable(socket.status())) return;
    // Out of descriptors: the connection would keep the listener ready for
    // ever, so accept and close it.
    LogWarn("vault: refusing a connection: ", socket.status().ToString());
    spare_.reset();
    AcceptUnix(listener_.get()).IgnoreError();
    spare_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    return;
  }
}

void Vault::AddConnection(UniqueFd socket) {
  const auto peer = PeerOf(socket.get());
  if (!peer.ok()) {
    LogWarn("vault: ", peer.status().ToString());
    return;
  }
  if (peer->uid != ::geteuid() || peer->pid <= 0) {
    LogWarn("vault: refusing pid ", peer->pid, " of uid ", peer->uid);
    return;
  }
  const auto strangers =
      std::count_if(connections_.begin(), connections_.end(),
                    [](const auto& entry) { return !entry.second.rank; });
  const auto speaker = speakers_.find(peer->pid);
  if (connections_.size() >= kMaxConnections ||
      (speaker == speakers_.end() && strangers >= kMaxStrangers)) {
    LogWarn("vault: refusing pid ", peer->pid, ": too many connections");
    return;
  }
  const uint64_t id = next_id_++;
  Connection connection;
  connection.socket = std::move(socket);
  connection.pid = peer->pid;
  if (speaker == speakers_.end()) {
    connection.stranger_until = Deadline::After(options_.stranger_timeout);
  } else {
    connection.rank = speaker->second.rank;
    if (const absl::Status watched = Watch(connection.socket.get(), id);
        !watched.ok()) {
      LogError("vault: ", watched.ToString());
      return;
    }
  }
  connections_.emplace(id, std::move(connection));
}

void Vault::ExpireStrangers() {
  std::vector<uint64_t> ids;
  for (const auto& [id, connection] : connections_) {
    if (!connection.rank && connection.stranger_until.expired()) {
      ids.push_back(id);
    }
  }
  for (uint64_t id : ids) {
    Drop(id, absl::PermissionDeniedError("a process that nobody allowed"));
  }
}

int Vault::PollTimeoutMs() const {
  if (!reports_.empty()) return 0;
  int timeout_ms = -1;
  for (const auto& [id, connection] : connections_) {
    if (connection.rank) continue;
    const int left_ms = connection.stranger_until.left_ms();
    if (left_ms >= 0 && (timeout_ms < 0 || left_ms < timeout_ms)) {
      timeout_ms = left_ms;
    }
  }
  return timeout_ms;
}

void Vault::Drop(uint64_t id, const absl::Status& why) {
  const auto it = connections_.find(id);
  if (it == connections_.end()) return;
  // A peer that just ends is the launcher's business: it reaps it.
  if (!absl::IsUnavailable(why)) {
    LogWarn("vault: disconnecting pid ", it->second.pid, " (rank ",
            it->second.rank ? absl::StrCat(*it->second.rank) : "none",
            "): ", why.ToString());
  }
  Close(it);
}

void Vault::Close(Connections::iterator it) {
  // A child that the launcher has just forked may hold a copy of the socket
  // until it executes its program: closing ours would neither hang up nor end
  // the events.
  const int socket = it->second.socket.get();
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket, nullptr);
  ::shutdown(socket, SHUT_RDWR);
  connections_.erase(it);
}

// --- messages --------------------------------------------------------------

void Vault::Serve(uint64_t id) {
  for (int i = 0; i < kMaxMessagesARound; ++i) {
    // Looked up each time: a message may drop other connections.
    const auto it = connections_.find(id);
    if (it == connections_.end() || !it->second.rank) return;
    const absl::Status served = ServeOne(&it->second);
    if (absl::IsDeadlineExceeded(served)) return;  // all read
    if (!served.ok()) return Drop(id, served);
  }
}

// kDeadlineExceeded when there is no message.
absl::Status Vault::ServeOne(Connection* connection) {
  VaultMessage message;
  ASSIGN_OR_RETURN(
      Packet packet,
      ReceivePacket(connection->socket.get(),
                    {reinterpret_cast<std::byte*>(&message), sizeof(message)},
                    absl::ZeroDuration()));
  if (packet.size_bytes != sizeof(message)) {
    return MalformedMessage(
        absl::StrCat("it has ", packet.size_bytes, " bytes"));
  }
  RETURN_IF_ERROR(
      CheckVaultMessage(message, static_cast<bool>(packet.attached)));
  const bool of_another = message.type == VaultMessageType::kBorrow ||
                          message.type == VaultMessageType::kReplace ||
                          message.type == VaultMessageType::kTrouble;
  if (!of_another && message.rank != *connection->rank) {
    return MalformedMessage(absl::StrCat("it speaks for rank ", message.rank));
  }
  switch (message.type) {
    case VaultMessageType::kDeposit:
    case VaultMessageType::kWithdraw:
    case VaultMessageType::kBorrow:
    case VaultMessageType::kWhoIs:
    case VaultMessageType::kTrouble: {
      const absl::Status handled =
          HandleRequest(connection, message, std::move(packet.attached));
      if (absl::IsDeadlineExceeded(handled)) {
        return absl::ResourceExhaustedError("it does not read its answers");
      }
      // It is gone, but what it said before may lie unread.
      if (absl::IsUnavailable(handled)) return absl::OkStatus();
      return handled;
    }
    case VaultMessageType::kProgress:
    case VaultMessageType::kReady:
    case VaultMessageType::kFailed:
    case VaultMessageType::kReplace:
    case VaultMessageType::kStrayStop:
    case VaultMessageType::kAlive:
      return HandleReport(*connection, message);
    case VaultMessageType::kDescriptor:
      return MalformedMessage("an answer");
  }
  return MalformedMessage("no such type");
}

absl::Status Vault::HandleReport(const Connection& connection,
                                 const VaultMessage& message) {
  Speaker& speaker = speakers_.at(connection.pid);
  VaultReport report;
  report.type = message.type;
  report.rank = *connection.rank;
  report.pid = connection.pid;
  switch (message.type) {
    case VaultMessageType::kProgress:
      if (message.done_bytes > message.size_bytes) {
        return MalformedMessage("more than everything is done");
      }
      report.done_bytes = message.done_bytes;
      report.total_bytes = message.size_bytes;
      speaker.done_bytes = message.done_bytes;
      speaker.total_bytes = message.size_bytes;
      break;
    case VaultMessageType::kReady:
      for (int port : {message.port, message.admin_port}) {
        if (port < 0 || port > 65535) return MalformedMessage("no such port");
      }
      report.port = message.port;
      report.admin_port = message.admin_port;
      report.checkpoint = message.checkpoint;
      break;
    case VaultMessageType::kReplace:
    case VaultMessageType::kStrayStop:
    case VaultMessageType::kAlive:
      // Of a worker, or of itself.
      if (*connection.rank != -1 ||
          (message.type == VaultMessageType::kReplace) != (message.rank >= 0)) {
        return MalformedMessage("only the coordinator says so");
      }
      report.rank = message.rank;
      report.incarnation = message.incarnation;
      break;
    default: {
      const size_t size = strnlen(message.text, sizeof(message.text));
      if (size == sizeof(message.text)) {
        return MalformedMessage("text without end");
      }
      report.text = Printable({message.text, size});
      speaker.last_words = {report.text, message.lasting != 0};
      break;
    }
  }
  reports_.push_back(std::move(report));
  return absl::OkStatus();
}

absl::Status Vault::HandleRequest(Connection* connection,
                                  const VaultMessage& message,
                                  UniqueFd attached) {
  const int socket = connection->socket.get();
  if (message.type == VaultMessageType::kWhoIs) {
    return HandleWhoIs(*connection, message);
  }
  if (message.type == VaultMessageType::kTrouble) {
    return HandleTrouble(*connection, message);
  }
  if (*connection->rank < 0) {
    return MalformedMessage("the coordinator has no business with memory");
  }
  switch (message.type) {
    case VaultMessageType::kDeposit:
      return HandleDeposit(connection, message, std::move(attached));
    case VaultMessageType::kWithdraw: {
      const KeptRegion* kept = Find(message.region, message.rank);
      if (kept == nullptr) return Refuse(socket, message, "nothing is kept");
      return Answer(socket, message, kept->fd.get(), *kept);
    }
    default:
      if (message.rank < 0) return MalformedMessage("no such rank");
      if (message.region == RegionKind::kDense) {
        return Refuse(socket, message, "dense regions are not for peers");
      }
      // One a connection: a new request means that the old was given up.
      connection->borrow = Borrow{message.region, message.rank};
      return AnswerBorrow(connection);
  }
}

absl::Status Vault::HandleWhoIs(const Connection& connection,
                                const VaultMessage& message) {
  if (*connection.rank != -1) {
    return MalformedMessage("only the coordinator asks who somebody is");
  }
  VaultMessage answer = AnswerTo(message);
  const auto speaker = speakers_.find(message.pid);
  if (speaker != speakers_.end()) answer.speaks_for = speaker->second.rank;
  return SendAnswer(connection.socket.get(), answer, -1);
}

absl::Status Vault::HandleTrouble(const Connection& connection,
                                  const VaultMessage& message) {
  if (*connection.rank != -1 || message.rank < 0) {
    return MalformedMessage("only the coordinator asks for a worker's trouble");
  }
  VaultMessage answer = AnswerTo(message);
  const auto trouble = troubles_.find(message.rank);
  if (trouble != troubles_.end()) SetText(trouble->second, &answer);
  for (const auto& [pid, speaker] : speakers_) {
    if (speaker.rank != message.rank) continue;
    answer.incarnation = speaker.incarnation;
    answer.done_bytes = speaker.done_bytes;
    answer.size_bytes = speaker.total_bytes;
  }
  return SendAnswer(connection.socket.get(), answer, -1);
}

absl::Status Vault::HandleDeposit(Connection* connection,
                                  const VaultMessage& message,
                                  UniqueFd attached) {
  const int socket = connection->socket.get();
  KeptRegions& kept = kept_[message.rank];
  if (const absl::Status good =
          AdmitRegion(kept, message.region, message.region_class,
                      attached.get(), message.size_bytes);
      !good.ok()) {
    return Refuse(socket, message, good.message());
  }
  KeptRegion& place = kept[static_cast<size_t>(message.region)];
  place = {std::move(attached), message.size_bytes, message.region_class};
  const absl::Status answered = Answer(socket, message, -1, place);
  AnswerBorrowsOf(message.region, message.rank);
  return answered;
}

void Vault::AnswerBorrowsOf(RegionKind region, Rank rank) {
  std::vector<std::pair<uint64_t, absl::Status>> failed;
  for (auto& [id, connection] : connections_) {
    if (!connection.borrow || connection.borrow->region != region ||
        connection.borrow->rank != rank) {
      continue;
    }
    const absl::Status answered = AnswerBorrow(&connection);
    if (!answered.ok()) failed.emplace_back(id, answered);
  }
  for (const auto& [id, why] : failed) Drop(id, why);
}

// Nothing happens while the region is not deposited.
absl::Status Vault::AnswerBorrow(Connection* connection) {
  const Borrow borrow = *connection->borrow;
  const KeptRegion* kept = Find(borrow.region, borrow.rank);
  if (kept == nullptr) return absl::OkStatus();
  connection->borrow.reset();
  VaultMessage request;
  request.type = VaultMessageType::kBorrow;
  request.region = borrow.region;
  request.rank = borrow.rank;
  const int socket = connection->socket.get();
  UniqueFd opened;
  const auto fd = DescriptorForPeer(*kept, borrow.region, opened);
  if (!fd.ok()) return Refuse(socket, request, fd.status().message());
  return Answer(socket, request, *fd, *kept);
}

// --- descriptors -----------------------------------------------------------

const KeptRegion* Vault::Find(RegionKind region, Rank rank) const {
  const auto it = kept_.find(rank);
  if (it == kept_.end()) return nullptr;
  const KeptRegion& kept = it->second[static_cast<int>(region)];
  return kept.fd ? &kept : nullptr;
}

void Vault::Forget(Rank rank) {
  absl::MutexLock lock(&mutex_);
  kept_.erase(rank);
}

void Vault::SetTrouble(Rank rank, std::string why) {
  absl::MutexLock lock(&mutex_);
  if (why.empty()) {
    troubles_.erase(rank);
  } else {
    troubles_[rank] = std::move(why);
  }
}

int Vault::NumKept(Rank rank) const {
  absl::MutexLock lock(&mutex_);
  int count = 0;
  for (int i = 0; i < kNumRegionKinds; ++i) {
    if (Find(static_cast<RegionKind>(i), rank) != nullptr) ++count;
  }
  return count;
}

}  // namespace moebius
