// Tokenizer and chat template of a checkpoint, as the API uses them.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "coordinator/api/text_codec.h"
#include "coordinator/jinja/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace moebius {

class CheckpointCodec final : public TextCodec {
 public:
  // Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of
  // `model_dir`. A checkpoint without a template serves no chats but those that
  // bring their own.
  static absl::StatusOr<std::unique_ptr<CheckpointCodec>> Load(
      const std::string& model_dir);

  const Tokenizer& tokenizer() const { return *tokenizer_; }

  // The token that the tokenizer's configuration names as the end of a text.
  std::optional<int32_t> eos_id() const;

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override;
  std::string Decode(absl::Span<const int32_t> tokens) const override;
  std::string TokenBytes(int32_t token) const override;
  absl::StatusOr<std::string> RenderChat(const ChatInput& input) const override;

 private:
  CheckpointCodec(std::unique_ptr<Tokenizer> tokenizer,
                  ChatTemplate::SpecialTokens special_tokens,
                  std::optional<ChatTemplate> chat_template)
      : tokenizer_(std::move(tokenizer)),
        special_tokens_(std::move(special_tokens)),
        chat_template_(std::move(chat_template)) {}

  std::unique_ptr<Tokenizer> tokenizer_;
  ChatTemplate::SpecialTokens special_tokens_;
  std::optional<ChatTemplate> chat_template_;
};

// The prompt that `chat_template` makes of a request's conversation.
absl::StatusOr<std::string> RenderChatInput(const ChatTemplate& chat_template,
                                            const ChatInput& input);

// Names the tokens whose ids a model of `vocab_size` tokens does not have, a
// few of them if there are many. Empty if there are none. They are of use to
// nobody: a text that gives one cannot be served.
std::string TokensBeyond(const Tokenizer& tokenizer, int vocab_size);

}  // namespace moebius
