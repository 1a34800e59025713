#include "coordinator/api/openai_request.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "coordinator/api/chat_messages.h"
#include "coordinator/api/request_fields.h"
#include "coordinator/api/unsupported_fields.h"

namespace moebius {
namespace {

constexpr int64_t kMaxTokensField = std::numeric_limits<int32_t>::max();
constexpr int kMaxLogitBiasValue = 100;

Parsed<Json> ParseObject(std::string_view body) {
  auto parsed = ParseJson(body);
  if (!parsed.ok()) {
    ApiError error;
    error.message = Cat("the request's body is ", parsed.status().message());
    error.code = "invalid_json";
    return error;
  }
  if (!parsed->is_object()) {
    ApiError error;
    error.message =
        Cat("the request's body must be a JSON object, "
            "got ",
            Describe(*parsed));
    error.code = "invalid_json";
    return error;
  }
  return std::move(*parsed);
}

void CheckModel(FieldReader& fields, const ApiLimits& limits) {
  const Json* value = fields.Find("model");
  if (value == nullptr) return;
  const auto* name = value->get_ptr<const std::string*>();
  if (name == nullptr) return fields.Fail("model", "a string", value);
  if (*name == limits.model) return;
  ApiError error;
  error.http_status = 404;
  error.param = "model";
  error.code = "model_not_found";
  error.message =
      Cat("the model ", Describe(*value), " does not exist; this server has \"",
          limits.model, "\"");
  fields.FailWith(std::move(error));
}

void ReadStop(FieldReader& fields, std::vector<std::string>* out) {
  const Json* value = fields.Find("stop");
  if (value == nullptr) return;
  const std::string allowed =
      Cat("a string or a list of at most ", kMaxStopStrings,
          " strings, each of 1 to ", kMaxStopStringBytes, " bytes");
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.size() > kMaxStopStrings) {
    return fields.Fail("stop", allowed, value);
  }
  for (const Json& item : list) {
    const auto* text = item.get_ptr<const std::string*>();
    if (text == nullptr || text->empty() ||
        text->size() > kMaxStopStringBytes) {
      return fields.Fail("stop", allowed, &item);
    }
    out->push_back(*text);
  }
}

void ReadLogitBias(FieldReader& fields, const ApiLimits& limits,
                   std::vector<std::pair<int32_t, float>>* out) {
  const Json* value = fields.Find("logit_bias");
  if (value == nullptr) return;
  const std::string allowed =
      Cat("an object of at most ", kMaxLogitBias, " token ids (0 to ",
          limits.vocab_size - 1, ") with numbers from -", kMaxLogitBiasValue,
          " to ", kMaxLogitBiasValue);
  if (!value->is_object() || value->size() > kMaxLogitBias) {
    return fields.Fail("logit_bias", allowed, value);
  }
  for (const auto& [key, bias] : value->get_ref<const Json::object_t&>()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id) || id < 0 || id >= limits.vocab_size) {
      const Json shown = key;
      return fields.Fail("logit_bias", allowed, &shown);
    }
    const double number = bias.is_number()
                              ? bias.get<double>()
                              : std::numeric_limits<double>::infinity();
    if (!(std::abs(number) <= kMaxLogitBiasValue)) {
      return fields.Fail("logit_bias", allowed, &bias);
    }
    out->emplace_back(id, static_cast<float>(number));
  }
  // "7" and "07" are two keys but one token; and the order of keys must not
  // matter to anything downstream.
  std::sort(out->begin(), out->end());
  for (size_t i = 1; i < out->size(); ++i) {
    if ((*out)[i].first == (*out)[i - 1].first) {
      const Json shown = (*out)[i].first;
      return fields.Fail("logit_bias", "an object that names each token once",
                         &shown);
    }
  }
}

void ReadMaxTokens(FieldReader& fields, std::string_view name,
                   GenerationFields* out) {
  std::optional<int64_t> value;
  fields.Int(name, 0, kMaxTokensField, &value);
  if (!value) return;
  if (out->max_tokens && *out->max_tokens != *value) {
    return fields.Fail(
        name, Cat("equal to `", out->max_tokens_field, "` if both are given"));
  }
  out->max_tokens = static_cast<int>(*value);
  out->max_tokens_field = name;
}

