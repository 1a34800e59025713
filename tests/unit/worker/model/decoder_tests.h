// What must hold of the forward pass for every model, on every device: logits
// are the same bits in every layout, for every group size, batch and chunking.
// To be included by the test of a device, which says what to test by
// INSTANTIATE_TEST_SUITE_P.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/pass_cpu.h"
#include "worker/peers/exchange.h"

namespace moebius {

struct DecoderCase {
  const char* name = "";
  MakeTestRanks make_ranks;  // empty: on the processor
  int max_ranks = 0;         // of a group
};

class DecoderTest : public testing::TestWithParam<DecoderCase> {
 protected:
  static std::vector<int> UpTo(std::initializer_list<int> groups) {
    std::vector<int> sizes;
    for (const int n : groups) {
      if (n <= GetParam().max_ranks) sizes.push_back(n);
    }
    return sizes;
  }
  static GroupOptions Options(const SmallModel& config, int num_ranks,
                              Layout layout) {
    GroupOptions options;
    options.spec = SpecOf(config);
    options.num_ranks = num_ranks;
    options.layout = layout;
    options.make_ranks = GetParam().make_ranks;
    return options;
  }
  static std::vector<Layout> LayoutsFor(const SmallModel& config,
                                        int num_ranks) {
    return LayoutsOf({num_ranks, config.num_q_heads, config.num_kv_heads});
  }
  static void ExpectSameBitsEverywhere(const SmallModel& config,
                                       KvType kv_type);
};

// Both in one layout, the experts low.
inline StepLayout In(Layout layout) {
  return {layout, ExpertsState::At(layout, Side::kLow)};
}

using LogitMap = std::map<std::pair<int, int>, std::vector<float>>;

inline std::vector<int32_t> Tokens(int sequence, int begin, int end) {
  std::vector<int32_t> tokens;
  for (int i = begin; i < end; ++i) {
    tokens.push_back((sequence * 37 + i * 11 + i * i) % 149);
  }
  return tokens;
}

inline constexpr int kSequences = 5;
inline int LengthOf(int sequence) { return 9 + 13 * sequence; }

// All sequences in chunks of `chunk` tokens, `together` at a time, asking for
// every row's logits, or for the last row's of each chunk.
inline LogitMap RunAll(GroupOptions options, int chunk, int together,
                       Want want) {
  options.max_rows = 200;
  options.num_pages = 128;
  TestGroup group(options);
  LogitMap logits;
  std::mutex mutex;
  const auto on_logits = [&](int s, int position, absl::Span<float> row) {
    const std::lock_guard<std::mutex> lock(mutex);
    logits[{s, position}].assign(row.begin(), row.end());
  };
  std::vector<int> done(kSequences, 0);
  for (;;) {
    std::vector<Piece> pieces;
    for (int s = kSequences - 1; s >= 0; --s) {
      const int end = std::min(LengthOf(s), done[s] + chunk);
      if (done[s] == end || static_cast<int>(pieces.size()) == together) {
        continue;
      }
      pieces.push_back({s, Tokens(s, done[s], end), want});
      done[s] = end;
    }
    if (pieces.empty()) return logits;
    EXPECT_THAT(group.Step(pieces, on_logits), IsOk());
  }
}

// Same places, same bits.
inline void ExpectSameBits(const LogitMap& got, const LogitMap& expected) {
  for (const auto& [place, row] : got) {
    const auto found = expected.find(place);
    ASSERT_NE(found, expected.end());
    ASSERT_EQ(row.size(), found->second.size());
    ASSERT_EQ(std::memcmp(row.data(), found->second.data(),
                          row.size() * sizeof(float)),
              0)
        << "sequence " << place.first << ", position " << place.second;
  }
}

inline void DecoderTest::ExpectSameBitsEverywhere(const SmallModel& config,
                                                  KvType kv_type) {
  GroupOptions one = Options(config, 1, ExpertParallel());
  one.kv_type = kv_type;
  const LogitMap expected = RunAll(one, 1000, kSequences, Want::kAll);
  size_t rows = 0;
  for (int s = 0; s < kSequences; ++s) rows += LengthOf(s);
  ASSERT_EQ(expected.size(), rows);
  ASSERT_NE(expected.at({0, 0}), expected.at({1, 0}));
  for (const int n : UpTo({1, 2, 4, 8})) {
    for (const Layout layout : LayoutsFor(config, n)) {
      SCOPED_TRACE(testing::Message() << layout.tp_size << " of " << n);
      GroupOptions options = Options(config, n, layout);
      options.kv_type = kv_type;
      const LogitMap all = RunAll(options, 16, 2, Want::kAll);
      EXPECT_EQ(all.size(), rows);
      ExpectSameBits(all, expected);
      // One sequence at a time leaves groups without rows.
      ExpectSameBits(RunAll(options, 7, 1, Want::kLast), expected);
      options.extra_threads = 1;
      ExpectSameBits(RunAll(options, 33, 3, Want::kLast), expected);
    }
  }
}

TEST_P(DecoderTest, LogitsAreTheSameBitsInEveryLayoutGroupAndChunking) {
  ExpectSameBitsEverywhere(OddConfig(), KvType::kFloat32);
}

TEST_P(DecoderTest, LogitsAreTheSameBitsWithABf16Cache) {
  ExpectSameBitsEverywhere(OddConfig(), KvType::kBf16);
}

TEST_P(DecoderTest, LogitsAreTheSameBitsInADenseModel) {
  SmallModel config = OddConfig();
  config.num_experts = config.experts_per_token = 0;
  config.moe_intermediate_size = 0;
  config.is_moe_layer.assign(4, false);
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST_P(DecoderTest, LogitsAreTheSameBitsWithoutQkNorm) {
  SmallModel config = OddConfig();
  config.qk_norm = false;
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST_P(DecoderTest, LogitsAreTheSameBitsWithTiedEmbeddingAndNormalisedRouting) {
  SmallModel config = OddConfig();
  config.tie_word_embeddings = true;
  config.norm_topk_prob = true;
  config.num_kv_heads = 8;
  config.is_moe_layer.assign(4, true);
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST_P(DecoderTest, GroupsOfThreeAndSixAgreeWithOne) {
  SmallModel config = OddConfig();
  config.num_q_heads = 12;
  config.num_kv_heads = 3;
  config.head_dim = 16;
  config.num_experts = 12;
  config.moe_intermediate_size = 192;  // 12 units
  const LogitMap expected = RunAll(Options(config, 1, ExpertParallel()), 1000,
                                   kSequences, Want::kAll);
  for (const int n : UpTo({3, 6})) {
    for (const Layout layout : LayoutsFor(config, n)) {
      SCOPED_TRACE(testing::Message() << layout.tp_size << " of " << n);
      ExpectSameBits(RunAll(Options(config, n, layout), 16, 3, Want::kAll),
                     expected);
    }
  }
}

// 6 experts of 80 rows, hidden size 80: nothing of it divides by 4 or 8.
TEST_P(DecoderTest, PaddingChangesNoBit) {
  SmallModel config = OddConfig();
  config.num_experts = 6;
  config.moe_intermediate_size = 80;
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST_P(DecoderTest, GroupsOfTwelveAndSixteenAgreeWithOne) {
  SmallModel config = OddConfig();
  config.is_moe_layer = {true, true};
  config.num_q_heads = 48;
  config.num_kv_heads = 4;
  config.head_dim = 16;
  const LogitMap expected = RunAll(Options(config, 1, ExpertParallel()), 1000,
                                   kSequences, Want::kAll);
  for (const int n : UpTo({12, 16})) {
    for (const Layout layout : LayoutsFor(config, n)) {
      SCOPED_TRACE(testing::Message() << layout.tp_size << " of " << n);
      ExpectSameBits(RunAll(Options(config, n, layout), 16, 3, Want::kAll),
                     expected);
    }
  }
}

// Each layer where it lies, and whatever attention's layout is.
TEST_P(DecoderTest, LogitsAreTheSameBitsInTheMidstOfEverySwitch) {
  SmallModel config = OddConfig();
  config.is_moe_layer = {true, true, false, true};
  const LogitMap expected = RunAll(Options(config, 1, ExpertParallel()), 1000,
                                   kSequences, Want::kAll);
  int turn = 0, round = 0;
  for (const int n : UpTo({2, 4, 8})) {
    const int every = n / 2;  // of the four states of a switch, in turn
    const std::vector<Layout> layouts = LayoutsFor(config, n);
    for (const Layout attention : layouts) {
      for (const Layout from : layouts) {
        for (const Layout to : layouts) {
          if (from == to) continue;
          for (int done = round++ % every; done <= 3; done += every) {
            GroupOptions options = Options(config, n, attention);
            options.spare_slots = 1 + done % 3;
            const Side side = turn++ % 2 == 0 ? Side::kLow : Side::kHigh;
            options.experts = ExpertsState{from, to, side, done};
            SCOPED_TRACE(testing::Message()
                         << n << " ranks, attention " << attention.tp_size
                         << ", from " << from.tp_size << " to " << to.tp_size
                         << ", " << done);
            ExpectSameBits(RunAll(options, 33, 3, Want::kLast), expected);
          }
        }
      }
    }
  }
}

// Several chunks of them, which the ranks share out.
TEST_P(DecoderTest, ManyLogitRowsPassThroughABoundedExchange) {
  SmallModel config = OddConfig();
  config.num_q_heads = 12;
  config.num_kv_heads = 6;
  config.vocab_size = 60000;  // 32 rows at a time or so
  config.tie_word_embeddings = true;
  LogitMap expected;
  std::mutex mutex;
  const auto run = [&](int num_ranks, Layout layout, LogitMap& seen) {
    GroupOptions options = Options(config, num_ranks, layout);
    options.max_rows = 200;
    TestGroup group(options);
    const ExchangeLayout exchange = PlanExchange(group.shape(), 200);
    EXPECT_EQ(exchange.logit_rows % num_ranks, 0);
    EXPECT_LT(exchange.logit_rows, 50);
    EXPECT_LT(exchange.size_bytes, 32 << 20);
    const std::vector<Piece> pieces = {{0, Tokens(0, 0, 100), Want::kAll}};
    EXPECT_THAT(group.Step(pieces,
                           [&](int s, int p, absl::Span<float> row) {
                             const std::lock_guard<std::mutex> lock(mutex);
                             seen[{s, p}].assign(row.begin(), row.end());
                           }),
                IsOk());
  };
  run(1, ExpertParallel(), expected);
  for (const int n : UpTo({2, 3, 6})) {
    for (const Layout layout : LayoutsFor(config, n)) {
      SCOPED_TRACE(testing::Message() << layout.tp_size << " of " << n);
      LogitMap got;
      run(n, layout, got);
      EXPECT_EQ(got.size(), 100u);
      ExpectSameBits(got, expected);
    }
  }
}

// Two chunks of one sequence each, whose last rows are wanted.
struct TwoChunks {
  std::vector<int32_t> first = {1, 2, 3}, second = {4};
  std::vector<PageId> first_pages = {0, 1}, second_pages = {2, 3};
  SamplingParams sampling{.temperature = 0.0f};

  Pass<Cpu> Build(PassBuilder& builder, const StepLayout& layout,
                  int num_ranks) {
    builder.Begin(layout, num_ranks, 0);
    builder.AddChunk(first, 0, first_pages);
    builder.Want(2, {.sampling = &sampling});
    builder.AddChunk(second, 0, second_pages);
    builder.Want(0, {.sampling = &sampling});
    return builder.Build();
  }
};

TEST_P(DecoderTest, APassRunAgainGivesTheSameLogits) {
  TestGroup group(Options(OddConfig(), 1, ExpertParallel()));
  const int vocab = OddConfig().vocab_size;
  const std::vector<int32_t> tokens = Tokens(0, 0, 20);
  const std::vector<PageId> pages = {7, 3, 90, 11};
  const SamplingParams sampling;
  const auto run = [&] {
    std::vector<std::vector<float>> rows(2, std::vector<float>(vocab));
    PassBuilder builder;
    builder.Begin(In(ExpertParallel()), 1, 0);
    builder.AddChunk(tokens, 0, pages);
    builder.Want(3, {.sampling = &sampling, .logits = rows[0].data()});
    builder.Want(19, {.sampling = &sampling, .logits = rows[1].data()});
    EXPECT_THAT(group.Run(0, builder.Build()), IsOk());
    return rows;
  };
  const auto first = run();
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(run(), first);
}

TEST_P(DecoderTest, APassThatIsNoneOfTheGroupsIsRefused) {
  GroupOptions options = Options(OddConfig(), 1, ExpertParallel());
  options.max_rows = 4;
  options.num_pages = 16;
  TestGroup group(options);
  PassBuilder builder;
  TwoChunks chunks;
  const auto expect_refused = [&](auto spoil, const char* message) {
    Pass<Cpu> pass = chunks.Build(builder, In(ExpertParallel()), 1);
    spoil(pass);
    EXPECT_THAT(group.Run(0, pass), StatusIs(absl::StatusCode::kInvalidArgument,
                                             testing::HasSubstr(message)));
  };
  expect_refused([](auto& p) { p.layout.attention.tp_size = 2; },
                 "no attention of tp_size 2 in a group of 1");
  expect_refused([](auto& p) { p.layout.experts.from.tp_size = 2; },
                 "no experts from tp_size 2 to 1");
  expect_refused([](auto& p) { p.layout.experts.layers_done = 1; },
                 "1 of 2 layers done");
  expect_refused([](auto& p) { p.layout = In(Layout{3}); }, "tp_size 3");
  const int five[] = {5};
  expect_refused([&](auto& p) { p.rows_of_group = five; }, "at most 4");
  expect_refused([](auto& p) { p.rows_of_group = {}; }, "rows of 0 groups");
  expect_refused([](auto& p) { p.wanted_of_group = {}; }, "rows of");
  EXPECT_THAT(group.Run(0, chunks.Build(builder, In(ExpertParallel()), 1)),
              IsOk());
}

}  // namespace moebius
