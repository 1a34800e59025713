// What the API needs of a tokenizer and a chat template.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/api/json_input.h"

namespace moebius {

// A conversation, as NormalizeMessages() gives it.
struct ChatInput {
  Json messages = Json::array();
  Json tools;  // array, or null
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // see ChatTemplateInput
  Json template_kwargs = Json::object();
  std::optional<std::string> chat_template;  // in place of the model's
};

// TextCodec
//
// Threading: thread-safe (immutable).
class TextCodec {
 public:
  virtual ~TextCodec() = default;

  // Errors: kInvalidArgument for a text that cannot be encoded.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const = 0;

  // The bytes that the tokens stand for, special tokens shown; not always
  // valid UTF-8. An id that no token has stands for nothing (the vocabulary of
  // a model may be larger than that of its tokenizer).
  virtual std::string Decode(absl::Span<const int32_t> tokens) const = 0;

  // The bytes of one token.
  virtual std::string TokenBytes(int32_t token) const = 0;

  // The prompt of a conversation. Errors: kInvalidArgument with what the
  // template raised or why the request's own is none, kFailedPrecondition if
  // the model has no template.
  virtual absl::StatusOr<std::string> RenderChat(
      const ChatInput& input) const = 0;
};

}  // namespace moebius