void ReadStreamOptions(FieldReader& fields, GenerationFields* out) {
  const Json* options = fields.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) {
    return fields.Fail("stream_options", "an object", options);
  }
  if (!out->stream) {
    return fields.Fail("stream_options", "left out unless `stream` is true");
  }
  FieldReader nested(*options, "stream_options.");
  nested.Bool("include_usage", &out->include_usage);
  nested.Bool("continuous_usage_stats", &out->continuous_usage);
  // As in vLLM, where it asks for more of what the other one asks for.
  out->continuous_usage = out->continuous_usage && out->include_usage;
  if (nested.error()) fields.FailWith(*nested.error());
}

SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  SamplingParams sampling;
  sampling.temperature = defaults.temperature.value_or(1.0f);
  sampling.top_p = defaults.top_p.value_or(1.0f);
  sampling.top_k = defaults.top_k.value_or(0);
  sampling.min_p = defaults.min_p.value_or(0.0f);
  sampling.repetition_penalty = defaults.repetition_penalty.value_or(1.0f);
  return sampling;
}

void ReadAllowedIds(FieldReader& fields, const ApiLimits& limits,
                    std::vector<int32_t>* out) {
  fields.TokenIds("allowed_token_ids", kMaxAllowedIds, limits.vocab_size, out);
  std::sort(out->begin(), out->end());
  out->erase(std::unique(out->begin(), out->end()), out->end());
}

void ReadSampling(FieldReader& fields, const ApiLimits& limits,
                  SamplingParams* out) {
  *out = DefaultSampling(limits.defaults);
  fields.Number("temperature", {.low = 0, .high = 2}, &out->temperature);
  fields.Number("top_p", {.low = 0, .high = 1, .open_low = true}, &out->top_p);
  fields.Int("top_k", -1, std::numeric_limits<int32_t>::max(), &out->top_k);
  if (out->top_k < 0) out->top_k = 0;
  fields.Number("min_p", {.low = 0, .high = 1}, &out->min_p);
  fields.Number("repetition_penalty", {.low = 0, .high = 10, .open_low = true},
                &out->repetition_penalty);
  fields.Number("presence_penalty", {.low = -2, .high = 2},
                &out->presence_penalty);
  fields.Number("frequency_penalty", {.low = -2, .high = 2},
                &out->frequency_penalty);
  ReadLogitBias(fields, limits, &out->logit_bias);
  ReadAllowedIds(fields, limits, &out->allowed_ids);
}

void ReadBadWords(FieldReader& fields, std::vector<std::string>* out) {
  const Json* value = fields.Find("bad_words");
  if (value == nullptr) return;
  const std::string allowed =
      Cat("a list of at most ", kMaxBadWordStrings, " strings, each of 1 to ",
          kMaxBadWordBytes, " bytes");
  if (!value->is_array() || value->size() > kMaxBadWordStrings) {
    return fields.Fail("bad_words", allowed, value);
  }
  for (const Json& item : *value) {
    const auto* text = item.get_ptr<const std::string*>();
    if (text == nullptr || text->empty() || text->size() > kMaxBadWordBytes) {
      return fields.Fail("bad_words", allowed, &item);
    }
    out->push_back(*text);
  }
}

void ReadTruncation(FieldReader& fields, const ApiLimits& limits,
                    std::optional<int>* out) {
  std::optional<int64_t> tokens;
  fields.Int("truncate_prompt_tokens", -1, limits.max_model_len, &tokens);
  if (tokens == 0) {
    return fields.Fail("truncate_prompt_tokens",
                       Cat("-1 or from 1 to ", limits.max_model_len));
  }
  if (tokens) *out = static_cast<int>(*tokens);
}

void ReadPromptLogprobs(FieldReader& fields, GenerationFields* out) {
  std::optional<int64_t> count;
  fields.Int("prompt_logprobs", 0, kMaxLogprobs, &count);
  if (!count) return;
  if (out->stream) {
    return fields.Fail("prompt_logprobs", "left out where `stream` is true");
  }
  out->prompt_logprobs = static_cast<int>(*count);
  out->sampling.num_prompt_logprobs = *out->prompt_logprobs;
}

