#include "kernels/cpu/moe.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/gemm.h"
#include "kernels/reference/reference.h"
#include "tests/backends/random_tensors.h"

namespace moebius {
namespace {

using ::testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Routes {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routes Route(const Activations& logits, int top_k, bool renormalize,
             ThreadPool* pool = nullptr) {
  Routes out;
  out.experts.resize(size_t(logits.view().rows) * top_k);
  out.weights.resize(out.experts.size());
  RouteTopK(logits.view(), top_k, renormalize, absl::MakeSpan(out.experts),
            absl::MakeSpan(out.weights), pool);
  return out;
}

Activations OneRow(const std::vector<float>& values) {
  Activations out(1, static_cast<int>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) out.at(0, i) = values[i];
  return out;
}

TEST(RouteTopK, HostileLogitsGiveDistinctExpertsAndFiniteWeights) {
  for (const auto& logits :
       std::vector<std::vector<float>>{{kNan, kNan, kNan, kNan, kNan},
                                       {-kInf, -kInf, -kInf, -kInf, -kInf},
                                       {kInf, 1.0f, kInf, kNan, -kInf},
                                       {kNan, 2.0f, -kInf, kNan, kNan},
                                       {1e38f, -1e38f, 3e38f, 0.0f, 1.0f}}) {
    for (const bool renormalize : {true, false}) {
      for (const int top_k : {1, 3, 5}) {
        const Routes got = Route(OneRow(logits), top_k, renormalize);
        std::vector<bool> seen(5, false);
        for (int j = 0; j < top_k; ++j) {
          ASSERT_GE(got.experts[j], 0);
          ASSERT_LT(got.experts[j], 5);
          ASSERT_FALSE(seen[got.experts[j]]);
          seen[got.experts[j]] = true;
          ASSERT_TRUE(got.weights[j] >= 0.0f && got.weights[j] <= 1.0f);
        }
      }
    }
  }
  EXPECT_THAT(Route(OneRow({kNan, 2.0f, -kInf, kNan, 1.0f}), 4, true).experts,
              ElementsAre(1, 4, 0, 2));
  EXPECT_THAT(Route(OneRow({kInf, 1.0f, kInf}), 3, true).weights,
              ElementsAre(0.5f, 0.5f, 0.0f));
}

TEST(RouteTopK, TiesGoToTheLowestId) {
  EXPECT_THAT(
      Route(OneRow({1.0f, 3.0f, 2.0f, 3.0f, 2.0f, 3.0f}), 5, true).experts,
      ElementsAre(1, 3, 5, 2, 4));
  Activations equal(1, 40);
  EXPECT_THAT(Route(equal, 3, true).experts, ElementsAre(0, 1, 2));
}

TEST(RouteTopK, EqualsTheReference) {
  RandomTensors random(1);
  ThreadPool pool(2);
  for (const int experts : {4, 16, 60, 128}) {
    const Activations logits = random.Rows(23, experts, 2.0f);
    for (const int top_k : {1, 2, 4}) {
      for (const bool renormalize : {true, false}) {
        const Routes got = Route(logits, top_k, renormalize);
        const Routes threaded = Route(logits, top_k, renormalize, &pool);
        EXPECT_EQ(got.experts, threaded.experts);
        EXPECT_EQ(got.weights, threaded.weights);
        for (int i = 0; i < 23; ++i) {
          const auto want = reference::RouteTopK(
              absl::MakeConstSpan(logits.view().row(i), experts), top_k,
              renormalize);
          for (int j = 0; j < top_k; ++j) {
            ASSERT_EQ(got.experts[i * top_k + j], want.experts[j]);
            ASSERT_NEAR(got.weights[i * top_k + j], want.weights[j], 1e-6);
          }
        }
      }
    }
  }
}

TEST(GroupByExpert, LeavesOutOtherRanksExpertsAndKeepsRowOrder) {
  const std::vector<int32_t> experts = {5, 2, 3, 5, 2, 9, -1, 4};
  const std::vector<float> weights = {.1f, .2f, .3f, .4f, .5f, .6f, .7f, .8f};
  ExpertGroups groups;
  GroupByExpert(experts, weights, 2, 2, 4, &groups);  // experts 2, 3, 4, 5
  EXPECT_THAT(groups.offsets, ElementsAre(0, 2, 3, 4, 6));
  EXPECT_THAT(groups.rows, ElementsAre(0, 2, 1, 3, 0, 1));
  EXPECT_THAT(groups.weights, ElementsAre(.2f, .5f, .3f, .8f, .1f, .4f));
  GroupByExpert(experts, weights, 2, 6, 2, &groups);  // nobody's
  EXPECT_THAT(groups.offsets, ElementsAre(0, 0, 0));
  EXPECT_TRUE(groups.rows.empty());
  GroupAllRows(3, &groups);
  EXPECT_THAT(groups.offsets, ElementsAre(0, 3));
  EXPECT_THAT(groups.rows, ElementsAre(0, 1, 2));
}

struct Experts {
  int hidden, intermediate;
  std::vector<std::vector<Bf16>> gate, up, down;

  Experts(int count, int hidden_in, int intermediate_in, uint64_t seed)
      : hidden(hidden_in), intermediate(intermediate_in) {
    RandomTensors random(seed);
    for (int e = 0; e < count; ++e) {
      gate.push_back(random.Weights(intermediate, hidden));
      up.push_back(random.Weights(intermediate, hidden));
      down.push_back(random.Weights(hidden, intermediate));
    }
  }
  int count() const { return static_cast<int>(gate.size()); }
};

// All experts in pieces as a slot has them: block p holds piece p of every
// expert, then a line that belongs to nobody. Rows of the intermediate
// dimension from experts.intermediate up to `padded` are zeros; what belongs to
// nobody is NaN.
class PiecedExperts {
 public:
  PiecedExperts(const Experts& experts, int num_pieces, int padded)
      : slot_(static_cast<size_t>(num_pieces) *
                  (experts.count() * ExpertBlock::NumElements(
                                         experts.hidden, padded / num_pieces) +
                   kGap),
              ToBf16(kNan)) {
    const int rows = padded / num_pieces;
    const size_t size = ExpertBlock::NumElements(experts.hidden, rows);
    const size_t stride = experts.count() * size + kGap;
    for (int e = 0; e < experts.count(); ++e) {
      const auto gate = Padded(experts.gate[e], experts.hidden, padded);
      const auto up = Padded(experts.up[e], experts.hidden, padded);
      const auto down = PaddedColumns(experts.down[e], experts, padded);
      Bf16* const at = slot_.data() + e * size;
      for (int p = 0; p < num_pieces; ++p) {
        PackExpert(gate.data(), up.data(), down.data(), experts.hidden, padded,
                   p * rows, (p + 1) * rows, at + p * stride);
      }
      views_.push_back({at, experts.hidden, rows, num_pieces,
                        static_cast<ptrdiff_t>(stride)});
    }
  }
  std::vector<ExpertView>& views() { return views_; }

 private:
  static constexpr size_t kGap = 32;
  static std::vector<Bf16> Padded(std::vector<Bf16> w, int cols, int rows) {
    w.resize(static_cast<size_t>(rows) * cols, Bf16{});
    return w;
  }
  static std::vector<Bf16> PaddedColumns(const std::vector<Bf16>& w,
                                         const Experts& experts, int cols) {
    std::vector<Bf16> out(static_cast<size_t>(experts.hidden) * cols, Bf16{});
    for (int i = 0; i < experts.hidden; ++i) {
      std::copy_n(w.begin() + ptrdiff_t{i} * experts.intermediate,
                  experts.intermediate, out.begin() + ptrdiff_t{i} * cols);
    }
    return out;
  }
  AlignedVector<Bf16> slot_;
  std::vector<ExpertView> views_;
};

FixedSums RunViews(absl::Span<const ExpertView> experts, const Activations& x,
                   const ExpertGroups& groups, int slice_rows,
                   ThreadPool* pool) {
  FixedSums acc(x.view().rows, x.view().cols);
  ExpertWorkspace workspace;
  ExpertsFfn(x.view(), experts, groups, slice_rows, acc.rows(), &workspace,
             pool);
  return acc;
}

ExpertGroups GroupsOf(const Routes& routes, int top_k, int num_experts) {
  ExpertGroups groups;
  GroupByExpert(routes.experts, routes.weights, top_k, 0, num_experts, &groups);
  return groups;
}

// What one rank adds: experts [first, last), rows [begin, end) of each.
FixedSums RunRank(const Experts& all, const Activations& x,
                  const Routes& routes, int top_k, int first, int last,
                  int begin, int end, int slice_rows,
                  ThreadPool* pool = nullptr) {
  const size_t size = ExpertBlock::NumElements(all.hidden, end - begin);
  AlignedVector<Bf16> slot(size * (last - first));
  std::vector<ExpertView> views;
  for (int e = first; e < last; ++e) {
    Bf16* at = slot.data() + size * (e - first);
    PackExpert(all.gate[e].data(), all.up[e].data(), all.down[e].data(),
               all.hidden, all.intermediate, begin, end, at);
    views.push_back({at, all.hidden, end - begin});
  }
  ExpertGroups groups;
  GroupByExpert(routes.experts, routes.weights, top_k, first, last - first,
                &groups);
  return RunViews(views, x, groups, slice_rows, pool);
}

TEST(ExpertsFfn, EqualsTheReference) {
  const Experts experts(6, 64, 48, 2);
  RandomTensors random(3);
  for (const int rows : {1, 2, 3, 5, 9, 40}) {
    const Activations x = random.Rows(rows, 64);
    const Routes routes = Route(random.Rows(rows, 6), 3, true);
    FixedSums got = RunRank(experts, x, routes, 3, 0, 6, 0, 48, 16);
    const auto dense = x.ToDouble();
    for (int i = 0; i < rows; ++i) {
      std::vector<double> want(64, 0.0);
      for (int j = 0; j < 3; ++j) {
        const int e = routes.experts[i * 3 + j];
        const auto out = reference::Expert(
            absl::MakeConstSpan(dense.values).subspan(size_t(i) * 64, 64),
            experts.gate[e], experts.up[e], experts.down[e], 48);
        for (int d = 0; d < 64; ++d) {
          want[d] += routes.weights[i * 3 + j] * out[d];
        }
      }
      for (int d = 0; d < 64; ++d) {
        ASSERT_NEAR(got.ToDouble(i, d), want[d], 2e-5);
      }
    }
  }
}

TEST(ExpertsFfn, EpAndTpOfAnyWidthGiveTheSameIntegers) {
  const Experts experts(8, 32, 256, 4);
  RandomTensors random(5);
  ThreadPool pool(2);
  const int slice = 256 / 8;
  for (const int rows : {1, 4, 33}) {
    const Activations x = random.Rows(rows, 32);
    const Routes routes = Route(random.Rows(rows, 8), 4, true);
    const FixedSums whole = RunRank(experts, x, routes, 4, 0, 8, 0, 256, slice);
    for (const int ranks : {1, 2, 4, 8}) {
      for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
        FixedSums ep(rows, 32), tp(rows, 32);
        for (int r = 0; r < ranks; ++r) {
          ep += RunRank(experts, x, routes, 4, 8 / ranks * r,
                        8 / ranks * (r + 1), 0, 256, slice, threads);
          tp += RunRank(experts, x, routes, 4, 0, 8, 256 / ranks * r,
                        256 / ranks * (r + 1), slice, threads);
        }
        ASSERT_EQ(ep, whole) << ranks << " EP ranks";
        ASSERT_EQ(tp, whole) << ranks << " TP ranks";
      }
    }
  }
}

TEST(ExpertsFfn, ARowDoesNotDependOnTheBatch) {
  const Experts experts(4, 48, 64, 6);
  RandomTensors random(7);
  const Activations x = random.Rows(60, 48);
  const Activations logits = random.Rows(60, 4);
  FixedSums all =
      RunRank(experts, x, Route(logits, 2, false), 2, 0, 4, 0, 64, 16);
  for (int i = 0; i < 60; i += 7) {
    Activations row(1, 48), row_logits(1, 4);
    for (int j = 0; j < 48; ++j) row.at(0, j) = x.at(i, j);
    for (int j = 0; j < 4; ++j) row_logits.at(0, j) = logits.at(i, j);
    FixedSums alone =
        RunRank(experts, row, Route(row_logits, 2, false), 2, 0, 4, 0, 64, 16);
    for (int j = 0; j < 48; ++j) ASSERT_EQ(alone.at(0, j), all.at(i, j));
  }
}

TEST(ExpertsFfn, ADenseMlpIsOneExpertOfWeightOne) {
  const Experts experts(1, 32, 96, 8);
  RandomTensors random(9);
  const Activations x = random.Rows(5, 32);
  AlignedVector<Bf16> block(ExpertBlock::NumElements(32, 96));
  PackExpert(experts.gate[0].data(), experts.up[0].data(),
             experts.down[0].data(), 32, 96, 0, 96, block.data());
  const ExpertView dense{block.data(), 32, 96};
  ExpertGroups groups;
  GroupAllRows(5, &groups);
  FixedSums acc =
      RunViews(absl::MakeConstSpan(&dense, 1), x, groups, 96, nullptr);
  const auto values = x.ToDouble();
  for (int i = 0; i < 5; ++i) {
    const auto want = reference::Expert(
        absl::MakeConstSpan(values.values).subspan(size_t(i) * 32, 32),
        experts.gate[0], experts.up[0], experts.down[0], 96);
    for (int d = 0; d < 32; ++d) {
      ASSERT_NEAR(acc.ToDouble(i, d), want[d], 2e-5);
    }
  }
}

TEST(ExpertsFfn, PiecesDoNotChangeTheIntegers) {
  constexpr int kHidden = 48, kIntermediate = 384;
  const Experts experts(4, kHidden, kIntermediate, 12);
  RandomTensors random(13);
  ThreadPool two(2), three(3);
  PiecedExperts whole(experts, 1, kIntermediate);
  for (const int rows : {1, 2, 3, 5, 9, 70}) {
    const Activations x = random.Rows(rows, kHidden, 1.0f, kHidden + 5);
    const ExpertGroups groups =
        GroupsOf(Route(random.Rows(rows, 4), 2, true), 2, 4);
    for (const int slice_rows : {16, 48}) {
      const FixedSums want =
          RunViews(whole.views(), x, groups, slice_rows, nullptr);
      for (const int num_pieces : {1, 2, 3, 4, 8}) {
        if (kIntermediate / num_pieces % slice_rows != 0) continue;
        PiecedExperts pieces(experts, num_pieces, kIntermediate);
        for (ThreadPool* pool :
             {static_cast<ThreadPool*>(nullptr), &two, &three}) {
          ASSERT_EQ(RunViews(pieces.views(), x, groups, slice_rows, pool), want)
              << rows << " rows, slices of " << slice_rows << ", " << num_pieces
              << " pieces, " << NumThreads(pool) << " threads";
        }
      }
    }
  }
}

// Long enough that the operator does not take all slices at once.
TEST(ExpertsFfn, RangesOfPiecesAddUpToTheExpert) {
  constexpr int kHidden = 16;
  const Experts experts(1, kHidden, 4096, 14);
  RandomTensors random(15);
  ThreadPool pool(2);
  PiecedExperts pieces(experts, 4, 4096);
  const ExpertView whole = pieces.views()[0];
  const ExpertSlot<Cpu> slot{.data = whole.data,
                             .hidden = kHidden,
                             .rows = whole.rows,
                             .num_pieces = 4,
                             .piece_stride = whole.piece_stride,
                             .num_experts = 1};
  const auto range = [&](int begin, int end) {
    return slot.PieceRange(begin, end).expert(0);
  };
  for (const int rows : {1, 6, 70}) {
    const Activations x = random.Rows(rows, kHidden);
    ExpertGroups groups;
    GroupAllRows(rows, &groups);
    const auto run = [&](ExpertView view, ThreadPool* threads) {
      return RunViews(absl::MakeConstSpan(&view, 1), x, groups, 128, threads);
    };
    for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
      const FixedSums all = run(whole, threads);
      FixedSums sum(rows, kHidden);
      for (int p = 0; p < 4; ++p) sum += run(range(p, p + 1), threads);
      ASSERT_EQ(sum, all) << rows << " rows";
      sum = run(range(0, 1), threads);
      sum += run(range(1, 4), threads);
      ASSERT_EQ(sum, all) << rows << " rows";
      ASSERT_EQ(run(range(2, 2), threads), FixedSums(rows, kHidden));
    }
  }
}

TEST(ExpertsFfn, RowsOfZerosAddNothing) {
  constexpr int kHidden = 32, kIntermediate = 80;
  const Experts experts(3, kHidden, kIntermediate, 16);
  RandomTensors random(17);
  ThreadPool pool(2);
  PiecedExperts whole(experts, 1, kIntermediate);
  for (const int rows : {1, 4, 21}) {
    const Activations x = random.Rows(rows, kHidden);
    const ExpertGroups groups =
        GroupsOf(Route(random.Rows(rows, 3), 2, true), 2, 3);
    const FixedSums want = RunViews(whole.views(), x, groups, 16, nullptr);
    for (const int num_pieces : {1, 2, 4, 8}) {
      PiecedExperts padded(experts, num_pieces, 128);
      ASSERT_EQ(RunViews(padded.views(), x, groups, 16, nullptr), want);
      ASSERT_EQ(RunViews(padded.views(), x, groups, 16, &pool), want);
    }
  }
}

TEST(ExpertsFfn, ExpertsWithoutRowsAreNotTouched) {
  const Experts experts(4, 32, 64, 18);
  RandomTensors random(19);
  ThreadPool pool(2);
  const Activations x = random.Rows(3, 32);
  // Expert 1 alone has rows.
  const ExpertGroups groups = GroupsOf({{1, 1, 1}, {.5f, .25f, 1.0f}}, 1, 4);
  PiecedExperts pieces(experts, 4, 64);
  const FixedSums want = RunViews(pieces.views(), x, groups, 16, nullptr);
  for (const int e : {0, 2, 3}) pieces.views()[e].data = nullptr;
  EXPECT_EQ(RunViews(pieces.views(), x, groups, 16, nullptr), want);
  EXPECT_EQ(RunViews(pieces.views(), x, groups, 16, &pool), want);
  EXPECT_NE(want, FixedSums(3, 32));
}

TEST(ExpertsFfn, NoAssignmentsNoWork) {
  const Experts experts(2, 16, 16, 10);
  RandomTensors random(11);
  const Activations x = random.Rows(2, 16);
  const Routes routes{{5, 6}, {1.0f, 1.0f}};
  EXPECT_EQ(RunRank(experts, x, routes, 1, 0, 2, 0, 16, 16), FixedSums(2, 16));
}

}  // namespace
}  // namespace moebius
