// Sampling on a GPU: the CPU's tokens and log-probabilities, whatever is beside
// a row.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/backends/gpu_under_test.h"

namespace moebius {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Rows of logits and what is wanted of them.
struct Case {
  explicit Case(int rows, int vocabulary)
      : logits(rows, vocabulary, (vocabulary + 3) / 4 * 4) {}
  void Add(const SamplingParams& params, int32_t known = -1) {
    sampling.push_back(params);
    histories.emplace_back();
    outputs.emplace_back();
    this->known.push_back(known);
  }
  SampleRow Wanted(size_t i) const {
    return {.sampling = &sampling[i],
            .history = &histories[i],
            .output = outputs[i],
            .known = known[i]};
  }
  std::vector<SampleRow> AllWanted() const {
    std::vector<SampleRow> rows;
    for (size_t i = 0; i < sampling.size(); ++i) rows.push_back(Wanted(i));
    return rows;
  }
  std::vector<float> Row(size_t i) const {
    const float* const row = logits.view().row(static_cast<int>(i));
    return {row, row + logits.view().cols};
  }
  SampledRow OnCpu(size_t i) const {
    Sampler sampler;
    SampledRow result;
    SampleRow wanted = Wanted(i);
    wanted.result = &result;
    std::vector<float> row = Row(i);
    SampleOne(absl::MakeSpan(row), wanted, sampler);
    return result;
  }

  Activations logits;
  std::deque<SamplingParams> sampling;
  std::deque<TokenHistory> histories;
  std::deque<std::vector<int32_t>> outputs;
  std::vector<int32_t> known;
};

void ExpectSameLogprobs(const Logprobs& got, const Logprobs& want) {
  const auto near = [](float a, float b) {
    return a == b || std::abs(a - b) < 1e-4f;
  };
  EXPECT_PRED2(near, got.logprob, want.logprob);
  EXPECT_EQ(got.rank, want.rank);
  ASSERT_EQ(got.top.size(), want.top.size());
  for (size_t i = 0; i < want.top.size(); ++i) {
    EXPECT_EQ(got.top[i].token, want.top[i].token) << i;
    EXPECT_PRED2(near, got.top[i].logprob, want.top[i].logprob);
  }
}

class SampleGpuTest : public testing::Test {
 protected:
  using D = CudaFast;

