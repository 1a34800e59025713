// Any bytes as a chat template, over a fixed conversation with all kinds of
// values: a Status or a text within the bounds, never a crash.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "absl/time/time.h"
#include "coordinator/jinja/chat_template.h"
#include "coordinator/text/utf8.h"

namespace {

constexpr char kMessages[] = R"json([
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "Grüße, 世界! 🙂\n"},
  {"role": "assistant", "content": "<think>\nt\n</think>\n\nHello",
   "tool_calls": [{"id": "1", "type": "function", "function":
     {"name": "f", "arguments": {"a": [1, 2.5, null, true], "b": {}}}}]},
  {"role": "tool", "content": null, "n": 18446744073709551615},
  {"role": "user", "content": [{"type": "text", "text": "x"}]}
])json";

constexpr char kTools[] = R"json([
  {"type": "function", "function": {"name": "f", "parameters":
    {"type": "object", "properties": {"a": {"type": "integer"}},
     "required": ["a"]}}}
])json";

const moebius::ChatTemplateInput& Input() {
  static const auto* input = [] {
    auto* made = new moebius::ChatTemplateInput;
    made->messages = nlohmann::ordered_json::parse(kMessages);
    made->tools = nlohmann::ordered_json::parse(kTools);
    made->extra = {{"enable_thinking", false}, {"x", -3}, {"s", "ab"}};
    made->now = absl::FromUnixSeconds(1721997296);
    made->zone = absl::UTCTimeZone();
    return made;
  }();
  return *input;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto parsed = moebius::ChatTemplate::Parse(
      source, {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!parsed.ok()) return 0;
  const auto text = parsed->Render(Input());
  if (!text.ok()) return 0;
  if (text->size() > moebius::jinja::kMaxOutputBytes) std::abort();
  if (!moebius::IsValidUtf8(*text)) std::abort();
  return 0;
}