void ReadGeneration(FieldReader& fields, const ApiLimits& limits, bool chat,
                    GenerationFields* out) {
  CheckModel(fields, limits);
  ReadMaxTokens(fields, "max_completion_tokens", out);
  ReadMaxTokens(fields, "max_tokens", out);
  fields.Int("n", 1, kMaxChoices, &out->n);
  if (const Json* best_of = fields.Find("best_of")) {
    if (*best_of != out->n) {
      fields.Fail("best_of", "left out or equal to `n`", best_of);
    }
  }
  fields.Int("seed", std::numeric_limits<int64_t>::min(),
             std::numeric_limits<int64_t>::max(), &out->seed);
  ReadSampling(fields, limits, &out->sampling);
  ReadStop(fields, &out->stop.stop);
  fields.TokenIds("stop_token_ids", kMaxStopTokenIds, limits.vocab_size,
                  &out->stop.stop_token_ids);
  fields.Bool("include_stop_str_in_output",
              &out->stop.include_stop_str_in_output);
  fields.Bool("ignore_eos", &out->stop.ignore_eos);
  fields.Int("min_tokens", 0, kMaxTokensField, &out->stop.min_tokens);
  if (out->max_tokens && out->stop.min_tokens > *out->max_tokens) {
    fields.Fail("min_tokens", Cat("at most `", out->max_tokens_field, "` (",
                                  *out->max_tokens, ")"));
  }
  out->stop.eos_ids = limits.defaults.eos_ids;
  fields.Bool("stream", &out->stream);
  ReadStreamOptions(fields, out);
  fields.Bool("return_token_ids", &out->return_token_ids);
  std::string user;
  fields.String("user", kMaxUserBytes, &user);
  fields.Bool("skip_special_tokens", &out->stop.skip_special_tokens);
  ReadBadWords(fields, &out->bad_words);
  ReadTruncation(fields, limits, &out->truncate_prompt_tokens);
  ReadPromptLogprobs(fields, out);
  RefuseUnsupported(fields, chat);
}

// ---- prompts ----------------------------------------------------------------

bool IsTokenList(const Json& value) {
  return value.is_array() && !value.empty() && value[0].is_number();
}

std::optional<Prompt> ReadOnePrompt(FieldReader& fields, const Json& value,
                                    int vocab_size) {
  if (const auto* text = value.get_ptr<const std::string*>()) return *text;
  if (!IsTokenList(value)) {
    fields.Fail("prompt",
                "a string, a list of token ids, or a list of one of these",
                &value);
    return std::nullopt;
  }
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& item : value) {
    const auto id = AsTokenId(item, vocab_size);
    if (!id) {
      fields.Fail("prompt", Cat("made of token ids from 0 to ", vocab_size - 1),
                  &item);
      return std::nullopt;
    }
    ids.push_back(*id);
  }
  return ids;
}

void ReadPrompts(FieldReader& fields, int vocab_size,
                 std::vector<Prompt>* out) {
  if (fields.error()) return;
  const Json* value = fields.Find("prompt");
  if (value == nullptr) {
    return fields.Fail("prompt",
                       "given: a string, a list of strings, a list "
                       "of token ids or a list of those");
  }
  const bool several = value->is_array() && !IsTokenList(*value);
  if (several && (value->empty() || value->size() > kMaxPrompts)) {
    return fields.Fail("prompt",
                       Cat("a list of 1 to ", kMaxPrompts, " prompts"));
  }
  const size_t count = several ? value->size() : 1;
  for (size_t i = 0; i < count; ++i) {
    auto prompt =
        ReadOnePrompt(fields, several ? (*value)[i] : *value, vocab_size);
    if (!prompt) return;
    out->push_back(std::move(*prompt));
  }
}

// ---- chat -------------------------------------------------------------------

bool IsObjectList(const Json& value, size_t most) {
  return value.is_array() && value.size() <= most &&
         std::all_of(value.begin(), value.end(),
                     [](const Json& item) { return item.is_object(); });
}

