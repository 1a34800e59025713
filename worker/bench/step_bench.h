// Steps of a group of workers in one process, measured without a coordinator.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/config/config.h"
#include "worker/bench/device_probe.h"
#include "worker/bench/step_case.h"
#include "worker/memory/worker_memory.h"
#include "worker/worker_plan.h"
#include "worker/worker_platform.h"

namespace moebius {

struct StepFigures {
  StepCase one;
  // Why it was not measured; empty: it was.
  std::string refused;
  int steps = 0;  // measured
  double ms_median = 0;
  double ms_min = 0;
  StepWork work;
  std::vector<PassShares> shares;  // [rank]; of steps after those
};

// StepBench
//
// Every rank has a worker's memory, device and engine, and is driven as its
// loop drives it: plans are applied and issued ahead of the results. Only the
// coordinator and the channel are not there.
//
// On a GPU there is one rank.
// Threading: thread-compatible; a rank's calls run on a thread of its own.
class StepBench {
 public:
  // Progress, a line at a time.
  using Say = std::function<void(std::string_view)>;

  // Makes the ranks, with room for the cases where the configuration leaves it
  // open; their weights are loaded by the first case of a layout.
  // Errors: of the configuration, the model's files, memory, or the GPU; a
  // layout that does not divide the model's heads.
  // REQUIRES: layouts that divide workers.count, here and below.
  static absl::StatusOr<std::unique_ptr<StepBench>> Create(
      const Config& config, absl::Span<const StepCase> cases, int steps,
      Say say);
  ~StepBench();

  std::string device_name() const;
  // Of all ranks together, at the same time.
  absl::StatusOr<CopyRates> MeasureCopies();
  absl::StatusOr<double> MeasureProducts();

  // So many steps, and a few more that do not count. A case for which the
  // group has no room is refused, which is no error.
  absl::StatusOr<StepFigures> Measure(const StepCase& one);

 private:
  struct RankState;
  StepBench(const Config& config, int steps, Say say);

  absl::Status Init(absl::Span<const StepCase> cases);
  absl::Status CheckLayout(Layout layout) const;
  absl::Status Plan(absl::Span<const StepCase> cases);
  // On every rank at the same time. The first error that is not the
  // consequence of another's.
  absl::Status ForAll(absl::FunctionRef<absl::Status(RankState&)> task);
  absl::Status LoadFor(Layout layout);
  absl::Status Put(const std::vector<RestoredSequence>& sequences);
  // Steps `first` and following of the case, on every rank; [step] when rank 0
  // had the result.
  absl::Status RunSteps(const StepCase& one, int first, int count);
  absl::Status RunAndTime(const StepCase& one,
                          const std::vector<RestoredSequence>& sequences,
                          StepFigures& figures);
  absl::Status Watch(const StepCase& one,
                     const std::vector<RestoredSequence>& sequences,
                     StepFigures& figures);

  Config config_;
  const int steps_;
  const Say say_;
  WorkerPlan plan_;
  std::vector<std::unique_ptr<WorkerPlatform>> platforms_;
  std::vector<std::unique_ptr<WorkerMemory>> memories_;
  std::vector<std::unique_ptr<RankState>> ranks_;
  StepId next_step_{1};
  std::vector<double> step_ms_;  // of the steps that were run last
  Layout loaded_{0};
};

}  // namespace moebius
