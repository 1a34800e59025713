// A rank's weights as the operators of a device take them: views into its
// regions, where weights.h says that they are.
#pragma once

#include <cstddef>
#include <vector>

#include "common/layout/blocks.h"
#include "kernels/formats.h"
#include "worker/model/model_shape.h"
#include "worker/model/weights.h"

namespace moebius {

template <class D>
struct DenseWeights {
  struct Layer {
    const float* input_norm = nullptr;  // [hidden]
    const float* post_norm = nullptr;   // [hidden], after attention
    const float* q_norm = nullptr;      // null without QK-norm
    const float* k_norm = nullptr;      // the same
    ColumnParallel<D> qkv;
    const float* sinks = nullptr;  // [query heads]; null: none
    RowParallel<D> output;
    const float* output_bias = nullptr;  // [hidden]; null: none
    ExpertSlot<D> mlp;          // dense layers: one expert, a piece a slice
    ColumnParallel<D> router;   // MoE layers, and all of this
    ExpertBias<D> expert_bias;  // of the model's first expert and row
    ExpertSlot<D> shared;       // as mlp; of no experts: none
    const float* shared_gate = nullptr;  // [hidden]
  };
  ColumnParallel<D> embedding, lm_head;
  const float* final_norm = nullptr;  // [hidden]
  std::vector<Layer> layers;
};

// An MLP that all rows go to: one expert, a piece of `slice_rows` a slice.
template <class D>
ExpertSlot<D> ViewMlp(const Bf16* data, int hidden, int slice_rows,
                      int num_slices) {
  return {.data = data,
          .hidden = hidden,
          .rows = slice_rows,
          .num_pieces = num_slices,
          .piece_stride = static_cast<ptrdiff_t>(
              ExpertBlock::NumElements(hidden, slice_rows)),
          .num_experts = 1,
          .experts_per_block = 1};
}

// `dense`: base of the region, a multiple of 64.
template <class D>
DenseWeights<D> ViewDense(const ModelShape& shape, const std::byte* dense) {
  const DecoderSpec& spec = shape.spec;
  const int hidden = spec.hidden_size;
  const DenseLayout plan = PlanDense(shape);
  const auto at = [dense](int64_t offset) {
    return reinterpret_cast<const Bf16*>(dense + offset);
  };
  // Null where there are none.
  const auto floats = [dense](int64_t offset) {
    return offset < 0 ? nullptr
                      : reinterpret_cast<const float*>(dense + offset);
  };
  DenseWeights<D> weights;
  weights.embedding = {at(plan.embedding), spec.vocab_size, hidden};
  weights.lm_head = {at(plan.lm_head), spec.vocab_size, hidden};
  weights.final_norm = floats(plan.final_norm);
  weights.layers.resize(spec.num_layers());
  for (int l = 0; l < spec.num_layers(); ++l) {
    const DenseLayout::Layer& place = plan.layers[l];
    typename DenseWeights<D>::Layer& layer = weights.layers[l];
    layer.input_norm = floats(place.input_norm);
    layer.post_norm = floats(place.post_norm);
    layer.q_norm = floats(place.q_norm);
    layer.k_norm = floats(place.k_norm);
    layer.qkv = {at(place.qkv), shape.q_size() + 2 * shape.kv_size(), hidden,
                 floats(place.qkv_bias)};
    layer.sinks = floats(place.sinks);
    layer.output = {at(place.output), hidden, shape.q_size()};
    layer.output_bias = floats(place.output_bias);
    const MoeMlp* moe = spec.layers[l].moe();
    if (moe == nullptr) {
      layer.mlp = ViewMlp<D>(at(place.mlp), hidden, shape.mlp_slice_rows,
                             shape.num_mlp_slices);
      continue;
    }
    layer.router = {at(place.router), moe->router.num_experts, hidden,
                    floats(place.router_bias)};
    layer.expert_bias = {floats(place.gate_bias), floats(place.up_bias),
                         floats(place.down_bias), shape.experts.padded_rows(),
                         hidden};
    if (moe->shared.has_value()) {
      layer.shared =
          ViewMlp<D>(at(place.shared), hidden, shape.shared_slice_rows,
                     shape.num_shared_slices);
      layer.shared_gate = floats(place.shared_gate);
    }
  }
  return weights;
}

// The experts of one slot, padding among them. `slot`: a multiple of 64.
template <class D>
ExpertSlot<D> ViewSlot(const ModelShape& shape, Layout layout,
                       const std::byte* slot) {
  const ExpertShape& experts = shape.experts;
  const SlotView view = ViewOf(experts, layout, 0);
  return {.data = reinterpret_cast<const Bf16*>(slot),
          .hidden = shape.spec.hidden_size,
          .rows = experts.rows_per_block(),
          .num_pieces = view.num_pieces,
          .piece_stride = static_cast<ptrdiff_t>(experts.block_bytes() /
                                                 int64_t{sizeof(Bf16)}),
          .num_experts = view.num_experts,
          .experts_per_block = experts.experts_per_block()};
}

}  // namespace moebius
