#include "worker/model/rotary_angles.h"

#include <cmath>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

RotarySpec Spec(int dims, double theta) {
  RotarySpec rotary;
  rotary.dims = dims;
  rotary.theta = theta;
  return rotary;
}

TEST(RotaryAngles, WithoutScalingAreThePowersOfTheta) {
  const RotaryAngles angles = AnglesOf(Spec(32, 1e4));
  ASSERT_EQ(angles.frequencies.size(), 16u);
  EXPECT_EQ(angles.amplitude, 1.0);
  for (int i = 0; i < 16; ++i) {
    EXPECT_DOUBLE_EQ(angles.frequencies[i], std::pow(1e4, -i / 16.0));
  }
}

TEST(RotaryAngles, LinearScalingDividesAll) {
  RotarySpec rotary = Spec(32, 1e4);
  rotary.scaling = LinearScaling{8.0};
  const RotaryAngles angles = AnglesOf(rotary);
  for (int i = 0; i < 16; ++i) {
    EXPECT_DOUBLE_EQ(angles.frequencies[i], std::pow(1e4, -i / 16.0) / 8.0);
  }
}

// Values of the formula in Python's double arithmetic: Qwen3's long contexts.
TEST(RotaryAngles, YarnDividesTheSlowPairsAlone) {
  RotarySpec rotary = Spec(128, 1e6);
  rotary.scaling = YarnScaling{4.0, 32768, 32, 1, true, 1.1386};
  const RotaryAngles angles = AnglesOf(rotary);
  EXPECT_EQ(angles.amplitude, 1.1386);
  for (const auto& [i, frequency] :
       std::vector<std::pair<int, double>>{{0, 1.0},
                                           {20, 0.01333521432163324},
                                           {30, 0.001064360981247002},
                                           {40, 4.445698525097307e-05},
                                           {50, 5.133812566142866e-06},
                                           {63, 3.102344401879299e-07}}) {
    EXPECT_NEAR(angles.frequencies[i] / frequency, 1.0, 1e-12) << i;
  }
}

// Likewise: gpt-oss.
TEST(RotaryAngles, YarnWithoutWholeBounds) {
  RotarySpec rotary = Spec(64, 150000.0);
  rotary.scaling = YarnScaling{32.0, 4096, 32, 1, false, 1.0};
  const RotaryAngles angles = AnglesOf(rotary);
  for (const auto& [i, frequency] :
       std::vector<std::pair<int, double>>{{0, 1.0},
                                           {8, 0.050813274815461475},
                                           {12, 0.006794959489732219},
                                           {16, 0.00045648391922324086},
                                           {20, 1.818833668168956e-05},
                                           {31, 3.0235114281192144e-07}}) {
    EXPECT_NEAR(angles.frequencies[i] / frequency, 1.0, 1e-12) << i;
  }
}

}  // namespace
}  // namespace moebius
