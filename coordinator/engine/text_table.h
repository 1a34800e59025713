// The generations under way as text: tokens in, outputs and ends out. No clock,
// no thread.
#pragma once

#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/base/ids.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/generation_output.h"
#include "coordinator/engine/text_stage.h"
#include "coordinator/text/tokenizer.h"

namespace moebius {

// TextTable
//
// Where a generation ends is a function of its tokens: at the first one that a
// rule of GenerationOutput names, and all behind it count for nothing. The
// engine may have drawn some by the time that a stop string is found here; they
// are dropped, here and when the journal is read again.
//
// The output with the end of a generation that has stop strings is held back
// until the engine has it in the journal. Without them the engine knows the end
// itself, and it is there already.
//
// Threading: thread-compatible.
class TextTable {
 public:
  // `listener` hears the outputs, those of one Take() at once unless somebody
  // attaches between them. `tokenizer` outlives the table.
  TextTable(const Tokenizer* tokenizer, OutputListener listener)
      : tokenizer_(tokenizer), listener_(std::move(listener)) {}

  // Takes the items in order. Ends that were found are appended to `ends`.
  void Take(TextBatch& batch, std::vector<TextEnd>& ends);

 private:
  struct Text {
    std::unique_ptr<GenerationOutput> output;
    std::optional<Output> held;  // with the end
  };

  void Do(GenerationBegun& begun, std::vector<TextEnd>& ends);
  void Do(TokenDrawn& drawn, std::vector<TextEnd>& ends);
  void Do(GenerationEnded& ended, std::vector<TextEnd>& ends);
  void Do(AttachedAgain& attached, std::vector<TextEnd>& ends);
  void Do(TextCall& call, std::vector<TextEnd>& ends);
  void SayOutputs();
  void Replay(AttachedAgain::Generation& generation,
              std::vector<Output>& outputs) const;

  const Tokenizer* tokenizer_;
  const OutputListener listener_;
  absl::flat_hash_map<RequestId, Text> texts_;
  std::vector<Output> outputs_;  // to be said
};

}  // namespace moebius
