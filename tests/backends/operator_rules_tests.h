// What models other than Qwen3-MoE ask of operators, against the slow reference
// and the same for every device: biases, norms of whole rows, windows and sinks
// of attention, gated and clamped experts.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "tests/backends/operators_tests.h"

namespace moebius {

// Rows [first, first + count).
inline Activations RowsFrom(const Activations& x, int first, int count) {
  const int cols = x.view().cols;
  Activations rows(count, cols);
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < cols; ++j) rows.at(i, j) = x.at(first + i, j);
  }
  return rows;
}

inline std::vector<double> RowOf(const Activations& x, int row) {
  std::vector<double> values;
  for (int j = 0; j < x.view().cols; ++j) values.push_back(x.at(row, j));
  return values;
}

// Experts with biases, all of them one behind the other as slots have them.
struct BiasedExperts {
  std::vector<PlainExpert> experts;
  std::vector<reference::ExpertRules> rules;
  std::vector<float> gate, up, down;

  BiasedExperts(RandomTensors& random, int count, int rows, int hidden) {
    for (int e = 0; e < count; ++e) {
      experts.push_back({random.Weights(rows, hidden),
                         random.Weights(rows, hidden),
                         random.Weights(hidden, rows)});
      rules.push_back({random.Floats(rows), random.Floats(rows),
                       random.Floats(hidden), 1.5, 1.702});
      gate.insert(gate.end(), rules[e].gate.begin(), rules[e].gate.end());
      up.insert(up.end(), rules[e].up.begin(), rules[e].up.end());
      down.insert(down.end(), rules[e].down.begin(), rules[e].down.end());
    }
  }
};

template <class D>
class OperatorRulesTest : public OperatorsTest<D> {
 protected:
  const float* PutFloats(const std::vector<float>& values) {
    return this->dut.Put(absl::MakeConstSpan(values));
  }
  // cos 1 and sin 0.
  Rotary<D> NoRotation(int positions, int head_dim) {
    const std::vector<float> ones(size_t(positions) * head_dim / 2, 1.0f);
    const std::vector<float> zeros(ones.size(), 0.0f);
    return {PutFloats(ones), PutFloats(zeros), positions, head_dim};
  }
  // Row `row` of `got` is row `at` of `want`: to the bit, where numerics are.
  void ExpectSameRow(const Activations& got, int row, const Activations& want,
                     int at) {
    for (int j = 0; j < got.view().cols; ++j) {
      if constexpr (DeviceUnderTest<D>::kNumerics == Numerics::kExact) {
        ASSERT_EQ(got.at(row, j), want.at(at, j)) << "row " << at;
      } else {
        ASSERT_NEAR(got.at(row, j), want.at(at, j),
                    5 * DeviceUnderTest<D>::kTolerance)
            << "row " << at;
      }
    }
  }
};

TYPED_TEST_SUITE_P(OperatorRulesTest);

TYPED_TEST_P(OperatorRulesTest, ProjectAddsTheBiasesOfItsParts) {
  using D = TypeParam;
  constexpr int kHidden = 96, kOutputs = 80, kCols = 57;
  const auto w = this->random.Weights(kOutputs, kHidden);
  const auto bias = this->random.Floats(kOutputs);
  ColumnParallel<D> whole = this->dut.PutColumnParallel(w, kOutputs, kHidden);
  const ColumnParallel<D> plain = whole.OutputRange(0, 16);
  whole.bias = this->PutFloats(bias);
  for (const int rows : {1, 7, 40, 130}) {
    const Activations x = this->random.Rows(rows, kHidden);
    const View<float, D> out =
        this->dut.PutRows(Activations(rows, kCols, kCols + 7));
    const ColumnParallel<D> parts[] = {whole.OutputRange(48, 80), plain,
                                       whole.OutputRange(16, 25)};
    Project(this->dut.device(), this->dut.PutRows(x), parts, out);
    const auto product = reference::Product(x.ToDouble(), w, kOutputs);
    reference::Matrix want(rows, kCols);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < kCols; ++j) {
        const int output = j < 32 ? 48 + j : j - 32;
        const bool biased = j < 32 || j >= 48;
        want.at(i, j) =
            product.at(i, output) + (biased ? double{bias[output]} : 0.0);
      }
    }
    this->ExpectNear(this->dut.TakeRows(out), want);
  }
}

