#include "coordinator/api/checkpoint_codec.h"

#include <utility>

#include "absl/time/clock.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/text/json_reader.h"

namespace moebius {
namespace {

constexpr int kMaxTokensNamed = 8;

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointCodec>> CheckpointCodec::Load(
    const std::string& model_dir) {
  ASSIGN_OR_RETURN(auto tokenizer,
                   Tokenizer::Load(model_dir + "/tokenizer.json"));
  ASSIGN_OR_RETURN(ChatTemplate::SpecialTokens special_tokens,
                   ChatTemplate::LoadSpecialTokens(model_dir));
  auto loaded = ChatTemplate::Load(model_dir);
  std::optional<ChatTemplate> chat_template;
  if (loaded.ok()) {
    chat_template.emplace(*std::move(loaded));
  } else if (!absl::IsNotFound(loaded.status())) {
    return loaded.status();
  }
  return std::unique_ptr<CheckpointCodec>(
      new CheckpointCodec(std::move(tokenizer), std::move(special_tokens),
                          std::move(chat_template)));
}

std::optional<int32_t> CheckpointCodec::eos_id() const {
  for (const auto& [name, text] : special_tokens_) {
    if (name == "eos_token") return tokenizer_->TokenId(text);
  }
  return std::nullopt;
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
  if (input.chat_template.has_value()) {
    ASSIGN_OR_RETURN(
        const ChatTemplate own,
        ChatTemplate::Parse(*input.chat_template, special_tokens_));
    return RenderChatInput(own, input);
  }
  if (!chat_template_.has_value()) {
    return absl::FailedPreconditionError(
        "this checkpoint has no chat template");
  }
  return RenderChatInput(*chat_template_, input);
}

absl::StatusOr<std::string> RenderChatInput(const ChatTemplate& chat_template,
                                            const ChatInput& input) {
  ChatTemplateInput render;
  render.messages = input.messages;
  ApplyContentForm(chat_template.content_form(input.tools), &render.messages);
  render.tools = input.tools;
  render.add_generation_prompt = input.add_generation_prompt;
  render.continue_final_message = input.continue_final_message;
  render.extra = input.template_kwargs;
  render.now = absl::Now();
  return chat_template.Render(render);
}

std::string TokensBeyond(const Tokenizer& tokenizer, int vocab_size) {
  std::string names;
  int count = 0;
  for (int32_t id = vocab_size; id < tokenizer.vocab_size(); ++id) {
    const std::string_view bytes = tokenizer.TokenBytes(id);
    if (bytes.empty()) continue;  // no token has this id
    if (++count > kMaxTokensNamed) continue;
    names += Cat(count > 1 ? ", " : "", id, " ", QuotedForMessage(bytes));
  }
  if (count > kMaxTokensNamed) {
    names += Cat(" and ", count - kMaxTokensNamed, " more");
  }
  return names;
}

}  // namespace moebius
