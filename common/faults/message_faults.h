// Faults of the control channel, injected on purpose: what may happen to a
// message between the coordinator and a worker, and the draw that decides it.
// Values and decisions only; coordinator/engine/faulty_hub.h carries them out.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"

namespace moebius {

enum class Direction : uint8_t { kCommand, kReport };

// Names of the messages, in the order of wire.h's variants.
inline constexpr std::array<std::string_view, 10> kCommandNames = {
    "greet", "halt",    "load",   "restore", "resume",
    "step",  "prepare", "commit", "abort",   "shutdown"};
inline constexpr std::array<std::string_view, 9> kReportNames = {
    "hello",    "halted",   "loaded", "interrupted",    "result",
    "prepared", "switched", "fault",  "weights_checked"};

// What befalls a message.
struct MessageFate {
  enum class Kind : uint8_t {
    kPass,
    kLose,
    kRepeat,  // it comes twice
    kDelay,   // nothing overtakes it
    kSwap,    // the next one of its channel overtakes it
    kEcho,    // it comes, and once more behind the next one
  };
  Kind kind = Kind::kPass;
  // Of kDelay. Of kSwap and kEcho, if not 0: it comes so much later, whatever
  // overtakes it meanwhile.
  int delay_ms = 0;
  friend bool operator==(const MessageFate&, const MessageFate&) = default;
};

// A fate for certain messages: the nth one of a kind, or that to or from one
// rank.
struct MessageRule {
  Direction direction{};
  size_t message = 0;  // index into the names
  std::optional<Rank> rank;
  uint32_t nth = 1;
  MessageFate fate;
};

// Shares of all messages that are lost, repeated, overtaken by their
// successor; the longest delay; rules for single ones.
struct MessageFaults {
  static constexpr size_t kMaxRules = 32;
  double lose = 0, repeat = 0, reorder = 0;
  int delay_ms = 0;
  uint64_t seed = 1;
  std::vector<MessageRule> rules;

  // Whether anything can befall a message.
  bool any() const {
    return lose > 0 || repeat > 0 || reorder > 0 || delay_ms > 0 ||
           !rules.empty();
  }
};

// The text form: words with spaces between.
//
//   lose=SHARE repeat=SHARE reorder=SHARE delay_ms=MS seed=N
//   lose_command=KIND[@RANK][#NTH]
//   delay_command=KIND[@RANK][#NTH]:MS
//   swap_command=KIND[@RANK][#NTH][:MS]
//   echo_command=KIND[@RANK][#NTH][:MS]    and all of them with _report
//
// "lose=0.02 seed=7", "lose_command=commit@1#2". Without @RANK the nth of all
// ranks counts. kInvalidArgument says what is wrong.
absl::StatusOr<MessageFaults> ParseMessageFaults(std::string_view text);

// Draws fates: equal faults and equal messages give equal fates.
// Threading: thread-compatible.
class MessageFates {
 public:
  explicit MessageFates(MessageFaults faults)
      : faults_(std::move(faults)), seen_(faults_.rules.size()) {}

  MessageFate Next(Direction direction, size_t message, Rank rank);

 private:
  double Draw();  // in [0, 1)

  MessageFaults faults_;
  std::vector<uint32_t> seen_;  // [rule] messages it speaks of
  uint64_t draws_ = 0;
};

}  // namespace moebius