// Tools reach the template unless the client says that none may be called. We
// cannot force a call, so asking for that is refused.
void ReadTools(FieldReader& fields, Json* out) {
  const Json* tools = fields.Find("tools");
  const Json* choice = fields.Find("tool_choice");
  if (tools != nullptr && !IsObjectList(*tools, kMaxTools)) {
    return fields.Fail("tools",
                       Cat("a list of at most ", kMaxTools, " objects"), tools);
  }
  if (choice != nullptr && *choice != "auto" && *choice != "none") {
    return fields.Fail("tool_choice", "\"auto\" or \"none\"", choice);
  }
  const bool none = choice != nullptr && *choice == "none";
  if (tools != nullptr && !none && !tools->empty()) *out = *tools;
}

// How the prompt ends.
void ReadPromptEnd(FieldReader& fields, ChatInput* out) {
  fields.Bool("continue_final_message", &out->continue_final_message);
  if (out->continue_final_message) out->add_generation_prompt = false;
  fields.Bool("add_generation_prompt", &out->add_generation_prompt);
  if (out->continue_final_message && out->add_generation_prompt) {
    fields.Fail("add_generation_prompt",
                "false or left out if `continue_final_message` is true");
  }
}

void ReadTemplate(FieldReader& fields, const ApiLimits& limits,
                  ChatInput* out) {
  if (const Json* source = fields.Find("chat_template")) {
    if (!limits.allow_request_templates) {
      return fields.Fail("chat_template",
                         "left out; a server takes templates of requests only "
                         "with http.allow_request_templates");
    }
    const auto* text = source->get_ptr<const std::string*>();
    if (text == nullptr) {
      return fields.Fail("chat_template", "a string", source);
    }
    out->chat_template = *text;
  }
  if (const Json* kwargs = fields.Find("chat_template_kwargs")) {
    if (!kwargs->is_object()) {
      return fields.Fail("chat_template_kwargs", "an object", kwargs);
    }
    out->template_kwargs = *kwargs;
  }
  // What OpenAI and vLLM have fields for, and templates variables.
  if (const Json* effort = fields.Find("reasoning_effort")) {
    const auto* text = effort->get_ptr<const std::string*>();
    if (text == nullptr || text->size() > kMaxReasoningEffortBytes) {
      return fields.Fail(
          "reasoning_effort",
          Cat("a string of at most ", kMaxReasoningEffortBytes, " bytes"),
          effort);
    }
    out->template_kwargs["reasoning_effort"] = *text;
  }
  if (const Json* documents = fields.Find("documents")) {
    if (!IsObjectList(*documents, kMaxDocuments)) {
      return fields.Fail("documents",
                         Cat("a list of at most ", kMaxDocuments, " objects"),
                         documents);
    }
    if (!documents->empty()) out->template_kwargs["documents"] = *documents;
  }
}

void ReadChatInput(FieldReader& fields, const ApiLimits& limits,
                   ChatInput* out) {
  if (fields.error()) return;
  const Json* messages = fields.Find("messages");
  if (messages == nullptr) {
    return fields.Fail("messages", "given: a list of messages");
  }
  auto normalized = NormalizeMessages(*messages);
  if (!normalized.ok()) return fields.FailWith(normalized.error());
  out->messages = std::move(*normalized);
  ReadTools(fields, &out->tools);
  ReadPromptEnd(fields, out);
  ReadTemplate(fields, limits, out);
}

void ReadChatLogprobs(FieldReader& fields, ChatRequest* out) {
  fields.Bool("logprobs", &out->logprobs);
  const Json* top = fields.Find("top_logprobs");
  fields.Int("top_logprobs", 0, kMaxLogprobs, &out->top_logprobs);
  if (top != nullptr && !out->logprobs && out->top_logprobs > 0) {
    fields.Fail("top_logprobs", "left out unless `logprobs` is true");
  }
  if (out->logprobs) {
    out->generation.sampling.num_logprobs = out->top_logprobs;
  }
}

}  // namespace

