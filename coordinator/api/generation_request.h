// From a request's body to what the engine is asked for. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/openai_request.h"
#include "coordinator/api/openai_response.h"
#include "coordinator/api/text_codec.h"
#include "coordinator/engine/engine.h"

namespace moebius {

// Numbers that a request may put into the memory of engine and journal: tokens
// of prompts, entries of lists, log-probabilities of prompts, over all of its
// generations.
inline constexpr int64_t kMaxRequestNumbers = int64_t{1} << 23;

struct PreparedPrompt {
  int num_tokens = 0;
  std::vector<int32_t> ids;  // if the answer shows them or their scores
  std::string text;          // if the answer repeats it
};

// A request that may be submitted. Generation p * n + j is choice j of prompt
// p, and the index of its choice in the answer.
struct PreparedRequest {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool return_token_ids = false;
  bool echo = false;
  // The client wants its prompt scored and no token (max_tokens 0 with echo):
  // the engine generates one, which is dropped.
  bool score_only = false;
  LogprobsWanted logprobs;
  std::optional<int> prompt_logprobs;  // so many likeliest tokens of each
  int n = 1;
  std::vector<PreparedPrompt> prompts;
  std::vector<Generation> generations;
  int64_t num_numbers = 0;  // see kMaxRequestNumbers
};

// With a seed, choice j of every prompt has the seed plus j, so a list of
// prompts gives what they give one by one. Without one, generation i has
// `drawn_seed` plus i: equal prompts differ.
//
// Errors: beside those of the body itself, 400 for more generations than may
// ever wait, for text with a token that the model does not have, and for more
// than kMaxRequestNumbers.
Parsed<PreparedRequest> PrepareCompletion(std::string_view body,
                                          const ApiLimits& limits,
                                          const TextCodec& codec,
                                          uint64_t drawn_seed);
Parsed<PreparedRequest> PrepareChat(std::string_view body,
                                    const ApiLimits& limits,
                                    const TextCodec& codec,
                                    uint64_t drawn_seed);

// The tokens of a conversation, as PrepareChat() makes them.
Parsed<std::vector<int32_t>> EncodeChat(const ChatInput& input,
                                        const TextCodec& codec);
// The tokens of a text; errors name `param`.
Parsed<std::vector<int32_t>> EncodeText(std::string_view text,
                                        std::string_view param,
                                        const TextCodec& codec);

// How the engine's word for an end reads in an answer.
FinishInfo ToFinishInfo(FinishReason reason, std::string_view stop_reason,
                        const StopCriteria& stop);

}  // namespace moebius
