// What products have on a GPU alone: kinds of kernels for few and many rows,
// whose bits agree where numerics are exact, and sizes that fill a GPU.
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/operators.h"
#include "kernels/reference/reference.h"
#include "tests/backends/gpu_under_test.h"

namespace moebius {
namespace {

constexpr int kMostRows = 300;

// Rows with which each kind of kernel runs.
constexpr int kCompanies[] = {1, 7, 12, 30, 40, 80, 130, kMostRows};

template <class D>
class ProductsTest : public testing::Test {
 protected:
  // A member of some group: its row, and the weight there.
  using Member = std::pair<int, float>;
  using Groups = std::vector<std::vector<Member>>;

  // Every row of one is near, and with exact numerics equal to, that of all.
  void ExpectRowsOf(const Activations& all, const Activations& some) {
    const ConstRows view = some.view();
    for (int i = 0; i < view.rows; ++i) {
      for (int j = 0; j < view.cols; ++j) {
        if constexpr (DeviceUnderTest<D>::kNumerics == Numerics::kExact) {
          ASSERT_EQ(some.at(i, j), all.at(i, j))
              << view.rows << " rows, row " << i << " column " << j;
        } else {
          ASSERT_NEAR(some.at(i, j), all.at(i, j),
                      DeviceUnderTest<D>::kTolerance)
              << view.rows << " rows, row " << i << " column " << j;
        }
      }
    }
  }
  // An output against its definition.
  void ExpectOutput(double got, const Activations& x, int row,
                    const std::vector<Bf16>& w, int output) {
    const int k = x.view().cols;
    double want = 0.0;
    for (int j = 0; j < k; ++j) {
      want += double{x.at(row, j)} * ToFloat(w[size_t(output) * k + j]);
    }
    ASSERT_NEAR(got, want, DeviceUnderTest<D>::kTolerance)
        << "row " << row << " output " << output;
  }
  static Activations FirstRows(const Activations& x, int count) {
    Activations out(count, x.view().cols);
    for (int i = 0; i < count; ++i) {
      for (int j = 0; j < x.view().cols; ++j) out.at(i, j) = x.at(i, j);
    }
    return out;
  }
  // The sum of the sources as floats.
  Activations Sum(const std::vector<ConstPartialRows<D>>& sources) {
    const int rows = sources[0].rows, cols = sources[0].cols;
    const View<float, D> residual = dut.PutRows(Activations(rows, cols));
    const View<float, D> normed = dut.PutRows(Activations(rows, cols));
    const std::vector<float> ones(static_cast<size_t>(cols), 1.0f);
    AddPartials(
        dut.device(), sources,
        {residual, {dut.Put(absl::MakeConstSpan(ones)), cols, 1e-6f}, normed});
    return dut.TakeRows(residual);
  }
  // As Group leaves it.
  void PutGroups(const Groups& groups, int num_rows) {
    std::vector<int32_t> begins = {0}, rows;
    std::vector<float> weights;
    for (const std::vector<Member>& group : groups) {
      for (const auto& [row, weight] : group) {
        rows.push_back(row);
        weights.push_back(weight);
      }
      begins.push_back(static_cast<int32_t>(rows.size()));
    }
    Routing<D>& routing = dut.routing();
    routing.num_groups = static_cast<int>(groups.size());
    routing.max_entries = static_cast<int>(rows.size());
    routing.num_rows = num_rows;
    const auto put = [&]<class T>(const std::vector<T>& from,
                                  Buffer<T, D>& to) {
      const int64_t count = static_cast<int64_t>(from.size());
      to = {dut.device(), "groups of a test", count + 1};
      UploadToGpu(from.data(), count * int64_t{sizeof(T)}, to.data(),
                  dut.device().stream, dut.device().failure);
    };
    put(begins, routing.begins);
    put(rows, routing.rows);
    put(weights, routing.weights);
  }
  PlainExpert RandomExpert(int hidden, int rows) {
    return {random.Weights(rows, hidden), random.Weights(rows, hidden),
            random.Weights(hidden, rows)};
  }
  // The experts' sums over the first rows of x, in groups.
  Activations RunExperts(const ExpertSlot<D>& slot, int slice_rows,
                         const Activations& x, const Groups& groups) {
    return RunExpertsOn(dut.device(), slot, slice_rows, x, groups);
  }
  Activations RunExpertsOn(const D& device, const ExpertSlot<D>& slot,
                           int slice_rows, const Activations& x,
                           const Groups& groups) {
    const int rows = x.view().rows;
    PutGroups(groups, rows);
    const PartialRows<D> sums = dut.MakeSums(rows, slot.hidden);
    Experts(device, slot, slice_rows, dut.PutRows(x), dut.routing(), sums);
    return Sum({sums});
  }
  // The same GPU, without what wide tiles need.
  D Narrow() const {
    D device = dut.device();
    device.workspace = nullptr;
    return device;
  }

