// The router on a GPU: the choices of the CPU, also where logits are equal or
// not finite; groups of thousands of rows; rows that move.
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/moe.h"
#include "kernels/embed.h"
#include "kernels/norm.h"
#include "tests/backends/gpu_under_test.h"

namespace moebius {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Routed {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

template <class D>
Routed RunRoute(DeviceUnderTest<D>& dut, const RouterShape& shape,
                const Activations& x, const std::vector<Bf16>& router, int n) {
  const int rows = x.view().rows;
  const size_t count = static_cast<size_t>(rows) * shape.top_k;
  const std::vector<int32_t> ids(count, -1);
  const std::vector<float> weights(count, 0.0f);
  const Assignments<D> out{dut.Put(absl::MakeConstSpan(ids)),
                           dut.Put(absl::MakeConstSpan(weights)), rows,
                           shape.top_k};
  Route(dut.device(), shape, dut.PutRows(x),
        dut.PutColumnParallel(router, n, x.view().cols), dut.routing(), out);
  return {dut.Take(out.experts, count), dut.Take(out.weights, count)};
}

template <class D>
class RouteGpuTest : public testing::Test {
 protected:
  // The same experts as the CPU's.
  void ExpectAsOnCpu(const RouterShape& shape, const Activations& x,
                     const std::vector<Bf16>& router, int n) {
    DeviceUnderTest<Cpu> cpu;
    const Routed want = RunRoute(cpu, shape, x, router, n);
    const Routed got = RunRoute(dut, shape, x, router, n);
    EXPECT_EQ(got.experts, want.experts);
    ASSERT_EQ(got.weights.size(), want.weights.size());
    for (size_t i = 0; i < want.weights.size(); ++i) {
      EXPECT_NEAR(got.weights[i], want.weights[i], 1e-6) << i;
    }
  }

  // What Group() has left.
  void ExpectGroups(ExpertRange range, int rows, const ExpertGroups& want) {
    const Routing<D>& routing = dut.routing();
    EXPECT_EQ(routing.num_groups, range.count);
    EXPECT_EQ(routing.num_rows, rows);
    if (range.count == 0) return;
    EXPECT_EQ(dut.Take(routing.begins.data(), want.offsets.size()),
              want.offsets);
    EXPECT_EQ(dut.Take(routing.rows.data(), want.rows.size()), want.rows);
    EXPECT_EQ(dut.Take(routing.weights.data(), want.weights.size()),
              want.weights);
  }

