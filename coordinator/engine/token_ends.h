// Which token ends a generation, by its id or its number. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "coordinator/generation.h"

namespace moebius {

// kEos and kStopToken end a generation with kStop, kLength with kLength.
enum class TokenEnd : uint8_t { kNone, kEos, kStopToken, kLength };

// TokenEnds
//
// The rules that need no text, so that the engine's thread can apply them to
// each token: an end-of-sequence token or a stop token ends the generation, but
// neither does before min_tokens; max_tokens ends it whatever comes.
class TokenEnds {
 public:
  explicit TokenEnds(const StopCriteria& stop);

  // Takes the next token and says whether it is the last.
  TokenEnd Take(int32_t token);

  // So many tokens were taken that a stop may end it.
  bool may_stop() const { return num_tokens_ >= min_tokens_; }

 private:
  int num_tokens_ = 0;
  int min_tokens_;
  int max_tokens_;
  // None if they are ignored. Most models have one to three: in place, each
  // token looks at them.
  absl::InlinedVector<int32_t, 4> eos_ids_;
  std::vector<int32_t> stop_token_ids_;
};

}  // namespace moebius
