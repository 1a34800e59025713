#include "coordinator/engine/faulty_hub.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/wire/wire.h"

namespace moebius {
namespace {

static_assert(std::variant_size_v<wire::Command> == kCommandNames.size());
static_assert(std::variant_size_v<wire::Report> == kReportNames.size());

// Index of the message's name; nothing if it is no message.
std::optional<size_t> KindOf(Direction direction, std::string_view bytes) {
  const auto span = absl::MakeConstSpan(bytes.data(), bytes.size());
  if (direction == Direction::kCommand) {
    const auto message = wire::DecodeCommand(span);
    if (message.ok()) return message->command.index();
  } else {
    const auto message = wire::DecodeReport(span);
    if (message.ok()) return message->report.index();
  }
  return std::nullopt;
}

void Log(Direction direction, std::optional<size_t> kind, Rank rank,
         const char* what) {
  const bool command = direction == Direction::kCommand;
  const std::string_view name = !kind.has_value() ? "nonsense"
                                : command         ? kCommandNames[*kind]
                                                  : kReportNames[*kind];
  LogInfo(name, " ", command ? "to" : "of", " worker ", rank, ": ", what);
}

}  // namespace

absl::Status FaultyHub::Send(Rank rank, Incarnation incarnation,
                             std::string_view bytes) {
  Release(received_);
  if (bytes.empty()) return hub_->Send(rank, incarnation, bytes);
  return Deal(Direction::kCommand,
              Message{rank, incarnation, std::string(bytes)}, received_);
}

absl::StatusOr<std::vector<Hub::Message>> FaultyHub::Receive(int timeout_ms) {
  std::vector<Message> received = std::exchange(received_, {});
  Release(received);
  if (!received.empty()) timeout_ms = 0;
  for (const Held& held : held_) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(held.due - now_());
    const int left_ms = static_cast<int>(std::max<int64_t>(0, left.count()));
    if (timeout_ms < 0 || left_ms < timeout_ms) timeout_ms = left_ms;
  }
  ASSIGN_OR_RETURN(std::vector<Message> arrived, hub_->Receive(timeout_ms));
  for (Message& message : arrived) {
    if (message.bytes.empty()) {
      received.push_back(std::move(message));
    } else {
      RETURN_IF_ERROR(Deal(Direction::kReport, std::move(message), received));
    }
  }
  Release(received);
  return received;
}

absl::Status FaultyHub::Deal(Direction direction, Message message,
                             std::vector<Message>& received) {
  using Kind = MessageFate::Kind;
  const LinkState state = state_of_link_
                              ? state_of_link_(direction, message.rank)
                              : LinkState::kOpen;
  if (state == LinkState::kFull && direction == Direction::kCommand) {
    return absl::UnavailableError(
        absl::StrCat("the queue to worker ", message.rank, " is full"));
  }
  if (state != LinkState::kOpen) {
    Log(direction, KindOf(direction, message.bytes), message.rank, "lost");
    return absl::OkStatus();
  }
  if (!any_) return Pass(direction, message, received);
  MessageFate fate;
  const auto kind = KindOf(direction, message.bytes);
  if (kind.has_value()) fate = fates_.Next(direction, *kind, message.rank);
  auto due = now_();
  switch (fate.kind) {
    case Kind::kLose:
      Log(direction, kind, message.rank, "lost");
      return absl::OkStatus();
    case Kind::kSwap:
      Log(direction, kind, message.rank, "out of order");
      HoldToBeOvertaken(direction, message, fate.delay_ms);
      return absl::OkStatus();
    case Kind::kEcho: {
      Log(direction, kind, message.rank, "comes again later");
      const absl::Status passed = Pass(direction, message, received);
      HoldToBeOvertaken(direction, message, fate.delay_ms);
      return passed;
    }
    case Kind::kDelay:
      due += std::chrono::milliseconds(fate.delay_ms);
      break;
    case Kind::kRepeat:
    case Kind::kPass:
      break;
  }
  const int copies = fate.kind == Kind::kRepeat ? 2 : 1;
  // A message that comes after one that waits in order waits behind it.
  const auto before =
      std::find_if(held_.rbegin(), held_.rend(), [&](const Held& held) {
        return held.order == Order::kKept && held.direction == direction &&
               held.message.rank == message.rank;
      });
  if (before != held_.rend()) due = std::max(due, before->due);
  const bool at_once = due <= now_() && before == held_.rend();
  for (int i = 0; i < copies; ++i) {
    if (at_once) {
      RETURN_IF_ERROR(Pass(direction, message, received));
    } else {
      Hold(direction, message, due, Order::kKept);
    }
  }
  return absl::OkStatus();
}

void FaultyHub::Hold(Direction direction, const Message& message,
                     Clock::time_point due, Order order) {
  if (held_.size() >= kMaxHeld) {
    // Full: this one is the victim of nothing.
    if (absl::Status sent = Pass(direction, message, received_); !sent.ok()) {
      LogDebug(sent.ToString());
    }
    return;
  }
  held_.push_back(Held{direction, message, due, order});
}

void FaultyHub::HoldToBeOvertaken(Direction direction, const Message& message,
                                  int delay_ms) {
  if (delay_ms > 0) {
    Hold(direction, message, now_() + std::chrono::milliseconds(delay_ms),
         Order::kNone);
  } else {
    Hold(direction, message, now_() + kSwapTimeout, Order::kUntilOvertaken);
  }
}

absl::Status FaultyHub::Pass(Direction direction, const Message& message,
                             std::vector<Message>& received) {
  absl::Status status;
  if (direction == Direction::kCommand) {
    status = hub_->Send(message.rank, message.incarnation, message.bytes);
  } else {
    received.push_back(message);
  }
  // Those that waited to be overtaken have been.
  const auto now = now_();
  for (Held& held : held_) {
    if (held.order == Order::kUntilOvertaken && held.direction == direction &&
        held.message.rank == message.rank) {
      held.due = std::min(held.due, now);
    }
  }
  return status;
}

void FaultyHub::Release(std::vector<Message>& received) {
  const auto now = now_();
  for (auto it = held_.begin(); it != held_.end();) {
    if (it->due > now) {
      ++it;
      continue;
    }
    const Held held = std::move(*it);
    it = held_.erase(it);
    // A worker that is gone by now does not miss it.
    if (absl::Status sent = Pass(held.direction, held.message, received);
        !sent.ok()) {
      LogDebug(sent.ToString());
    }
  }
}

}  // namespace moebius
