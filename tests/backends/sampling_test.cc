#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/vocabulary_scan.h"
#include "kernels/reference/reference.h"
#include "tests/backends/random_tensors.h"

namespace moebius {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatNear;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t SampleToken(std::vector<float> logits, const SamplingParams& params,
                    uint64_t index = 0, const TokenHistory* history = nullptr) {
  Sampler sampler;
  return sampler.Sample(absl::MakeSpan(logits), params, history, index).token;
}

// Parameter sets that take every path of the sampler.
std::vector<SamplingParams> ManyParams() {
  std::vector<SamplingParams> out;
  for (const float temperature : {0.0f, 0.3f, 1.0f, 5.0f}) {
    for (const int top_k : {0, 1, 7, 2000}) {
      for (const float top_p : {1.0f, 0.9f, 0.3f, 0.0f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          SamplingParams params;
          params.temperature = temperature;
          params.top_k = top_k;
          params.top_p = top_p;
          params.min_p = min_p;
          out.push_back(params);
        }
      }
    }
  }
  return out;
}

TEST(Sampler, HostileLogitsNeverGiveAnIdOutside) {
  const std::vector<std::vector<float>> hostile = {
      {kNan},
      {-kInf, -kInf, -kInf},
      std::vector<float>(100, kNan),
      std::vector<float>(100, kInf),
      std::vector<float>(100, -kInf),
      {kNan, kInf, -kInf, 1.0f, kInf},
      {3e38f, -3e38f, 3e38f, 1e-45f, -0.0f},
      std::vector<float>(5000, 0.0f)};
  for (const auto& logits : hostile) {
    for (SamplingParams params : ManyParams()) {
      params.num_logprobs = 20;
      for (const uint64_t seed : {0, 1, 2}) {
        params.seed = seed;
        std::vector<float> copy = logits;
        Sampler sampler;
        const SampledValue got =
            sampler.Sample(absl::MakeSpan(copy), params, nullptr, seed);
        ASSERT_GE(got.token, 0);
        ASSERT_LT(got.token, static_cast<int32_t>(logits.size()));
        ASSERT_FALSE(std::isnan(got.logprobs.logprob));
        ASSERT_EQ(got.logprobs.top.size(), std::min<size_t>(20, logits.size()));
        for (const auto& top : got.logprobs.top) {
          ASSERT_FALSE(std::isnan(top.logprob));
          ASSERT_TRUE(top.token >= 0 &&
                      top.token < static_cast<int32_t>(logits.size()));
        }
      }
    }
  }
}

TEST(Sampler, NanIsNeverDrawnWhileAnythingElseIsThere) {
  for (SamplingParams params : ManyParams()) {
    for (uint64_t i = 0; i < 20; ++i) {
      EXPECT_EQ(SampleToken({kNan, -kInf, 0.5f, kNan}, params, i), 2);
    }
  }
  // Infinite logits share the mass.
  std::map<int32_t, int> seen;
  for (uint64_t i = 0; i < 200; ++i) {
    ++seen[SampleToken({kInf, 5.0f, kNan, kInf}, SamplingParams(), i)];
  }
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_GT(seen[0], 60);
  EXPECT_GT(seen[3], 60);
}

TEST(Sampler, IdsOutsideTheVocabularyAreIgnored) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.min_tokens = 5;
  params.suppressed_ids = {-7, 3, 1 << 30};
  params.logit_bias = {{-1, 100.0f}, {99, 100.0f}};
  params.repetition_penalty = 2.0f;
  TokenHistory history;
  history.AddPrompt({-5, 1 << 20});
  history.AddOutput(77);
  EXPECT_EQ(SampleToken({1.0f, 2.0f, 3.0f}, params, 0, &history), 2);
}

TEST(AllFinite, SeesOneThatIsNotWhereverItIs) {
  for (const size_t size : {1, 15, 16, 33, 1000}) {
    std::vector<float> values(size, -3e38f);
    EXPECT_TRUE(AllFinite(values));
    for (const size_t at : {size_t{0}, size / 2, size - 1}) {
      for (const float bad : {kNan, kInf, -kInf}) {
        values[at] = bad;
        EXPECT_FALSE(AllFinite(values))
            << bad << " at " << at << " of " << size;
      }
      values[at] = 1e-45f;
    }
  }
}

