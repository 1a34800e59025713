// A text codec whose tokens are bytes, with a few longer ones.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/text_codec.h"

namespace moebius {

inline constexpr int kFakeVocab = 300;
inline constexpr int32_t kFakeEos = 256;
inline constexpr int32_t kFakeSpacedZ = 280;   // " z"
inline constexpr int32_t kFakeSpacedZz = 281;  // " zz"
// A token of the tokenizer that the model does not have: the bell is one.
inline constexpr int32_t kFakeBeyond = kFakeVocab + 7;

class FakeCodec final : public TextCodec {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override {
    if (text == "unencodable") {
      return absl::ResourceExhaustedError("that cannot be encoded");
    }
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      const unsigned char c = text[i];
      if (text.substr(i, 3) == " zz") {
        ids.push_back(kFakeSpacedZz);
        i += 2;
      } else if (text.substr(i, 2) == " z") {
        ids.push_back(kFakeSpacedZ);
        ++i;
      } else {
        ids.push_back(c == 7 ? kFakeBeyond : c);
      }
    }
    return ids;
  }

  std::string Decode(absl::Span<const int32_t> tokens) const override {
    std::string out;
    for (int32_t token : tokens) out += TokenBytes(token);
    return out;
  }

  std::string TokenBytes(int32_t token) const override {
    if (token < 256) return std::string(1, static_cast<char>(token));
    if (token == kFakeEos) return "<|im_end|>";
    if (token == kFakeBeyond) return "<tool_call>";
    if (token == kFakeSpacedZ) return " z";
    if (token == 257) return "\xc3\xa9";  // é
    return "";
  }

  // "role:content;" for each message, then "assistant:".
  absl::StatusOr<std::string> RenderChat(
      const ChatInput& input) const override {
    std::string out;
    if (input.tools.is_array()) out += "tools:" + input.tools.dump() + ";";
    if (!input.template_kwargs.empty()) {
      out += "kwargs:" + input.template_kwargs.dump() + ";";
    }
    for (const Json& message : input.messages) {
      const std::string content = message["content"].is_string()
                                      ? message["content"].get<std::string>()
                                      : message["content"].dump();
      if (content == "raise") {
        return absl::InvalidArgumentError("roles must alternate");
      }
      out += message["role"].get<std::string>() + ":" + content + ";";
    }
    if (input.add_generation_prompt) out += "assistant:";
    return out;
  }
};

}  // namespace moebius
