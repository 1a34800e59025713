// The forward pass on a GPU: the laws of every device, and the processor's
// numbers.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/unit/worker/model/decoder_tests.h"
#include "tests/unit/worker/model/family_tests.h"
#include "tests/unit/worker/model/reference_tests.h"
#include "tests/unit/worker/model/test_group.h"

namespace moebius {
namespace {

const bool kPrepared = (PrepareForRanksOnOneGpu(), true);

constexpr auto kExact = &MakeGpuRanks<Numerics::kExact>;
constexpr auto kFast = &MakeGpuRanks<Numerics::kFast>;

INSTANTIATE_TEST_SUITE_P(Devices, DecoderTest,
                         testing::Values(DecoderCase{"GpuExact", kExact, 4}),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    GpuExact, ReferenceTest,
    testing::Values(ReferenceCase{1, false, {600}, kExact},
                    ReferenceCase{1, false, {1, 7, 64, 33}, kExact},
                    ReferenceCase{2, false, {100, 3}, kExact},
                    ReferenceCase{2, true, {17, 200}, kExact},
                    ReferenceCase{4, false, {50}, kExact},
                    ReferenceCase{4, true, {128, 5}, kExact}),
    NameOf);

// Two of the Qwen2-MoE checkpoint's prompts have a router whose chosen and best
// other expert are 2e-6 and 4e-6 of a logit apart, computed in double; the
// order in which a GPU adds turns both. Of the others each is 1e-4 or more
// apart.
std::vector<ReferenceCase> FamiliesOnGpu() {
  std::vector<ReferenceCase> cases = FamilyCases(kExact);
  for (ReferenceCase& one : cases) {
    if (absl::EndsWith(one.model, "qwen2_moe")) {
      one.tolerance.logprob = 0.05;
      one.tolerance.margin = 0.1;
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(GpuExactFamilies, ReferenceTest,
                         testing::ValuesIn(FamiliesOnGpu()), NameOfFamilyCase);

INSTANTIATE_TEST_SUITE_P(GpuExact, FamilyLayouts,
                         testing::ValuesIn(FamiliesOn(kExact)),
                         [](const auto& info) {
                           return std::string(info.param.checkpoint);
                         });

// Activations have 8 bits, so that a router chooses another expert now and
// then. In the last rows of the 27 prompts the chosen and the best of the
// others are less than 0.02 of a logit apart five times; computed in double
// with that one choice turned, one of the twenty largest logits changes by 0.44
// to 1.20 there (1.84 at most in any prompt), and by 0.3 at most of the
// rounding alone. Two of the 27 sequences of 32 tokens go another way in the
// end, where the reference's margin was 0.17 and 0.43.
constexpr ReferenceTolerance kFastTolerance = {4.0, 0.5, 0.03, 2, 2.0, 0.5};
INSTANTIATE_TEST_SUITE_P(
    GpuFast, ReferenceTest,
    testing::Values(ReferenceCase{1, false, {600}, kFast, kFastTolerance},
                    ReferenceCase{2, false, {100, 3}, kFast, kFastTolerance},
                    ReferenceCase{4, true, {128, 5}, kFast, kFastTolerance}),
    NameOf);

// Largest difference of a row, relative to its largest logit.
void ExpectNear(const LogitMap& got, const LogitMap& expected,
                double tolerance) {
  ASSERT_FALSE(got.empty());
  double worst = 0;
  for (const auto& [place, row] : got) {
    const std::vector<float>& want = expected.at(place);
    double largest = 0, difference = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      largest = std::max<double>(largest, std::abs(want[i]));
      difference = std::max<double>(difference, std::abs(row[i] - want[i]));
    }
    ASSERT_FALSE(std::isnan(row[0]));
    worst = std::max(worst, difference / largest);
  }
  EXPECT_LT(worst, tolerance);
  testing::Test::RecordProperty("worst", std::to_string(worst));
}

void ExpectTheProcessorsNumbers(GroupOptions options,
                                const MakeTestRanks& make_ranks,
                                double tolerance) {
  const LogitMap expected = RunAll(options, 1000, kSequences, Want::kAll);
  options.make_ranks = make_ranks;
  for (const int n : {1, 2, 4}) {
    for (const Layout layout :
         LayoutsOf({n, OddConfig().num_q_heads, OddConfig().num_kv_heads})) {
      SCOPED_TRACE(testing::Message() << layout.tp_size << " of " << n);
      options.num_ranks = n;
      options.layout = layout;
      ExpectNear(RunAll(options, 16, 3, Want::kAll), expected, tolerance);
    }
  }
}

GroupOptions Odd(KvType kv_type) {
  GroupOptions options;
  options.spec = SpecOf(OddConfig());
  options.kv_type = kv_type;
  return options;
}

// What families other than Qwen3-MoE ask for.
GroupOptions Rules() {
  GroupOptions options;
  options.spec = EveryRule();
  options.names = &AnyTensorName;
  return options;
}

TEST(GpuDecoder, ExactHasTheProcessorsNumbers) {
  ExpectTheProcessorsNumbers(Odd(KvType::kFloat32), kExact, 1e-3);
  // A last bit of keys and values falls this way here and that way there.
  ExpectTheProcessorsNumbers(Odd(KvType::kBf16), kExact, 5e-3);
  ExpectTheProcessorsNumbers(Rules(), kExact, 1e-3);
}

TEST(GpuDecoder, FastHasTheProcessorsNumbersNearly) {
  ExpectTheProcessorsNumbers(Odd(KvType::kFloat32), kFast, 5e-2);
  ExpectTheProcessorsNumbers(Odd(KvType::kBf16), kFast, 5e-2);
  ExpectTheProcessorsNumbers(Rules(), kFast, 5e-2);
}

}  // namespace
}  // namespace moebius
