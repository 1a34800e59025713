#include "coordinator/api/generation_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "coordinator/api/request_fields.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

constexpr int kDefaultCompletionTokens = 16;  // OpenAI's

ApiError CodecError(const absl::Status& status, std::string_view param) {
  ApiError error = BadField(param, std::string(status.message()));
  if (status.code() == absl::StatusCode::kInternal) {
    error.http_status = 500;
    error.type = "server_error";
  }
  return error;
}

// Tokens to generate after a prompt of `num_prompt`, or the error if they do
// not fit the context.
Parsed<int> ResolveMaxTokens(const GenerationFields& fields,
                             const ApiLimits& limits, int num_prompt, bool chat,
                             std::string_view prompt_param) {
  if (num_prompt == 0) {
    return BadField(prompt_param, Cat("`", prompt_param,
                                      "` has no tokens; at least "
                                      "one is needed"));
  }
  // To score a prompt takes no room behind it.
  const bool score_only = fields.max_tokens == 0;
  const int room = limits.max_model_len - num_prompt;
  if (room < (score_only ? 0 : 1)) {
    ApiError error = BadField(
        prompt_param,
        Cat("the model's context holds ", limits.max_model_len,
            " tokens, but the prompt has ", num_prompt,
            score_only ? "" : "; it must leave room for at least one more"));
    error.code = "context_length_exceeded";
    return error;
  }
  int max_tokens = 0;
  if (fields.max_tokens) {
    max_tokens = *fields.max_tokens;
    if (max_tokens > room) {
      ApiError error =
          BadField(fields.max_tokens_field,
                   Cat("the model's context holds ", limits.max_model_len,
                       " tokens and the prompt has ", num_prompt, ", so `",
                       fields.max_tokens_field, "` must be at most ", room,
                       ", got ", max_tokens));
      error.code = "context_length_exceeded";
      return error;
    }
  } else {
    const int preferred = limits.defaults.max_new_tokens.value_or(
        chat ? room : kDefaultCompletionTokens);
    max_tokens = std::min(room, preferred);
    if (fields.stop.min_tokens > max_tokens) {
      return BadField(
          "min_tokens",
          Cat("`min_tokens` must be at most ", max_tokens,
              ", what is generated at most, got ", fields.stop.min_tokens));
    }
  }
  return max_tokens;
}

