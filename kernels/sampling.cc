#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/check.h"
#include "common/base/split_mix.h"
#include "kernels/cpu/vocabulary_scan.h"

namespace moebius {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Below this temperature the highest logit is taken, as vLLM does.
constexpr float kGreedyTemperature = 1e-5f;

float NanToMinusInfinity(float value) {
  return std::isnan(value) ? kMinusInfinity : value;
}

// Token order of top-k and top-p: descending logits, ties lowest id first.
struct HigherFirst {
  absl::Span<const float> logits;
  bool operator()(int32_t a, int32_t b) const {
    const float x = NanToMinusInfinity(logits[a]);
    const float y = NanToMinusInfinity(logits[b]);
    return x != y ? x > y : a < b;
  }
};

bool AreSuppressed(const SamplingParams& params, uint64_t token_index) {
  return params.min_tokens > 0 &&
         token_index < static_cast<uint64_t>(params.min_tokens);
}

bool ChangesLogits(const SamplingParams& params, uint64_t token_index) {
  return NeedsHistory(params) || !params.logit_bias.empty() ||
         !params.allowed_ids.empty() || !params.bad_words.empty() ||
         (!params.suppressed_ids.empty() && AreSuppressed(params, token_index));
}

bool Inside(int32_t token, absl::Span<const float> logits) {
  return token >= 0 && static_cast<size_t>(token) < logits.size();
}

// Leaves the logits of `allowed`, ascending, alone.
void ForbidOthers(absl::Span<const int32_t> allowed, absl::Span<float> logits) {
  auto begin = logits.begin();
  for (const int32_t token : allowed) {
    if (!Inside(token, logits)) continue;
    const auto at = logits.begin() + token;
    if (at < begin) continue;  // named twice
    std::fill(begin, at, kMinusInfinity);
    begin = at + 1;
  }
  std::fill(begin, logits.end(), kMinusInfinity);
}

void ChangeLogits(const SamplingParams& params, const TokenHistory* history,
                  uint64_t token_index, absl::Span<const int32_t> output,
                  absl::Span<float> logits) {
  const auto inside = [&](int32_t token) { return Inside(token, logits); };
  if (!params.allowed_ids.empty()) ForbidOthers(params.allowed_ids, logits);
  ForEachTokenOut(params, token_index, output, [&](int32_t token) {
    if (inside(token)) logits[token] = kMinusInfinity;
  });
  for (const auto& [token, bias] : params.logit_bias) {
    if (inside(token)) logits[token] += bias;
  }
  if (history == nullptr || !NeedsHistory(params)) return;
  const float repetition = params.repetition_penalty;
  for (const TokenHistory::Entry& entry : history->entries()) {
    if (!inside(entry.token)) continue;
    float& logit = logits[entry.token];
    if (repetition > 0.0f && repetition != 1.0f) {
      logit = logit > 0.0f ? logit / repetition : logit * repetition;
    }
    if (entry.output_count == 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(entry.output_count);
    logit -= params.presence_penalty;
  }
}

// Number of `tokens`, which it reorders, in the shortest prefix in order of
// HigherFirst whose weights sum to at least `mass`; at least one. The tokens of
// that prefix come first afterwards, its last one last.
size_t ShortestPrefix(absl::Span<const float> logits,
                      absl::Span<const float> weights, double mass,
                      absl::Span<int32_t> tokens) {
  constexpr size_t kSortedDirectly = 64;
  const HigherFirst higher_first{logits};
  size_t begin = 0, end = tokens.size();
  double before = 0.0;  // weight of tokens[0 .. begin)
  // Halves the part where the prefix ends: linear time in all.
  while (end - begin > kSortedDirectly) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(tokens.begin() + begin, tokens.begin() + middle,
                     tokens.begin() + end, higher_first);
    double half = 0.0;
    for (size_t i = begin; i < middle; ++i) half += weights[tokens[i]];
    if (before + half >= mass) {
      end = middle;
    } else {
      before += half;
      begin = middle;
    }
  }
  std::sort(tokens.begin() + begin, tokens.begin() + end, higher_first);
  while (begin < end) {
    before += weights[tokens[begin++]];
    if (before >= mass) break;
  }
  return std::max<size_t>(begin, 1);
}

}  // namespace

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                   std::array<uint32_t, 2> key) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t a = uint64_t{kMultiplier0} * counter[0];
    const uint64_t b = uint64_t{kMultiplier1} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(a)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

