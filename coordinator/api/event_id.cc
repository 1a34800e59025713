#include "coordinator/api/event_id.h"

#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/fnv.h"

namespace moebius {
namespace {

constexpr size_t kTagDigits = 8;
// More choices than a request may have.
constexpr size_t kMaxCounts = 1 << 16;
constexpr size_t kMaxCountDigits = 10;

// Cuts a whole number in decimal digits from the front of `text`.
bool TakeCount(std::string_view& text, int64_t& count) {
  if (text.empty() || text[0] < '0' || text[0] > '9') return false;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), count);
  const size_t digits = static_cast<size_t>(end - text.data());
  if (error != std::errc() || digits > kMaxCountDigits) return false;
  text.remove_prefix(digits);
  return true;
}

}  // namespace

uint32_t AnswerTag(std::string_view answer_id) {
  Fnv1a hash;
  for (unsigned char c : answer_id) hash.Add(c);
  return static_cast<uint32_t>(hash.hash() ^ (hash.hash() >> 32));
}

void AppendEventId(uint32_t answer, absl::Span<const int64_t> counts,
                   std::string* out) {
  out->append(absl::StrFormat("%08x", answer));
  for (size_t i = 0; i < counts.size(); ++i) {
    absl::StrAppend(out, i == 0 ? "." : "-", counts[i]);
  }
}

std::optional<EventId> ParseEventId(std::string_view text) {
  EventId id;
  if (const size_t dot = text.find('.'); dot != text.npos) {
    uint32_t tag = 0;
    const char* const end = text.data() + dot;
    const auto [stop, error] = std::from_chars(text.data(), end, tag, 16);
    if (dot != kTagDigits || error != std::errc() || stop != end) {
      return std::nullopt;
    }
    id.answer = tag;
    text.remove_prefix(dot + 1);
  }
  while (id.counts.size() < kMaxCounts) {
    int64_t count = 0;
    if (!TakeCount(text, count)) return std::nullopt;
    id.counts.push_back(count);
    if (text.empty()) return id;
    if (text[0] != '-') return std::nullopt;
    text.remove_prefix(1);
  }
  return std::nullopt;
}

std::optional<ApiError> RefuseResume(const EventId& last,
                                     std::optional<std::string_view> answer_id,
                                     size_t num_choices) {
  if (!answer_id.has_value()) return NotResumable();
  if (last.answer.has_value() && *last.answer != AnswerTag(*answer_id)) {
    return NotResumable();
  }
  if (last.counts.size() == num_choices) return std::nullopt;
  return BadField("Last-Event-ID",
                  Cat("Last-Event-ID speaks of ", last.counts.size(),
                      " choices; the request has ", num_choices));
}

ApiError NotResumable() {
  ApiError error;
  error.http_status = 404;
  error.param = "Last-Event-ID";
  error.code = "answer_not_resumable";
  error.message =
      "the answer that this Last-Event-ID is of is not here, or not any more: "
      "without a Last-Event-ID the request is answered from the beginning, "
      "maybe with other tokens";
  return error;
}

}  // namespace moebius
