// What one generation shows: tokens become text, and text or tokens end it.
// Pure: no clock, no I/O.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/token_ends.h"
#include "coordinator/text/streaming_detokenizer.h"
#include "coordinator/text/tokenizer.h"

namespace moebius {

// GenerationOutput
//
// Rules, as in vLLM: an end-of-sequence or stop token ends the generation and
// its text is not shown (unless include_stop_str_in_output, nor then if special
// tokens are skipped and it is one); a stop string ends it and the text is cut
// before it (after it with include_stop_str_in_output); none of them does
// before min_tokens. Text that may still become part of a stop string is held
// back. max_tokens ends it with kLength.
class GenerationOutput {
 public:
  GenerationOutput(const Tokenizer* tokenizer, StopCriteria stop);

  // Takes the next drawn tokens and appends to `output` what they show, the
  // same however many come at once. Tokens behind the one that ends the
  // generation are dropped. After output.finish is set nothing more may be
  // added.
  void Add(absl::Span<const SampledToken> tokens, Output& output);
  void Add(SampledToken token, Output& output);

  // Text may end it, so that tokens alone do not tell where it ends.
  bool has_stop_strings() const { return !stop_.stop.empty(); }

 private:
  // Looks for stop strings in pending_; true when one ended it.
  bool CutAtStop(Output& output);
  // Moves what can be shown from pending_ to output.text.
  void Release(Output& output);

  StopCriteria stop_;
  TokenEnds ends_;
  StreamingDetokenizer detokenizer_;
  std::string pending_;  // decoded, not shown yet
};

}  // namespace moebius