  DeviceUnderTest<D> dut;
  RandomTensors random{11};
};

using Gpus = testing::Types<CudaExact, CudaFast>;
TYPED_TEST_SUITE(ProductsTest, Gpus);

TYPED_TEST(ProductsTest, AProjectedRowDoesNotDependOnItsCompany) {
  using D = TypeParam;
  const std::pair<int, int> sizes[] = {
      {80, 149}, {768, 4864}, {272, 16}, {64, 17000}};
  for (const auto& [hidden, outputs] : sizes) {
    const auto w = this->random.Weights(outputs, hidden);
    const ColumnParallel<D> parts[] = {
        this->dut.PutColumnParallel(w, outputs, hidden)};
    const Activations x = this->random.Rows(kMostRows, hidden);
    const auto run = [&](int rows) {
      // Wider than it must be.
      const View<float, D> out =
          this->dut.PutRows(Activations(rows, outputs, (outputs + 19) / 4 * 4));
      Project(this->dut.device(), this->dut.PutRows(this->FirstRows(x, rows)),
              parts, out);
      return this->dut.TakeRows(out);
    };
    const Activations all = run(kMostRows);
    for (const int rows : kCompanies) this->ExpectRowsOf(all, run(rows));
    for (int i = 0; i < 500; ++i) {
      const int row = this->random.Below(kMostRows);
      const int output = this->random.Below(outputs);
      this->ExpectOutput(all.at(row, output), x, row, w, output);
    }
  }
}

TYPED_TEST(ProductsTest, PartialSumsDoNotDependOnCompanyOrRanks) {
  using D = TypeParam;
  struct Sizes {
    int k, n, slice_rows;
  };
  for (const Sizes& s :
       {Sizes{80, 80, 16}, Sizes{320, 64, 80}, Sizes{4096, 2048, 512},
        Sizes{1152, 4352, 288}, Sizes{32, 16896, 16}}) {
    const auto w = this->random.Weights(s.n, s.k);
    const RowParallel<D> whole = this->dut.PutRowParallel(w, s.n, s.k);
    const Activations x = this->random.Rows(kMostRows, s.k);
    const auto run = [&](int rows, int ranks) {
      const View<float, D> here = this->dut.PutRows(this->FirstRows(x, rows));
      std::vector<ConstPartialRows<D>> sources;
      const int slices = s.k / s.slice_rows;
      for (int r = 0; r < ranks; ++r) {
        const int begin = slices * r / ranks * s.slice_rows;
        const int end = slices * (r + 1) / ranks * s.slice_rows;
        const PartialRows<D> sums = this->dut.MakeSums(rows, s.n);
        ProjectPartial(this->dut.device(), here.ColRange(begin, end - begin),
                       RowSlices<D>{whole, begin, s.slice_rows}, sums);
        sources.push_back(sums);
      }
      return this->Sum(sources);
    };
    const Activations all = run(kMostRows, 1);
    for (const int rows : kCompanies) {
      for (const int ranks : {1, 2, 4}) {
        this->ExpectRowsOf(all, run(rows, ranks));
      }
    }
    for (int i = 0; i < 500; ++i) {
      const int row = this->random.Below(kMostRows);
      const int output = this->random.Below(s.n);
      this->ExpectOutput(all.at(row, output), x, row, w, output);
    }
  }
}

// Five experts, of which one has all rows, one none, and others some.
TYPED_TEST(ProductsTest, ExpertsDoNotDependOnCompanyOrPieces) {
  using D = TypeParam;
  struct Sizes {
    int hidden, rows, slice_rows;
  };
  for (const Sizes& s : {Sizes{80, 80, 16}, Sizes{64, 32, 16},
                         Sizes{512, 384, 96}, Sizes{2048, 768, 96}}) {
    std::vector<PlainExpert> experts;
    for (int e = 0; e < 5; ++e) {
      experts.push_back(this->RandomExpert(s.hidden, s.rows));
    }
    const Activations x = this->random.Rows(kMostRows, s.hidden);
    std::vector<float> weights = this->random.Floats(5 * kMostRows, 0.3f);
    const auto groups_of = [&](int rows) {
      typename TestFixture::Groups groups(5);
      for (int i = 0; i < rows; ++i) {
        for (const int e : {0, i % 7 == 3 ? 1 : -1, i % 2 == 1 ? 3 : 4}) {
          if (e >= 0) groups[e].push_back({i, weights[5 * i + e]});
        }
      }
      return groups;
    };
    const auto run = [&](int rows, int pieces) {
      return this->RunExperts(
          this->dut.PutExperts(experts, s.hidden, s.rows, pieces), s.slice_rows,
          this->FirstRows(x, rows), groups_of(rows));
    };
    const Activations all = run(kMostRows, 1);
    for (const int rows : kCompanies) {
      for (const int pieces : {1, 2, 4, 5}) {
        if (s.rows / s.slice_rows % pieces != 0) continue;
        this->ExpectRowsOf(all, run(rows, pieces));
      }
    }
    // Against the definition.
    for (const int row : {0, 3, 10, 299}) {
      std::vector<double> of_row(s.hidden), want(s.hidden, 0.0);
      for (int j = 0; j < s.hidden; ++j) of_row[j] = x.at(row, j);
      const typename TestFixture::Groups groups = groups_of(kMostRows);
      for (int e = 0; e < 5; ++e) {
        for (const auto& [member, weight] : groups[e]) {
          if (member != row) continue;
          const auto out = reference::Expert(
              of_row, experts[e].gate, experts[e].up, experts[e].down, s.rows);
          for (int j = 0; j < s.hidden; ++j) want[j] += weight * out[j];
        }
      }
      for (int j = 0; j < s.hidden; ++j) {
        ASSERT_NEAR(all.at(row, j), want[j], DeviceUnderTest<D>::kTolerance)
            << "row " << row << " column " << j;
      }
    }
  }
}

// More tiles than a GPU has multiprocessors, of sizes that fill none of them.
TYPED_TEST(ProductsTest, ManyTilesAreAsWithoutWideOnes) {
  using D = TypeParam;
  const D devices[] = {this->dut.device(), this->Narrow()};
  for (const auto& [k, n, rows] :
       {std::array{272, 5136, 1100}, std::array{80, 80, 5000},
        std::array{768, 4864, 700}, std::array{2048, 272, 257}}) {
    const auto w = this->random.Weights(n, k);
    const Activations x = this->random.Rows(rows, k);
    const View<float, D> here = this->dut.PutRows(x);
    std::vector<Activations> projected, sums;
    for (const D& device : devices) {
      const View<float, D> out = this->dut.PutRows(Activations(rows, n, n + 4));
      const ColumnParallel<D> whole = this->dut.PutColumnParallel(w, n, k);
      const ColumnParallel<D> parts[] = {whole.OutputRange(0, 32),
                                         whole.OutputRange(32, n)};
      Project(device, here, parts, out);
      projected.push_back(this->dut.TakeRows(out));
      const PartialRows<D> partial = this->dut.MakeSums(rows, n);
      ProjectPartial(device, here,
                     RowSlices<D>{this->dut.PutRowParallel(w, n, k), 0, 16},
                     partial);
      sums.push_back(this->Sum({partial}));
    }
    this->ExpectRowsOf(projected[1], projected[0]);
    this->ExpectRowsOf(sums[1], sums[0]);
  }
}

// Of 50 experts every seventh has no rows, one has all, others few or many.
TYPED_TEST(ProductsTest, ManyExpertsAreAsWithoutWideTiles) {
  using D = TypeParam;
  constexpr int kExperts = 50, kRows = 900;
  struct Sizes {
    int hidden, rows, slice_rows, pieces;
  };
  for (const Sizes& s :
       {Sizes{272, 144, 48, 3}, Sizes{512, 384, 96, 4}, Sizes{80, 32, 16, 2}}) {
    std::vector<PlainExpert> experts;
    for (int e = 0; e < kExperts; ++e) {
      experts.push_back(this->RandomExpert(s.hidden, s.rows));
    }
    const ExpertSlot<D> slot =
        this->dut.PutExperts(experts, s.hidden, s.rows, s.pieces);
    const Activations x = this->random.Rows(kRows, s.hidden);
    for (const int most : {kRows, 440}) {
      typename TestFixture::Groups groups(kExperts);
      for (int e = 0; e < kExperts; ++e) {
        const bool empty = e % 7 == 3;
        const int some = most * (e * 37 % kExperts) / (4 * kExperts);
        const int count = e == 20 ? most : empty ? 0 : some;
        for (int i = 0; i < count; ++i) {
          groups[e].push_back({(i * 7 + e) % kRows, 0.01f * (e + 1)});
        }
      }
      const Activations wide = this->RunExperts(slot, s.slice_rows, x, groups);
      this->ExpectRowsOf(
          this->RunExpertsOn(this->Narrow(), slot, s.slice_rows, x, groups),
          wide);
    }
  }
}

// More groups than a warp has threads, most of them empty.
TYPED_TEST(ProductsTest, RowsFindTheirExpertAmongMany) {
  using D = TypeParam;
  constexpr int kHidden = 64, kRows = 32, kExperts = 128;
  std::vector<PlainExpert> experts;
  for (int e = 0; e < kExperts; ++e) {
    experts.push_back(this->RandomExpert(kHidden, kRows));
  }
  const ExpertSlot<D> slot = this->dut.PutExperts(experts, kHidden, kRows, 1);
  for (const int rows : {1, 3, 50}) {
    const Activations x = this->random.Rows(rows, kHidden);
    typename TestFixture::Groups groups(kExperts);
    reference::Matrix want(rows, kHidden);
    for (int i = 0; i < rows; ++i) {
      std::vector<double> of_row(kHidden);
      for (int j = 0; j < kHidden; ++j) of_row[j] = x.at(i, j);
      for (const int e : {i % 2 * 127, 31 + i % 3, 64 + i}) {
        groups[e].push_back({i, 0.5f});
        const auto out = reference::Expert(
            of_row, experts[e].gate, experts[e].up, experts[e].down, kRows);
        for (int j = 0; j < kHidden; ++j) want.at(i, j) += 0.5 * out[j];
      }
    }
    const Activations got = this->RunExperts(slot, 16, x, groups);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < kHidden; ++j) {
        ASSERT_NEAR(got.at(i, j), want.at(i, j), DeviceUnderTest<D>::kTolerance)
            << "row " << i << " column " << j;
      }
    }
  }
}

// Experts of no pieces add nothing, and no rows are nothing to do.
TYPED_TEST(ProductsTest, NothingIsNothing) {
  using D = TypeParam;
  constexpr int kHidden = 48, kRows = 32;
  const PlainExpert mlp = this->RandomExpert(kHidden, kRows);
  const ExpertSlot<D> slot = this->dut.PutExperts({mlp}, kHidden, kRows, 2);
  const Activations x = this->random.Rows(3, kHidden);
  const Activations none = this->RunExperts(
      slot.PieceRange(1, 1), 16, x, {{{0, 1.0f}, {1, 1.0f}, {2, 1.0f}}});
  EXPECT_EQ(none, Activations(3, kHidden));
  this->PutGroups({{}}, 0);
  const Activations empty(0, kHidden);
  Experts(this->dut.device(), slot, 16, this->dut.PutRows(empty),
          this->dut.routing(), this->dut.MakeSums(0, kHidden));
  this->dut.Take(this->dut.routing().begins.data(), 1);
}

}  // namespace
}  // namespace moebius