Parsed<CompletionRequest> ParseCompletion(std::string_view body,
                                          const ApiLimits& limits) {
  const Parsed<Json> object = ParseObject(body);
  if (!object.ok()) return object.error();
  FieldReader fields(*object);
  CompletionRequest out;
  ReadGeneration(fields, limits, /*chat=*/false, &out.generation);
  ReadPrompts(fields, limits.vocab_size, &out.prompts);
  fields.Bool("echo", &out.echo);
  std::optional<int64_t> logprobs;
  fields.Int("logprobs", 0, kMaxLogprobs, &logprobs);
  if (logprobs) {
    out.logprobs = static_cast<int>(*logprobs);
    out.generation.sampling.num_logprobs = *out.logprobs;
    int& of_prompt = out.generation.sampling.num_prompt_logprobs;
    if (out.echo) of_prompt = std::max(of_prompt, *out.logprobs);
  }
  if (out.generation.max_tokens == 0 && !out.echo) {
    fields.Fail(out.generation.max_tokens_field,
                "at least 1, or 0 together with `echo`");
  }
  if (fields.error()) return *fields.error();
  return out;
}

Parsed<ChatRequest> ParseChat(std::string_view body, const ApiLimits& limits) {
  const Parsed<Json> object = ParseObject(body);
  if (!object.ok()) return object.error();
  FieldReader fields(*object);
  ChatRequest out;
  ReadGeneration(fields, limits, /*chat=*/true, &out.generation);
  ReadChatInput(fields, limits, &out.input);
  ReadChatLogprobs(fields, &out);
  if (out.generation.max_tokens == 0) {
    fields.Fail(out.generation.max_tokens_field, "at least 1");
  }
  if (fields.error()) return *fields.error();
  return out;
}

Parsed<TokenizeRequest> ParseTokenize(std::string_view body,
                                      const ApiLimits& limits) {
  const Parsed<Json> object = ParseObject(body);
  if (!object.ok()) return object.error();
  FieldReader fields(*object);
  TokenizeRequest out;
  CheckModel(fields, limits);
  fields.Bool("return_token_strs", &out.return_token_strs);
  if (fields.Find("messages") != nullptr) {
    ChatInput chat;
    ReadChatInput(fields, limits, &chat);
    out.input = std::move(chat);
  } else if (const Json* prompt = fields.Find("prompt")) {
    if (const auto* text = prompt->get_ptr<const std::string*>()) {
      out.input = *text;
    } else {
      fields.Fail("prompt", "a string", prompt);
    }
  } else {
    fields.Fail("prompt", "given (a string), or `messages`");
  }
  if (fields.error()) return *fields.error();
  return out;
}

Parsed<DetokenizeRequest> ParseDetokenize(std::string_view body,
                                          const ApiLimits& limits) {
  const Parsed<Json> object = ParseObject(body);
  if (!object.ok()) return object.error();
  FieldReader fields(*object);
  DetokenizeRequest out;
  CheckModel(fields, limits);
  if (fields.Find("tokens") == nullptr) {
    fields.Fail("tokens", "given: a list of token ids");
  }
  fields.TokenIds("tokens", kMaxDetokenized, limits.vocab_size, &out.tokens);
  if (fields.error()) return *fields.error();
  return out;
}

Parsed<LayoutChoice> ParseLayoutBody(std::string_view body,
                                     const std::vector<Layout>& layouts,
                                     int num_ranks) {
  const Parsed<Json> object = ParseObject(body);
  if (!object.ok()) return object.error();
  FieldReader fields(*object);
  const Json* value = fields.Find("layout");
  if (value != nullptr && value->is_string()) {
    const auto choice = ParseLayoutChoice(value->get_ref<const std::string&>());
    if (choice.has_value() &&
        (choice->is_auto() ||
         std::find(layouts.begin(), layouts.end(),
                   choice->LayoutIn(num_ranks)) != layouts.end())) {
      return choice->InGroup(num_ranks);
    }
  }
  std::string allowed;
  for (const Layout layout : layouts) {
    allowed += Cat("\"", LayoutName(layout, num_ranks), "\", ");
  }
  if (num_ranks == 1) allowed += "\"tp\", ";  // two names of one layout
  allowed.resize(allowed.size() - std::min<size_t>(allowed.size(), 2));
  fields.Fail("layout", Cat(allowed, " or \"auto\""), value);
  return *fields.error();
}

}  // namespace moebius
