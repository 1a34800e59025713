// Ids of a stream's events, by which a client that comes back says what it has.
// Pure.
//
// "9f3c2a7b.17" is of the answer 9f3c2a7b and says that its client has 17
// tokens; "9f3c2a7b.17-16" is of an answer with two choices. The answer is
// named because its request may be answered anew, under the same key and with
// other tokens, by a server that has lost the first answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/http/api_error.h"

namespace moebius {

struct EventId {
  std::optional<uint32_t> answer;  // nothing: the client does not say which
  std::vector<int64_t> counts;     // tokens of each choice
  friend bool operator==(const EventId&, const EventId&) = default;
};

// What an event's id calls the answer "cmpl-...".
uint32_t AnswerTag(std::string_view answer_id);

void AppendEventId(uint32_t answer, absl::Span<const int64_t> counts,
                   std::string* out);

// Also counts alone ("17-16"). Nothing for anything else.
std::optional<EventId> ParseEventId(std::string_view text);

// Why a client cannot go on behind `last` of an answer, or nothing. `answer_id`
// is of the answer that its key stands for; nothing: the key is unknown, or its
// answer is kept no longer. 404 unless the client has the wrong request (400).
std::optional<ApiError> RefuseResume(const EventId& last,
                                     std::optional<std::string_view> answer_id,
                                     size_t num_choices);

// 404: the answer that a client wants the rest of is not here.
ApiError NotResumable();

}  // namespace moebius
