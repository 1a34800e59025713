// A scheduler and a simulated group that runs its plans.
#pragma once

#include <deque>
#include <utility>
#include <vector>

#include "coordinator/decisions/scheduler.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/decisions/simulated_group.h"

namespace moebius {

inline SchedulerOptions Options(int ranks = 2, uint32_t pages = 1000) {
  SchedulerOptions options;
  options.attention = {ranks, 2 * ranks, 2};
  options.layout = ExpertParallel();
  options.max_running = 8;
  options.max_queue = 16;
  options.token_budget = 64;
  options.max_model_len = 256;
  options.pages_per_rank.assign(ranks, pages);
  return options;
}

// A scheduler with its group; keeps results until they are delivered.
struct Rig {
  explicit Rig(const SchedulerOptions& options)
      : scheduler(*Scheduler::Create(options)), group(options) {}

  absl::Status Add(uint64_t id, int prompt, int max_tokens,
                   SamplingParams sampling = {}) {
    return scheduler.Add(RequestId{id}, std::vector<int32_t>(prompt, 7),
                         sampling, max_tokens);
  }
  // Issues a step; an empty plan when there is none.
  StepPlan Issue() {
    auto plan = scheduler.NextStep();
    if (!plan) return {};
    results.emplace_back(plan->step, group.Execute(*plan));
    return *std::move(plan);
  }
  // Takes in the oldest result.
  std::vector<NewToken> Deliver() {
    if (results.empty()) {
      ADD_FAILURE() << "no step is outstanding";
      return {};
    }
    auto [step, result] = std::move(results.front());
    results.pop_front();
    auto tokens = scheduler.OnResult(step, absl::MakeSpan(result));
    EXPECT_THAT(tokens, IsOk());
    return tokens.ok() ? *std::move(tokens) : std::vector<NewToken>{};
  }
  void DeliverAll() {
    while (!results.empty()) Deliver();
  }

  Scheduler scheduler;
  SimulatedGroup group;
  std::deque<std::pair<StepId, std::vector<StepResult>>> results;
};

}  // namespace moebius
