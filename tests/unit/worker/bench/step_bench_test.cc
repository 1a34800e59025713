#include "worker/bench/step_bench.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/test_group.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

Config SmallConfig(int workers) {
  Config config;
  config.model.path = VerseMoeDir();
  config.model.max_model_len = 128;
  config.model.load_format = LoadFormat::kDummy;
  config.workers.count = workers;
  config.workers.threads = 1;
  config.workers.step_timeout_ms = 60000;
  config.scheduler.max_running = 8;
  config.scheduler.token_budget = 128;
  return config;
}

TEST(StepBench, MeasuresBetweenEpAndTp) {
  const StepCase one{Layout{2}, StepCase::Kind::kDecode, 3, 20};
  const auto bench =
      StepBench::Create(SmallConfig(4), {one}, 2, [](std::string_view) {});
  ASSERT_THAT(bench, IsOk());
  const auto figures = (*bench)->Measure(one);
  ASSERT_THAT(figures, IsOk());
  EXPECT_EQ(figures->refused, "");
  EXPECT_GT(figures->ms_min, 0);
  EXPECT_EQ(figures->shares.size(), 4u);
}

TEST(StepBench, MeasuresStepsOfBothLayoutsAndTheirParts) {
  std::vector<StepCase> cases;
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    cases.push_back({layout, StepCase::Kind::kDecode, 3, 20});
    cases.push_back({layout, StepCase::Kind::kPrefill, 2, 24});
  }
  std::string said;
  const auto bench = StepBench::Create(
      SmallConfig(2), cases, 2, [&](std::string_view line) { said += line; });
  ASSERT_THAT(bench, IsOk());
  EXPECT_EQ((*bench)->device_name(), "processor");
  for (const StepCase& one : cases) {
    const auto figures = (*bench)->Measure(one);
    ASSERT_THAT(figures, IsOk());
    EXPECT_EQ(figures->refused, "");
    EXPECT_GT(figures->ms_min, 0);
    EXPECT_GE(figures->ms_median, figures->ms_min);
    EXPECT_GT(figures->work.bytes, 0);
    EXPECT_GT(figures->work.operations, 0);
    ASSERT_EQ(figures->shares.size(), 2u);
    for (const PassShares& shares : figures->shares) {
      EXPECT_EQ(shares.passes, one.decodes() ? 3 : 1);
      for (const PassPart part : {PassPart::kQkv, PassPart::kAttention,
                                  PassPart::kExperts, PassPart::kLogits}) {
        EXPECT_GT(shares.part_ms[static_cast<size_t>(part)], 0)
            << PassPartName(part);
      }
      ASSERT_EQ(shares.experts_named.size(), 4u);
    }
    // Each row goes to 4 of 16; in TP both ranks have slices of all of them.
    const double named = figures->shares[0].experts_named[0] +
                         figures->shares[1].experts_named[0];
    EXPECT_GE(named, one.layout.is_ep() ? 4 : 8);
    EXPECT_LE(named, one.layout.is_ep() ? 16 : 32);
  }
  EXPECT_THAT(said, HasSubstr("weights for tp"));
}

TEST(StepBench, RefusesWhatDoesNotFit) {
  Config config = SmallConfig(1);
  config.workers.kv_bytes = 8 << 20;
  const StepCase too_long{ExpertParallel(), StepCase::Kind::kDecode, 1, 120};
  const StepCase fits{ExpertParallel(), StepCase::Kind::kDecode, 1, 20};
  const auto bench = StepBench::Create(config, {}, 2, [](std::string_view) {});
  ASSERT_THAT(bench, IsOk());
  const auto refused = (*bench)->Measure(too_long);
  ASSERT_THAT(refused, IsOk());
  EXPECT_THAT(refused->refused, HasSubstr("in a context of 128"));
  const auto measured = (*bench)->Measure(fits);
  ASSERT_THAT(measured, IsOk());
  EXPECT_EQ(measured->refused, "");
}

TEST(StepBench, RatesAreThere) {
  const auto bench =
      StepBench::Create(SmallConfig(1), {}, 2, [](std::string_view) {});
  ASSERT_THAT(bench, IsOk());
  const auto copies = (*bench)->MeasureCopies();
  ASSERT_THAT(copies, IsOk());
  EXPECT_GT(copies->kernel, 0);
  EXPECT_EQ(copies->driver, 0);
  const auto products = (*bench)->MeasureProducts();
  ASSERT_THAT(products, IsOk());
  EXPECT_GT(*products, 0);
}

}  // namespace
}  // namespace moebius
