// A hub on which messages are lost, repeated, late and out of order, on
// purpose.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/channel/channel.h"
#include "common/faults/message_faults.h"

namespace moebius {

// FaultyHub
//
// Stands before another hub and does to the messages of both directions what
// MessageFates draws; nothing at all passes a link that is cut. A message
// without bytes (a worker has connected) always passes at once. A loss is no
// error to the sender; a full queue is, as where a worker takes nothing for
// long.
//
// Threading: as Hub.
// Bounds: kMaxHeld messages wait; beyond it one passes at once.
class FaultyHub final : public Hub {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMaxHeld = 256;
  // One that is to be overtaken waits no longer than this for its successor.
  static constexpr std::chrono::milliseconds kSwapTimeout{200};

  enum class LinkState : uint8_t { kOpen, kCut, kFull };
  // Asked of each message, before its fate is drawn.
  using StateOfLink = std::function<LinkState(Direction, Rank)>;

  FaultyHub(std::unique_ptr<Hub> hub, MessageFaults faults,
            StateOfLink state_of_link = {},
            std::function<Clock::time_point()> now = &Clock::now)
      : hub_(std::move(hub)),
        any_(faults.any()),
        fates_(std::move(faults)),
        state_of_link_(std::move(state_of_link)),
        now_(std::move(now)) {}

  absl::Status Send(Rank rank, Incarnation incarnation,
                    std::string_view bytes) override;
  absl::StatusOr<std::vector<Message>> Receive(int timeout_ms) override;
  void Wake() override { hub_->Wake(); }
  absl::StatusOr<bool> Restore() override { return hub_->Restore(); }

  size_t num_held() const { return held_.size(); }

 private:
  enum class Order : uint8_t {
    kKept,            // what comes after it waits behind it
    kUntilOvertaken,  // due once one has overtaken it
    kNone,
  };
  struct Held {
    Direction direction{};
    Message message;
    Clock::time_point due;
    Order order{};
  };

  void Hold(Direction direction, const Message& message, Clock::time_point due,
            Order order);
  void HoldToBeOvertaken(Direction direction, const Message& message,
                         int delay_ms);
  // Passes the message on, or keeps it, as `fate` says.
  absl::Status Deal(Direction direction, Message message,
                    std::vector<Message>& received);
  absl::Status Pass(Direction direction, const Message& message,
                    std::vector<Message>& received);
  // Passes what is due.
  void Release(std::vector<Message>& received);

  std::unique_ptr<Hub> hub_;
  const bool any_;  // else no message is looked into
  MessageFates fates_;
  StateOfLink state_of_link_;
  std::function<Clock::time_point()> now_;
  std::list<Held> held_;  // in the order in which they came
  // Reports that fell due while a command was sent.
  std::vector<Message> received_;
};

}  // namespace moebius
