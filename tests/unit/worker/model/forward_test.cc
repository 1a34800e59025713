// What must hold of the forward pass for every model: logits are the same bits
// in both layouts, for every group size, batch and chunking.
#include "worker/model/forward.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/peers/exchange.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// Odd in every way: dense layers first and between, untied embedding, weights
// of the router not normalised, fewer KV heads than ranks, a vocabulary of no
// whole number of panels, an MLP of 5 units.
SmallModel OddConfig() {
  SmallModel config;
  config.hidden_size = 80;
  config.num_q_heads = 8;
  config.num_kv_heads = 2;
  config.head_dim = 48;
  config.intermediate_size = 80;
  config.moe_intermediate_size = 128;
  config.num_experts = 8;
  config.experts_per_token = 3;
  config.norm_topk_prob = false;
  config.tie_word_embeddings = false;
  config.vocab_size = 149;
  config.max_positions = 256;
  config.rope_theta = 1e6;
  config.is_moe_layer = {false, true, false, true};
  return config;
}

// Both in one layout, the experts low.
StepLayout In(Layout layout) {
  return {layout, ExpertsState::At(layout, Side::kLow)};
}

using LogitMap = std::map<std::pair<int, int>, std::vector<float>>;

std::vector<int32_t> Tokens(int sequence, int begin, int end) {
  std::vector<int32_t> tokens;
  for (int i = begin; i < end; ++i) {
    tokens.push_back((sequence * 37 + i * 11 + i * i) % 149);
  }
  return tokens;
}

constexpr int kSequences = 5;
int LengthOf(int sequence) { return 9 + 13 * sequence; }

