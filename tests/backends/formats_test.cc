#include "kernels/formats.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/backends/random_tensors.h"

namespace moebius {
namespace {

TEST(Bf16, RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(ToBf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(ToBf16(1.0f + 0x1p-8f).bits, 0x3f80);  // tie: to even
  EXPECT_EQ(ToBf16(1.0f + 0x3p-8f).bits, 0x3f82);  // tie: to even
  EXPECT_EQ(ToBf16(1.0f + 0x1.1p-8f).bits, 0x3f81);
  EXPECT_EQ(ToBf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(ToBf16(-std::numeric_limits<float>::infinity()).bits, 0xff80);
  // The payload of this NaN is in the lower half alone.
  EXPECT_TRUE(std::isnan(ToFloat(ToBf16(std::bit_cast<float>(0x7f800001u)))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Bf16 value{static_cast<uint16_t>(bits)};
    if (!std::isnan(ToFloat(value))) {
      ASSERT_EQ(ToBf16(ToFloat(value)), value);
    }
  }
}

TEST(PackMatrix, LinesHoldSixteenOutputsAndTwoSteps) {
  const int n = 20, k = 6;
  std::vector<Bf16> w(n * k);
  for (int i = 0; i < n * k; ++i) w[i].bits = static_cast<uint16_t>(i + 1);
  const OwnedMatrix packed(w, n, k);
  ASSERT_EQ(PackedMatrix::NumElements(n, k), 2 * 16 * 6u);
  for (int row = 0; row < 32; ++row) {
    for (int column = 0; column < k; ++column) {
      const size_t at = size_t(row / 16) * 16 * k + (column / 2) * 32 +
                        (row % 16) * 2 + column % 2;
      const Bf16 want = row < n ? w[row * k + column] : Bf16{};
      ASSERT_EQ(packed.values.data()[at], want) << row << ", " << column;
    }
  }
}

TEST(PackMatrix, UnpackIsTheInverse) {
  RandomTensors random(1);
  for (const int n : {1, 16, 33}) {
    const int k = 10;
    const auto w = random.Weights(n, k);
    const OwnedMatrix packed(w, n, k);
    std::vector<Bf16> back(w.size());
    UnpackMatrix(packed.view(), back.data(), k);
    EXPECT_EQ(back, w);
  }
}

TEST(PackRowParallel, SlicesOfTheReducedDimensionAreContiguous) {
  RandomTensors random(2);
  const int n = 32, k = 64;
  const auto w = random.Weights(n, k);
  const OwnedRowParallel packed(w, n, k);
  std::vector<Bf16> back(w.size());
  UnpackRowParallel(packed.view(), back.data(), k);
  EXPECT_EQ(back, w);
  AlignedVector<Bf16> slice(size_t(n) * 32);
  PackRowParallel(w.data() + 16, n, 32, k, slice.data());
  for (size_t i = 0; i < slice.size(); ++i) {
    ASSERT_EQ(slice[i], packed.values.data()[size_t(n) * 16 + i]);
  }
}

TEST(PackExpert, UnitsOfASliceAreBlocksOfTheWhole) {
  RandomTensors random(3);
  const int hidden = 32, intermediate = 48;
  const auto gate = random.Weights(intermediate, hidden);
  const auto up = random.Weights(intermediate, hidden);
  const auto down = random.Weights(hidden, intermediate);
  AlignedVector<Bf16> whole(ExpertBlock::NumElements(hidden, intermediate));
  PackExpert(gate.data(), up.data(), down.data(), hidden, intermediate, 0,
             intermediate, whole.data());
  AlignedVector<Bf16> slice(ExpertBlock::NumElements(hidden, 16));
  PackExpert(gate.data(), up.data(), down.data(), hidden, intermediate, 16, 32,
             slice.data());
  const size_t unit = 16 * hidden;
  for (int matrix = 0; matrix < 3; ++matrix) {
    for (size_t i = 0; i < unit; ++i) {
      ASSERT_EQ(slice[matrix * unit + i], whole[(3 * matrix + 1) * unit + i]);
    }
  }
}

TEST(KvPageFormat, LayersFollowOneAnother) {
  const KvPageFormat format{3, 32, KvType::kBf16};
  EXPECT_EQ(format.matrix_bytes(), 32 * 16 * 2u);
  EXPECT_EQ(format.page_bytes(), 3 * 2 * 32 * 16 * 2u);
  EXPECT_EQ(format.v_offset(1) + format.matrix_bytes(), format.k_offset(2));
  EXPECT_EQ((KvPageFormat{3, 32, KvType::kFloat32}).page_bytes(),
            2 * format.page_bytes());
}

}  // namespace
}  // namespace moebius