  std::vector<SampledRow> Run(const Case& c) {
    return dut.RunSample(dut.PutRows(c.logits), c.AllWanted());
  }
  // How many tokens are not the CPU's. None may be of a row that is not drawn.
  int CompareWithCpu(const Case& c) {
    const std::vector<SampledRow> got = Run(c);
    int others = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("row ", i));
      const SampledRow want = c.OnCpu(i);
      EXPECT_EQ(got[i].finite, want.finite);
      if (got[i].value.token != want.value.token) {
        EXPECT_FALSE(IsGreedy(c.sampling[i]) || c.known[i] >= 0)
            << got[i].value.token << ", not " << want.value.token;
        ++others;
        continue;
      }
      ExpectSameLogprobs(got[i].value.logprobs, want.value.logprobs);
    }
    return others;
  }

  template <class T>
  T OneOf(std::initializer_list<T> values) {
    return values.begin()[random.Below(static_cast<int>(values.size()))];
  }
  // Bulks, peaks, and many that are equal.
  void FillRow(Activations& logits, int row) {
    const float spread = OneOf({0.3f, 1.0f, 2.5f, 5.0f});
    const int kind = random.Below(4);
    const int vocabulary = logits.view().cols;
    for (int j = 0; j < vocabulary; ++j) {
      float value = spread * random.Normal();
      if (kind == 1) value = std::round(value * 2.0f) / 2.0f;
      logits.at(row, j) = value;
    }
    if (kind < 2) return;
    for (int j = 0; j < 40; ++j) {
      logits.at(row, random.Below(vocabulary)) =
          spread * (3.0f + 2.0f * random.Normal());
    }
  }
  SamplingParams RandomParams() {
    SamplingParams params;
    params.temperature = OneOf({0.0f, 0.1f, 0.7f, 1.0f, 1.0f, 1.5f, 3.0f});
    params.top_k = OneOf({0, 0, 0, 1, 5, 20, 50, 1000, 200000});
    params.top_p = OneOf({1.0f, 1.0f, 0.95f, 0.9f, 0.999f, 0.3f, 0.0f});
    params.min_p = OneOf({0.0f, 0.0f, 0.0f, 0.05f, 0.3f, 1.0f});
    params.seed = static_cast<uint64_t>(random.Below(1 << 30));
    params.num_logprobs = OneOf({-1, 0, 1, 5, 20});
    return params;
  }
  // Penalties, biases, and tokens that are out or the only ones.
  void AddEdits(Case& c, size_t i) {
    SamplingParams& params = c.sampling[i];
    const int vocabulary = c.logits.view().cols;
    params.repetition_penalty = OneOf({1.0f, 1.3f, 0.8f});
    params.frequency_penalty = OneOf({0.0f, 0.5f});
    params.presence_penalty = OneOf({0.0f, 1.5f, -0.5f});
    std::vector<int32_t> prompt(50);
    for (int32_t& token : prompt) token = random.Below(vocabulary);
    c.histories[i].AddPrompt(prompt);
    for (int j = random.Below(60); j > 0; --j) {
      const int32_t token =
          OneOf({prompt[0], prompt[1], random.Below(vocabulary)});
      c.histories[i].AddOutput(token);
      c.outputs[i].push_back(token);
    }
    for (int j = random.Below(20); j > 0; --j) {
      params.logit_bias.push_back({random.Below(vocabulary + 5) - 2,
                                   OneOf({-100.0f, 3.0f, -kInfinity})});
    }
    if (!params.logit_bias.empty()) {
      params.logit_bias.push_back(params.logit_bias.front());
    }
    params.min_tokens = OneOf({0, 30});
    params.suppressed_ids = {prompt[2], prompt[0], -7, prompt[0], vocabulary};
    if (!c.outputs[i].empty()) {
      params.bad_words = {{prompt[3]}, {c.outputs[i].back(), prompt[1]}};
    }
    if (random.Below(6) == 0) {
      for (int j = 0; j < 9; ++j) {
        params.allowed_ids.push_back(random.Below(vocabulary));
      }
      std::sort(params.allowed_ids.begin(), params.allowed_ids.end());
    }
  }
  Case RandomCase(int rows, int vocabulary) {
    Case c(rows, vocabulary);
    for (int i = 0; i < rows; ++i) {
      FillRow(c.logits, i);
      c.Add(RandomParams());
      if (random.Below(5) == 0) {
        c.sampling.back().num_prompt_logprobs = OneOf({-1, 0, 5, 20});
        c.known.back() = random.Below(vocabulary);
      } else if (random.Below(3) == 0) {
        AddEdits(c, static_cast<size_t>(i));
      }
    }
    return c;
  }

  DeviceUnderTest<D> dut;
  RandomTensors random{17};
};

TEST_F(SampleGpuTest, TokensAndLogProbabilitiesAreTheCpus) {
  int rows = 0, others = 0;
  const auto run = [&](int times, int of_each, int vocabulary) {
    for (int i = 0; i < times; ++i) {
      SCOPED_TRACE(absl::StrCat("vocabulary ", vocabulary, ", case ", i));
      others += CompareWithCpu(RandomCase(of_each, vocabulary));
      rows += of_each;
    }
  };
  run(4, 50, 1);
  run(40, 50, 300);
  run(20, 50, 4096);
  run(5, 50, 4099);
  run(12, 50, 151936);
  std::printf("%d of %d tokens are others than the CPU's\n", others, rows);
  EXPECT_LE(others, rows / 500);
}

// The whole range of the draws, where the distribution is flat.
TEST_F(SampleGpuTest, DrawsFromFlatRowsAreTheCpus) {
  constexpr int kVocabulary = 151936, kRows = 64;
  int others = 0;
  for (const float top_p : {1.0f, 0.9f}) {
    Case c(kRows, kVocabulary);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVocabulary; ++j) {
        c.logits.at(i, j) = 0.5f * random.Normal();
      }
      c.Add({.top_p = top_p, .seed = static_cast<uint64_t>(i)});
    }
    others += CompareWithCpu(c);
  }
  EXPECT_LE(others, 3);
}

