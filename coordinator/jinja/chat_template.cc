#include "coordinator/jinja/chat_template.h"

#include <optional>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "coordinator/jinja/template_characters.h"
#include "coordinator/jinja/template_json.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = 64 << 20;

// The names under which transformers shows special tokens to templates.
constexpr std::string_view kSpecialTokens[] = {
    "bos_token", "eos_token", "unk_token", "sep_token",
    "pad_token", "cls_token", "mask_token"};

absl::Status Prefixed(std::string_view prefix, const absl::Status& status) {
  return absl::Status(status.code(), Cat(prefix, StdView(status.message())));
}

absl::StatusOr<ChatTemplate::SpecialTokens> SpecialTokensOf(
    const Json& config) {
  ChatTemplate::SpecialTokens tokens;
  for (std::string_view name : kSpecialTokens) {
    const auto at = config.find(name);
    if (at == config.end() || at->is_null()) continue;
    const Json* token = &*at;
    if (token->is_object()) {
      const auto content = token->find("content");
      if (content != token->end()) token = &*content;
    }
    if (!token->is_string()) {
      return absl::InvalidArgumentError(
          Cat("'", name, "' must be a string or an added token"));
    }
    tokens.emplace_back(name, *token->get_ptr<const std::string*>());
  }
  return tokens;
}

// The sources of the named templates that are taken; null where there is none.
struct Sources {
  const std::string* plain = nullptr;
  const std::string* tool_use = nullptr;
};

absl::StatusOr<Sources> SourcesOf(const Json& config) {
  Sources sources;
  const auto at = config.find("chat_template");
  if (at == config.end() || at->is_null()) {
    return absl::NotFoundError("the checkpoint has no chat template");
  }
  sources.plain = at->get_ptr<const std::string*>();
  if (sources.plain != nullptr) return sources;
  if (!at->is_array()) {
    return absl::InvalidArgumentError(
        "'chat_template' must be a string or a list");
  }
  for (const Json& entry : *at) {
    const auto text = [&entry](const char* key) -> const std::string* {
      if (!entry.is_object()) return nullptr;
      const auto member = entry.find(key);
      if (member == entry.end()) return nullptr;
      return member->get_ptr<const std::string*>();
    };
    const std::string *name = text("name"), *source = text("template");
    if (name == nullptr || source == nullptr) {
      return absl::InvalidArgumentError(
          "an entry of 'chat_template' lacks 'name' or 'template'");
    }
    if (*name == "default") sources.plain = source;
    if (*name == "tool_use") sources.tool_use = source;
  }
  if (sources.plain != nullptr || sources.tool_use != nullptr) return sources;
  return absl::NotFoundError(
      "'chat_template' has no entry named 'default' or 'tool_use'");
}

// An empty object if there is no such file.
absl::StatusOr<Json> ReadConfig(const std::filesystem::path& path) {
  auto text = ReadFile(path.string(), kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return Json::object();
  RETURN_IF_ERROR(text.status());
  Json config = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) {
    return absl::InvalidArgumentError(Cat(path.string(), ": malformed JSON"));
  }
  return config;
}

// Nothing if there is no such file.
absl::StatusOr<std::optional<std::string>> ReadTemplate(
    const std::filesystem::path& path) {
  absl::StatusOr<std::string> text =
      ReadFile(path.string(), jinja::kMaxTemplateBytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  return text;
}

// What marks the end of the final message in a rendering. A template that
// strips white space strips that of the mark; then it would strip the
// message's too.
constexpr std::string_view kEndMark = "MOEBIUS-CONTINUES-HERE ";
constexpr std::string_view kBareEndMark =
    kEndMark.substr(0, kEndMark.size() - 1);

std::string_view Stripped(std::string_view text) {
  return jinja::Strip(text, std::nullopt, jinja::Side::kBoth);
}

// The text that ends the final message, or null.
std::string* FinalText(Json& messages) {
  if (!messages.is_array() || messages.empty()) return nullptr;
  const auto content = messages.back().find("content");
  if (content == messages.back().end()) return nullptr;
  if (content->is_string()) return content->get_ptr<std::string*>();
  if (!content->is_array() || content->empty()) return nullptr;
  const auto text = content->back().find("text");
  return text == content->back().end() ? nullptr
                                       : text->get_ptr<std::string*>();
}

// Cuts a rendering behind `text`, the final message that was marked.
absl::StatusOr<std::string> CutAtEndMark(std::string rendered,
                                         std::string_view text) {
  const size_t at = rendered.rfind(kBareEndMark);
  if (at == rendered.npos ||
      jinja::FindFirst(rendered, Stripped(text)) == rendered.npos) {
    return absl::InvalidArgumentError(
        "the final message cannot be continued: the chat template does not "
        "show it as it is");
  }
  const bool strips =
      std::string_view(rendered).substr(at, kEndMark.size()) != kEndMark;
  rendered.resize(at);
  if (strips) {
    rendered.resize(
        jinja::Strip(rendered, std::nullopt, jinja::Side::kRight).size());
  }
  return rendered;
}

bool IsReserved(std::string_view name) {
  return name == "messages" || name == "tools" ||
         name == "add_generation_prompt";
}

}  // namespace

absl::StatusOr<ChatTemplate::Variant> ChatTemplate::ParseVariant(
    std::string_view source) {
  auto parsed = jinja::ParseTemplate(source);
  if (!parsed.ok()) return Prefixed("chat template, ", parsed.status());
  const ContentForm form = DetectContentForm(*parsed);
  return Variant{std::make_shared<const jinja::Template>(*std::move(parsed)),
                 form};
}

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source,
                                                 SpecialTokens tokens) {
  ChatTemplate out;
  ASSIGN_OR_RETURN(out.plain_, ParseVariant(source));
  out.tokens_ = std::move(tokens);
  return out;
}

