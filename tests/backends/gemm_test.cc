#include "kernels/cpu/gemm.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "tests/backends/random_tensors.h"

namespace moebius {
namespace {

constexpr double kTolerance = 2e-5;

Activations RunGemm(const Activations& x, PackedMatrix w,
                    ThreadPool* pool = nullptr) {
  Activations out(x.view().rows, w.n);
  Gemm(x.view(), w, out.rows(), pool);
  return out;
}

void ExpectNear(const Activations& got, const reference::Matrix& want,
                double tolerance) {
  ASSERT_EQ(got.view().rows, want.rows);
  ASSERT_EQ(got.view().cols, want.cols);
  for (int i = 0; i < want.rows; ++i) {
    for (int j = 0; j < want.cols; ++j) {
      ASSERT_NEAR(got.at(i, j), want.at(i, j),
                  tolerance * (1.0 + std::fabs(want.at(i, j))))
          << "at " << i << ", " << j;
    }
  }
}

TEST(Gemm, EqualsTheReferenceForEveryTileAndTail) {
  RandomTensors random(1);
  for (const int n : {1, 15, 16, 17, 48, 130}) {
    for (const int k : {2, 34, 256}) {
      const auto w = random.Weights(n, k);
      const OwnedMatrix packed(w, n, k);
      for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 31}) {
        const Activations x = random.Rows(rows, k, 1.0f, k + 3);
        ExpectNear(RunGemm(x, packed.view()),
                   reference::Product(x.ToDouble(), w, n), kTolerance);
      }
    }
  }
}

TEST(Gemm, IsOneChainOfFusedStepsPerOutput) {
  RandomTensors random(2);
  const int n = 40, k = 384;
  const auto w = random.Weights(n, k);
  const OwnedMatrix packed(w, n, k);
  const Activations x = random.Rows(5, k);
  const Activations got = RunGemm(x, packed.view());
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < n; ++j) {
      float fused = 0.0f, rounded = 0.0f;
      for (int s = 0; s < k; ++s) {
        const float weight = ToFloat(w[size_t(j) * k + s]);
        fused = std::fma(weight, x.at(i, s), fused);
        volatile float product = weight * x.at(i, s);
        rounded = rounded + product;
      }
      // A target without FMA rounds twice.
      ASSERT_TRUE(got.at(i, j) == fused || got.at(i, j) == rounded);
    }
  }
}

TEST(Gemm, ARowDoesNotDependOnTheBatch) {
  RandomTensors random(3);
  const int n = 200, k = 256;
  const OwnedMatrix packed(random.Weights(n, k), n, k);
  const Activations x = random.Rows(150, k);
  const Activations all = RunGemm(x, packed.view());
  for (const int size : {1, 2, 3, 5, 7, 8, 11, 64}) {
    for (int first = 0; first + size <= 150; first += 37) {
      Activations part(size, k);
      for (int i = 0; i < size; ++i) {
        for (int j = 0; j < k; ++j) part.at(i, j) = x.at(first + i, j);
      }
      const Activations got = RunGemm(part, packed.view());
      for (int i = 0; i < size; ++i) {
        for (int j = 0; j < n; ++j) {
          ASSERT_EQ(got.at(i, j), all.at(first + i, j));
        }
      }
    }
  }
}

TEST(Gemm, ColumnRangesSideBySideEqualTheWhole) {
  RandomTensors random(4);
  const int n = 96, k = 64;
  const OwnedMatrix q(random.Weights(n, k), n, k);
  const OwnedMatrix v(random.Weights(23, k), 23, k);
  for (const int rows : {1, 6, 20}) {
    const Activations x = random.Rows(rows, k);
    const Activations whole_q = RunGemm(x, q.view());
    const Activations whole_v = RunGemm(x, v.view());
    const PackedMatrix parts[] = {q.view().OutputRange(16, 48),
                                  q.view().OutputRange(80, 96),
                                  q.view().OutputRange(48, 48), v.view()};
    Activations out(rows, 32 + 16 + 23, 80);
    Gemm(x.view(), parts, out.rows(), nullptr);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < 32; ++j) {
        ASSERT_EQ(out.at(i, j), whole_q.at(i, 16 + j));
      }
      for (int j = 0; j < 16; ++j) {
        ASSERT_EQ(out.at(i, 32 + j), whole_q.at(i, 80 + j));
      }
      for (int j = 0; j < 23; ++j) {
        ASSERT_EQ(out.at(i, 48 + j), whole_v.at(i, j));
      }
    }
  }
}

TEST(Gemm, ThreadsDoNotChangeTheResult) {
  RandomTensors random(5);
  ThreadPool pool(2);
  const int n = 530, k = 128;
  const OwnedMatrix packed(random.Weights(n, k), n, k);
  for (const int rows : {1, 9, 40}) {
    const Activations x = random.Rows(rows, k);
    EXPECT_EQ(RunGemm(x, packed.view(), &pool), RunGemm(x, packed.view()));
  }
}

