#include "coordinator/checkpoint_codec.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/status_macros.h"

namespace moebius {

absl::StatusOr<std::unique_ptr<CheckpointCodec>> CheckpointCodec::Load(
    const std::string& model_dir) {
  ASSIGN_OR_RETURN(auto tokenizer,
                   Tokenizer::Load(model_dir + "/tokenizer.json"));
  auto loaded = ChatTemplate::Load(model_dir);
  std::optional<ChatTemplate> chat_template;
  if (loaded.ok()) {
    chat_template.emplace(*std::move(loaded));
  } else if (!absl::IsNotFound(loaded.status())) {
    return loaded.status();
  }
  return std::unique_ptr<CheckpointCodec>(
      new CheckpointCodec(std::move(tokenizer), std::move(chat_template)));
}

absl::StatusOr<std::vector<int32_t>> CheckpointCodec::Encode(
    std::string_view text) const {
  return tokenizer_->Encode(text);
}

std::string CheckpointCodec::Decode(absl::Span<const int32_t> tokens) const {
  std::string bytes;
  for (int32_t token : tokens) bytes += tokenizer_->TokenBytes(token);
  return bytes;
}

std::string CheckpointCodec::TokenBytes(int32_t token) const {
  return std::string(tokenizer_->TokenBytes(token));
}

absl::StatusOr<std::string> CheckpointCodec::RenderChat(
    const ChatInput& input) const {
  if (!chat_template_.has_value()) {
    return absl::FailedPreconditionError(
        "this checkpoint has no chat template");
  }
  ChatTemplateInput render;
  render.messages = input.messages;
  render.tools = input.tools;
  render.add_generation_prompt = input.add_generation_prompt;
  render.extra = input.template_kwargs;
  render.now = absl::Now();
  return chat_template_->Render(render);
}

}  // namespace moebius