  DeviceUnderTest<D> dut;
  RandomTensors random{11};
};
using Devices = testing::Types<CudaExact, CudaFast>;
TYPED_TEST_SUITE(RouteGpuTest, Devices);

// Sums of small integers are the same in any order, and often equal.
TYPED_TEST(RouteGpuTest, EqualLogitsGoToTheLowestIds) {
  constexpr int kHidden = 96;
  for (const int n : {6, 31, 128, 200, 512}) {
    std::vector<Bf16> router(static_cast<size_t>(n) * kHidden);
    for (Bf16& w : router) {
      w = ToBf16(static_cast<float>(this->random.Below(3) - 1));
    }
    Activations x(41, kHidden);
    for (int i = 0; i < 41; ++i) {
      for (int j = 0; j < kHidden; ++j) {
        x.at(i, j) = static_cast<float>(this->random.Below(5) - 2) / 8;
      }
    }
    for (const int top_k : {1, 5, 64}) {
      if (top_k > n) continue;
      SCOPED_TRACE(absl::StrCat(top_k, " of ", n));
      this->ExpectAsOnCpu({top_k, true}, x, router, n);
      this->ExpectAsOnCpu({top_k, false}, x, router, n);
    }
  }
}

TYPED_TEST(RouteGpuTest, LogitsThatAreNotFiniteAreAsOnTheCpu) {
  constexpr int kHidden = 32, kExperts = 40;
  std::vector<Bf16> router = this->random.Weights(kExperts, kHidden);
  for (int j = 0; j < kHidden; ++j) {
    router[3 * kHidden + j] = ToBf16(kNan);
    router[5 * kHidden + j] = ToBf16(256.0f);
    router[6 * kHidden + j] = ToBf16(256.0f);
    router[7 * kHidden + j] = ToBf16(-256.0f);
  }
  Activations x = this->random.Rows(5, kHidden);
  for (int j = 0; j < kHidden; ++j) {
    x.at(1, j) = kNan;
    x.at(2, j) = 0.0f;
    x.at(3, j) = 2e37f;   // experts 5 and 6: infinite
    x.at(4, j) = -2e37f;  // and now expert 7
  }
  this->ExpectAsOnCpu({8, true}, x, router, kExperts);
  this->ExpectAsOnCpu({8, false}, x, router, kExperts);
}

TYPED_TEST(RouteGpuTest, ARowIsRoutedTheSameWhateverIsBesideIt) {
  constexpr int kHidden = 2048, kTopK = 8;
  // Alone, among hundreds, and among thousands, each has its own kernel.
  for (const auto& [num_rows, num_experts] :
       {std::pair{301, 128}, std::pair{1101, 128}, std::pair{1101, 200}}) {
    const auto router = this->random.Weights(num_experts, kHidden);
    const Activations x = this->random.Rows(num_rows, kHidden);
    const Routed all =
        RunRoute(this->dut, {kTopK, true}, x, router, num_experts);
    for (const int row : {0, 7, 31, 32, 300, num_rows - 1}) {
      Activations one(1, kHidden);
      for (int j = 0; j < kHidden; ++j) one.at(0, j) = x.at(row, j);
      const Routed alone =
          RunRoute(this->dut, {kTopK, true}, one, router, num_experts);
      for (int t = 0; t < kTopK; ++t) {
        EXPECT_EQ(alone.experts[t], all.experts[row * kTopK + t]);
        EXPECT_EQ(alone.weights[t], all.weights[row * kTopK + t]);
      }
      std::vector<float> logits;
      const auto product =
          reference::Product(one.ToDouble(), router, num_experts);
      for (int e = 0; e < num_experts; ++e) {
        logits.push_back(static_cast<float>(product.at(0, e)));
      }
      const reference::Route want = reference::RouteTopK(logits, kTopK, true);
      for (int t = 0; t < kTopK; ++t) {
        EXPECT_EQ(alone.experts[t], want.experts[t]);
        EXPECT_NEAR(alone.weights[t], want.weights[t], 2e-6);
      }
    }
  }
}

// Ids of nobody, as an exchange that was given up leaves them, are in no group.
TYPED_TEST(RouteGpuTest, ThousandsOfRowsAreGroupedAsOnTheCpu) {
  using D = TypeParam;
  for (const int rows : {0, 1, 5, 33, 700, 5000}) {
    for (const int top_k : {1, 8}) {
      const size_t count = static_cast<size_t>(rows) * top_k;
      std::vector<int32_t> ids(count);
      std::vector<float> weights(count);
      for (size_t i = 0; i < count; ++i) {
        const int kind = this->random.Below(8);
        ids[i] = kind == 0 ? static_cast<int32_t>(this->random.Below(1 << 30) *
                                                  (i % 2 == 0 ? 3 : -3))
                 : kind <= 4 ? 100 + this->random.Below(3)
                             : this->random.Below(300);
        weights[i] = this->random.Normal();
      }
      const Assignments<D> assignments{
          this->dut.Put(absl::MakeConstSpan(ids)),
          this->dut.Put(absl::MakeConstSpan(weights)), rows, top_k};
      for (const ExpertRange range : {ExpertRange{0, 256}, ExpertRange{90, 20},
                                      ExpertRange{4, 1}, ExpertRange{0, 0}}) {
        SCOPED_TRACE(absl::StrCat(rows, " rows, ", top_k, " each, ",
                                  range.count, " from ", range.first));
        ExpertGroups want;
        GroupByExpert(ids, weights, top_k, range.first, range.count, &want);
        Routing<D>& routing = this->dut.routing();
        Group(this->dut.device(), assignments, range, routing);
        EXPECT_EQ(routing.max_entries, rows * top_k);
        this->ExpectGroups(range, rows, want);
      }
    }
    GroupAllRows(this->dut.device(), rows, this->dut.routing());
    const Routing<D>& routing = this->dut.routing();
    EXPECT_THAT(this->dut.Take(routing.begins.data(), 2),
                testing::ElementsAre(0, rows));
    const auto all = this->dut.Take(routing.rows.data(), rows);
    for (int i = 0; i < rows; ++i) EXPECT_EQ(all[i], i);
    EXPECT_THAT(this->dut.Take(routing.weights.data(), rows),
                testing::Each(1.0f));
  }
}

// The router makes the groups of few rows; nobody can tell from what is there.
TYPED_TEST(RouteGpuTest, RoutedRowsAreGroupedAsOnTheCpu) {
  using D = TypeParam;
  constexpr int kHidden = 96, kMostRows = 11;
  for (const int n : {6, 31, 128, 200, 512}) {
    const auto router = this->random.Weights(n, kHidden);
    const auto* const weights =
        this->dut.PutColumnParallel(router, n, kHidden).data;
    for (int rows = 1; rows <= kMostRows; ++rows) {
      const View<float, D> x =
          this->dut.PutRows(this->random.Rows(rows, kHidden));
      std::vector<int32_t> positions(static_cast<size_t>(rows));
      for (int i = 0; i < rows; ++i) positions[i] = i % 4 == 2 ? -1 : i;
      Routing<D>& routing = this->dut.routing();
      routing.positions = this->dut.Put(absl::MakeConstSpan(positions));
      for (const int top_k : {1, 5, 64}) {
        if (top_k > n) continue;
        const size_t count = static_cast<size_t>(rows) * top_k;
        const Assignments<D> routed{
            this->dut.Put(absl::MakeConstSpan(std::vector<int32_t>(count))),
            this->dut.Put(absl::MakeConstSpan(std::vector<float>(count))), rows,
            top_k};
        for (const ExpertRange range : {ExpertRange{0, n}, ExpertRange{0, 4},
                                        ExpertRange{2, 3}, ExpertRange{0, n}}) {
          SCOPED_TRACE(absl::StrCat(rows, " rows, ", top_k, " of ", n, ", ",
                                    range.count, " from ", range.first));
          Route(this->dut.device(), {top_k, true}, x,
                ColumnParallel<D>{weights, n, kHidden}, routing, routed);
          Group(this->dut.device(), routed, range, routing);
          ExpertGroups want;
          GroupByExpert(this->dut.Take(routed.experts, count),
                        this->dut.Take(routed.weights, count), top_k,
                        range.first, range.count, &want);
          EXPECT_EQ(routing.max_entries, rows * top_k);
          this->ExpectGroups(range, rows, want);
        }
      }
      routing.positions = nullptr;
    }
  }
}

TYPED_TEST(RouteGpuTest, RowsMoveUpInOrder) {
  using D = TypeParam;
  constexpr int kRows = 1000, kCols = 144;
  const Activations x = this->random.Rows(kRows, kCols, 1.0f, 160);
  std::vector<int32_t> kept;
  for (int i = 0; i < kRows; ++i) {
    if (i > 300 || this->random.Below(3) == 0) kept.push_back(i);
  }
  const View<float, D> rows = this->dut.PutRows(x);
  KeepRows(this->dut.device(), this->dut.Put(absl::MakeConstSpan(kept)),
           static_cast<int>(kept.size()), rows);
  const Activations got = this->dut.TakeRows(rows);
  for (size_t i = 0; i < kept.size(); ++i) {
    for (int j = 0; j < kCols; ++j) {
      ASSERT_EQ(got.at(static_cast<int>(i), j), x.at(kept[i], j));
    }
  }
}

TYPED_TEST(RouteGpuTest, NormsOfRowsAgreeWithTheReference) {
  using D = TypeParam;
  for (const int cols : {16, 80, 2048, 5120}) {
    const Activations x = this->random.Rows(9, cols);
    const auto weight = this->random.Floats(static_cast<size_t>(cols));
    const View<float, D> rows = this->dut.PutRows(x);
    RmsNorm(this->dut.device(), rows,
            Norm<D>{this->dut.Put(absl::MakeConstSpan(weight)), cols, 1e-6f},
            rows);
    const Activations got = this->dut.TakeRows(rows);
    const auto want = reference::RmsNorm(x.ToDouble(), weight, 1e-6);
    for (int i = 0; i < 9; ++i) {
      for (int j = 0; j < cols; ++j) {
        ASSERT_NEAR(got.at(i, j), want.at(i, j),
                    2e-6 + 1e-6 * std::abs(want.at(i, j)));
      }
    }
  }
}

// Greedy rows without any wish are decided where the logits are.
TYPED_TEST(RouteGpuTest, TheHighestLogitIsTheCpusWhereverItIsFound) {
  constexpr int kVocabulary = 9001;
  Activations logits = this->random.Rows(9, kVocabulary, 1.0f, 9004);
  for (const int i : {4095, 4096, 9000}) logits.at(1, i) = 77.0f;
  logits.at(2, 8999) = kNan;
  logits.at(3, 5000) = std::numeric_limits<float>::infinity();
  for (int j = 0; j < kVocabulary; ++j) {
    logits.at(4, j) = -std::numeric_limits<float>::infinity();
    logits.at(5, j) = kNan;
  }
  SamplingParams greedy{.temperature = 0.0f}, drawn{.seed = 3}, biased = greedy;
  biased.logit_bias = {{17, 1000.0f}};
  const std::vector<SampleRow> wanted = {
      {.sampling = &greedy}, {.sampling = &greedy}, {.sampling = &greedy},
      {.sampling = &greedy}, {.sampling = &greedy}, {.sampling = &greedy},
      {.sampling = &drawn},  {.sampling = &biased}, {.sampling = &greedy}};
  DeviceUnderTest<Cpu> cpu;
  const auto want = cpu.RunSample(cpu.PutRows(logits), wanted);
  const auto got = this->dut.RunSample(this->dut.PutRows(logits), wanted);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(got[i].value.token, want[i].value.token) << i;
    EXPECT_EQ(got[i].finite, want[i].finite) << i;
  }
}

}  // namespace
}  // namespace moebius
