// How a model is divided over the ranks of a group. Pure.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/layout/blocks.h"
#include "common/layout/layout.h"
#include "kernels/formats.h"
#include "worker/model/decoder_spec.h"

namespace moebius {

// ModelShape
//
// All layers have the same heads, all MoE layers experts of one size, and all
// dense MLPs one size.
//
// Row-parallel products are cut into slices of their reduced dimension (see
// kernels/cpu/gemm.h). A slice must be the same for every group size that
// shares the model's heads, and whole on every rank:
//
//   attention's output   the number of slices is the least common multiple of
//                        those group sizes: 8 where 1, 2, 4 and 8 do
//   experts              the longest slice with which no group size pays more
//                        padding of rows than with the shortest one
//   dense MLPs           need not divide: their slices are dealt out as evenly
//   and shared experts   as they go
struct ModelShape {
  DecoderSpec spec;
  int num_ranks = 1;
  AttentionShape attention;
  int head_dim = 0;
  ExpertShape experts;        // num_moe_layers may be 0
  int top_k = 0;              // experts of a row; 0 without experts
  int output_slice_rows = 0;  // of the attention's output projection
  int expert_slice_rows = 0;  // of an expert; 0 without experts
  int mlp_slice_rows = 0;     // of a dense MLP; 0 without one
  int num_mlp_slices = 0;
  int shared_slice_rows = 0;  // of the expert that rows share; 0 without one
  int num_shared_slices = 0;

  int q_size() const { return attention.num_q_heads * head_dim; }
  int kv_size() const { return attention.num_kv_heads * head_dim; }
};

// A run of slices, panels or the like that a rank holds.
struct IndexRange {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
};
// Rank's share of [0, total), shares differing by at most one.
IndexRange ShareOf(int total, int num_ranks, Rank rank);

// Errors: CheckSupported()'s; kInvalidArgument naming the size and its number
// when it is not a multiple of 16 (hidden_size, head_dim, the rows of experts
// and MLPs), layers differ in a size, or `num_ranks` cannot share the heads.
absl::StatusOr<ModelShape> MakeModelShape(const DecoderSpec& spec,
                                          int num_ranks, int spare_slots = 1);

}  // namespace moebius
