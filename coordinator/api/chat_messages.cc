#include "coordinator/api/chat_messages.h"

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "common/base/cat.h"
#include "coordinator/api/python_json.h"
#include "coordinator/api/request_fields.h"

namespace moebius {
namespace {

constexpr std::array<std::string_view, 5> kRoles = {
    "system", "developer", "user", "assistant", "tool"};

ApiError Wrong(const std::string& place, std::string_view allowed,
               const Json* got) {
  std::string message = Cat("`", place, "` must be ", allowed);
  if (got != nullptr) message += Cat(", got ", Describe(*got));
  return BadField(place, std::move(message));
}

const Json* Member(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::optional<ApiError> CheckParts(const Json& parts,
                                   const std::string& place) {
  if (parts.size() > kMaxContentParts) {
    return Wrong(place, Cat("a list of at most ", kMaxContentParts, " parts"),
                 nullptr);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts[i];
    const Json* text = nullptr;
    if (part.is_object()) {
      const Json* type = Member(part, "type");
      if (type != nullptr && *type == "text") text = Member(part, "text");
    }
    if (text == nullptr || !text->is_string()) {
      return Wrong(Cat(place, "[", i, "]"),
                   "{\"type\": \"text\", \"text\": a string}; no other kind "
                   "of content is supported",
                   nullptr);
    }
  }
  return std::nullopt;
}

std::optional<ApiError> NormalizeContent(Json& message,
                                         const std::string& place) {
  const Json* content = Member(message, "content");
  const std::string name = place + ".content";
  if (content == nullptr) {
    if (message["role"] == "assistant") {
      message["content"] = Json::array();
      return std::nullopt;
    }
    return Wrong(name, "a string or a list of text parts", nullptr);
  }
  if (content->is_string()) return std::nullopt;
  if (!content->is_array()) {
    return Wrong(name, "a string or a list of text parts", content);
  }
  return CheckParts(*content, name);
}

// Clients send a thought under either name, and templates look for either.
void NormalizeReasoning(Json& message) {
  const Json* reasoning = Member(message, "reasoning");
  const Json* content = Member(message, "reasoning_content");
  if (message["role"] != "assistant") return;
  if (reasoning != nullptr && content == nullptr) {
    const Json copy = *reasoning;  // adding a key moves the others
    message["reasoning_content"] = copy;
  } else if (content != nullptr && reasoning == nullptr) {
    const Json copy = *content;
    message["reasoning"] = copy;
  }
}

// What a model made up must not end its conversation: arguments that spell no
// object are an empty one (as in vLLM, chat_utils.py, _postprocess_messages).
void NormalizeArguments(Json& arguments) {
  std::optional<Json> spelled;
  if (const auto* text = arguments.get_ptr<const std::string*>()) {
    spelled = ParsePythonJson(*text);
  } else {
    spelled = std::move(arguments);
  }
  arguments =
      spelled && spelled->is_object() ? std::move(*spelled) : Json::object();
}

std::optional<ApiError> NormalizeToolCalls(Json& message,
                                           const std::string& place) {
  const auto it = message.find("tool_calls");
  if (it == message.end()) return std::nullopt;
  if (it->is_null() || (it->is_array() && it->empty())) {
    message.erase(it);
    return std::nullopt;
  }
  const std::string name = place + ".tool_calls";
  if (!it->is_array() || it->size() > kMaxTools) {
    return Wrong(name, Cat("a list of at most ", kMaxTools, " calls"), &*it);
  }
  for (size_t i = 0; i < it->size(); ++i) {
    Json& call = (*it)[i];
    const std::string call_place = Cat(name, "[", i, "]");
    if (!call.is_object()) return Wrong(call_place, "an object", &call);
    const Json* function = Member(call, "function");
    if (function == nullptr || !function->is_object() ||
        Member(*function, "name") == nullptr ||
        !(*function)["name"].is_string()) {
      return Wrong(call_place + ".function", "an object with a `name`",
                   nullptr);
    }
    NormalizeArguments(call["function"]["arguments"]);
  }
  return std::nullopt;
}

std::optional<ApiError> NormalizeRole(Json& message, const std::string& place) {
  const Json* role = Member(message, "role");
  const std::string allowed =
      "one of \"system\", \"developer\", \"user\", \"assistant\" and \"tool\"";
  if (role == nullptr || !role->is_string()) {
    return Wrong(place + ".role", allowed, role);
  }
  const auto& name = role->get_ref<const std::string&>();
  for (std::string_view known : kRoles) {
    if (name != known) continue;
    if (name == "developer") message["role"] = "system";
    return std::nullopt;
  }
  return Wrong(place + ".role", allowed, role);
}

}  // namespace

Parsed<Json> NormalizeMessages(const Json& messages) {
  if (!messages.is_array() || messages.empty() ||
      messages.size() > kMaxMessages) {
    return Wrong("messages", Cat("a list of 1 to ", kMaxMessages, " messages"),
                 messages.is_array() ? nullptr : &messages);
  }
  Json out = messages;
  for (size_t i = 0; i < out.size(); ++i) {
    const std::string place = Cat("messages[", i, "]");
    if (!out[i].is_object()) return Wrong(place, "an object", &out[i]);
    if (auto error = NormalizeRole(out[i], place)) return *error;
    if (auto error = NormalizeContent(out[i], place)) return *error;
    if (auto error = NormalizeToolCalls(out[i], place)) return *error;
    NormalizeReasoning(out[i]);
  }
  return out;
}

}  // namespace moebius