TYPED_TEST_P(OperatorRulesTest, ABiasIsAddedOnceWhateverTheSources) {
  using D = TypeParam;
  constexpr int kInputs = 64, kHidden = 64, kRows = 5;
  const auto w = this->random.Weights(kHidden, kInputs);
  const auto bias = this->random.Floats(kHidden);
  const RowParallel<D> whole = this->dut.PutRowParallel(w, kHidden, kInputs);
  const Activations x = this->random.Rows(kRows, kInputs);
  const View<float, D> on_device = this->dut.PutRows(x);
  reference::Matrix want = reference::Product(x.ToDouble(), w, kHidden);
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kHidden; ++j) want.at(i, j) += bias[j];
  }
  const std::vector<float> ones(kHidden, 1.0f);
  for (const int ranks : {1, 2}) {
    std::vector<ConstPartialRows<D>> sources;
    const int share = kInputs / ranks;
    for (int r = 0; r < ranks; ++r) {
      const PartialRows<D> sums = this->dut.MakeSums(kRows, kHidden);
      ProjectPartial(this->dut.device(), on_device.ColRange(r * share, share),
                     RowSlices<D>{whole, r * share, 16}, sums);
      sources.push_back(sums);
    }
    const View<float, D> residual =
        this->dut.PutRows(Activations(kRows, kHidden));
    const View<float, D> normed =
        this->dut.PutRows(Activations(kRows, kHidden));
    AddPartials(this->dut.device(), sources,
                {residual,
                 {this->PutFloats(ones), kHidden, 1e-6f},
                 normed,
                 this->PutFloats(bias)});
    this->ExpectNear(this->dut.TakeRows(residual), want);
    this->ExpectNear(this->dut.TakeRows(normed),
                     reference::RmsNorm(want, ones, 1e-6), 2.0);
  }
}

// Two ranks with half of the heads each give what one with all of them gives.
TYPED_TEST_P(OperatorRulesTest, ANormOfWholeRowsTakesTheSquaresOfAllHeads) {
  using D = TypeParam;
  constexpr int kHeads = 4, kDim = 32, kRows = 6, kCols = kHeads * kDim;
  const Activations x = this->random.Rows(kRows, kCols);
  const auto weight = this->random.Floats(kCols);
  const View<float, D> squares = this->dut.PutRows(Activations(kRows, kHeads));
  const View<float, D> all = this->dut.PutRows(x);
  for (int half = 0; half < 2; ++half) {
    SquareHeads(this->dut.device(), kDim,
                all.ColRange(half * kCols / 2, kCols / 2),
                squares.ColRange(half * 2, 2));
  }
  const std::vector<int32_t> positions = {0, 1, 2, 3, 4, 5};
  const std::vector<uint32_t> no_pages(8, 0);
  const RowSet<D> rows =
      this->dut.PutRowSet(positions, {{0, kRows, 0, no_pages}});
  HeadPreparation<D> how;
  how.rotary = this->NoRotation(8, kDim);
  how.q_squares = squares;
  const auto want = reference::RmsNorm(x.ToDouble(), weight, 1e-5);
  Activations first(0, 0);
  for (const int ranks : {1, 2}) {
    const View<float, D> queries = this->dut.PutRows(x);
    for (int r = 0; r < ranks; ++r) {
      const int begin = r * kCols / ranks;
      how.q_norm = {this->PutFloats(weight) + begin, kCols, 1e-5f};
      PrepareQueries(this->dut.device(), HeadShape{kHeads / ranks, 0, kDim},
                     how, rows, queries.ColRange(begin, kCols / ranks));
    }
    const Activations got = this->dut.TakeRows(queries);
    this->ExpectNear(got, want);
    if (ranks == 1) {
      first = got;
    } else {
      EXPECT_EQ(got, first);
    }
  }
}