TEST(Gemm, NothingToDoTouchesNothing) {
  RandomTensors random(6);
  const OwnedMatrix packed(random.Weights(16, 4), 16, 4);
  Activations x(0, 4), out(0, 16);
  Gemm(x.view(), packed.view(), out.rows(), nullptr);
  Gemm(x.view(), absl::Span<const PackedMatrix>(), Activations(0, 0).rows(),
       nullptr);
}

// ---- row-parallel ----------------------------------------------------------

FixedSums RunRowParallel(const Activations& x, RowParallelMatrix w, int k_begin,
                         int slice_rows, ThreadPool* pool = nullptr) {
  FixedSums acc(x.view().rows, w.n);
  RowParallelGemm(x.view(), w, k_begin, slice_rows, acc.rows(), pool);
  return acc;
}

Activations Columns(const Activations& x, int begin, int count) {
  Activations out(x.view().rows, count);
  for (int i = 0; i < x.view().rows; ++i) {
    for (int j = 0; j < count; ++j) out.at(i, j) = x.at(i, begin + j);
  }
  return out;
}

TEST(RowParallelGemm, EqualsTheReferenceForEveryTileAndSlice) {
  RandomTensors random(7);
  for (const int n : {16, 48, 144}) {
    for (const int k : {16, 128, 240}) {
      const auto w = random.Weights(n, k);
      const OwnedRowParallel packed(w, n, k);
      for (const int rows : {1, 2, 3, 4, 5, 7, 8, 9, 70}) {
        const Activations x = random.Rows(rows, k);
        const auto want = reference::Product(x.ToDouble(), w, n);
        for (const int slice : {2, 16, k}) {
          const FixedSums got = RunRowParallel(x, packed.view(), 0, slice);
          for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < n; ++j) {
              ASSERT_NEAR(got.ToDouble(i, j), want.at(i, j), kTolerance);
            }
          }
        }
      }
    }
  }
}

TEST(RowParallelGemm, AddsToWhatIsThere) {
  RandomTensors random(8);
  const OwnedRowParallel packed(random.Weights(16, 32), 16, 32);
  const Activations x = random.Rows(3, 32);
  FixedSums once = RunRowParallel(x, packed.view(), 0, 16);
  FixedSums twice = once;
  RowParallelGemm(x.view(), packed.view(), 0, 16, twice.rows(), nullptr);
  FixedSums doubled = once;
  doubled += once;
  EXPECT_EQ(twice, doubled);
}

// The slices are the same whether one rank or eight hold them.
TEST(RowParallelGemm, AnySharingAmongRanksGivesTheSameIntegers) {
  RandomTensors random(9);
  const int n = 64, k = 384;
  const auto w = random.Weights(n, k);
  const OwnedRowParallel packed(w, n, k);
  for (const int rows : {1, 3, 8, 19}) {
    const Activations x = random.Rows(rows, k);
    const int slice = k / 8;
    const FixedSums whole = RunRowParallel(x, packed.view(), 0, slice);
    for (const int ranks : {1, 2, 4, 8}) {
      FixedSums views(rows, n), blocks(rows, n);
      for (int r = 0; r < ranks; ++r) {
        const int begin = k / ranks * r, count = k / ranks;
        const Activations part = Columns(x, begin, count);
        // A range of the full matrix, as for attention.
        views += RunRowParallel(part, packed.view(), begin, slice);
        // A block of its own, as for experts.
        AlignedVector<Bf16> block(size_t(n) * count);
        PackRowParallel(w.data() + begin, n, count, k, block.data());
        blocks += RunRowParallel(part, {block.data(), n, count}, 0, slice);
      }
      ASSERT_EQ(views, whole) << ranks << " ranks";
      ASSERT_EQ(blocks, whole) << ranks << " ranks";
    }
  }
}

// Slices of 24 rows begin inside units of 16.
TEST(RowParallelGemm, SlicesNeedNotBeWholeUnits) {
  RandomTensors random(10);
  const int n = 32, k = 48;
  const OwnedRowParallel packed(random.Weights(n, k), n, k);
  const Activations x = random.Rows(4, k);
  const FixedSums whole = RunRowParallel(x, packed.view(), 0, 24);
  FixedSums parts = RunRowParallel(Columns(x, 0, 24), packed.view(), 0, 24);
  parts += RunRowParallel(Columns(x, 24, 24), packed.view(), 24, 24);
  EXPECT_EQ(parts, whole);
}

