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

#include "kernels/formats.h"
#include "worker/model/model_shape.h"

namespace moebius {

// Elements of the weights that norm Q and K; 0 without.
struct QkNormSizes {
  int q = 0;
  int k = 0;
};
QkNormSizes QkNormSizesOf(const ModelShape& shape, int layer);

// Bytes from the start of the dense region; all multiples of 64.
struct DenseLayout {
  struct Layer {
    int64_t input_norm = 0;  // float32 [hidden]
    int64_t post_norm = 0;   // float32 [hidden], after attention
    int64_t q_norm = -1;     // float32 [QkNormSizes], with QK-norm
    int64_t k_norm = -1;
    int64_t qkv = 0;           // PackedMatrix [q + k + v][hidden]
    int64_t qkv_bias = -1;     // float32 [q + k + v]
    int64_t sinks = -1;        // float32 [query heads]
    int64_t output = 0;        // RowParallelMatrix [hidden][q]
    int64_t output_bias = -1;  // float32 [hidden]
    int64_t mlp = -1;  // a block of mlp_slice_rows a slice, dense layers
    // MoE layers. Biases of experts are on every rank: they are small, and need
    // not move when the layout switches.
    int64_t router = -1;       // PackedMatrix [experts][hidden]
    int64_t router_bias = -1;  // float32 [experts]
    int64_t gate_bias = -1;    // float32 [experts][padded rows]
    int64_t up_bias = -1;
    int64_t down_bias = -1;    // float32 [experts][hidden]
    int64_t shared = -1;       // a block of shared_slice_rows a slice
    int64_t shared_gate = -1;  // float32 [hidden]
  };
  int64_t embedding = 0;   // PackedMatrix [vocab][hidden]
  int64_t lm_head = 0;     // PackedMatrix; the embedding's place when tied
  int64_t final_norm = 0;  // float32 [hidden]
  std::vector<Layer> layers;
  int64_t size_bytes = 0;
};
DenseLayout PlanDense(const ModelShape& shape);

}  // namespace moebius
