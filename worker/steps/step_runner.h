// What carries a step out, from beginning to end, on the thread that asks.
#pragma once

#include "absl/status/statusor.h"
#include "common/step/step_result.h"
#include "worker/steps/batch.h"

namespace moebius {

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // The result is the group's: what all ranks drew, and what they refused.
  // Errors mean that this step cannot be completed, nor any behind it.
  // REQUIRES: batch.layout is the layout that weights and pages are in; steps
  // come in their order.
  virtual absl::StatusOr<StepResult> Run(Batch batch) = 0;
};

}  // namespace moebius