TEST(Argmax, LowestIdOnTies) {
  for (const size_t n : {1u, 5u, 16u, 17u, 64u, 100u, 4096u, 4099u}) {
    std::vector<float> logits(n, -3.0f);
    EXPECT_EQ(Argmax(logits), 0);
    for (size_t at = 0; at < n; at += 1 + n / 37) {
      std::vector<float> one = logits;
      one[at] = 2.0f;
      one[n - 1] = 2.0f;
      ASSERT_EQ(Argmax(one), static_cast<int32_t>(at)) << n;
      one[at] = kNan;
      ASSERT_EQ(Argmax(one), at + 1 == n ? 0 : static_cast<int32_t>(n - 1));
    }
  }
}

TEST(ExpWeights, IsExpWithinTwoUnitsInTheLastPlace) {
  std::vector<float> x = {0.0f, -1e-30f, -87.3f, -87.4f, -1e30f, -kInf, kNan};
  for (float value = -87.0f; value < 0.0f; value += 0.00731f) {
    x.push_back(value);
  }
  std::vector<float> weights(x.size());
  std::vector<double> sums(x.size() / kWeightChunk + 1);
  const double total =
      ExpWeights(x, 0.0f, 1.0f, 0.0f, weights.data(), sums.data());
  EXPECT_EQ(weights[0], 1.0f);
  double want_total = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    // Results below the smallest normal number are 0.
    const double want = x[i] >= -87.33f ? std::exp(double{x[i]}) : 0.0;
    ASSERT_NEAR(weights[i], want, want * 0x1p-22) << x[i];
    want_total += want;
  }
  EXPECT_NEAR(total, want_total, 1e-6 * want_total);
}

// The known answers that Random123 publishes for Philox4x32-10 (kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(Philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
                         {0xffffffffu, 0xffffffffu}),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(Philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
                         {0xa4093822u, 0x299f31d0u}),
              ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(UniformDraw, IsUniformAndDependsOnSeedAndIndexAlone) {
  int below_half = 0;
  double sum = 0.0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = UniformDraw(123, i);
    ASSERT_TRUE(u >= 0.0 && u < 1.0);
    below_half += u < 0.5;
    sum += u;
  }
  EXPECT_NEAR(below_half, 5000, 250);
  EXPECT_NEAR(sum / 10000, 0.5, 0.015);
  EXPECT_EQ(UniformDraw(7, 3), UniformDraw(7, 3));
  EXPECT_NE(UniformDraw(7, 3), UniformDraw(8, 3));
  EXPECT_NE(UniformDraw(7, 3), UniformDraw(7, 4));
  EXPECT_NE(UniformDraw(uint64_t{1} << 32, 0), UniformDraw(0, 0));
}

TEST(Sampler, AReplayGivesTheSameToken) {
  RandomTensors random(1);
  const auto logits = random.Floats(4096, 2.0f);
  SamplingParams params;
  params.seed = 99;
  Sampler used;  // scratch memory of earlier draws must not matter
  for (uint64_t i = 0; i < 50; ++i) {
    params.top_k = i % 3 == 0 ? 40 : 0;
    params.top_p = i % 2 == 0 ? 0.9f : 1.0f;
    std::vector<float> copy = logits;
    EXPECT_EQ(used.Sample(absl::MakeSpan(copy), params, nullptr, i).token,
              SampleToken(logits, params, i));
  }
}

// Exact support: every token that the reference keeps can be drawn, no other.
// Frequencies: within 5 standard deviations.
TEST(Sampler, FollowsTheReferenceDistribution) {
  RandomTensors random(2);
  std::vector<float> logits = random.Floats(300, 1.5f);
  logits[17] = logits[4];  // ties
  logits[250] = logits[4];
  constexpr int kDraws = 1500;
  for (SamplingParams params : ManyParams()) {
    if (params.temperature == 0.0f) continue;
    const auto want = reference::Distribution(logits, params);
    std::vector<int> counts(logits.size(), 0);
    Sampler sampler;
    std::vector<float> copy = logits;
    for (int i = 0; i < kDraws; ++i) {
      ++counts[sampler.Sample(absl::MakeSpan(copy), params, nullptr, i).token];
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      if (want[i] == 0.0) {
        ASSERT_EQ(counts[i], 0) << "token " << i;
      } else {
        const double deviation = std::sqrt(kDraws * want[i] * (1.0 - want[i]));
        ASSERT_NEAR(counts[i], kDraws * want[i], 5.0 * deviation + 2.0)
            << "token " << i;
      }
    }
  }
}