// By single rows far behind, and by a chunk.
TYPED_TEST_P(OperatorRulesTest, RowsSeeTheirWindowAndTheirSinks) {
  using D = TypeParam;
  constexpr HeadShape kShape{4, 2, 32};
  constexpr int kLength = 700;
  const Activations qkv = this->random.Rows(kLength, kShape.cols());
  const int q = kShape.q_cols(), kv_cols = kShape.kv_cols();
  std::vector<uint32_t> pages;
  const int blocks = (kLength + kPageTokens - 1) / kPageTokens;
  for (int i = 0; i < 2 * blocks; ++i) {
    pages.push_back(static_cast<uint32_t>(2 * blocks - 1 - i));
  }
  HeadPreparation<D> how;
  how.rotary = this->NoRotation(kLength, kShape.head_dim);
  const std::vector<float> sinks = {0.5f, -3.0f, 4.0f, 60.0f};
  for (const int window : {0, 1, 16, 100, 300, 5000}) {
    for (const bool sunk : {false, true}) {
      if (window == 0 && !sunk) continue;
      SCOPED_TRACE(absl::StrCat("window ", window, sunk ? ", sinks" : ""));
      KvLayer<D> kv{this->dut.MakePages({1, kShape.head_dim, KvType::kFloat32},
                                        static_cast<uint32_t>(pages.size())),
                    0};
      kv.window = window;
      if (sunk) kv.sinks = this->PutFloats(sinks);
      const auto run = [&](int first, int count) {
        std::vector<int32_t> positions(count);
        std::iota(positions.begin(), positions.end(), first);
        const View<float, D> on_device =
            this->dut.PutRows(RowsFrom(qkv, first, count));
        const RowSet<D> set =
            this->dut.PutRowSet(positions, {{0, count, first, pages}});
        PrepareHeads(this->dut.device(), kShape, how, set, kv, on_device);
        const View<float, D> queries = on_device.ColRange(0, q);
        Attend(this->dut.device(), kShape, set, kv, queries);
        return this->dut.TakeRows(queries);
      };
      reference::Sight sight{window, {}};
      if (sunk) sight.sinks = sinks;
      const auto want =
          reference::Attention(ColumnsOf(qkv, 0, q), ColumnsOf(qkv, q, kv_cols),
                               ColumnsOf(qkv, q + kv_cols, kv_cols),
                               kShape.num_kv, kShape.head_dim, 0, sight);
      const Activations whole = run(0, kLength);
      this->ExpectNear(whole, want, 5.0);
      for (const int position : {0, 15, 99, 100, 257, 512, 699}) {
        ASSERT_NO_FATAL_FAILURE(
            this->ExpectSameRow(run(position, 1), 0, whole, position));
      }
    }
  }
}

