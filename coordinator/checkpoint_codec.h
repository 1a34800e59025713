// Tokenizer and chat template of a checkpoint, as the API uses them.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "coordinator/api/text_codec.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace moebius {

class CheckpointCodec final : public TextCodec {
 public:
  // Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of
  // `model_dir`. A checkpoint without a template serves no chats.
  static absl::StatusOr<std::unique_ptr<CheckpointCodec>> Load(
      const std::string& model_dir);

  const Tokenizer& tokenizer() const { return *tokenizer_; }

  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override;
  std::string Decode(absl::Span<const int32_t> tokens) const override;
  std::string TokenBytes(int32_t token) const override;
  absl::StatusOr<std::string> RenderChat(const ChatInput& input) const override;

 private:
  CheckpointCodec(std::unique_ptr<Tokenizer> tokenizer,
                  std::optional<ChatTemplate> chat_template)
      : tokenizer_(std::move(tokenizer)),
        chat_template_(std::move(chat_template)) {}

  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
};

}  // namespace moebius
