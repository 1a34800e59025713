// What the coordinator's decisions cost: one step of steady decode (plan and
// results), a switch's KV plan, a step of the pure machines.
//
// Arguments: running requests, ranks, tp_size (1: EP).
#include <cstdint>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "coordinator/decisions/layout_machine.h"
#include "coordinator/decisions/policy.h"
#include "coordinator/decisions/scheduler.h"

namespace moebius {
namespace {

// Answers a plan as a group would, with tokens that mean nothing.
void Answer(const StepPlan& plan, std::vector<StepResult>& results) {
  for (StepResult& result : results) {
    result.step = plan.step;
    result.sampled.clear();
  }
  for (const WorkItem& item : plan.items) {
    if (!item.sample) continue;
    SampledToken& sample = results[item.group].sampled.emplace_back();
    sample.slot = item.slot;
    sample.position = item.position + item.num_tokens;
    sample.token = 7;
  }
}

struct Load {
  static constexpr int kPrompt = 100;
  static constexpr int kMaxTokens = 1 << 20;

  Load(int running, int ranks, int tp_size, uint32_t pages = 1 << 21) {
    options.attention = {ranks, 8 * ranks, 8};
    options.layout = Layout{tp_size};
    options.max_running = running;
    options.max_queue = running;
    options.token_budget = 8192;
    options.max_model_len = 16384;
    options.pages_per_rank.assign(ranks, pages);
    scheduler.emplace(*Scheduler::Create(options));
    results.resize(ranks);
    for (int i = 0; i < running; ++i) {
      // Of different lengths: not all cross a page in the same step.
      CHECK(scheduler
                ->Add(RequestId{next_id++},
                      std::vector<int32_t>(kPrompt + i % kPageTokens, 1), {},
                      kMaxTokens)
                .ok());
    }
    while (scheduler->counters().running < running ||
           scheduler->counters().generated_tokens <
               static_cast<uint64_t>(running)) {
      Step();
    }
  }

  void Step() {
    const auto plan = scheduler->NextStep();
    CHECK(plan.has_value());
    Answer(*plan, results);
    CHECK(scheduler->OnResult(plan->step, absl::MakeSpan(results)).ok());
  }

  SchedulerOptions options;
  std::optional<Scheduler> scheduler;
  std::vector<StepResult> results;
  uint64_t next_id = 1;
};

// NextStep and OnResult of a step in which everybody decodes one token, two
// steps ahead of the results. Sequences start again, unseen by the clock,
// before they outgrow the pool.
void BM_SchedulerStep(benchmark::State& state) {
  const int running = static_cast<int>(state.range(0));
  const int ranks = static_cast<int>(state.range(1));
  const int tp_size = static_cast<int>(state.range(2));
  std::optional<Load> load(std::in_place, running, ranks, tp_size);
  std::vector<std::vector<StepResult>> late(2, load->results);
  int64_t steps = 0;
  std::optional<StepPlan> ahead = load->scheduler->NextStep();
  Answer(*ahead, late[0]);
  for (auto _ : state) {
    std::optional<StepPlan> plan = load->scheduler->NextStep();
    benchmark::DoNotOptimize(plan);
    state.PauseTiming();
    Answer(*plan, late[(steps + 1) % 2]);
    state.ResumeTiming();
    auto tokens =
        load->scheduler->OnResult(ahead->step, absl::MakeSpan(late[steps % 2]));
    benchmark::DoNotOptimize(tokens);
    tokens = absl::StatusOr<std::vector<NewToken>>();  // the host reads it
    ahead = std::move(plan);
    if (++steps % 2000 == 0) {
      state.PauseTiming();
      load.emplace(running, ranks, tp_size);
      ahead = load->scheduler->NextStep();
      Answer(*ahead, late[steps % 2]);
      state.ResumeTiming();
    }
  }
  // Seconds of CPU time, printed with its SI prefix.
  state.counters["per_request"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * running,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_SchedulerStep)
    ->ArgsProduct({{32, 256, 2048}, {2}, {1, 2}})
    ->ArgsProduct({{256, 2048}, {8}, {1, 8}})
    ->Unit(benchmark::kMicrosecond);

// A request ends and another enters in every step.
void BM_SchedulerChurn(benchmark::State& state) {
  const int running = static_cast<int>(state.range(0));
  Load load(running, static_cast<int>(state.range(1)),
            static_cast<int>(state.range(2)));
  uint64_t oldest = 1;
  for (auto _ : state) {
    CHECK(load.scheduler->Finish(RequestId{oldest++}));
    CHECK(load.scheduler
              ->Add(RequestId{load.next_id++},
                    std::vector<int32_t>(Load::kPrompt, 1), {},
                    Load::kMaxTokens)
              .ok());
    load.Step();
  }
}
BENCHMARK(BM_SchedulerChurn)
    ->ArgsProduct({{32, 256, 2048}, {2}, {1, 2}})
    ->Unit(benchmark::kMicrosecond);

// The KV plan of a switch over all running requests, of 100 tokens and more.
void BM_PlanSwitch(benchmark::State& state) {
  const int ranks = static_cast<int>(state.range(1));
  const int tp_size = static_cast<int>(state.range(2));
  Load load(static_cast<int>(state.range(0)), ranks, tp_size, 1 << 18);
  const Layout target = tp_size == 1 ? TensorParallel(ranks) : ExpertParallel();
  int64_t moves = 0;
  for (auto _ : state) {
    const auto plan = load.scheduler->PlanSwitch(target);
    CHECK(plan.ok());
    moves = plan->num_moves();
  }
  state.counters["moves"] = static_cast<double>(moves);
}
BENCHMARK(BM_PlanSwitch)
    ->ArgsProduct({{32, 256, 2048}, {2}, {1, 2}})
    ->Unit(benchmark::kMicrosecond);

void BM_LayoutMachineSwitch(benchmark::State& state) {
  constexpr int kRanks = 8;
  LayoutState machine = Steady{ExpertParallel(), Epoch{0}};
  for (auto _ : state) {
    const Layout target = LayoutOf(machine) == ExpertParallel()
                              ? TensorParallel(kRanks)
                              : ExpertParallel();
    machine = Next(machine, Requested{target}, StepId{1}, kRanks)->next;
    const Epoch epoch = std::get<Preparing>(machine).epoch;
    for (Rank r = 0; r < kRanks; ++r) {
      machine = Next(machine, PreparedBy{r, epoch}, StepId{1}, kRanks)->next;
    }
    for (Rank r = 0; r < kRanks; ++r) {
      machine = Next(machine, SwitchedBy{r, epoch}, StepId{1}, kRanks)->next;
    }
  }
}
BENCHMARK(BM_LayoutMachineSwitch);

void BM_PolicyDecide(benchmark::State& state) {
  const PolicyConfig config{.candidates = {TensorParallel(2), ExpertParallel()},
                            .thresholds = {4}};
  PolicyState policy;
  int64_t now_ms = 0;
  for (auto _ : state) {
    ++now_ms;
    const PolicyDecision decision =
        Decide(policy, now_ms, now_ms % 13, ExpertParallel(), config);
    policy = decision.next;
    benchmark::DoNotOptimize(policy);
  }
}
BENCHMARK(BM_PolicyDecide);

}  // namespace
}  // namespace moebius