double UniformDraw(uint64_t seed, uint64_t token_index) {
  const auto words = Philox4x32(
      {static_cast<uint32_t>(token_index),
       static_cast<uint32_t>(token_index >> 32), 0, 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = uint64_t{words[1]} << 32 | words[0];
  return UnitInterval(bits);
}

TokenHistory::Entry& TokenHistory::Find(int32_t token) {
  const auto [it, added] = index_.try_emplace(token, entries_.size());
  if (added) entries_.push_back({token, 0, false});
  return entries_[it->second];
}

void TokenHistory::AddPrompt(absl::Span<const int32_t> tokens) {
  for (const int32_t token : tokens) Find(token).in_prompt = true;
}

void TokenHistory::AddOutput(int32_t token) { ++Find(token).output_count; }

void TokenHistory::Clear() {
  entries_.clear();
  index_.clear();
}

bool NeedsHistory(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
         params.frequency_penalty != 0.0f;
}

bool IsGreedy(const SamplingParams& params) {
  return !(params.temperature >= kGreedyTemperature);
}

void ForEachTokenOut(const SamplingParams& params, uint64_t token_index,
                     absl::Span<const int32_t> output,
                     absl::FunctionRef<void(int32_t)> out) {
  for (const std::vector<int32_t>& word : params.bad_words) {
    if (word.empty() || word.size() > output.size() + 1) continue;
    const size_t before = word.size() - 1;
    if (std::equal(word.begin(), word.begin() + before,
                   output.end() - before)) {
      out(word.back());
    }
  }
  if (!AreSuppressed(params, token_index)) return;
  for (const int32_t token : params.suppressed_ids) out(token);
}

int32_t Argmax(absl::Span<const float> logits) {
  CHECK(!logits.empty());
  return FindHighest(logits).index;
}

Logprobs ComputeLogprobs(absl::Span<const float> logits, int32_t token,
                         int num_top) {
  CHECK(token >= 0 && static_cast<size_t>(token) < logits.size());
  CHECK(num_top <= kMaxLogprobs);
  const HighestLogit highest = FindHighest(logits);
  double log_sum = 0.0;
  if (std::isfinite(highest.value)) {
    log_sum = std::log(SumExp(logits, highest.value));
  } else if (highest.value > 0.0f) {
    log_sum = std::log(static_cast<double>(
        CountAbove(logits, std::numeric_limits<float>::max())));
  }
  const auto logprob = [&](int32_t id) {
    const float logit = NanToMinusInfinity(logits[id]);
    if (logit == kMinusInfinity) return kMinusInfinity;
    if (std::isfinite(highest.value)) {
      return static_cast<float>(double{logit} - double{highest.value} -
                                log_sum);
    }
    return logit == highest.value ? static_cast<float>(-log_sum)
                                  : kMinusInfinity;
  };
  Logprobs result;
  result.logprob = logprob(token);
  result.rank = 1 + CountAbove(logits, NanToMinusInfinity(logits[token]));
  const size_t top = std::min<size_t>(std::max(num_top, 0), logits.size());
  if (top == 0) return result;
  thread_local std::vector<int32_t> ids;
  float candidates[1024 + kScanSlack];
  const float least = KthHighest(logits, top, candidates);
  ids.resize(logits.size() + kScanSlack);
  size_t count = CollectAtLeast(logits, least, ids.data());
  if (count < top) {  // NaN is not at least -infinity
    for (size_t i = 0; i < logits.size(); ++i) {
      ids[i] = static_cast<int32_t>(i);
    }
    count = logits.size();
  }
  std::partial_sort(ids.begin(), ids.begin() + top, ids.begin() + count,
                    HigherFirst{logits});
  result.top.reserve(top);
  for (size_t i = 0; i < top; ++i) {
    result.top.push_back({ids[i], logprob(ids[i])});
  }
  return result;
}

SampledValue Sampler::Sample(absl::Span<float> logits,
                             const SamplingParams& params,
                             const TokenHistory* history, uint64_t token_index,
                             absl::Span<const int32_t> output) {
  CHECK(!logits.empty());
  const bool changes = ChangesLogits(params, token_index);
  absl::Span<const float> raw = logits;
  if (changes) {
    if (params.num_logprobs >= 0) {
      raw_.assign(logits.begin(), logits.end());
      raw = raw_;
    }
    ChangeLogits(params, history, token_index, output, logits);
  }
  SampledValue result;
  if (IsGreedy(params)) {
    result.token = Argmax(logits);
  } else {
    result.token = Draw(logits, params, UniformDraw(params.seed, token_index));
  }
  if (params.num_logprobs >= 0) {
    result.logprobs = ComputeLogprobs(
        raw, result.token, std::min(params.num_logprobs, kMaxLogprobs));
  }
  return result;
}

int32_t Sampler::Draw(absl::Span<const float> logits,
                      const SamplingParams& params, double uniform) {
  const HighestLogit highest = FindHighest(logits);
  if (highest.value == kMinusInfinity) return highest.index;
  const size_t n = logits.size();
  if (!std::isfinite(highest.value)) return DrawInfinite(logits, uniform);

  weights_.resize(n);
  chunk_sums_.resize((n + kWeightChunk - 1) / kWeightChunk);
  const float min_p = params.min_p > 0.0f ? std::min(params.min_p, 1.0f) : 0.0f;
  const bool has_top_k =
      params.top_k > 0 && static_cast<size_t>(params.top_k) < n;
  const bool has_top_p = params.top_p < 1.0f;
  // exp of differences, so the highest has weight 1.
  double total = ExpWeights(logits, highest.value, 1.0f / params.temperature,
                            min_p, weights_.data(), chunk_sums_.data());
  if (!has_top_k && !has_top_p) return DrawFromAll(total, uniform);

  candidates_.resize(n + kScanSlack);
  size_t count = 0;
  if (has_top_k) {
    const size_t k = static_cast<size_t>(params.top_k);
    scratch_.resize(std::max<size_t>(2 * k, 1024) + kScanSlack);
    const float least = KthHighest(logits, k, scratch_.data());
    count = CollectAtLeast(logits, least, candidates_.data());
    total = 0.0;
    for (size_t i = 0; i < count; ++i) total += weights_[candidates_[i]];
  }
  if (has_top_p) {
    const double mass = std::max(0.0, double{params.top_p}) * total;
    if (!has_top_k) {
      // Few tokens hold nearly all of the mass: leave out as many as possible.
      constexpr float kBounds[] = {0x1p-6f, 0x1p-12f, 0x1p-20f};
      float bound = std::numeric_limits<float>::min();
      for (const float candidate : kBounds) {
        if (SumAtLeast(weights_, candidate) >= mass) {
          bound = candidate;
          break;
        }
      }
      count = CollectAtLeast(weights_, bound, candidates_.data());
    }
    order_.assign(candidates_.begin(), candidates_.begin() + count);
    const size_t kept =
        ShortestPrefix(logits, weights_, mass, absl::MakeSpan(order_));
    const int32_t last = order_[kept - 1];
    const HigherFirst higher_first{logits};
    const auto end = std::remove_if(
        candidates_.begin(), candidates_.begin() + count,
        [&](int32_t token) { return higher_first(last, token); });
    count = static_cast<size_t>(end - candidates_.begin());
    total = 0.0;
    for (size_t i = 0; i < count; ++i) total += weights_[candidates_[i]];
  }
  const double target = uniform * total;
  double sum = 0.0;
  int32_t chosen = highest.index;
  for (size_t i = 0; i < count; ++i) {
    const float weight = weights_[candidates_[i]];
    if (weight == 0.0f) continue;
    chosen = candidates_[i];
    sum += weight;
    if (sum > target) break;
  }
  return chosen;
}

int32_t Sampler::DrawInfinite(absl::Span<const float> logits, double uniform) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  candidates_.resize(logits.size() + kScanSlack);
  const size_t count = CollectAtLeast(logits, kInfinity, candidates_.data());
  const size_t at = static_cast<size_t>(uniform * static_cast<double>(count));
  return candidates_[std::min(at, count - 1)];
}

int32_t Sampler::DrawFromAll(double total, double uniform) const {
  const double target = uniform * total;
  double sum = 0.0;
  size_t chunk = 0;
  while (chunk + 1 < chunk_sums_.size() && sum + chunk_sums_[chunk] <= target) {
    sum += chunk_sums_[chunk++];
  }
  // Rounding may leave the last chunks empty handed: go back to one that has
  // weight. The highest token has weight 1, so there is one.
  const auto last_with_weight = [&](size_t before) -> int32_t {
    for (size_t i = before; i > 0; --i) {
      if (weights_[i - 1] > 0.0f) return static_cast<int32_t>(i - 1);
    }
    return -1;
  };
  const size_t begin = chunk * kWeightChunk;
  const size_t end = std::min(begin + kWeightChunk, weights_.size());
  for (size_t i = begin; i < end; ++i) {
    sum += weights_[i];
    if (sum > target && weights_[i] > 0.0f) return static_cast<int32_t>(i);
  }
  return std::max<int32_t>(last_with_weight(end), 0);
}

}  // namespace moebius
