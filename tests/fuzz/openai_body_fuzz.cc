// Bodies of requests: whatever a client sends is an answer or an error, and an
// accepted request keeps every bound that the engine relies on.
#include <cmath>
#include <cstdint>
#include <string_view>

#include "common/base/check.h"
#include "coordinator/api/generation_request.h"
#include "tests/unit/coordinator/api/fake_codec.h"

namespace moebius {
namespace {

const ApiLimits& Limits() {
  static const ApiLimits limits = [] {
    ApiLimits out;
    out.model = "verse";
    out.max_model_len = 128;
    out.vocab_size = kFakeVocab;
    out.defaults.eos_ids = {kFakeEos};
    return out;
  }();
  return limits;
}

void CheckError(const ApiError& error) {
  CHECK(error.http_status == 400 || error.http_status == 404);
  CHECK(!error.message.empty());
  // The error itself must be JSON, whatever it quotes.
  CHECK(ParseJson(ErrorBody(error)).ok());
}

void CheckGeneration(const Generation& g) {
  const ApiLimits& limits = Limits();
  CHECK(!g.prompt.empty());
  CHECK(g.stop.max_tokens >= 1);
  const int length = static_cast<int>(g.prompt.size());
  const bool scored = length == limits.max_model_len && g.stop.max_tokens == 1;
  CHECK(scored || length + g.stop.max_tokens <= limits.max_model_len);
  for (int32_t id : g.prompt) CHECK(id >= 0 && id < limits.vocab_size);
  const SamplingParams& s = g.sampling;
  CHECK(s.temperature >= 0 && s.temperature <= 2);
  CHECK(s.top_p > 0 && s.top_p <= 1);
  CHECK(s.min_p >= 0 && s.min_p <= 1);
  CHECK(s.top_k >= 0);
  CHECK(s.repetition_penalty > 0 && s.repetition_penalty <= 10);
  CHECK(std::abs(s.presence_penalty) <= 2);
  CHECK(std::abs(s.frequency_penalty) <= 2);
  CHECK(s.num_logprobs >= -1 && s.num_logprobs <= kMaxLogprobs);
  CHECK(s.num_prompt_logprobs >= -1 && s.num_prompt_logprobs <= kMaxLogprobs);
  CHECK(s.logit_bias.size() <= kMaxLogitBias);
  CHECK(s.allowed_ids.size() <= kMaxAllowedIds);
  for (int32_t id : s.allowed_ids) CHECK(id >= 0 && id < limits.vocab_size);
  CHECK(s.bad_words.size() <= kMaxBadWords);
  size_t num_bad = 0;
  for (const auto& word : s.bad_words) {
    CHECK(!word.empty());
    num_bad += word.size();
    for (int32_t id : word) CHECK(id >= 0 && id < limits.vocab_size);
  }
  CHECK(num_bad <= kMaxBadWordIds);
  for (int32_t id : s.suppressed_ids) CHECK(id >= 0 && id < limits.vocab_size);
  for (const auto& [id, bias] : s.logit_bias) {
    CHECK(id >= 0 && id < limits.vocab_size);
    CHECK(std::abs(bias) <= 100);
  }
  CHECK(s.min_tokens >= 0 && s.min_tokens <= g.stop.max_tokens);
  CHECK(g.stop.stop.size() <= kMaxStopStrings);
  for (const std::string& stop : g.stop.stop) {
    CHECK(!stop.empty() && stop.size() <= kMaxStopStringBytes);
  }
}

void CheckPrepared(const Parsed<PreparedRequest>& prepared) {
  if (!prepared.ok()) return CheckError(prepared.error());
  CHECK(prepared->n >= 1 && prepared->n <= kMaxChoices);
  CHECK(prepared->prompts.size() * prepared->n == prepared->generations.size());
  for (const Generation& generation : prepared->generations) {
    CheckGeneration(generation);
  }
}

}  // namespace
}  // namespace moebius

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moebius;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  static const FakeCodec codec;
  CheckPrepared(PrepareCompletion(body, Limits(), codec, 7));
  CheckPrepared(PrepareChat(body, Limits(), codec, 7));
  if (auto parsed = ParseTokenize(body, Limits()); !parsed.ok()) {
    CheckError(parsed.error());
  }
  if (auto parsed = ParseDetokenize(body, Limits()); !parsed.ok()) {
    CheckError(parsed.error());
  }
  if (auto parsed = ParseLayoutBody(body, {{1}, {2}, {8}}, 8); !parsed.ok()) {
    CheckError(parsed.error());
  }
  return 0;
}
