// Text of a token stream, as it grows.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace moebius {

// StreamingDetokenizer
//
// Decodes ids one by one. Each delta is valid UTF-8 and final: bytes of an
// incomplete character (3 at most) are held back until they are complete, or
// become U+FFFD once they can never be. All deltas and Flush() together are
// Tokenizer::Decode() of all ids.
//
// A small value. Threading: thread-compatible. The tokenizer must outlive it.
class StreamingDetokenizer {
 public:
  StreamingDetokenizer(const Tokenizer* tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // The text that `id` makes certain; often empty, never part of a character.
  std::string Append(int32_t id) {
    std::string delta;
    if (!(skip_special_ && tokenizer_->IsSpecial(id))) {
      repairer_.Append(tokenizer_->TokenBytes(id), &delta);
    }
    return delta;
  }

  // Ends the text: what is held back becomes one U+FFFD. Ready for a new text
  // afterwards.
  std::string Flush() {
    std::string delta;
    repairer_.Flush(&delta);
    return delta;
  }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  Utf8Repairer repairer_;
};

}  // namespace moebius