TEST_F(SampleGpuTest, HostileLogitsAreAsOnTheCpu) {
  const std::vector<SamplingParams> all_params = {
      {.temperature = 0.0f, .num_logprobs = 20},
      {.seed = 3, .num_logprobs = 5},
      {.temperature = 0.5f, .top_k = 7, .seed = 4, .num_logprobs = 20},
      {.top_p = 0.9f, .seed = 5, .num_logprobs = 0},
      {.top_k = 100, .top_p = 0.5f, .seed = 6},
      {.min_p = 0.1f, .seed = 7, .num_logprobs = 1},
      {.top_k = 3,
       .repetition_penalty = 1.2f,
       .seed = 8,
       .num_logprobs = 3,
       .logit_bias = {{0, 2.0f}, {1, -1.0f}}}};
  using Fill = float (*)(int, RandomTensors&);
  const Fill fills[] = {
      [](int, RandomTensors&) { return kNan; },
      [](int, RandomTensors&) { return -kInfinity; },
      [](int, RandomTensors&) { return kInfinity; },
      [](int, RandomTensors&) { return 0.25f; },
      [](int, RandomTensors&) { return -3e38f; },
      [](int j, RandomTensors&) { return j % 2 == 0 ? 0.0f : -0.0f; },
      [](int j, RandomTensors&) { return j == 77 ? kInfinity : kNan; },
      [](int j, RandomTensors&) { return j % 90 == 5 ? kInfinity : 1.0f; },
      [](int j, RandomTensors& r) {
        return j % 3 == 0 ? kNan : j % 3 == 1 ? -kInfinity : r.Normal();
      },
      [](int, RandomTensors& r) { return 1e38f * r.Normal(); },
      [](int j, RandomTensors&) { return static_cast<float>(j); },
      [](int j, RandomTensors&) { return j == 299 ? 100.0f : -1e30f; }};
  for (const int vocabulary : {300, 151936}) {
    for (size_t f = 0; f < std::size(fills); ++f) {
      SCOPED_TRACE(absl::StrCat("vocabulary ", vocabulary, ", fill ", f));
      const int rows = static_cast<int>(all_params.size()) + 1;
      Case c(rows, vocabulary);
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < vocabulary; ++j) {
          c.logits.at(i, j) = fills[f](j, random);
        }
      }
      for (const SamplingParams& params : all_params) c.Add(params);
      c.Add({.num_prompt_logprobs = 5}, 78);
      EXPECT_EQ(CompareWithCpu(c), 0);
    }
  }
}

TEST_F(SampleGpuTest, ARowIsSampledTheSameWhateverIsBesideIt) {
  constexpr int kRows = 40;
  for (const int vocabulary : {4096, 151936}) {
    const Case all = RandomCase(kRows, vocabulary);
    const std::vector<SampledRow> together = Run(all);
    for (int i = 0; i < kRows; i += 3) {
      SCOPED_TRACE(absl::StrCat("row ", i, " of ", vocabulary));
      Case one(1, vocabulary);
      std::copy_n(all.logits.view().row(i), vocabulary,
                  one.logits.rows().row(0));
      const size_t at = static_cast<size_t>(i);
      one.Add(all.sampling[at], all.known[at]);
      one.histories[0] = all.histories[at];
      one.outputs[0] = all.outputs[at];
      const SampledRow alone = Run(one)[0];
      EXPECT_EQ(alone.value.token, together[at].value.token);
      EXPECT_EQ(alone.value.logprobs.logprob,
                together[at].value.logprobs.logprob);
      EXPECT_EQ(alone.value.logprobs.rank, together[at].value.logprobs.rank);
      EXPECT_EQ(alone.value.logprobs.top, together[at].value.logprobs.top);
    }
  }
}

// As in TP, where each rank samples its share of the places, and in a captured
// pass, which has more places than rows.
TEST_F(SampleGpuTest, PlacesThatNobodySamplesGiveNothing) {
  constexpr int kVocabulary = 500, kRows = 7, kPlaces = 12;
  const Case c = RandomCase(kRows, kVocabulary);
  std::vector<SampleRow> wanted = c.AllWanted();
  std::vector<SampledRow> results(kRows);
  for (int i = 0; i < kRows; ++i) {
    results[i].value.token = -5;
    wanted[i].result = &results[i];
  }
  GpuSampling<Numerics::kFast> sampling(dut.device(), kPlaces, kVocabulary);
  const Samples<D> places = sampling.Begin({wanted.data(), 1, kRows}, kPlaces);
  // Places 1, 4, 7 and 10.
  Activations share(4, kVocabulary);
  for (int i = 0; i < 2; ++i) {
    std::copy_n(c.logits.view().row(1 + 3 * i), kVocabulary,
                share.rows().row(i));
  }
  Sample(dut.device(), dut.PutRows(share), places.Each(1, 3, 4));
  dut.Take(sampling.rows(), 1);  // waits
  sampling.Collect();
  for (int i = 0; i < kRows; ++i) {
    const int32_t want =
        i == 1 || i == 4 ? c.OnCpu(static_cast<size_t>(i)).value.token : -5;
    EXPECT_EQ(results[i].value.token, want) << i;
  }
}

}  // namespace
}  // namespace moebius
