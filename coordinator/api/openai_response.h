// The bodies and stream events of answers. Pure serialisation.
//
// Events of a stream are assembled by hand: whatever does not change between
// them is written once, and an event is a handful of appends.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "common/step/step_result.h"
#include "coordinator/api/text_codec.h"
#include "coordinator/engine/engine.h"

namespace moebius {

// What every body and event of one answer says.
struct AnswerHead {
  bool chat = false;
  std::string id;  // "cmpl-..." or "chatcmpl-..."
  std::string model;
  int64_t created = 0;  // Unix time
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
};

// A token with its log-probability; none for the first token of a prompt.
struct ScoredToken {
  int32_t token = 0;
  std::optional<float> logprob;
  absl::Span<const TokenLogprob> top;
};

// Which log-probabilities a client asked for.
struct LogprobsWanted {
  bool any = false;
  int num_top = 0;
};

// Log-probabilities in the format of completions: four parallel lists. Offsets
// count characters of the choice's text, starting where `*text_offset` says,
// which is moved on.
void AppendCompletionLogprobs(absl::Span<const ScoredToken> tokens,
                              const TextCodec& codec, int64_t* text_offset,
                              std::string* out);
// In the format of chat completions: {"content":[...]}.
void AppendChatLogprobs(absl::Span<const ScoredToken> tokens, int num_top,
                        const TextCodec& codec, std::string* out);

// Log-probabilities of a prompt of `num_tokens`, as in vLLM: a list with null
// for the first token, then for each an object of the token and of the
// `num_top` likeliest: {"ID":{"logprob":..,"rank":..,"decoded_token":".."}}.
void AppendPromptLogprobs(absl::Span<const PromptLogprob> logprobs,
                          int num_tokens, int num_top, const TextCodec& codec,
                          std::string* out);

// How the end of a choice reads. The stop reason is null, the stop string or
// the id of the stop token, as in vLLM; an end-of-sequence token is null. An
// answer that the server's end has cut has the finish "length" and the stop
// reason "abort".
struct FinishInfo {
  FinishReason reason = FinishReason::kStop;
  std::string stop_string;  // empty: none
  std::optional<int32_t> stop_token;
};

// ---- streams ----------------------------------------------------------------

// What one event adds to one choice.
struct ChunkEvent {
  int index = 0;
  std::string_view text;
  bool first = false;         // of the choice: carries the role
  std::string_view logprobs;  // serialised; empty: null
  // With return_token_ids:
  bool with_token_ids = false;
  absl::Span<const int32_t> token_ids;
  absl::Span<const int32_t> prompt_token_ids;  // of the first event
  std::optional<FinishInfo> finish;
  std::optional<Usage> usage;  // of the choice, up to this event
};

// ChunkWriter
//
// Appends "data: {...}\n\n" events of one answer. Threading: thread-compatible.
class ChunkWriter {
 public:
  // With `include_usage` each event that has none says "usage":null.
  ChunkWriter(const AnswerHead& head, bool include_usage);

  void Append(const ChunkEvent& event, std::string* out) const;
  // The event with the usage and no choices.
  void AppendUsage(const Usage& usage, std::string* out) const;
  static void AppendDone(std::string* out);

 private:
  bool chat_;
  std::string begin_;  // up to the list of choices
  std::string end_;    // from the end of the list on
};

// ---- whole bodies -----------------------------------------------------------

struct ChoiceBody {
  int index = 0;
  std::string text;
  std::string logprobs;         // serialised; empty: null
  std::string prompt_logprobs;  // serialised; empty: not asked for
  bool with_token_ids = false;
  std::vector<int32_t> token_ids;
  absl::Span<const int32_t> prompt_token_ids;
  FinishInfo finish;
};

// In chats, which have one prompt, what speaks of that also stands beside the
// choices: its ids, and its log-probabilities there alone.
std::string AnswerBody(const AnswerHead& head,
                       absl::Span<const ChoiceBody> choices,
                       const Usage& usage);

// {"object":"list","data":[...]} with one model.
std::string ModelsBody(std::string_view model, std::string_view root,
                       int max_model_len, int64_t created);
// One model.
std::string ModelBody(std::string_view model, std::string_view root,
                      int max_model_len, int64_t created);

std::string TokenizeBody(absl::Span<const int32_t> tokens, int max_model_len,
                         const TextCodec* with_strings);
std::string DetokenizeBody(std::string_view text);

}  // namespace moebius
