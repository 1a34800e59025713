// Which slices of which tensors go where. Pure: the loader carries it out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "worker/model/model_shape.h"
#include "worker/model/tensor_names.h"
#include "worker/model/tensor_source.h"
#include "worker/model/weight_sink.h"

namespace moebius {

// A tensor that a checkpoint of the model must have.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> sizes;
};
// All of the model, whatever a rank holds of it.
std::vector<ExpectedTensor> ExpectedTensors(const ModelShape& shape,
                                            TensorNames names);

struct TensorSlice {
  std::string name;
  MatrixSlice slice;  // of a vector: its one row
};

// One part, made of these slices, one behind the other in host memory. Vectors
// are read as float32, all else as BF16.
struct PlannedPart {
  WeightPart part;
  std::vector<TensorSlice> sources;  // none: the part is zeros alone
};

// What one rank holds, in the order of the model: the dense region and, of each
// MoE layer, the slot that it lies in in its own layout. Together the parts are
// every byte of both but what is there for alignment; free slots are left out.
//
// Large tables are cut into runs of panels, so a part's host memory is at most
// the largest of 8 MiB, a panel, an attention output, a dense MLP, and what the
// rank holds of an expert.
// REQUIRES: 0 <= rank < shape.num_ranks; Validate(state, shape.experts).
std::vector<PlannedPart> PlanWeights(const ModelShape& shape, TensorNames names,
                                     Rank rank, const ExpertsState& state);

}  // namespace moebius