TEST(Sampler, LargeFlatVocabularyIsCutWithoutSorting) {
  std::vector<float> logits(152064, 1.0f);
  logits[100000] = 1.5f;
  SamplingParams params;
  params.top_p = 0.5f;
  // The prefix takes the highest and then the lowest ids.
  for (uint64_t i = 0; i < 20; ++i) {
    const int32_t token = SampleToken(logits, params, i);
    EXPECT_TRUE(token == 100000 || token <= 76033) << token;
  }
  params.top_p = 1.0f;
  params.top_k = 60000;  // all the ties are kept
  int high = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    high += SampleToken(logits, params, i) > 76032;
  }
  EXPECT_GT(high, 2);
}

TEST(Sampler, PenaltiesAsInVllm) {
  TokenHistory history;
  history.AddPrompt({0, 1});
  history.AddOutput(1);
  history.AddOutput(2);
  history.AddOutput(2);
  SamplingParams params;
  params.temperature = 0.0f;
  params.repetition_penalty = 2.0f;
  params.frequency_penalty = 0.25f;
  params.presence_penalty = 0.5f;
  params.logit_bias = {{3, -1.5f}, {3, -0.5f}};
  std::vector<float> logits = {4.0f, -1.0f, 3.0f, 5.0f, 1.0f};
  Sampler sampler;
  EXPECT_EQ(sampler.Sample(absl::MakeSpan(logits), params, &history, 0).token,
            3);
  EXPECT_THAT(logits, ElementsAre(2.0f,                         // 4 / 2
                                  -1.0f * 2 - 0.25f - 0.5f,     // once
                                  3.0f / 2 - 2 * 0.25f - 0.5f,  // twice
                                  3.0f,                         // biased
                                  1.0f));
}

TEST(Sampler, SuppressedIdsOnlyBeforeMinTokens) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.min_tokens = 2;
  params.suppressed_ids = {1};
  params.logit_bias = {{1, 100.0f}};  // does not bring it back
  EXPECT_EQ(SampleToken({1.0f, 9.0f}, params, 0), 0);
  EXPECT_EQ(SampleToken({1.0f, 9.0f}, params, 1), 0);
  EXPECT_EQ(SampleToken({1.0f, 9.0f}, params, 2), 1);
}

TEST(TokenHistory, CountsWhatIsInTheOutputAndKnowsThePrompt) {
  TokenHistory history;
  history.AddPrompt({5});
  history.AddOutput(5);
  history.AddOutput(7);
  history.AddOutput(7);
  std::map<int32_t, int32_t> counts;
  for (const auto& entry : history.entries()) {
    EXPECT_EQ(entry.in_prompt, entry.token == 5);
    counts[entry.token] = entry.output_count;
  }
  EXPECT_EQ(counts, (std::map<int32_t, int32_t>{{5, 1}, {7, 2}}));
  history.Clear();
  EXPECT_TRUE(history.entries().empty());
}

TEST(Logprobs, EqualTheReferenceAndCountTheRank) {
  RandomTensors random(3);
  for (const int n : {1, 5, 300, 4096}) {
    std::vector<float> logits = random.Floats(n, 3.0f);
    if (n > 100) logits[90] = logits[80] = 30.0f;
    const auto want = reference::LogSoftmax(logits);
    for (const int num_top : {0, 1, 20}) {
      const int32_t token = n / 2;
      const Logprobs got = ComputeLogprobs(logits, token, num_top);
      EXPECT_NEAR(got.logprob, want[token], 1e-5);
      const auto above =
          std::count_if(logits.begin(), logits.end(),
                        [&](float logit) { return logit > logits[token]; });
      EXPECT_EQ(got.rank, 1 + above);
      ASSERT_EQ(got.top.size(), size_t(std::min(n, num_top)));
      for (size_t i = 0; i < got.top.size(); ++i) {
        EXPECT_NEAR(got.top[i].logprob, want[got.top[i].token], 1e-5);
        if (i > 0) {
          const auto& a = got.top[i - 1];
          const auto& b = got.top[i];
          EXPECT_TRUE(
              logits[a.token] > logits[b.token] ||
              (logits[a.token] == logits[b.token] && a.token < b.token));
        }
      }
      if (n > 100 && num_top > 1) {
        EXPECT_EQ(got.top[0].token, 80);
        EXPECT_EQ(got.top[1].token, 90);
      }
    }
  }
}

