#include "coordinator/text/chat_template.h"

#include <fstream>
#include <optional>
#include <system_error>

#include "common/status_macros.h"
#include "coordinator/text/template_json.h"
#include "coordinator/text/template_parser.h"
#include "coordinator/text/template_strings.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxConfigBytes = 64 << 20;

// The names under which transformers shows special tokens to templates.
constexpr std::string_view kSpecialTokens[] = {
    "bos_token", "eos_token", "unk_token", "sep_token",
    "pad_token", "cls_token", "mask_token"};

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path,
                                     size_t max_bytes) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) {
    return absl::NotFoundError(
        jinja::StrCat(path.string(), ": ", error.message()));
  }
  if (size > max_bytes) {
    return absl::InvalidArgumentError(jinja::StrCat(
        path.string(), ": ", size, " bytes, more than ", max_bytes));
  }
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
    return absl::InvalidArgumentError(
        jinja::StrCat(path.string(), ": cannot be read"));
  }
  return text;
}

absl::Status Prefixed(std::string_view prefix, const absl::Status& status) {
  return absl::Status(status.code(), jinja::StrCat(prefix, status.message()));
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
          jinja::StrCat("'", name, "' must be a string or an added token"));
    }
    tokens.emplace_back(name, *token->get_ptr<const std::string*>());
  }
  return tokens;
}

absl::StatusOr<std::string> SourceOf(const Json& config) {
  const auto at = config.find("chat_template");
  if (at == config.end() || at->is_null()) {
    return absl::NotFoundError("the checkpoint has no chat template");
  }
  if (at->is_string()) return *at->get_ptr<const std::string*>();
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
    if (*name == "default") return *source;
  }
  return absl::NotFoundError("'chat_template' has no entry named 'default'");
}

bool IsReserved(std::string_view name) {
  return name == "messages" || name == "tools" ||
         name == "add_generation_prompt";
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source,
                                                 SpecialTokens tokens) {
  auto parsed = jinja::ParseTemplate(source);
  if (!parsed.ok()) return Prefixed("chat template, ", parsed.status());
  return ChatTemplate(
      std::make_shared<const jinja::Template>(*std::move(parsed)),
      std::move(tokens));
}

absl::StatusOr<ChatTemplate> ChatTemplate::FromConfig(
    const Json& tokenizer_config, const std::string* jinja_file) {
  if (!tokenizer_config.is_object()) {
    return absl::InvalidArgumentError("the configuration must be an object");
  }
  ASSIGN_OR_RETURN(SpecialTokens tokens, SpecialTokensOf(tokenizer_config));
  if (jinja_file != nullptr) return Parse(*jinja_file, std::move(tokens));
  ASSIGN_OR_RETURN(std::string source, SourceOf(tokenizer_config));
  return Parse(source, std::move(tokens));
}

absl::StatusOr<ChatTemplate> ChatTemplate::Load(
    const std::filesystem::path& checkpoint) {
  const auto config_path = checkpoint / "tokenizer_config.json";
  const auto jinja_path = checkpoint / "chat_template.jinja";
  ASSIGN_OR_RETURN(std::string text, ReadFile(config_path, kMaxConfigBytes));
  const Json config = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) {
    return absl::InvalidArgumentError(
        jinja::StrCat(config_path.string(), ": malformed JSON"));
  }
  std::optional<std::string> jinja_file;
  std::error_code error;
  if (std::filesystem::exists(jinja_path, error)) {
    ASSIGN_OR_RETURN(jinja_file,
                     ReadFile(jinja_path, jinja::kMaxTemplateBytes));
  }
  auto loaded =
      FromConfig(config, jinja_file.has_value() ? &*jinja_file : nullptr);
  if (loaded.ok()) return loaded;
  const auto& path = jinja_file.has_value() ? jinja_path : config_path;
  return Prefixed(jinja::StrCat(path.string(), ": "), loaded.status());
}

absl::StatusOr<std::string> ChatTemplate::Render(
    const ChatTemplateInput& input) const {
  jinja::Runtime runtime(input.now, input.zone);
  jinja::Context context;
  // Only what the template mentions is worth converting.
  const auto add = [&](std::string_view name,
                       const Json& json) -> absl::Status {
    if (!parsed_->Find(name).has_value()) return absl::OkStatus();
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
      return absl::InvalidArgumentError(jinja::StrCat(
          "'", it.key(), "' cannot be given as a variable of the template"));
    }
    RETURN_IF_ERROR(add(it.key(), it.value()));
  }
  RETURN_IF_ERROR(add("messages", input.messages));
  RETURN_IF_ERROR(add("tools", input.tools));
  RETURN_IF_ERROR(add("add_generation_prompt", input.add_generation_prompt));
  auto text = jinja::RenderTemplate(*parsed_, context, runtime);
  if (!text.ok() && !runtime.raised) {
    return Prefixed("chat template, ", text.status());
  }
  return text;
}

}  // namespace moebius
