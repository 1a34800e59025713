// The bodies of requests, parsed and checked. Pure.
//
// Every function gives a value or the error to answer with: 400 whose `param`
// names the field at fault and whose message says what is allowed, or 404 for
// a model that is not served. Fields that nobody has heard of are ignored,
// those of unsupported_fields.h refused; null is the same as a field left out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "common/config/config.h"
#include "common/step/sampling_params.h"
#include "coordinator/api/generation_defaults.h"
#include "coordinator/api/json_input.h"
#include "coordinator/api/text_codec.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/api_error.h"

namespace moebius {

inline constexpr int kMaxChoices = 128;  // rollouts come in groups
inline constexpr int kMaxPrompts = 256;
inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopStringBytes = 256;
inline constexpr int kMaxStopTokenIds = 256;
inline constexpr int kMaxBadWordStrings = 64;
inline constexpr int kMaxBadWordBytes = 256;
inline constexpr int kMaxMessages = 4096;
inline constexpr int kMaxContentParts = 4096;
inline constexpr int kMaxTools = 512;
inline constexpr int kMaxDocuments = 512;
inline constexpr int kMaxReasoningEffortBytes = 64;
inline constexpr int kMaxUserBytes = 1024;
// The text of so many tokens is a few times as large as a request may be.
inline constexpr int kMaxDetokenized = 1 << 17;

// What the model and the server allow, and what they take for granted.
struct ApiLimits {
  std::string model;  // the name it is served under
  int max_model_len = 0;
  int vocab_size = 0;
  GenerationDefaults defaults;
  int max_queue = 1024;                  // generations that may wait
  bool allow_request_templates = false;  // the field `chat_template`
};

// A value, or the error to answer with.
template <typename T>
class Parsed {
 public:
  Parsed(T value) : rep_(std::move(value)) {}
  Parsed(ApiError error) : rep_(std::move(error)) {}
  bool ok() const { return rep_.index() == 0; }
  T& operator*() { return std::get<0>(rep_); }
  const T& operator*() const { return std::get<0>(rep_); }
  T* operator->() { return &std::get<0>(rep_); }
  const T* operator->() const { return &std::get<0>(rep_); }
  const ApiError& error() const { return std::get<1>(rep_); }

 private:
  std::variant<T, ApiError> rep_;
};

// What completions and chat completions share. `sampling.seed`,
// `sampling.suppressed_ids`, `sampling.bad_words` and `stop.max_tokens` are
// still to be filled in.
struct GenerationFields {
  std::optional<int> max_tokens;
  std::string max_tokens_field;  // the name it was given under
  int n = 1;
  std::optional<int64_t> seed;
  SamplingParams sampling;
  StopCriteria stop;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;  // in each event
  bool return_token_ids = false;
  std::vector<std::string> bad_words;
  std::optional<int> prompt_logprobs;
  // Of the prompt only the last so many tokens count; -1: as many as fit.
  std::optional<int> truncate_prompt_tokens;
};

using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  GenerationFields generation;
  std::vector<Prompt> prompts;  // 1 .. kMaxPrompts
  bool echo = false;
  std::optional<int> logprobs;
};

struct ChatRequest {
  GenerationFields generation;
  ChatInput input;
  bool logprobs = false;
  int top_logprobs = 0;
};

struct TokenizeRequest {
  std::variant<std::string, ChatInput> input;
  bool return_token_strs = false;
};

struct DetokenizeRequest {
  std::vector<int32_t> tokens;
};

Parsed<CompletionRequest> ParseCompletion(std::string_view body,
                                          const ApiLimits& limits);
Parsed<ChatRequest> ParseChat(std::string_view body, const ApiLimits& limits);
Parsed<TokenizeRequest> ParseTokenize(std::string_view body,
                                      const ApiLimits& limits);
Parsed<DetokenizeRequest> ParseDetokenize(std::string_view body,
                                          const ApiLimits& limits);
// {"layout": "auto", or the name of one of `layouts`}. Two names of one layout
// give the same choice.
Parsed<LayoutChoice> ParseLayoutBody(std::string_view body,
                                     const std::vector<Layout>& layouts,
                                     int num_ranks);

}  // namespace moebius
