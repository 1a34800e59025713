#include "coordinator/engine/generation_output.h"

#include <algorithm>
#include <string_view>

#include "common/base/check.h"

namespace moebius {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

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
      detokenizer_(tokenizer, stop_.skip_special_tokens) {}

bool GenerationOutput::EndsWith(int32_t token, Output& output) {
  if (num_tokens_ < stop_.min_tokens) return false;
  if (!stop_.ignore_eos && Contains(stop_.eos_ids, token)) {
    output.finish = FinishReason::kStop;
    if (stop_.include_stop_str_in_output) {
      pending_ += detokenizer_.Append(token);
    }
    return true;
  }
  if (Contains(stop_.stop_token_ids, token)) {
    output.finish = FinishReason::kStop;
    output.stop_reason = std::to_string(token);
    if (stop_.include_stop_str_in_output) {
      pending_ += detokenizer_.Append(token);
    }
    return true;
  }
  return false;
}

bool GenerationOutput::CutAtStop(Output& output) {
  if (num_tokens_ < stop_.min_tokens) return false;
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
    CHECK(!output.finish.has_value());
    output.tokens.push_back(token);
    ++num_tokens_;
    bool cut = false;
    if (!EndsWith(token.token, output)) {
      pending_ += detokenizer_.Append(token.token);
      cut = CutAtStop(output);
      if (!cut && num_tokens_ >= stop_.max_tokens) {
        output.finish = FinishReason::kLength;
      }
    }
    if (output.finish.has_value() && !cut) pending_ += detokenizer_.Flush();
    // With each token: what is shown may not depend on how many come at once.
    Release(output);
    if (output.finish.has_value()) break;
  }
}

}  // namespace moebius
