#include "common/faults/message_faults.h"

#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/base/cat.h"
#include "common/base/split_mix.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

constexpr int kMaxDelayMs = 600'000;

constexpr std::array<std::pair<std::string_view, MessageFate::Kind>, 4> kFates =
    {{{"lose_", MessageFate::Kind::kLose},
      {"delay_", MessageFate::Kind::kDelay},
      {"swap_", MessageFate::Kind::kSwap},
      {"echo_", MessageFate::Kind::kEcho}}};

absl::Status Wrong(std::string_view word, std::string_view what) {
  return absl::InvalidArgumentError(
      AbslView(Cat("message fault \"", word, "\": ", what)));
}

bool ParseShare(std::string_view text, double* share) {
  double value = 0;
  if (!absl::SimpleAtod(AbslView(text), &value)) return false;
  if (!(value >= 0 && value <= 1)) return false;
  *share = value;
  return true;
}

bool ParseDelay(std::string_view text, int* delay_ms) {
  return absl::SimpleAtoi(AbslView(text), delay_ms) && *delay_ms >= 0 &&
         *delay_ms <= kMaxDelayMs;
}

// Cuts `text` at the first `mark`; what stood behind it, or nothing.
std::optional<std::string_view> CutBehind(std::string_view& text, char mark) {
  const size_t at = text.find(mark);
  if (at == text.npos) return std::nullopt;
  const std::string_view behind = text.substr(at + 1);
  text = text.substr(0, at);
  return behind;
}

template <size_t N>
std::optional<size_t> IndexOf(const std::array<std::string_view, N>& names,
                              std::string_view name) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return i;
  }
  return std::nullopt;
}

// `key` is "lose_command", `value` is "commit@1#2".
absl::StatusOr<MessageRule> ParseRule(std::string_view word,
                                      std::string_view key,
                                      std::string_view value) {
  MessageRule rule;
  for (const auto& [prefix, kind] : kFates) {
    if (!key.starts_with(prefix)) continue;
    rule.fate.kind = kind;
    key.remove_prefix(prefix.size());
    break;
  }
  if (rule.fate.kind == MessageFate::Kind::kPass ||
      (key != "command" && key != "report")) {
    return Wrong(word,
                 "the words are lose, repeat, reorder, delay_ms, seed, and "
                 "lose_, delay_, swap_ or echo_ before command or report");
  }
  rule.direction = key == "command" ? Direction::kCommand : Direction::kReport;
  const auto delay = CutBehind(value, ':');
  const bool loses = rule.fate.kind == MessageFate::Kind::kLose;
  const bool delays = rule.fate.kind == MessageFate::Kind::kDelay;
  if ((loses && delay.has_value()) || (delays && !delay.has_value()) ||
      (delay.has_value() && !ParseDelay(*delay, &rule.fate.delay_ms))) {
    return Wrong(word,
                 "delay_ takes :MILLISECONDS, swap_ and echo_ may, lose_ not");
  }
  const auto nth = CutBehind(value, '#');
  if (nth.has_value() &&
      (!absl::SimpleAtoi(AbslView(*nth), &rule.nth) || rule.nth == 0)) {
    return Wrong(word, "behind # stands a number from 1");
  }
  if (const auto rank = CutBehind(value, '@')) {
    rule.rank.emplace();
    if (!absl::SimpleAtoi(AbslView(*rank), &*rule.rank) || *rule.rank < 0 ||
        *rule.rank >= kMaxRanks) {
      return Wrong(word, "behind @ stands a rank");
    }
  }
  const auto message = rule.direction == Direction::kCommand
                           ? IndexOf(kCommandNames, value)
                           : IndexOf(kReportNames, value);
  if (!message.has_value()) return Wrong(word, "there is no such message");
  rule.message = *message;
  return rule;
}

absl::Status ParseWord(std::string_view word, MessageFaults& faults) {
  std::string_view key = word;
  const auto value = CutBehind(key, '=');
  if (!value.has_value()) return Wrong(word, "the form is KEY=VALUE");
  for (const auto& [name, share] :
       {std::pair<std::string_view, double*>{"lose", &faults.lose},
        {"repeat", &faults.repeat},
        {"reorder", &faults.reorder}}) {
    if (key != name) continue;
    return ParseShare(*value, share)
               ? absl::OkStatus()
               : Wrong(word, "a share is a number from 0 to 1");
  }
  if (key == "delay_ms") {
    return ParseDelay(*value, &faults.delay_ms)
               ? absl::OkStatus()
               : Wrong(word, "a delay has 0 to 600000 milliseconds");
  }
  if (key == "seed") {
    return absl::SimpleAtoi(AbslView(*value), &faults.seed)
               ? absl::OkStatus()
               : Wrong(word, "a seed is a whole number");
  }
  if (faults.rules.size() == MessageFaults::kMaxRules) {
    return Wrong(word,
                 Cat("there are ", MessageFaults::kMaxRules, " rules already"));
  }
  ASSIGN_OR_RETURN(faults.rules.emplace_back(), ParseRule(word, key, *value));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MessageFaults> ParseMessageFaults(std::string_view text) {
  MessageFaults faults;
  for (absl::string_view word :
       absl::StrSplit(AbslView(text), ' ', absl::SkipEmpty())) {
    RETURN_IF_ERROR(ParseWord(StdView(word), faults));
  }
  return faults;
}

// Seeds and draws go in with different factors: neighbouring seeds would else
// draw the same numbers.
double MessageFates::Draw() {
  return UnitInterval(
      SplitMix(faults_.seed * kSplitMixGamma + ++draws_ * 0xd1342543de82ef95));
}

MessageFate MessageFates::Next(Direction direction, size_t message, Rank rank) {
  MessageFate fate;
  for (size_t i = 0; i < faults_.rules.size(); ++i) {
    const MessageRule& rule = faults_.rules[i];
    if (rule.direction != direction || rule.message != message ||
        rule.rank.value_or(rank) != rank) {
      continue;
    }
    if (++seen_[i] == rule.nth) fate = rule.fate;
  }
  if (fate.kind != MessageFate::Kind::kPass) return fate;
  const double draw = Draw(), how_long = Draw();
  double bound = faults_.lose;
  if (draw < bound) return {MessageFate::Kind::kLose, 0};
  bound += faults_.repeat;
  if (draw < bound) return {MessageFate::Kind::kRepeat, 0};
  bound += faults_.reorder;
  if (draw < bound) return {MessageFate::Kind::kSwap, 0};
  if (faults_.delay_ms == 0) return fate;
  return {MessageFate::Kind::kDelay,
          static_cast<int>(how_long * (faults_.delay_ms + 1))};
}

}  // namespace moebius