// Pages before the stretch in which the window begins have never been written,
// and their names are those of no page.
TYPED_TEST_P(OperatorRulesTest, PagesBehindAWindowAreNotLookedAt) {
  using D = TypeParam;
  constexpr HeadShape kShape{4, 2, 32};
  constexpr int kLength = 1100;
  const Activations qkv = this->random.Rows(kLength, kShape.cols());
  const int blocks = (kLength + kPageTokens - 1) / kPageTokens;
  HeadPreparation<D> how;
  how.rotary = this->NoRotation(kLength, kShape.head_dim);
  for (const int window : {1, 16, 100, 128, 300}) {
    SCOPED_TRACE(absl::StrCat("window ", window));
    // Rows [first, first + count) behind those from `begin` on.
    const auto run = [&](int begin, int first, int count) {
      KvLayer<D> kv{this->dut.MakePages({1, kShape.head_dim, KvType::kFloat32},
                                        static_cast<uint32_t>(2 * blocks)),
                    0};
      kv.window = window;
      std::vector<uint32_t> pages(static_cast<size_t>(2 * blocks));
      std::iota(pages.rbegin(), pages.rend(), 0);
      std::fill_n(pages.begin(), 2 * begin / kPageTokens, ~uint32_t{0});
      const auto store = [&](int at, int rows, bool attend) {
        std::vector<int32_t> positions(static_cast<size_t>(rows));
        std::iota(positions.begin(), positions.end(), at);
        const View<float, D> there = this->dut.PutRows(RowsFrom(qkv, at, rows));
        const RowSet<D> set =
            this->dut.PutRowSet(positions, {{0, rows, at, pages}});
        PrepareHeads(this->dut.device(), kShape, how, set, kv, there);
        const View<float, D> queries = there.ColRange(0, kShape.q_cols());
        if (attend) Attend(this->dut.device(), kShape, set, kv, queries);
        return this->dut.TakeRows(queries);
      };
      if (begin < first) store(begin, first - begin, false);
      return store(first, count, true);
    };
    const Activations whole = run(0, 0, kLength);
    for (const auto& [first, count] :
         std::vector<std::pair<int, int>>{{255, 1},
                                          {256, 1},
                                          {383, 1},
                                          {384, 1},
                                          {700, 1},
                                          {1099, 1},
                                          {380, 90},
                                          {700, 400}}) {
      const int unseen = std::max(0, first - window + 1);
      const int begin = unseen / kStretchTokens * kStretchTokens;
      const Activations got = run(begin, first, count);
      for (int i = 0; i < count; ++i) {
        ASSERT_NO_FATAL_FAILURE(this->ExpectSameRow(got, i, whole, first + i));
      }
    }
  }
}

TYPED_TEST_P(OperatorRulesTest, ARoutersBiasChangesItsChoice) {
  using D = TypeParam;
  constexpr int kHidden = 32, kExperts = 6, kTopK = 2, kCount = 9;
  const auto w = this->random.Weights(kExperts, kHidden);
  const std::vector<float> bias = {0, 0, 40, 0, 0, 30};
  ColumnParallel<D> router = this->dut.PutColumnParallel(w, kExperts, kHidden);
  router.bias = this->PutFloats(bias);
  const std::vector<int32_t> ids(kCount * kTopK, -1);
  const std::vector<float> weights(kCount * kTopK, 0.0f);
  const Assignments<D> out{this->dut.Put(absl::MakeConstSpan(ids)),
                           this->dut.Put(absl::MakeConstSpan(weights)), kCount,
                           kTopK};
  Route(this->dut.device(), {kTopK, true},
        this->dut.PutRows(this->random.Rows(kCount, kHidden)), router,
        this->dut.routing(), out);
  const auto chosen = this->dut.Take(out.experts, kCount * kTopK);
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(chosen[i * kTopK], 2);
    EXPECT_EQ(chosen[i * kTopK + 1], 5);
  }
}