// All sequences in chunks of `chunk` tokens, `together` at a time, asking for
// every row's logits, or for the last row's of each chunk.
LogitMap RunAll(GroupOptions options, int chunk, int together, Want want) {
  options.max_rows = 200;
  options.num_pages = 128;
  TestGroup group(options);
  LogitMap logits;
  std::mutex mutex;
  const auto on_logits = [&](int s, int position, absl::Span<float> row) {
    const std::lock_guard<std::mutex> lock(mutex);
    logits[{s, position}].assign(row.begin(), row.end());
    // The sink may do as it likes with them.
    std::fill(row.begin(), row.end(), -1.0f);
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
void ExpectSameBits(const LogitMap& got, const LogitMap& expected) {
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

GroupOptions Options(const SmallModel& config, int num_ranks, bool tp) {
  GroupOptions options;
  options.spec = SpecOf(config);
  options.num_ranks = num_ranks;
  options.layout = tp ? TensorParallel(num_ranks) : ExpertParallel();
  return options;
}

void ExpectSameBitsEverywhere(const SmallModel& config, KvType kv_type) {
  GroupOptions one = Options(config, 1, false);
  one.kv_type = kv_type;
  const LogitMap expected = RunAll(one, 1000, kSequences, Want::kAll);
  size_t rows = 0;
  for (int s = 0; s < kSequences; ++s) rows += LengthOf(s);
  ASSERT_EQ(expected.size(), rows);
  ASSERT_NE(expected.at({0, 0}), expected.at({1, 0}));
  for (const int n : {1, 2, 4, 8}) {
    for (const bool tp : {false, true}) {
      if (n == 1 && tp) continue;
      SCOPED_TRACE(testing::Message() << n << (tp ? " TP" : " EP"));
      GroupOptions options = Options(config, n, tp);
      options.kv_type = kv_type;
      const LogitMap all = RunAll(options, 16, 2, Want::kAll);
      EXPECT_EQ(all.size(), rows);
      ExpectSameBits(all, expected);
      // One sequence at a time leaves EP ranks without rows.
      ExpectSameBits(RunAll(options, 7, 1, Want::kLast), expected);
      options.extra_threads = 1;
      ExpectSameBits(RunAll(options, 33, 3, Want::kLast), expected);
    }
  }
}

TEST(Forward, LogitsAreTheSameBitsInEveryLayoutGroupAndChunking) {
  ExpectSameBitsEverywhere(OddConfig(), KvType::kFloat32);
}

TEST(Forward, LogitsAreTheSameBitsWithABf16Cache) {
  ExpectSameBitsEverywhere(OddConfig(), KvType::kBf16);
}

TEST(Forward, LogitsAreTheSameBitsInADenseModel) {
  SmallModel config = OddConfig();
  config.num_experts = config.experts_per_token = 0;
  config.moe_intermediate_size = 0;
  config.is_moe_layer.assign(4, false);
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST(Forward, LogitsAreTheSameBitsWithoutQkNorm) {
  SmallModel config = OddConfig();
  config.qk_norm = false;
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST(Forward, LogitsAreTheSameBitsWithTiedEmbeddingAndNormalisedRouting) {
  SmallModel config = OddConfig();
  config.tie_word_embeddings = true;
  config.norm_topk_prob = true;
  config.num_kv_heads = 8;
  config.is_moe_layer.assign(4, true);
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST(Forward, GroupsOfThreeAndSixAgreeWithOne) {
  SmallModel config = OddConfig();
  config.num_q_heads = 12;
  config.num_kv_heads = 3;
  config.head_dim = 16;
  config.num_experts = 12;
  config.moe_intermediate_size = 192;  // 12 units
  const LogitMap expected =
      RunAll(Options(config, 1, false), 1000, kSequences, Want::kAll);
  for (const int n : {3, 6}) {
    for (const bool tp : {false, true}) {
      ExpectSameBits(RunAll(Options(config, n, tp), 16, 3, Want::kAll),
                     expected);
    }
  }
}

// 6 experts of 80 rows, hidden size 80: nothing of it divides by 4 or 8.
TEST(Forward, PaddingChangesNoBit) {
  SmallModel config = OddConfig();
  config.num_experts = 6;
  config.moe_intermediate_size = 80;
  ExpectSameBitsEverywhere(config, KvType::kFloat32);
}

TEST(Forward, GroupsOfTwelveAndSixteenAgreeWithOne) {
  SmallModel config = OddConfig();
  config.is_moe_layer = {true, true};
  config.num_q_heads = 48;
  config.num_kv_heads = 4;
  config.head_dim = 16;
  const LogitMap expected =
      RunAll(Options(config, 1, false), 1000, kSequences, Want::kAll);
  for (const int n : {12, 16}) {
    for (const bool tp : {false, true}) {
      ExpectSameBits(RunAll(Options(config, n, tp), 16, 3, Want::kAll),
                     expected);
    }
  }
}

// Each layer where it lies, and whatever attention's layout is.
TEST(Forward, LogitsAreTheSameBitsInTheMidstOfEverySwitch) {
  SmallModel config = OddConfig();
  config.is_moe_layer = {true, true, false, true};
  const LogitMap expected =
      RunAll(Options(config, 1, false), 1000, kSequences, Want::kAll);
  for (const int n : {2, 4}) {
    const Layout ep = ExpertParallel(), tp = TensorParallel(n);
    for (const bool attention_tp : {false, true}) {
      for (const auto& [from, to] : {std::pair(ep, tp), std::pair(tp, ep)}) {
        for (const Side side : {Side::kLow, Side::kHigh}) {
          for (int done = 0; done <= 3; ++done) {
            GroupOptions options = Options(config, n, attention_tp);
            options.spare_slots = 1 + done % 3;
            options.experts = ExpertsState{from, to, side, done};
            SCOPED_TRACE(testing::Message()
                         << n << " ranks, attention " << attention_tp
                         << ", from " << from.tp_size << ", " << done);
            ExpectSameBits(RunAll(options, 33, 3, Want::kLast), expected);
          }
        }
      }
    }
  }
}

TEST(Forward, ManyLogitRowsPassThroughABoundedExchange) {
  SmallModel config = OddConfig();
  config.vocab_size = 60000;  // 32 rows at a time
  config.tie_word_embeddings = true;
  GroupOptions options = Options(config, 2, true);
  const auto shape = MakeModelShape(SpecOf(config), 2);
  ASSERT_THAT(shape, IsOk());
  const ExchangeLayout exchange = PlanExchange(*shape, 200);
  EXPECT_EQ(exchange.logit_rows % kMaxRanks, 0);
  EXPECT_LT(exchange.logit_rows, 60);
  EXPECT_LT(exchange.size_bytes, 32 << 20);
  options.max_rows = 200;
  TestGroup two(options), one(Options(config, 1, false));
  LogitMap expected, got;
  std::mutex mutex;
  const std::vector<Piece> pieces = {{0, Tokens(0, 0, 60), Want::kAll}};
  ASSERT_THAT(one.Step(pieces,
                       [&](int s, int p, absl::Span<float> row) {
                         expected[{s, p}].assign(row.begin(), row.end());
                       }),
              IsOk());
  ASSERT_THAT(two.Step(pieces,
                       [&](int s, int p, absl::Span<float> row) {
                         const std::lock_guard<std::mutex> lock(mutex);
                         got[{s, p}].assign(row.begin(), row.end());
                       }),
              IsOk());
  EXPECT_EQ(got.size(), 60u);
  ExpectSameBits(got, expected);
}

TEST(Forward, AStepRunAgainGivesTheSameLogits) {
  TestGroup group(Options(OddConfig(), 1, false));
  struct Sink : LogitsSink {
    std::vector<std::vector<float>> rows;
    void OnLogits(size_t, absl::Span<float> logits) override {
      rows.emplace_back(logits.begin(), logits.end());
    }
  };
  const std::vector<int32_t> tokens = Tokens(0, 0, 20);
  std::vector<uint32_t> positions(20), sequence(20, 0);
  for (uint32_t i = 0; i < 20; ++i) positions[i] = i;
  const std::vector<PageId> pages = {7, 3, 90, 11};
  const SequencePages sequences[] = {{pages.data(), 2}};
  const int rows_of_rank[] = {20};
  const uint32_t logit_rows[] = {3, 19};
  const ForwardBatch batch = {
      In(ExpertParallel()), tokens,    positions, sequence, sequences,
      rows_of_rank,         logit_rows};
  Sink first, second;
  ASSERT_THAT(group.forward(0).Run(batch, first), IsOk());
  ASSERT_THAT(group.forward(0).Run(batch, second), IsOk());
  EXPECT_EQ(first.rows.size(), 2u);
  EXPECT_EQ(first.rows, second.rows);
}

// A batch that holds together, for tests to spoil.
struct BatchParts {
  StepLayout layout = In(ExpertParallel());
  std::vector<int32_t> tokens = {1, 2, 3, 4};
  std::vector<uint32_t> positions = {0, 1, 2, 0};
  std::vector<uint32_t> row_sequence = {0, 0, 0, 1};
  std::vector<PageId> pages[2] = {{0, 1}, {2, 3}};
  int num_blocks[2] = {1, 1};
  std::vector<int> rows_of_rank = {4};
  std::vector<uint32_t> logit_rows = {2, 3};
};

TEST(Forward, ABatchThatDoesNotHoldTogetherIsRefused) {
  GroupOptions options = Options(OddConfig(), 1, false);
  options.max_rows = 4;
  options.num_pages = 16;
  TestGroup group(options);
  struct Sink : LogitsSink {
    int calls = 0;
    void OnLogits(size_t, absl::Span<float>) override { ++calls; }
  } sink;
  const auto run = [&](auto spoil) {
    BatchParts parts;
    spoil(parts);
    const SequencePages sequences[] = {
        {parts.pages[0].data(), parts.num_blocks[0]},
        {parts.pages[1].data(), parts.num_blocks[1]}};
    return group.forward(0).Run(
        {parts.layout, parts.tokens, parts.positions, parts.row_sequence,
         sequences, parts.rows_of_rank, parts.logit_rows},
        sink);
  };
  const auto expect_refused = [&](auto spoil, const char* message) {
    EXPECT_THAT(run(spoil),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect_refused([](auto& b) { b.layout.attention.tp_size = 2; },
                 "attention of tp_size 2");
  expect_refused([](auto& b) { b.layout.experts.from.tp_size = 2; },
                 "no experts from tp_size 2 to 1");
  expect_refused([](auto& b) { b.layout.experts.layers_done = 1; },
                 "1 of 2 layers done");
  expect_refused([](auto& b) { b.layout = In(Layout{3}); }, "tp_size 3");
  expect_refused([](auto& b) { b.tokens[1] = 149; }, "149");
  expect_refused([](auto& b) { b.tokens[1] = -1; }, "-1");
  expect_refused([](auto& b) { b.tokens.push_back(1); }, "at most 4");
  expect_refused([](auto& b) { b.positions.pop_back(); }, "positions");
  expect_refused([](auto& b) { b.row_sequence.pop_back(); }, "sequences");
  expect_refused([](auto& b) { b.row_sequence[3] = 2; }, "sequence 2 of 2");
  expect_refused([](auto& b) { b.positions[3] = 256; }, "below 256");
  expect_refused([](auto& b) { b.positions[3] = 0xffffffffu; }, "below 256");
  expect_refused([](auto& b) { b.positions[2] = 3; }, "at position 3");
  expect_refused(
      [](auto& b) {
        b.row_sequence = {0, 1, 1, 0};
        b.positions = {0, 0, 1, 1};
      },
      "not adjacent");
  expect_refused([](auto& b) { b.positions[3] = 16; }, "page");
  expect_refused([](auto& b) { b.num_blocks[1] = 0; }, "page");
  expect_refused([](auto& b) { b.num_blocks[1] = -1; }, "-1 blocks");
  expect_refused([](auto& b) { b.pages[1][1] = 16; }, "page");
  expect_refused([](auto& b) { b.rows_of_rank = {}; }, "rows_of_rank");
  expect_refused([](auto& b) { b.rows_of_rank = {3}; }, "rows_of_rank[0] is 3");
  expect_refused([](auto& b) { b.rows_of_rank = {-1}; }, "-1 rows");
  expect_refused([](auto& b) { b.rows_of_rank = {5}; }, "at most 4");
  expect_refused([](auto& b) { b.logit_rows = {3, 2}; }, "logit row 2");
  expect_refused([](auto& b) { b.logit_rows = {4}; }, "logit row 4");
  EXPECT_EQ(sink.calls, 0);
  EXPECT_THAT(run([](auto&) {}), IsOk());
  EXPECT_EQ(sink.calls, 2);
}

TEST(Forward, OptionsOutOfRangeAreRefused) {
  const auto shape = MakeModelShape(SpecOf(OddConfig()), 2);
  ASSERT_THAT(shape, IsOk());
  AlignedBytes memory(64);
  ThreadBarrier barrier(2);
  ForwardOptions good;
  good.shape = *shape;
  good.max_rows = 8;
  good.dense = good.experts = good.kv = good.exchange = memory.data();
  good.peer_exchange = {memory.data(), memory.data()};
  good.barrier = &barrier;
  EXPECT_THAT(Forward::Create(good), IsOk());
  const auto expect_refused = [&](auto spoil, const char* message) {
    ForwardOptions options = good;
    spoil(options);
    EXPECT_THAT(Forward::Create(options),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect_refused([](auto& o) { o.rank = 2; }, "rank 2 of 2");
  expect_refused([](auto& o) { o.rank = -1; }, "rank -1");
  expect_refused([](auto& o) { o.max_rows = 0; }, "max_rows 0");
  expect_refused([](auto& o) { o.dense = nullptr; }, "region");
  expect_refused([](auto& o) { o.kv += 16; }, "region");
  expect_refused(
      [](auto& o) {
        o.shape.spec.max_positions = 1 << 24;
        o.shape.head_dim = 1024;
      },
      "set max_model_len lower");
  expect_refused([](auto& o) { o.barrier = nullptr; }, "barrier");
  expect_refused([](auto& o) { o.peer_exchange.pop_back(); }, "exchange");
  expect_refused([](auto& o) { o.peer_exchange[1] = nullptr; }, "rank 1");
}

TEST(Forward, ABrokenBarrierEndsTheStepWithItsError) {
  struct Broken : Barrier {
    absl::Status Wait() override {
      return absl::DeadlineExceededError("rank 1 is late");
    }
  } broken;
  const auto shape = MakeModelShape(SpecOf(OddConfig()), 2);
  ASSERT_THAT(shape, IsOk());
  AlignedBytes dense(PlanDense(*shape).size_bytes);
  AlignedBytes experts(shape->experts.region_bytes());
  AlignedBytes kv(16 *
                  Forward::KvFormat(*shape, KvType::kFloat32).page_bytes());
  AlignedBytes exchange(Forward::ExchangeBytes(*shape, 8));
  ForwardOptions options;
  options.shape = *shape;
  options.max_rows = 8;
  options.num_pages = 16;
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    ASSERT_THAT(
        LoadWeights(*shape, kSmallModelNames, "", true,
                    {0, In(layout).experts, dense.data(), experts.data()}),
        IsOk());
    options.dense = dense.data();
    options.experts = experts.data();
    options.kv = kv.data();
    options.exchange = exchange.data();
    options.peer_exchange = {nullptr, exchange.data()};
    options.barrier = &broken;
    const auto forward = Forward::Create(options);
    ASSERT_THAT(forward, IsOk());
    BatchParts parts;
    parts.rows_of_rank = {4, 0};
    const SequencePages sequences[] = {{parts.pages[0].data(), 1},
                                       {parts.pages[1].data(), 1}};
    struct Sink : LogitsSink {
      void OnLogits(size_t, absl::Span<float>) override { ADD_FAILURE(); }
    } sink;
    EXPECT_THAT((*forward)->Run({In(layout), parts.tokens, parts.positions,
                                 parts.row_sequence, sequences,
                                 parts.rows_of_rank, parts.logit_rows},
                                sink),
                StatusIs(StatusCode::kDeadlineExceeded, "rank 1 is late"));
  }
}

TEST(Forward, APeerThatShowsImpossibleRowsIsDataLoss) {
  struct Passing : Barrier {
    absl::Status Wait() override { return absl::OkStatus(); }
  } passing;
  const auto shape = MakeModelShape(SpecOf(OddConfig()), 2);
  ASSERT_THAT(shape, IsOk());
  AlignedBytes dense(PlanDense(*shape).size_bytes);
  AlignedBytes experts(shape->experts.region_bytes());
  AlignedBytes kv(16 *
                  Forward::KvFormat(*shape, KvType::kFloat32).page_bytes());
  AlignedBytes exchange(Forward::ExchangeBytes(*shape, 8)),
      peer(Forward::ExchangeBytes(*shape, 8));
  ASSERT_THAT(LoadWeights(*shape, kSmallModelNames, "", true,
                          {0, In(ExpertParallel()).experts, dense.data(),
                           experts.data()}),
              IsOk());
  ForwardOptions options;
  options.shape = *shape;
  options.max_rows = 8;
  options.num_pages = 16;
  options.dense = dense.data();
  options.experts = experts.data();
  options.kv = kv.data();
  options.exchange = exchange.data();
  options.peer_exchange = {nullptr, peer.data()};
  options.barrier = &passing;
  const auto forward = Forward::Create(options);
  ASSERT_THAT(forward, IsOk());
  struct Sink : LogitsSink {
    void OnLogits(size_t, absl::Span<float>) override {}
  } sink;
  BatchParts parts;
  parts.rows_of_rank = {4, 0};
  const SequencePages sequences[] = {{parts.pages[0].data(), 1},
                                     {parts.pages[1].data(), 1}};
  const ForwardBatch batch = {
      parts.layout, parts.tokens,       parts.positions, parts.row_sequence,
      sequences,    parts.rows_of_rank, parts.logit_rows};
  for (const int64_t count : {int64_t{-1}, int64_t{5}, int64_t{1} << 62}) {
    std::memcpy(peer.data(), &count, sizeof(count));
    EXPECT_THAT((*forward)->Run(batch, sink),
                StatusIs(StatusCode::kDataLoss, HasSubstr("rank 1 shows")));
  }
}

}  // namespace
}  // namespace moebius
