// Carries out a plan of weights: reads a checkpoint, hands it to a sink.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "worker/model/model_shape.h"
#include "worker/model/tensor_names.h"
#include "worker/model/tensor_source.h"
#include "worker/model/weight_sink.h"

namespace moebius {

// Which weights: those of `rank`, each layer where `state` has it.
struct LoadOrder {
  const ModelShape& shape;
  TensorNames names;
  Rank rank = 0;
  ExpertsState state;
};
struct LoadStats {
  int64_t bytes_read = 0;     // from files
  int64_t bytes_written = 0;  // to the regions
};
// Called when parts are handed over, from the loading thread.
using LoadProgress =
    std::function<void(int64_t done_bytes, int64_t total_bytes)>;

// Fills the dense region and the slots that layers lie in, reading only what
// goes there; padding becomes zeros, free slots are not touched. Reads as many
// parts of the plan (weight_plan.h) at once as the sink takes.
//
// Every tensor of the model is checked before the sink is given anything. When
// it returns without an error the sink has finished.
// REQUIRES: order.rank and order.state are of order.shape.
absl::StatusOr<LoadStats> LoadWeights(const LoadOrder& order,
                                      TensorSource& source, WeightSink& sink,
                                      const LoadProgress& progress = nullptr);

}  // namespace moebius
