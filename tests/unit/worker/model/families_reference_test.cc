// On the processor.
#include "gtest/gtest.h"
#include "tests/unit/worker/model/family_tests.h"

namespace moebius {

// Its tests are those of devices; runs of a group are used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DecoderTest);

namespace {

INSTANTIATE_TEST_SUITE_P(Families, ReferenceTest,
                         testing::ValuesIn(FamilyCases(nullptr)),
                         NameOfFamilyCase);

INSTANTIATE_TEST_SUITE_P(Families, FamilyLayouts,
                         testing::ValuesIn(FamiliesOn(nullptr)),
                         [](const auto& info) {
                           return std::string(info.param.checkpoint);
                         });

TEST(FamilyRules, AllAtOnceGiveTheSameBitsInEveryLayoutWithPadding) {
  GroupOptions options;
  options.spec = EveryRule();
  options.names = &AnyTensorName;
  const LogitMap expected = RunAll(options, 1000, kSequences, Want::kAll);
  ASSERT_NE(expected.at({0, 0}), expected.at({1, 0}));
  for (const int n : {2, 4, 8}) {
    const auto shape = MakeModelShape(options.spec, n);
    ASSERT_THAT(shape, IsOk());
    EXPECT_EQ(shape->experts.padded_rows() > 80, n > 1);
    for (const Layout layout : LayoutsOf(shape->attention)) {
      SCOPED_TRACE(testing::Message() << n << " ranks, " << layout.tp_size);
      options.num_ranks = n;
      options.layout = layout;
      ExpectSameBits(RunAll(options, 16, 2, Want::kAll), expected);
      ExpectSameBits(RunAll(options, 7, 1, Want::kLast), expected);
    }
  }
}

}  // namespace
}  // namespace moebius
