#include "coordinator/engine/generation_output.h"

#include <algorithm>
#include <string_view>

#include "common/base/check.h"

namespace moebius {
namespace {

// Length of the longest proper prefix of `word` that `text` ends with.
size_t OverlapWithEnd(std::string_view text, std::string_view word) {
  const size_t longest = std::min(text.size(), word.size() - 1);
  for (size_t n = longest; n > 0; --n) {
    if (text.substr(text.size() - n) == word.substr(0, n)) return n;
  }
  return 0;
}

}  // namespace

GenerationOutput::GenerationOutput(const Tokenizer* tokenizer,
                                   StopCriteria stop)
    : stop_(std::move(stop)),
      ends_(stop_),
      detokenizer_(tokenizer, stop_.skip_special_tokens) {}

bool GenerationOutput::CutAtStop(Output& output) {
  if (!ends_.may_stop()) return false;
  size_t first = std::string::npos;
  const std::string* found = nullptr;
  for (const std::string& word : stop_.stop) {
    const size_t at = pending_.find(word);
    if (at < first) {
      first = at;
      found = &word;
    }
  }
  if (found == nullptr) return false;
  pending_.resize(first +
                  (stop_.include_stop_str_in_output ? found->size() : 0));
  output.finish = FinishReason::kStop;
  output.stop_reason = *found;
  return true;
}

void GenerationOutput::Release(Output& output) {
  size_t held = 0;
  if (!output.finish.has_value()) {
    for (const std::string& word : stop_.stop) {
      held = std::max(held, OverlapWithEnd(pending_, word));
    }
  }
  output.text.append(pending_, 0, pending_.size() - held);
  pending_.erase(0, pending_.size() - held);
}

void GenerationOutput::Add(absl::Span<const SampledToken> tokens,
                           Output& output) {
  for (const SampledToken& token : tokens) {
    // With each token: what is shown may not depend on how many come at once.
    Add(token, output);
    if (output.finish.has_value()) break;
  }
}

void GenerationOutput::Add(SampledToken sampled, Output& output) {
  CHECK(!output.finish.has_value());
  const int32_t token = sampled.token;
  output.tokens.push_back(std::move(sampled));
  const TokenEnd end = ends_.Take(token);
  const bool by_id = end == TokenEnd::kEos || end == TokenEnd::kStopToken;
  bool cut = false;
  if (!by_id || stop_.include_stop_str_in_output) {
    pending_ += detokenizer_.Append(token);
  }
  if (by_id) {
    output.finish = FinishReason::kStop;
    if (end == TokenEnd::kStopToken) {
      output.stop_reason = std::to_string(token);
    }
  } else {
    cut = CutAtStop(output);
    if (!cut && end == TokenEnd::kLength) output.finish = FinishReason::kLength;
  }
  if (output.finish.has_value() && !cut) pending_ += detokenizer_.Flush();
  Release(output);
}

}  // namespace moebius