// Two ranks have half of the rows of each expert, and the first one adds the
// last bias.
TYPED_TEST_P(OperatorRulesTest, ExpertsHaveBiasesAndAClampedActivation) {
  using D = TypeParam;
  constexpr int kHidden = 32, kRows = 64, kExperts = 2, kCount = 6;
  const BiasedExperts all(this->random, kExperts, kRows, kHidden);
  const Activations x = this->random.Rows(kCount, kHidden);
  const View<float, D> rows = this->dut.PutRows(x);
  // Rows take turns between the experts, which is their only one.
  std::vector<int32_t> ids;
  std::vector<float> weights;
  reference::Matrix want(kCount, kHidden);
  for (int i = 0; i < kCount; ++i) {
    ids.push_back(i % kExperts);
    weights.push_back(0.25f * static_cast<float>(i + 1));
    const PlainExpert& expert = all.experts[ids[i]];
    const auto out = reference::Expert(RowOf(x, i), expert.gate, expert.up,
                                       expert.down, kRows, all.rules[ids[i]]);
    for (int j = 0; j < kHidden; ++j) want.at(i, j) = weights[i] * out[j];
  }
  const Assignments<D> assignments{this->dut.Put(absl::MakeConstSpan(ids)),
                                   this->dut.Put(absl::MakeConstSpan(weights)),
                                   kCount, 1};
  const ExpertBias<D> bias{this->PutFloats(all.gate), this->PutFloats(all.up),
                           this->PutFloats(all.down), kRows, kHidden};
  ExpertSlot<D> whole = this->dut.PutExperts(all.experts, kHidden, kRows, 2);
  whole.activation = {1.5f, 1.702f};
  Activations first(0, 0);
  for (const int ranks : {1, 2}) {
    std::vector<ConstPartialRows<D>> sources;
    for (int r = 0; r < ranks; ++r) {
      ExpertSlot<D> part = ranks == 1 ? whole : whole.PieceRange(r, r + 1);
      part.bias = bias;
      part.bias.gate += r * kRows / 2;
      part.bias.up += r * kRows / 2;
      if (r > 0) part.bias.down = nullptr;
      const PartialRows<D> sums = this->dut.MakeSums(kCount, kHidden);
      Group(this->dut.device(), assignments, {0, kExperts},
            this->dut.routing());
      Experts(this->dut.device(), part, 16, rows, this->dut.routing(), sums);
      sources.push_back(sums);
    }
    const Activations sum = this->Reduce(sources, kCount, kHidden);
    this->ExpectNear(sum, want, 2.0);
    if (ranks == 1) first = sum;
    this->ExpectSame(sum, first);
  }
}

TYPED_TEST_P(OperatorRulesTest, ASharedExpertIsWeightedByItsGate) {
  using D = TypeParam;
  constexpr int kHidden = 48, kRows = 32, kCount = 5;
  const PlainExpert mlp{this->random.Weights(kRows, kHidden),
                        this->random.Weights(kRows, kHidden),
                        this->random.Weights(kHidden, kRows)};
  const auto gate = this->random.Floats(kHidden);
  const Activations x = this->random.Rows(kCount, kHidden);
  const View<float, D> rows = this->dut.PutRows(x);
  const PartialRows<D> sums = this->dut.MakeSums(kCount, kHidden);
  GroupGatedRows(this->dut.device(), rows, this->PutFloats(gate),
                 this->dut.routing());
  Experts(this->dut.device(), this->dut.PutExperts({mlp}, kHidden, kRows, 2),
          16, rows, this->dut.routing(), sums);
  reference::Matrix want(kCount, kHidden);
  for (int i = 0; i < kCount; ++i) {
    std::vector<double> row;
    double dot = 0;
    for (int j = 0; j < kHidden; ++j) {
      row.push_back(x.at(i, j));
      dot += double{x.at(i, j)} * gate[j];
    }
    const auto out = reference::Expert(row, mlp.gate, mlp.up, mlp.down, kRows);
    for (int j = 0; j < kHidden; ++j) {
      want.at(i, j) = out[j] / (1.0 + std::exp(-dot));
    }
  }
  this->ExpectNear(this->Reduce({sums}, kCount, kHidden), want);
}

REGISTER_TYPED_TEST_SUITE_P(OperatorRulesTest, ProjectAddsTheBiasesOfItsParts,
                            ABiasIsAddedOnceWhateverTheSources,
                            ANormOfWholeRowsTakesTheSquaresOfAllHeads,
                            RowsSeeTheirWindowAndTheirSinks,
                            PagesBehindAWindowAreNotLookedAt,
                            ARoutersBiasChangesItsChoice,
                            ExpertsHaveBiasesAndAClampedActivation,
                            ASharedExpertIsWeightedByItsGate);

}  // namespace moebius
