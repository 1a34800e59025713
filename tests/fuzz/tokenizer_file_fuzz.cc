// Any bytes as a tokenizer.json, or, if they do not begin like one, as a split
// pattern. A file that loads must encode a short text to ids that exist, and
// the deltas of a stream must be the whole; the pieces of a pattern must be
// the text.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/streaming_detokenizer.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace {

using moebius::StreamingDetokenizer;
using moebius::Tokenizer;

constexpr std::string_view kText =
    "the abc<|end|>  12 e\u0301 \u4E2D\U0001F600 I'm\r\n\t x<y> \xFF";

void Require(bool condition) {
  if (!condition) std::abort();
}

void TryOne(const Tokenizer& tokenizer, bool parse_special) {
  const auto ids = tokenizer.Encode(kText, {.parse_special = parse_special});
  if (!ids.ok()) return;  // a pattern that gave up
  std::string streamed;
  StreamingDetokenizer stream(&tokenizer, /*skip_special=*/false);
  for (const int32_t id : *ids) {
    Require(id >= 0 && id < tokenizer.vocab_size());
    Require(!tokenizer.TokenBytes(id).empty());
    const std::string delta = stream.Append(id);
    Require(moebius::IsValidUtf8(delta));
    streamed += delta;
  }
  streamed += stream.Flush();
  Require(streamed == tokenizer.Decode(*ids, /*skip_special=*/false));
}

void TryPattern(std::string_view pattern) {
  const auto compiled = moebius::SplitPattern::Compile(pattern);
  if (!compiled.ok()) return;
  const std::string text = moebius::RepairUtf8(kText);
  std::string joined;
  const absl::Status status =
      (*compiled)->Split(text, [&](std::string_view piece) {
        Require(!piece.empty() && moebius::IsValidUtf8(piece));
        joined += piece;
        return absl::OkStatus();
      });
  Require(!status.ok() || joined == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (!input.empty() && input[0] != '{') {
    TryPattern(input);
    return 0;
  }
  const auto tokenizer = Tokenizer::FromJson(input, "fuzz");
  if (!tokenizer.ok()) {
    // Every refusal says where.
    Require(tokenizer.status().message().substr(0, 4) == "fuzz");
    return 0;
  }
  TryOne(**tokenizer, /*parse_special=*/true);
  TryOne(**tokenizer, /*parse_special=*/false);
  return 0;
}
