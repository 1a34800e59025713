// Chat templates: how a conversation becomes the prompt of one text.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/jinja/content_form.h"
#include "coordinator/jinja/template_evaluator.h"
#include "nlohmann/json.hpp"

namespace moebius {

// What one rendering is given beside the template. Everything is JSON as the
// request had it, order of keys included.
struct ChatTemplateInput {
  // [{"role": ..., "content": ...}, ...]
  nlohmann::ordered_json messages;
  // A list of tools, or null.
  nlohmann::ordered_json tools;
  // Whether the assistant's turn is to be opened at the end.
  bool add_generation_prompt = true;
  // Ends the prompt with the text of the final message instead: the model goes
  // on with it. Nothing is opened then.
  bool continue_final_message = false;
  // More variables (chat_template_kwargs, such as enable_thinking): an object
  // or null. They win over special tokens.
  nlohmann::ordered_json extra;
  // What strftime_now shows.
  absl::Time now;
  absl::TimeZone zone = absl::LocalTimeZone();
};

// ChatTemplate
//
// A checkpoint's template, in the part of Jinja that published ones use, with
// the environment that Hugging Face transformers gives them
// (utils/chat_template_utils.py): trim_blocks, lstrip_blocks, break and
// continue, generation, tojson, raise_exception, strftime_now, and the
// special tokens as variables. What no published template uses is an error
// that names it.
//
// Neither template nor data is trusted: time, memory and stack are bounded
// (template_limits.h).
//
// Threading: immutable; Render may run on any number of threads at once. A
// rendering uses up to about 1 MiB of stack.
class ChatTemplate {
 public:
  // bos_token and the like: name and text.
  using SpecialTokens = std::vector<std::pair<std::string, std::string>>;

  // Parses template text.
  // Errors: kInvalidArgument "chat template, line N: reason".
  static absl::StatusOr<ChatTemplate> Parse(std::string_view source,
                                            SpecialTokens tokens);

  // From the contents of tokenizer_config.json: "chat_template" is a string,
  // or a list of {"name", "template"} of which "tool_use" is taken for
  // conversations with tools and "default" for others (for all, if there is no
  // "tool_use"). Special tokens are strings or objects with "content".
  // `jinja_file`, the contents of chat_template.jinja, wins if not null.
  // Errors: kNotFound if there is no template; kInvalidArgument if something
  // has the wrong type or the template does not parse.
  static absl::StatusOr<ChatTemplate> FromConfig(
      const nlohmann::ordered_json& tokenizer_config,
      const std::string* jinja_file);

  // Reads tokenizer_config.json and chat_template.jinja of a checkpoint, as far
  // as they are there. Errors as above, naming the file.
  static absl::StatusOr<ChatTemplate> Load(
      const std::filesystem::path& checkpoint);

  // The special tokens alone; none without a tokenizer_config.json.
  static absl::StatusOr<SpecialTokens> LoadSpecialTokens(
      const std::filesystem::path& checkpoint);

  // The form of contents that Render() should be given with these tools.
  ContentForm content_form(const nlohmann::ordered_json& tools) const;

  // The prompt. Errors: kInvalidArgument: the template's own words if it
  // refuses the conversation (raise_exception), else "chat template, line N:
  // reason". An exceeded bound is the latter too, and so is a final message
  // that cannot be continued, since the template does not show it.
  absl::StatusOr<std::string> Render(const ChatTemplateInput& input) const;

 private:
  struct Variant {
    std::shared_ptr<const jinja::Template> parsed;  // null: there is none
    ContentForm form = ContentForm::kText;
  };

  static absl::StatusOr<Variant> ParseVariant(std::string_view source);

  const Variant& VariantFor(const nlohmann::ordered_json& tools) const;
  absl::StatusOr<std::string> RenderMessages(
      const ChatTemplateInput& input,
      const nlohmann::ordered_json& messages) const;

  Variant plain_, tool_use_;
  SpecialTokens tokens_;
};

}  // namespace moebius