TEST(Sampler, OnlyAllowedIdsAreDrawn) {
  SamplingParams params;
  params.allowed_ids = {-1, 1, 3, 4, 99};
  params.logit_bias = {{0, 100.0f}};  // lifts nothing that is out
  Sampler sampler;
  std::map<int32_t, int> seen;
  for (uint64_t i = 0; i < 1000; ++i) {
    std::vector<float> logits = {9.0f, 1.0f, 9.0f, 1.0f, kNan, 9.0f};
    ++seen[sampler.Sample(absl::MakeSpan(logits), params, nullptr, i).token];
  }
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_NEAR(seen[1], 500, 80);
  EXPECT_NEAR(seen[3], 500, 80);
  params.temperature = 0.0f;
  params.allowed_ids = {4, 5};
  EXPECT_EQ(SampleToken({9.0f, 9.0f, 9.0f, 9.0f, 2.0f, 1.0f}, params, 0), 4);
}

TEST(Sampler, AMinimumOfTokensLeavesWhatIsAllowed) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.allowed_ids = {1, 2};
  params.min_tokens = 1;
  params.suppressed_ids = {2};
  EXPECT_EQ(SampleToken({9.0f, 1.0f, 5.0f}, params, 0), 1);
  EXPECT_EQ(SampleToken({9.0f, 1.0f, 5.0f}, params, 1), 2);
}

TEST(Sampler, ABadWordsLastTokenIsOutWhereTheOutputEndsWithTheOthers) {
  const struct {
    std::vector<std::vector<int32_t>> bad_words;
    std::vector<int32_t> output;
    int32_t token;
  } kCases[] = {
      {{}, {}, 3},
      {{{3}}, {}, 2},
      {{{3}, {2}}, {1, 1}, 1},
      {{{0, 3}}, {}, 3},  // nothing generated: not even "0"
      {{{0, 3}}, {0}, 2},
      {{{0, 3}}, {0, 1}, 3},
      {{{0, 3}}, {1, 0}, 2},
      {{{0, 1, 3}}, {1}, 3},
      {{{0, 1, 3}}, {2, 0, 1}, 2},
      {{{0, 1, 3}}, {0, 2, 1}, 3},
      {{{1, 3}, {0, 1, 2}}, {0, 1}, 1},
      {{{99}, {-1}, {0, 400}}, {0}, 3},  // outside the vocabulary
  };
  Sampler sampler;
  for (const auto& c : kCases) {
    SamplingParams params;
    params.temperature = 0.0f;
    params.num_logprobs = 1;
    params.bad_words = c.bad_words;
    std::vector<float> logits = {0.0f, 1.0f, 2.0f, 3.0f};
    const auto want = reference::LogSoftmax(logits);
    const SampledValue got = sampler.Sample(absl::MakeSpan(logits), params,
                                            nullptr, c.output.size(), c.output);
    EXPECT_EQ(got.token, c.token);
    EXPECT_THAT(got.logprobs.logprob, FloatNear(want[c.token], 1e-6));
  }
}

TEST(Logprobs, ComeFromTheRawLogits) {
  SamplingParams params;
  params.temperature = 0.0f;
  params.logit_bias = {{2, 50.0f}};
  params.num_logprobs = 2;
  std::vector<float> logits = {2.0f, 1.0f, 0.0f};
  const auto want = reference::LogSoftmax(logits);
  Sampler sampler;
  const SampledValue got =
      sampler.Sample(absl::MakeSpan(logits), params, nullptr, 0);
  EXPECT_EQ(got.token, 2);
  EXPECT_THAT(got.logprobs.logprob, FloatNear(want[2], 1e-6));
  EXPECT_EQ(got.logprobs.rank, 3);
  ASSERT_EQ(got.logprobs.top.size(), 2u);
  EXPECT_EQ(got.logprobs.top[0].token, 0);
  EXPECT_EQ(got.logprobs.top[1].token, 1);
}

TEST(Logprobs, NotAskedForNotComputed) {
  SamplingParams params;
  std::vector<float> logits = {1.0f, 2.0f};
  Sampler sampler;
  const SampledValue got =
      sampler.Sample(absl::MakeSpan(logits), params, nullptr, 0);
  EXPECT_EQ(got.logprobs.rank, 0);
  EXPECT_TRUE(got.logprobs.top.empty());
}

}  // namespace
}  // namespace moebius
