#include "coordinator/api/unsupported_fields.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "common/base/cat.h"

namespace moebius {
namespace {

enum class Where { kBoth, kChat, kCompletions };

struct UnsupportedField {
  std::string_view name;
  std::string_view neutral;  // values beside null, a JSON list
  Where where = Where::kBoth;
};

// Nothing is asked for.
constexpr std::string_view kEmpty = R"([false, "", [], {}])";
constexpr std::string_view kOff = "[false]";

constexpr UnsupportedField kFields[] = {
    // Which texts may come out.
    {"response_format", R"([{"type": "text"}])"},
    {"structured_outputs", kEmpty},
    {"guided_json", kEmpty},
    {"guided_json_object", kEmpty},
    {"guided_regex", kEmpty},
    {"guided_choice", kEmpty},
    {"guided_grammar", kEmpty},
    {"guided_structural_tag", kEmpty},
    {"guided_decoding_backend", kEmpty},
    {"guided_whitespace_pattern", kEmpty},
    {"structural_tag", kEmpty},
    {"json_schema", kEmpty},
    {"regex", kEmpty},
    {"ebnf", kEmpty},
    {"grammar", kEmpty},
    // How tokens are drawn.
    {"use_beam_search", kOff},
    {"early_stopping", kOff},
    {"length_penalty", "[1]"},
    {"logits_processors", kEmpty},
    {"custom_logit_processor", kEmpty},
    {"watermarking", kOff},
    {"vllm_xargs", kEmpty},
    {"repetition_detection", kEmpty},
    {"thinking_token_budget", "[-1]"},
    {"prediction", "[]"},
    // When it ends, and what is shown.
    {"stop_regex", kEmpty},
    {"no_stop_trim", kOff},
    {"logprob_token_ids", kEmpty},
    {"return_tokens_as_token_ids", kOff},
    {"return_hidden_states", kOff},
    {"routed_experts_prompt_start", "[0]"},
    {"suffix", R"([""])"},
    // What the model reads.
    {"prompt_embeds", kEmpty, Where::kCompletions},
    {"input_embeds", kEmpty},
    {"truncation_side", R"(["left"])"},
    {"lora_path", kEmpty},
    // Where and when it runs.
    {"priority", "[0]"},
    {"kv_transfer_params", kEmpty},
    {"ec_transfer_params", kEmpty},
    // Chats alone.
    {"functions", kEmpty, Where::kChat},
    {"function_call", R"(["none", "auto"])", Where::kChat},
    {"modalities", R"([["text"], []])", Where::kChat},
    {"audio", "[]", Where::kChat},
    {"web_search_options", "[]", Where::kChat},
    {"verbosity", R"(["medium"])", Where::kChat},
    {"include_reasoning", "[true]", Where::kChat},
    {"media_io_kwargs", kEmpty, Where::kChat},
    {"mm_processor_kwargs", kEmpty, Where::kChat},
    {"echo", kOff, Where::kChat},
    {"return_prompt_text", kOff, Where::kChat},
};

bool IsNeutral(const Json& value, std::string_view neutral) {
  const auto values = ParseJson(neutral);
  // 1 and 1.0 are equal, 0 and false are not.
  return std::find(values->begin(), values->end(), value) != values->end();
}

// "left out", or also what says the same.
std::string Allowed(const UnsupportedField& field) {
  if (field.neutral == kEmpty) return "left out or empty";
  std::string allowed = "left out";
  const auto values = ParseJson(field.neutral);
  for (const Json& one : *values) allowed += " or " + one.dump();
  return allowed;
}

}  // namespace

void RefuseUnsupported(FieldReader& fields, bool chat) {
  for (const UnsupportedField& field : kFields) {
    if (field.where == Where::kChat && !chat) continue;
    if (field.where == Where::kCompletions && chat) continue;
    const Json* value = fields.Find(field.name);
    if (value == nullptr || IsNeutral(*value, field.neutral)) continue;
    fields.Fail(field.name,
                Cat(Allowed(field), "; nothing else is served here"), value);
  }
}

}  // namespace moebius