absl::StatusOr<ChatTemplate> ChatTemplate::FromConfig(
    const Json& tokenizer_config, const std::string* jinja_file) {
  if (!tokenizer_config.is_object()) {
    return absl::InvalidArgumentError("the configuration must be an object");
  }
  ChatTemplate out;
  ASSIGN_OR_RETURN(out.tokens_, SpecialTokensOf(tokenizer_config));
  Sources sources{.plain = jinja_file};
  if (jinja_file == nullptr) {
    ASSIGN_OR_RETURN(sources, SourcesOf(tokenizer_config));
  }
  if (sources.plain != nullptr) {
    ASSIGN_OR_RETURN(out.plain_, ParseVariant(*sources.plain));
  }
  if (sources.tool_use != nullptr) {
    ASSIGN_OR_RETURN(out.tool_use_, ParseVariant(*sources.tool_use));
  }
  return out;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Load(
    const std::filesystem::path& checkpoint) {
  const auto config_path = checkpoint / "tokenizer_config.json";
  const auto jinja_path = checkpoint / "chat_template.jinja";
  const auto tool_use_path =
      checkpoint / "additional_chat_templates" / "tool_use.jinja";
  ASSIGN_OR_RETURN(const Json config, ReadConfig(config_path));
  ASSIGN_OR_RETURN(const auto jinja_file, ReadTemplate(jinja_path));
  ASSIGN_OR_RETURN(const auto tool_use_file, ReadTemplate(tool_use_path));
  auto loaded =
      FromConfig(config, jinja_file.has_value() ? &*jinja_file : nullptr);
  if (!loaded.ok()) {
    const auto& path = jinja_file.has_value() ? jinja_path : config_path;
    return Prefixed(Cat(path.string(), ": "), loaded.status());
  }
  if (tool_use_file.has_value()) {
    auto tool_use = ParseVariant(*tool_use_file);
    if (!tool_use.ok()) {
      return Prefixed(Cat(tool_use_path.string(), ": "), tool_use.status());
    }
    loaded->tool_use_ = *std::move(tool_use);
  }
  return loaded;
}

absl::StatusOr<ChatTemplate::SpecialTokens> ChatTemplate::LoadSpecialTokens(
    const std::filesystem::path& checkpoint) {
  const auto path = checkpoint / "tokenizer_config.json";
  ASSIGN_OR_RETURN(const Json config, ReadConfig(path));
  auto tokens = SpecialTokensOf(config);
  if (tokens.ok()) return tokens;
  return Prefixed(Cat(path.string(), ": "), tokens.status());
}

const ChatTemplate::Variant& ChatTemplate::VariantFor(const Json& tools) const {
  const bool has_tools = tools.is_array() && !tools.empty();
  return has_tools && tool_use_.parsed != nullptr ? tool_use_ : plain_;
}

ContentForm ChatTemplate::content_form(const Json& tools) const {
  return VariantFor(tools).form;
}

absl::StatusOr<std::string> ChatTemplate::Render(
    const ChatTemplateInput& input) const {
  if (!input.continue_final_message) {
    return RenderMessages(input, input.messages);
  }
  Json messages = input.messages;
  std::string* final_text = FinalText(messages);
  if (final_text == nullptr) {
    return absl::InvalidArgumentError(
        "the final message has no text that could be continued");
  }
  const std::string text = *final_text;
  *final_text += kEndMark;
  ASSIGN_OR_RETURN(std::string rendered, RenderMessages(input, messages));
  return CutAtEndMark(std::move(rendered), text);
}

absl::StatusOr<std::string> ChatTemplate::RenderMessages(
    const ChatTemplateInput& input, const Json& messages) const {
  const jinja::Template* parsed = VariantFor(input.tools).parsed.get();
  if (parsed == nullptr) {
    return absl::InvalidArgumentError(
        "this checkpoint's chat template is for conversations with tools");
  }
  jinja::Runtime runtime(input.now, input.zone);
  jinja::Context context;
  // Only what the template mentions is worth converting.
  const auto add = [&](std::string_view name,
                       const Json& json) -> absl::Status {
    if (!parsed->Find(name).has_value()) return absl::OkStatus();
    auto value = jinja::FromJson(runtime.budget, json);
    if (!value.ok()) return Prefixed("chat template: ", value.status());
    context.emplace_back(name, *std::move(value));
    return absl::OkStatus();
  };
  for (const auto& [name, text] : tokens_) RETURN_IF_ERROR(add(name, text));
  RETURN_IF_ERROR(add("documents", nullptr));
  if (!input.extra.is_null() && !input.extra.is_object()) {
    return absl::InvalidArgumentError(
        "the variables of a chat template must be an object");
  }
  for (auto it = input.extra.begin(); it != input.extra.end(); ++it) {
    if (IsReserved(it.key())) {
      return absl::InvalidArgumentError(Cat(
          "'", it.key(), "' cannot be given as a variable of the template"));
    }
    RETURN_IF_ERROR(add(it.key(), it.value()));
  }
  RETURN_IF_ERROR(add("messages", messages));
  RETURN_IF_ERROR(add("tools", input.tools));
  RETURN_IF_ERROR(
      add("add_generation_prompt",
          input.add_generation_prompt && !input.continue_final_message));
  auto text = jinja::RenderTemplate(*parsed, context, runtime);
  if (!text.ok() && !runtime.raised) {
    return Prefixed("chat template, ", text.status());
  }
  return text;
}

}  // namespace moebius