TEST(RowParallelGemm, BatchAndThreadsDoNotChangeTheIntegers) {
  RandomTensors random(11);
  ThreadPool pool(2);
  const int n = 96, k = 128;
  const OwnedRowParallel packed(random.Weights(n, k), n, k);
  const Activations x = random.Rows(77, k);
  FixedSums all = RunRowParallel(x, packed.view(), 0, 16);
  EXPECT_EQ(RunRowParallel(x, packed.view(), 0, 16, &pool), all);
  for (int i = 0; i < 77; ++i) {
    Activations row(1, k);
    for (int j = 0; j < k; ++j) row.at(0, j) = x.at(i, j);
    FixedSums alone = RunRowParallel(row, packed.view(), 0, 16);
    for (int j = 0; j < n; ++j) ASSERT_EQ(alone.at(0, j), all.at(i, j));
  }
}

TEST(RowParallelGemm, PartialSumsAreClampedAndNanDoesNotEscape) {
  const std::vector<Bf16> ones(16 * 16, ToBf16(1.0f));
  const OwnedRowParallel packed(ones, 16, 16);
  Activations x(4, 16);
  x.at(0, 0) = 1e30f;
  x.at(1, 0) = -std::numeric_limits<float>::infinity();
  x.at(2, 0) = std::numeric_limits<float>::quiet_NaN();
  x.at(3, 0) = 262143.5f;
  FixedSums acc = RunRowParallel(x, packed.view(), 0, 16);
  const double limit = double{kFixedPointLimit};
  EXPECT_EQ(acc.ToDouble(0, 3), limit);
  EXPECT_EQ(acc.ToDouble(1, 3), -limit);
  EXPECT_LE(std::fabs(acc.ToDouble(2, 3)), limit);
  EXPECT_EQ(acc.ToDouble(3, 3), 262143.5);
}

TEST(RowParallelGemm, RoundsToTheGridToNearestEven) {
  const std::vector<Bf16> ones(16 * 16, ToBf16(1.0f));
  const OwnedRowParallel packed(ones, 16, 16);
  Activations x(4, 16);
  x.at(0, 0) = std::ldexp(1.0f, -33);             // half a step: to even (0)
  x.at(1, 0) = std::ldexp(3.0f, -33);             // one and a half: to even (2)
  x.at(2, 0) = -std::ldexp(3.0f, -33);            // to even (-2)
  x.at(3, 0) = std::ldexp(1.0f + 0x1p-20f, -33);  // a little over half
  FixedSums acc = RunRowParallel(x, packed.view(), 0, 16);
  EXPECT_EQ(acc.at(0, 0), 0);
  EXPECT_EQ(acc.at(1, 0), 2);
  EXPECT_EQ(acc.at(2, 0), -2);
  EXPECT_EQ(acc.at(3, 0), 1);
}

// ---- fixed point -----------------------------------------------------------

TEST(ReduceFixedPoint, AddsTheRanksAndRoundsOnce) {
  RandomTensors random(12);
  for (const int ranks : {1, 2, 3, 8}) {
    std::vector<FixedSums> sums;
    for (int r = 0; r < ranks; ++r) {
      sums.emplace_back(3, 37);
      for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 37; ++j) {
          sums[r].at(i, j) =
              (int64_t{random.Below(1 << 30)} << (j % 26)) - (1 << 20);
        }
      }
    }
    std::vector<ConstFixedRows> sources;
    for (const FixedSums& s : sums) sources.push_back(s.view());
    Activations residual = random.Rows(3, 37);
    Activations threaded = residual;
    const Activations before = residual;
    ReduceFixedPoint(sources, residual.rows(), nullptr);
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 37; ++j) {
        int64_t total = 0;
        for (FixedSums& s : sums) total += s.at(i, j);
        const float value = std::ldexp(static_cast<float>(total), -32);
        ASSERT_EQ(residual.at(i, j), before.at(i, j) + value);
      }
    }
    ThreadPool pool(2);
    ReduceFixedPoint(sources, threaded.rows(), &pool);
    EXPECT_EQ(threaded, residual);
  }
}

// Through double this would round twice: 2^53 + 1 + 2^30 - 1 and the like.
TEST(ReduceFixedPoint, DoesNotRoundThroughDouble) {
  FixedSums sum(1, 16);
  const int64_t tie = (int64_t{1} << 60) + (int64_t{1} << 36);
  sum.at(0, 0) = tie + 1;  // above the tie: up
  sum.at(0, 1) = tie;      // a tie: to even, down
  Activations residual(1, 16);
  const ConstFixedRows source = sum.view();
  ReduceFixedPoint(absl::MakeConstSpan(&source, 1), residual.rows(), nullptr);
  EXPECT_EQ(residual.at(0, 0), std::ldexp(1.0f + 0x1p-23f, 28));
  EXPECT_EQ(residual.at(0, 1), std::ldexp(1.0f, 28));
}

TEST(ZeroFixedPoint, ClearsItsRowsAlone) {
  std::vector<int64_t> values(4 * 10, 7);
  ThreadPool pool(1);
  ZeroFixedPoint({values.data() + 10, 2, 8, 10}, &pool);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(values[i], i >= 10 && i < 30 && i % 10 < 8 ? 0 : 7) << i;
  }
}

}  // namespace
}  // namespace moebius
