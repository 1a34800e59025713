#include "worker/model/model_shape.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

constexpr int kMaxMlpSlices = 16;

// What all layers of a kind have in common; 0 where there are none.
struct LayerSizes {
  GroupedQueryAttention attention;
  int num_experts = 0;
  int top_k = 0;
  int expert_rows = 0;
  int mlp_rows = 0;
  int shared_rows = 0;
  int num_shared = 0;  // MoE layers with an expert that rows share
};

// Takes `value` for the first layer that says one; later ones must say the
// same.
absl::Status Agree(const char* what, int layer, int value, int* of_all) {
  if (*of_all == 0) *of_all = value;
  if (*of_all == value) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model: layer ", layer, ": ", what, " ", value,
                   " is not supported beside ", *of_all, " of another layer"));
}

absl::StatusOr<LayerSizes> SizesOf(const DecoderSpec& spec) {
  LayerSizes sizes;
  for (int l = 0; l < spec.num_layers(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    const auto& attention = std::get<GroupedQueryAttention>(layer.attention);
    GroupedQueryAttention& of_all = sizes.attention;
    RETURN_IF_ERROR(
        Agree("query heads", l, attention.q_heads, &of_all.q_heads));
    RETURN_IF_ERROR(Agree("KV heads", l, attention.kv_heads, &of_all.kv_heads));
    RETURN_IF_ERROR(Agree("head_dim", l, attention.head_dim, &of_all.head_dim));
    if (const MoeMlp* moe = layer.moe()) {
      RETURN_IF_ERROR(
          Agree("experts", l, moe->router.num_experts, &sizes.num_experts));
      RETURN_IF_ERROR(
          Agree("experts of a row", l, moe->router.top_k, &sizes.top_k));
      RETURN_IF_ERROR(
          Agree("moe_intermediate_size", l, moe->rows, &sizes.expert_rows));
      if (moe->shared.has_value()) {
        RETURN_IF_ERROR(Agree("shared_expert_intermediate_size", l,
                              moe->shared->rows, &sizes.shared_rows));
        ++sizes.num_shared;
      }
    }
    if (const DenseMlp* dense = layer.dense()) {
      RETURN_IF_ERROR(
          Agree("intermediate_size", l, dense->rows, &sizes.mlp_rows));
    }
  }
  if (sizes.num_shared != 0 && sizes.num_shared != spec.num_moe_layers()) {
    return absl::InvalidArgumentError(
        "model: a shared expert in some of the MoE layers is not supported");
  }
  return sizes;
}

AttentionShape AttentionOf(const LayerSizes& sizes, int num_ranks) {
  return {num_ranks, sizes.attention.q_heads, sizes.attention.kv_heads};
}

// Group sizes that share the model's heads.
std::vector<int> GroupSizes(const LayerSizes& sizes) {
  std::vector<int> group_sizes;
  for (int n = 1; n <= kMaxRanks; ++n) {
    if (Validate(AttentionOf(sizes, n)).ok()) group_sizes.push_back(n);
  }
  return group_sizes;
}

int PaddedRows(int rows, int num_ranks, int slice_rows) {
  const int cut = num_ranks * slice_rows;
  return (rows + cut - 1) / cut * cut;
}

// Of an expert with `rows` rows of the intermediate dimension.
int ExpertSliceRows(int rows, const std::vector<int>& group_sizes) {
  int longest = kUnitRows;
  for (int slice = 2 * kUnitRows; slice <= rows; slice += kUnitRows) {
    const bool pays =
        std::any_of(group_sizes.begin(), group_sizes.end(), [&](int n) {
          return PaddedRows(rows, n, slice) != PaddedRows(rows, n, kUnitRows);
        });
    if (!pays) longest = slice;
  }
  return longest;
}

ExpertShape ExpertsOf(const DecoderSpec& spec, const LayerSizes& sizes,
                      int num_ranks, int slice_rows, int spare_slots) {
  ExpertShape shape;
  shape.num_ranks = num_ranks;
  shape.num_moe_layers = spec.num_moe_layers();
  if (shape.num_moe_layers == 0) return shape;
  shape.num_experts = sizes.num_experts;
  shape.intermediate_rows = sizes.expert_rows;
  shape.unit_rows = slice_rows;
  shape.row_bytes = int64_t{spec.hidden_size} * int64_t{sizeof(Bf16)};
  shape.spare_slots = spare_slots;
  return shape;
}

// As many slices as attention's output has, if they divide.
int SlicesOf(int rows, int num_slices) {
  const int units = rows / kUnitRows;
  if (units % num_slices == 0) return num_slices;
  int slices = std::min(kMaxMlpSlices, units);
  while (units % slices != 0) --slices;
  return slices;
}

absl::Status CheckMultiple(const char* key, int value) {
  if (value > 0 && value % kUnitRows == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model: ", key, ": ", value,
                   " is not supported; allowed: multiples of ", kUnitRows));
}

}  // namespace

IndexRange ShareOf(int total, int num_ranks, Rank rank) {
  const auto bound = [&](int r) {
    return static_cast<int>(int64_t{total} * r / num_ranks);
  };
  return {bound(rank), bound(rank + 1)};
}

absl::StatusOr<ModelShape> MakeModelShape(const DecoderSpec& spec,
                                          int num_ranks, int spare_slots) {
  RETURN_IF_ERROR(CheckSupported(spec));
  ASSIGN_OR_RETURN(const LayerSizes sizes, SizesOf(spec));
  const bool has_experts = sizes.expert_rows > 0;
  const bool has_mlps = sizes.mlp_rows > 0;
  RETURN_IF_ERROR(CheckMultiple("hidden_size", spec.hidden_size));
  RETURN_IF_ERROR(CheckMultiple("head_dim", sizes.attention.head_dim));
  if (has_experts) {
    RETURN_IF_ERROR(CheckMultiple("moe_intermediate_size", sizes.expert_rows));
  }
  if (has_mlps) {
    RETURN_IF_ERROR(CheckMultiple("intermediate_size", sizes.mlp_rows));
  }
  if (sizes.shared_rows > 0) {
    RETURN_IF_ERROR(
        CheckMultiple("shared_expert_intermediate_size", sizes.shared_rows));
  }
  ModelShape shape;
  shape.spec = spec;
  shape.num_ranks = num_ranks;
  shape.attention = AttentionOf(sizes, num_ranks);
  shape.head_dim = sizes.attention.head_dim;
  shape.top_k = sizes.top_k;
  RETURN_IF_ERROR(Validate(shape.attention));
  const std::vector<int> group_sizes = GroupSizes(sizes);
  if (has_experts) {
    shape.expert_slice_rows = ExpertSliceRows(sizes.expert_rows, group_sizes);
  }
  shape.experts =
      ExpertsOf(spec, sizes, num_ranks, shape.expert_slice_rows, spare_slots);
  RETURN_IF_ERROR(Validate(shape.experts));

  int num_slices = 1;
  for (const int n : group_sizes) num_slices = std::lcm(num_slices, n);
  shape.output_slice_rows = shape.q_size() / num_slices;
  CHECK(shape.output_slice_rows * num_slices == shape.q_size());
  if (has_mlps) {
    shape.num_mlp_slices = SlicesOf(sizes.mlp_rows, num_slices);
    shape.mlp_slice_rows = sizes.mlp_rows / shape.num_mlp_slices;
  }
  if (sizes.shared_rows > 0) {
    shape.num_shared_slices = SlicesOf(sizes.shared_rows, num_slices);
    shape.shared_slice_rows = sizes.shared_rows / shape.num_shared_slices;
  }
  return shape;
}

}  // namespace moebius
