// What the wire costs the coordinator: encoding the plan of a decode step, and
// decoding its result, by the number of running requests.
#include <benchmark/benchmark.h>

#include "common/wire/wire.h"

namespace moebius {
namespace {

// A steady decode step: every request one token, one in sixteen a new block.
StepPlan DecodePlan(uint32_t requests) {
  StepPlan plan;
  plan.step = StepId{1000};
  plan.layout = {ExpertParallel(), ExpertParallel()};
  for (uint32_t slot = 0; slot < requests; ++slot) {
    plan.items.push_back(
        WorkItem{slot, 500 + slot % 1000, 1, uint8_t(slot % 2), true});
    if (slot % kPageTokens == 0) {
      plan.page_rows.push_back(PageRow{
          slot, 31, Rank(slot % 2), {slot, slot + 1, slot + 2, slot + 3}});
    }
  }
  return plan;
}

void BM_EncodeDecodePlan(benchmark::State& state) {
  const wire::CommandMessage message{{Term{1}, Incarnation{1}, 7},
                                     DecodePlan(state.range(0))};
  for (auto _ : state) benchmark::DoNotOptimize(Encode(message));
}
BENCHMARK(BM_EncodeDecodePlan)
    ->Arg(32)
    ->Arg(256)
    ->Arg(2048)
    ->Unit(benchmark::kMicrosecond);

void BM_DecodeResult(benchmark::State& state) {
  StepResult result;
  result.step = StepId{1000};
  for (uint32_t slot = 0; slot < state.range(0); ++slot) {
    result.sampled.push_back(SampledToken{slot, 500 + slot % 1000, 17, 0, {}});
  }
  const std::string bytes =
      Encode(wire::ReportMessage{{Term{1}, Incarnation{1}, 7}, result});
  for (auto _ : state) benchmark::DoNotOptimize(wire::DecodeReport(bytes));
}
BENCHMARK(BM_DecodeResult)
    ->Arg(32)
    ->Arg(256)
    ->Arg(2048)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace moebius
