// How a model is divided over the ranks of a group. Pure.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/config/model_config.h"
#include "common/layout/layout.h"
#include "kernels/formats.h"

namespace moebius {

// ModelShape
//
// Row-parallel products are cut into slices of their reduced dimension (see
// kernels/gemm.h). A slice must be the same for every group size, and whole on
// every rank; so the number of slices is the least common multiple of all the
// group sizes that this model allows: 8 where 1, 2, 4 and 8 do. Dense MLPs
// need not divide: their slices are dealt out as evenly as they go.
struct ModelShape {
  ModelConfig config;
  int num_ranks = 1;
  AttentionShape attention;
  ExpertShape experts;        // num_moe_layers may be 0
  int output_slice_rows = 0;  // of the attention's output projection
  int expert_slice_rows = 0;  // of an expert; 0 without experts
  int mlp_slice_rows = 0;     // of a dense MLP; 0 without one
  int num_mlp_slices = 0;

  int q_size() const { return config.num_q_heads * config.head_dim; }
  int kv_size() const { return config.num_kv_heads * config.head_dim; }
  int local_experts() const { return config.num_experts / num_ranks; }
  // Elements of one expert's block in a slot.
  size_t expert_elements(Layout layout) const {
    return ExpertBlock::NumElements(
        config.hidden_size, config.moe_intermediate_size / layout.tp_size);
  }
};

// A run of slices, panels or the like that a rank holds.
struct IndexRange {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
};
// Rank's share of [0, total), shares differing by at most one.
IndexRange ShareOf(int total, int num_ranks, Rank rank);

// Errors: kInvalidArgument naming key and number when a size is not a multiple
// of 16 (hidden_size, head_dim, the intermediate sizes) or the model cannot be
// divided over `num_ranks`.
absl::StatusOr<ModelShape> MakeModelShape(const ModelConfig& config,
                                          int num_ranks);

}  // namespace moebius
