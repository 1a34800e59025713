// Conversations with calls of tools, against the templates of all families: a
// prompt within its bounds, or a 400 with a reason. Never anything else, since
// what a model once made up stands in every later request.
//
// An input is two bytes, which choose the template and the switches, and then
// either the body of a request or, where that is no JSON, the choices that a
// conversation is built from (Maker).
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "coordinator/api/checkpoint_codec.h"
#include "coordinator/api/generation_request.h"
#include "coordinator/jinja/template_limits.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

constexpr int kMaxTurns = 24;

// Every family, and the checkpoint's own.
std::vector<ChatTemplate> LoadTemplates() {
  std::vector<std::filesystem::path> paths;
  const std::filesystem::path root = MOEBIUS_FUZZ_SOURCE_DIR;
  for (const auto& entry : std::filesystem::directory_iterator(
           root / "tests/unit/coordinator/jinja/families")) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<ChatTemplate> out;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    const std::string source{std::istreambuf_iterator<char>(file), {}};
    out.push_back(*ChatTemplate::Parse(
        source, {{"bos_token", "<s>"}, {"eos_token", "</s>"}}));
  }
  out.push_back(*ChatTemplate::Load(root / "models/verse-moe"));
  return out;
}

// Bytes are tokens; the template is one of those above.
class FuzzCodec final : public TextCodec {
 public:
  explicit FuzzCodec(const ChatTemplate& chat_template)
      : chat_template_(chat_template) {}

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override {
    CHECK(text.size() <= jinja::kMaxOutputBytes);
    CHECK(IsValidUtf8(text));
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    return std::vector<int32_t>(bytes, bytes + text.size());
  }
  std::string Decode(absl::Span<const int32_t> tokens) const override {
    return std::string(tokens.begin(), tokens.end());
  }
  std::string TokenBytes(int32_t token) const override {
    return std::string(1, static_cast<char>(token));
  }
  absl::StatusOr<std::string> RenderChat(
      const ChatInput& input) const override {
    return RenderChatInput(chat_template_, input);
  }

 private:
  const ChatTemplate& chat_template_;
};

// A conversation from bytes; when they have run out, all choices are the first.
class Maker {
 public:
  explicit Maker(std::string_view bytes) : rest_(bytes) {}

  Json Body() {
    Json messages = Json::array();
    const int turns = 1 + Choose(kMaxTurns);
    for (int i = 0; i < turns; ++i) messages.push_back(Message());
    Json body = {{"messages", std::move(messages)}};
    if (Choose(2) == 1) body["tools"] = Json::array({Tool()});
    return body;
  }

 private:
  int Choose(int count) {
    if (rest_.empty()) return 0;
    const int byte = static_cast<uint8_t>(rest_[0]);
    rest_.remove_prefix(1);
    return byte % count;
  }

  // Bytes of the input as they are, within valid UTF-8.
  std::string Text() {
    const size_t wanted = Choose(64);  // takes a byte
    const size_t size = std::min(wanted, rest_.size());
    const std::string text = RepairUtf8(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return text;
  }

  Json Part() {
    return Choose(64) == 63 ? Json(Text())
                            : Json{{"type", "text"}, {"text", Text()}};
  }

  // Only of an assistant it may be missing.
  Json Content(bool may_be_null) {
    switch (Choose(6)) {
      case 0:
        return may_be_null ? Json() : Json(Text());
      case 1:
        return Json::array();
      case 2:
        return Json::array({Part()});
      case 3:
        return Json::array({Part(), Part()});
      default:
        return Text();
    }
  }

  // What models make of arguments.
  Json Arguments() {
    static const std::string kSpelled[] = {
        "",
        " ",
        "{}",
        "{\"a\": 1}",
        "{\"a\": \"",
        "{\"a\": NaN, \"b\": [-Infinity, 1e400]}",
        "{\"a\": 1, \"a\": {\"b\": 2}}",
        "{\"a\": 123456789012345678901234567890123456789012345}",
        "{\"a\": \"\\ud83d\", \"é\": \"</tool_call>\"}",
        "null",
        "[1]",
        "{\"a\": " + std::string(65, '[') + std::string(65, ']') + "}",
        std::string(300, '{')};
    constexpr int kNumSpelled = std::size(kSpelled);
    switch (const int choice = Choose(kNumSpelled + 4)) {
      case kNumSpelled:
        return Text();
      case kNumSpelled + 1:
        return "{\"a\": " + Text() + "}";
      case kNumSpelled + 2:
        return {{Text(), Text()}, {"n", Choose(3)}};
      case kNumSpelled + 3:
        return Choose(2) == 0 ? Json(nullptr) : Json(5);
      default:
        return kSpelled[choice];
    }
  }

  Json Call() {
    Json call = {{"id", Text()}, {"type", "function"}};
    call["function"] = {{"name", Text()}, {"arguments", Arguments()}};
    if (Choose(16) == 15) call["function"].erase("arguments");
    return call;
  }

  Json Message() {
    constexpr const char* kRoles[] = {"user", "assistant", "tool", "system",
                                      "developer"};
    Json message = {{"role", kRoles[Choose(5)]}};
    message["content"] = Content(message["role"] == "assistant");
    if (message["role"] == "assistant") {
      for (int i = Choose(4); i > 0; --i) {
        message["tool_calls"].push_back(Call());
      }
      if (Choose(4) == 3) message["reasoning"] = Text();
    }
    if (message["role"] == "tool") message["tool_call_id"] = Text();
    return message;
  }

  Json Tool() {
    return {{"type", "function"},
            {"function",
             {{"name", Text()},
              {"description", Content(true)},
              {"parameters",
               {{"type", "object"},
                {"properties", {{Text(), {{"type", Content(true)}}}}}}}}}};
  }

  std::string_view rest_;
};

void CheckPrompt(const std::string& body, const TextCodec& codec) {
  static const ApiLimits limits = [] {
    ApiLimits made;
    made.max_model_len = 1 << 26;
    made.vocab_size = 256;
    return made;
  }();
  const auto prepared = PrepareChat(body, limits, codec, 7);
  if (prepared.ok()) return;
  CHECK(prepared.error().http_status == 400 ||
        prepared.error().http_status == 404);  // another model's name
  CHECK(!prepared.error().message.empty());
  CHECK(ParseJson(ErrorBody(prepared.error())).ok());
}

}  // namespace
}  // namespace moebius

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moebius;
  static const auto* templates = new std::vector<ChatTemplate>(LoadTemplates());
  if (size < 2) return 0;
  const FuzzCodec codec((*templates)[data[0] % templates->size()]);
  const std::string_view text(reinterpret_cast<const char*>(data) + 2,
                              size - 2);
  if (text.starts_with('{')) {
    CheckPrompt(std::string(text), codec);
    return 0;
  }
  Json body = Maker(text).Body();
  if ((data[1] & 1) != 0) body["continue_final_message"] = true;
  if ((data[1] & 2) != 0)
    body["chat_template_kwargs"]["enable_thinking"] = false;
  CheckPrompt(body.dump(), codec);
  return 0;
}
