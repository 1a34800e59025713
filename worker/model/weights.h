// A model's weights in a worker's memory: where each one is. (weight_plan.h
// says how they get there.)
//
// The dense region holds, on every rank, all of embedding, attention, norms,
// routers and dense MLPs; TP uses parts of them as views. The experts region
// holds the slots of common/layout/blocks.h, each expert of a block as an
// ExpertBlock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/formats.h"
#include "worker/model/model_shape.h"

namespace moebius {

// Whether attention has weights that norm each head of Q and K.
bool HasQkNorm(const LayerSpec& layer);

// Bytes from the start of the dense region; all multiples of 64.
struct DenseLayout {
  struct Layer {
    int64_t input_norm = 0;  // float32 [hidden]
    int64_t post_norm = 0;   // float32 [hidden], after attention
    int64_t q_norm = -1;     // float32 [head_dim], with QK-norm
    int64_t k_norm = -1;     // float32 [head_dim], with QK-norm
    int64_t qkv = 0;         // PackedMatrix [q + k + v][hidden]
    int64_t output = 0;      // RowParallelMatrix [hidden][q]
    int64_t router = -1;     // PackedMatrix [experts][hidden], MoE layers
    int64_t mlp = -1;        // a block of mlp_slice_rows a slice, dense layers
  };
  int64_t embedding = 0;   // PackedMatrix [vocab][hidden]
  int64_t lm_head = 0;     // PackedMatrix; the embedding's place when tied
  int64_t final_norm = 0;  // float32 [hidden]
  std::vector<Layer> layers;
  int64_t size_bytes = 0;
};
DenseLayout PlanDense(const ModelShape& shape);

// The dense region as operators want it.
struct DenseWeights {
  struct Layer {
    absl::Span<const float> input_norm, post_norm;
    absl::Span<const float> q_norm, k_norm;  // empty without QK-norm
    PackedMatrix qkv;
    RowParallelMatrix output;
    PackedMatrix router;  // MoE layers
    ExpertView mlp;       // dense layers: a piece a slice
  };
  PackedMatrix embedding, lm_head;
  absl::Span<const float> final_norm;
  std::vector<Layer> layers;
};
DenseWeights ViewDense(const ModelShape& shape, const std::byte* dense);

// The experts of one slot, padding among them: [ViewOf(...).num_experts].
std::vector<ExpertView> ViewSlot(const ModelShape& shape, Layout layout,
                                 const std::byte* slot);

}  // namespace moebius
