#include "coordinator/engine/text_table.h"

#include <utility>

#include "absl/types/span.h"

namespace moebius {

void TextTable::Take(TextBatch& batch, std::vector<TextEnd>& ends) {
  outputs_.reserve(batch.size());
  for (TextItem& item : batch) {
    std::visit([&](auto& one) { Do(one, ends); }, item);
  }
  SayOutputs();
  batch.clear();
}

void TextTable::SayOutputs() {
  if (outputs_.empty()) return;
  listener_(std::exchange(outputs_, {}));
}

void TextTable::Do(GenerationBegun& begun, std::vector<TextEnd>&) {
  if (begun.accepted) {
    Output& output = outputs_.emplace_back();
    output.request = begun.request;
    output.accepted = true;
  }
  texts_[begun.request] = Text{std::move(begun.output), {}};
}

void TextTable::Do(TokenDrawn& drawn, std::vector<TextEnd>& ends) {
  const auto found = texts_.find(drawn.request);
  if (found == texts_.end() || found->second.held.has_value()) return;
  GenerationOutput& generation = *found->second.output;
  Output& output = outputs_.emplace_back();
  output.request = drawn.request;
  output.prompt_logprobs = std::move(drawn.prompt_logprobs);
  generation.Add(std::move(drawn.token), output);
  if (drawn.last && !output.finish.has_value()) {
    output.finish = FinishReason::kLength;
  }
  if (!output.finish.has_value()) return;
  if (!generation.has_stop_strings()) {
    texts_.erase(found);
    return;
  }
  ends.push_back({drawn.request, *output.finish, output.stop_reason});
  found->second.held = std::move(output);
  outputs_.pop_back();
}

void TextTable::Do(GenerationEnded& ended, std::vector<TextEnd>&) {
  const auto found = texts_.find(ended.request);
  if (ended.finish.has_value()) {
    Output& output = outputs_.emplace_back();
    output.request = ended.request;
    output.finish = ended.finish;
    output.stop_reason = std::move(ended.stop_reason);
    output.refused = std::move(ended.refused);
  } else if (!ended.silent && found != texts_.end() &&
             found->second.held.has_value()) {
    outputs_.push_back(*std::move(found->second.held));
  }
  if (found != texts_.end()) texts_.erase(found);
}

void TextTable::Do(AttachedAgain& attached, std::vector<TextEnd>&) {
  SayOutputs();
  std::vector<Output> outputs;
  for (AttachedAgain::Generation& generation : attached.generations) {
    Replay(generation, outputs);
  }
  attached.callback(std::move(outputs));
}

void TextTable::Do(TextCall& call, std::vector<TextEnd>&) {
  SayOutputs();
  call();
}

// What it has shown so far is what its tokens show.
void TextTable::Replay(AttachedAgain::Generation& generation,
                       std::vector<Output>& outputs) const {
  GenerationOutput text(tokenizer_, std::move(generation.stop));
  bool ended = false;
  for (size_t i = 0; i < generation.tokens.size() && !ended; ++i) {
    Output output;
    output.request = generation.request;
    if (i == 0) output.prompt_logprobs = std::move(generation.prompt_logprobs);
    text.Add(std::move(generation.tokens[i]), output);
    ended = output.finish.has_value();
    // The engine is about to write this end; the listener hears of it then.
    if (ended && !generation.finish.has_value()) return;
    if (!ended && i + 1 == generation.tokens.size() &&
        generation.finish.has_value()) {
      output.finish = generation.finish;
      output.stop_reason = std::move(generation.stop_reason);
    }
    outputs.push_back(std::move(output));
  }
  if (!generation.tokens.empty() || !generation.finish.has_value()) return;
  Output& output = outputs.emplace_back();
  output.request = generation.request;
  output.finish = generation.finish;
  output.stop_reason = std::move(generation.stop_reason);
}

}  // namespace moebius
