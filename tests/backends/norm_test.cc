#include "kernels/cpu/norm.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference.h"
#include "tests/backends/random_tensors.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

TEST(EmbedRows, ReadsRowsOfThePackedTable) {
  RandomTensors random(2);
  const int n = 37, k = 10;
  const auto w = random.Weights(n, k);
  const OwnedMatrix table(w, n, k);
  ThreadPool pool(1);
  const std::vector<int32_t> ids = {36, 0, 15, 16, 0};
  Activations out(5, k, k + 2);
  EmbedRows(table.view(), ids, out.rows(), &pool);
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < k; ++j) {
      EXPECT_EQ(out.at(i, j), ToFloat(w[size_t(ids[i]) * k + j]));
    }
  }
}

TEST(RmsNorm, EqualsTheReferenceForEveryLength) {
  RandomTensors random(3);
  for (const int cols : {1, 7, 16, 33, 64, 100, 256, 2048}) {
    Activations x = random.Rows(5, cols, 3.0f, cols + 1);
    const auto weight = random.Floats(cols);
    const auto want = reference::RmsNorm(x.ToDouble(), weight, 1e-6);
    Activations out(5, cols);
    RmsNorm(x.view(), weight, 1e-6f, out.rows(), nullptr);
    RmsNorm(x.view(), weight, 1e-6f, x.rows(), nullptr);  // in place
    for (int i = 0; i < 5; ++i) {
      for (int j = 0; j < cols; ++j) {
        ASSERT_NEAR(out.at(i, j), want.at(i, j), 1e-5);
        ASSERT_EQ(x.at(i, j), out.at(i, j));
      }
    }
  }
}

TEST(RmsNorm, BatchAndThreadsDoNotChangeARow) {
  RandomTensors random(4);
  ThreadPool pool(2);
  const Activations x = random.Rows(9, 256);
  const auto weight = random.Floats(256);
  Activations all(9, 256), threaded(9, 256);
  RmsNorm(x.view(), weight, 1e-6f, all.rows(), nullptr);
  RmsNorm(x.view(), weight, 1e-6f, threaded.rows(), &pool);
  EXPECT_EQ(all, threaded);
  for (int i = 0; i < 9; ++i) {
    Activations one(1, 256);
    RmsNorm({x.view().row(i), 1, 256, 256}, weight, 1e-6f, one.rows(), nullptr);
    for (int j = 0; j < 256; ++j) ASSERT_EQ(one.at(0, j), all.at(i, j));
  }
}

TEST(RotaryTable, RefusesShapesItCannotServe) {
  const auto refuses = [](int positions, int head_dim, double theta) {
    return RotaryTable::Create(positions, PlainAngles(head_dim, theta))
               .status()
               .code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refuses(0, 32, 1e4));
  EXPECT_TRUE(refuses((1 << 24) + 1, 32, 1e4));
  EXPECT_TRUE(refuses(10, 0, 1e4));
  EXPECT_TRUE(refuses(10, 24, 1e4));
  EXPECT_TRUE(refuses(10, 1040, 1e4));
  EXPECT_TRUE(refuses(10, 32, 0.5));
  EXPECT_TRUE(refuses(10, 32, std::numeric_limits<double>::quiet_NaN()));
  EXPECT_THAT(RotaryTable::Create(10, PlainAngles(32, 1e4)), IsOk());
}

TEST(HeadNormRotary, EqualsTheReferenceWithAndWithoutNorm) {
  RandomTensors random(5);
  for (const int head_dim : {16, 32, 80, 128}) {
    const auto table = RotaryTable::Create(5000, PlainAngles(head_dim, 1e6));
    ASSERT_THAT(table, IsOk());
    const std::vector<int32_t> positions = {0, 1, 4999, 17};
    const auto weight = random.Floats(head_dim);
    for (const bool norm : {true, false}) {
      Activations x = random.Rows(4, 3 * head_dim, 1.0f, 3 * head_dim + 5);
      const absl::Span<const float> used =
          norm ? absl::MakeConstSpan(weight) : absl::Span<const float>();
      const auto want = reference::HeadNormRotary(x.ToDouble(), head_dim, used,
                                                  1e-6, positions, 1e6);
      HeadNormRotary(x.rows(), used, 1e-6f, positions, ViewOf(*table), nullptr);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 3 * head_dim; ++j) {
          ASSERT_NEAR(x.at(i, j), want.at(i, j), 2e-5) << head_dim;
        }
      }
    }
  }
}

TEST(HeadNormRotary, HeadsOfARankEqualThoseOfTheWhole) {
  RandomTensors random(6);
  const auto table = RotaryTable::Create(100, PlainAngles(32, 1e4));
  const auto weight = random.Floats(32);
  const std::vector<int32_t> positions = {4, 99};
  Activations whole = random.Rows(2, 4 * 32);
  Activations part(2, 64);
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 64; ++j) part.at(i, j) = whole.at(i, 64 + j);
  }
  ThreadPool pool(1);
  HeadNormRotary(whole.rows(), weight, 1e-6f, positions, ViewOf(*table), &pool);
  HeadNormRotary(part.rows(), weight, 1e-6f, positions, ViewOf(*table),
                 nullptr);
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 64; ++j) {
      ASSERT_EQ(part.at(i, j), whole.at(i, 64 + j));
    }
  }
}

}  // namespace
}  // namespace moebius