// Tokens that would end a generation before min_tokens.
std::vector<int32_t> SuppressedIds(const StopCriteria& stop,
                                   const ApiLimits& limits) {
  std::vector<int32_t> ids = stop.stop_token_ids;
  if (!stop.ignore_eos) {
    for (int32_t id : stop.eos_ids) {
      if (id < limits.vocab_size) ids.push_back(id);
    }
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

// A tokenizer may know tokens that the model has no row for.
std::optional<ApiError> CheckVocabulary(absl::Span<const int32_t> ids,
                                        const ApiLimits& limits,
                                        std::string_view param,
                                        const TextCodec& codec) {
  for (const int32_t id : ids) {
    if (id >= 0 && id < limits.vocab_size) continue;
    const Json text = RepairUtf8(codec.TokenBytes(id));
    return BadField(
        param, Cat("`", param, "` has the token ", id, " (", Describe(text),
                   "), which the model does not have: its ids are 0 to ",
                   limits.vocab_size - 1));
  }
  return std::nullopt;
}

// More than may wait at once would be told to come again for ever.
std::optional<ApiError> CheckCount(size_t num_prompts, int n,
                                   const ApiLimits& limits) {
  const size_t count = num_prompts * static_cast<size_t>(n);
  const int most = std::min(limits.max_queue, kMaxGenerations);
  if (count <= static_cast<size_t>(most)) return std::nullopt;
  return BadField(n > 1 ? "n" : "prompt",
                  Cat("a request may have at most ", most,
                      " generations (scheduler.max_queue); ", num_prompts,
                      " prompts with `n` ", n, " are ", count));
}

// The seed of choice `j` of the next prompt.
uint64_t SeedOf(const GenerationFields& fields, uint64_t drawn, int j,
                const PreparedRequest& so_far) {
  return fields.seed
             ? static_cast<uint64_t>(*fields.seed) + static_cast<uint64_t>(j)
             : drawn + so_far.generations.size();
}

// What one generation holds, see kMaxRequestNumbers.
int64_t NumbersOf(const Generation& generation) {
  const SamplingParams& sampling = generation.sampling;
  size_t count = ListedNumbers(sampling) +
                 generation.prompt.size() * (2 + sampling.num_prompt_logprobs) +
                 generation.stop.stop_token_ids.size();
  for (const std::string& text : generation.stop.stop) {
    count += text.size() / sizeof(int32_t);
  }
  return static_cast<int64_t>(count);
}

// The words' tokens, at the beginning of a text and behind a space. Where the
// space is only one token more, the former forbid both. (vLLM forbids the
// latter only if both have as many tokens, which lets through most words that a
// tokenizer has with their space.)
std::optional<ApiError> EncodeBadWords(const std::vector<std::string>& words,
                                       const ApiLimits& limits,
                                       const TextCodec& codec,
                                       SamplingParams* out) {
  constexpr std::string_view kParam = "bad_words";
  size_t num_ids = 0;
  for (const std::string& word : words) {
    const std::string bare(absl::StripLeadingAsciiWhitespace(word));
    if (bare.empty()) return BadField(kParam, "`bad_words` has a blank one");
    auto plain = EncodeText(bare, kParam, codec);
    if (!plain.ok()) return plain.error();
    auto spaced = EncodeText(" " + bare, kParam, codec);
    if (!spaced.ok()) return spaced.error();
    const bool covered =
        plain->size() <= spaced->size() &&
        std::equal(plain->rbegin(), plain->rend(), spaced->rbegin());
    for (auto* ids : {&*plain, &*spaced}) {
      if (ids->empty() || (ids == &*spaced && covered)) continue;
      if (auto error = CheckVocabulary(*ids, limits, kParam, codec)) {
        return error;
      }
      num_ids += ids->size();
      out->bad_words.push_back(std::move(*ids));
    }
  }
  if (num_ids <= size_t{kMaxBadWordIds}) return std::nullopt;
  return BadField(kParam, Cat("`bad_words` may have at most ", kMaxBadWordIds,
                              " tokens, with and without a space before each; "
                              "these have ",
                              num_ids));
}

// Leaves the last tokens of a prompt, as many as the client wants.
void Truncate(const GenerationFields& fields, const ApiLimits& limits,
              const TextCodec& codec, std::vector<int32_t>* ids,
              std::string* text) {
  if (!fields.truncate_prompt_tokens) return;
  int64_t kept = *fields.truncate_prompt_tokens;
  if (kept < 0) {
    kept = int64_t{limits.max_model_len} - fields.max_tokens.value_or(1);
  }
  if (kept < 1 || static_cast<int64_t>(ids->size()) <= kept) return;
  ids->erase(ids->begin(), ids->end() - kept);
  *text = RepairUtf8(codec.Decode(*ids));
}

// Adds one prompt and its n generations.
std::optional<ApiError> AddPrompt(const GenerationFields& fields,
                                  const ApiLimits& limits,
                                  const TextCodec& codec,
                                  std::vector<int32_t> ids, std::string text,
                                  std::string_view param, uint64_t drawn_seed,
                                  PreparedRequest* out) {
  Truncate(fields, limits, codec, &ids, &text);
  if (auto error = CheckVocabulary(ids, limits, param, codec)) return error;
  auto max_tokens = ResolveMaxTokens(
      fields, limits, static_cast<int>(ids.size()), out->chat, param);
  if (!max_tokens.ok()) return max_tokens.error();
  Generation generation;
  generation.prompt = ids;
  generation.sampling = fields.sampling;
  generation.stop = fields.stop;
  generation.stop.max_tokens = std::max(1, *max_tokens);
  if (fields.stop.min_tokens > 0) {
    generation.sampling.min_tokens = fields.stop.min_tokens;
    generation.sampling.suppressed_ids = SuppressedIds(fields.stop, limits);
  }
  out->num_numbers += NumbersOf(generation) * fields.n;
  if (out->num_numbers > kMaxRequestNumbers) {
    return BadField(
        fields.n > 1 ? "n" : param,
        Cat("prompts, lists and log-probabilities of prompts are more than ",
            kMaxRequestNumbers,
            " numbers over all generations of the request; send it as several "
            "requests"));
  }
  for (int j = 0; j < fields.n; ++j) {
    generation.sampling.seed = SeedOf(fields, drawn_seed, j, *out);
    out->generations.push_back(generation);
  }
  PreparedPrompt prompt;
  prompt.num_tokens = static_cast<int>(ids.size());
  if (out->return_token_ids || (out->echo && out->logprobs.any)) {
    prompt.ids = std::move(ids);
  }
  if (out->echo) prompt.text = std::move(text);
  out->prompts.push_back(std::move(prompt));
  return std::nullopt;
}

// Stop strings are looked for in the text. One that only a token could bring
// which the model does not have would be waited for in vain.
std::optional<ApiError> CheckStops(const std::vector<std::string>& stops,
                                   const ApiLimits& limits,
                                   const TextCodec& codec) {
  for (const std::string& stop : stops) {
    const auto ids = codec.Encode(stop);
    if (!ids.ok()) continue;
    if (auto error = CheckVocabulary(*ids, limits, "stop", codec)) return error;
  }
  return std::nullopt;
}

// What does not depend on the prompts; fills in fields.sampling.bad_words.
Parsed<PreparedRequest> Begin(size_t num_prompts, const ApiLimits& limits,
                              const TextCodec& codec,
                              GenerationFields& fields) {
  if (auto error = CheckCount(num_prompts, fields.n, limits)) return *error;
  if (auto error =
          EncodeBadWords(fields.bad_words, limits, codec, &fields.sampling)) {
    return *error;
  }
  if (auto error = CheckStops(fields.stop.stop, limits, codec)) return *error;
  PreparedRequest out;
  out.stream = fields.stream;
  out.include_usage = fields.include_usage;
  out.continuous_usage = fields.continuous_usage;
  out.return_token_ids = fields.return_token_ids;
  out.prompt_logprobs = fields.prompt_logprobs;
  out.score_only = fields.max_tokens == 0;
  out.n = fields.n;
  return out;
}

}  // namespace

Parsed<std::vector<int32_t>> EncodeText(std::string_view text,
                                        std::string_view param,
                                        const TextCodec& codec) {
  auto ids = codec.Encode(text);
  if (!ids.ok()) return CodecError(ids.status(), param);
  return std::move(*ids);
}

Parsed<std::vector<int32_t>> EncodeChat(const ChatInput& input,
                                        const TextCodec& codec) {
  auto text = codec.RenderChat(input);
  if (!text.ok()) {
    return CodecError(text.status(), input.chat_template.has_value()
                                         ? "chat_template"
                                         : "messages");
  }
  return EncodeText(*text, "messages", codec);
}

Parsed<PreparedRequest> PrepareCompletion(std::string_view body,
                                          const ApiLimits& limits,
                                          const TextCodec& codec,
                                          uint64_t drawn_seed) {
  auto request = ParseCompletion(body, limits);
  if (!request.ok()) return request.error();
  GenerationFields& fields = request->generation;
  auto begun = Begin(request->prompts.size(), limits, codec, fields);
  if (!begun.ok()) return begun;
  PreparedRequest& out = *begun;
  out.echo = request->echo;
  if (request->logprobs) out.logprobs = {true, *request->logprobs};
  for (Prompt& prompt : request->prompts) {
    std::vector<int32_t> ids;
    std::string text;
    if (auto* given = std::get_if<std::string>(&prompt)) {
      auto encoded = EncodeText(*given, "prompt", codec);
      if (!encoded.ok()) return encoded.error();
      ids = std::move(*encoded);
      text = std::move(*given);
    } else {
      ids = std::move(std::get<std::vector<int32_t>>(prompt));
      if (out.echo) text = RepairUtf8(codec.Decode(ids));
    }
    auto error = AddPrompt(fields, limits, codec, std::move(ids),
                           std::move(text), "prompt", drawn_seed, &out);
    if (error) return *error;
  }
  return begun;
}

Parsed<PreparedRequest> PrepareChat(std::string_view body,
                                    const ApiLimits& limits,
                                    const TextCodec& codec,
                                    uint64_t drawn_seed) {
  auto request = ParseChat(body, limits);
  if (!request.ok()) return request.error();
  GenerationFields& fields = request->generation;
  auto begun = Begin(1, limits, codec, fields);
  if (!begun.ok()) return begun;
  auto ids = EncodeChat(request->input, codec);
  if (!ids.ok()) return ids.error();
  PreparedRequest& out = *begun;
  out.chat = true;
  out.logprobs = {request->logprobs, request->top_logprobs};
  auto error = AddPrompt(fields, limits, codec, std::move(*ids), "", "messages",
                         drawn_seed, &out);
  if (error) return *error;
  return begun;
}

FinishInfo ToFinishInfo(FinishReason reason, std::string_view stop_reason,
                        const StopCriteria& stop) {
  FinishInfo out;
  out.reason = reason;
  if (reason != FinishReason::kStop || stop_reason.empty()) return out;
  if (std::find(stop.stop.begin(), stop.stop.end(), stop_reason) !=
      stop.stop.end()) {
    out.stop_string = stop_reason;
    return out;
  }
  int32_t id = 0;
  const auto& ids = stop.stop_token_ids;
  if (absl::SimpleAtoi(AbslView(stop_reason), &id) &&
      std::find(ids.begin(), ids.end(), id) != ids.end()) {
    out.stop_token = id;
  }
  return out;
}

}  // namespace moebius
