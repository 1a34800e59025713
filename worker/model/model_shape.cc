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

AttentionShape AttentionOf(const ModelConfig& config, int num_ranks) {
  return {num_ranks, config.num_q_heads, config.num_kv_heads};
}

// Group sizes that share the model's heads.
std::vector<int> GroupSizes(const ModelConfig& config) {
  std::vector<int> sizes;
  for (int n = 1; n <= kMaxRanks; ++n) {
    if (Validate(AttentionOf(config, n)).ok()) sizes.push_back(n);
  }
  return sizes;
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

ExpertShape ExpertsOf(const ModelConfig& config, int num_ranks, int slice_rows,
                      int spare_slots) {
  ExpertShape shape;
  shape.num_ranks = num_ranks;
  shape.num_moe_layers = config.num_moe_layers();
  if (shape.num_moe_layers == 0) return shape;
  shape.num_experts = config.num_experts;
  shape.intermediate_rows = config.moe_intermediate_size;
  shape.unit_rows = slice_rows;
  shape.row_bytes = int64_t{config.hidden_size} * int64_t{sizeof(Bf16)};
  shape.spare_slots = spare_slots;
  return shape;
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

absl::StatusOr<ModelShape> MakeModelShape(const ModelConfig& config,
                                          int num_ranks, int spare_slots) {
  const int num_moe_layers = config.num_moe_layers();
  RETURN_IF_ERROR(CheckMultiple("hidden_size", config.hidden_size));
  RETURN_IF_ERROR(CheckMultiple("head_dim", config.head_dim));
  if (num_moe_layers > 0) {
    RETURN_IF_ERROR(
        CheckMultiple("moe_intermediate_size", config.moe_intermediate_size));
  }
  if (num_moe_layers < config.num_layers) {
    RETURN_IF_ERROR(
        CheckMultiple("intermediate_size", config.intermediate_size));
  }
  ModelShape shape;
  shape.config = config;
  shape.num_ranks = num_ranks;
  shape.attention = AttentionOf(config, num_ranks);
  RETURN_IF_ERROR(Validate(shape.attention));
  const std::vector<int> group_sizes = GroupSizes(config);
  if (num_moe_layers > 0) {
    shape.expert_slice_rows =
        ExpertSliceRows(config.moe_intermediate_size, group_sizes);
  }
  shape.experts =
      ExpertsOf(config, num_ranks, shape.expert_slice_rows, spare_slots);
  RETURN_IF_ERROR(Validate(shape.experts));

  int num_slices = 1;
  for (const int n : group_sizes) num_slices = std::lcm(num_slices, n);
  shape.output_slice_rows = shape.q_size() / num_slices;
  CHECK(shape.output_slice_rows * num_slices == shape.q_size());
  if (num_moe_layers < config.num_layers) {
    const int units = config.intermediate_size / kUnitRows;
    int slices = num_slices;
    if (units % slices != 0) {
      slices = std::min(kMaxMlpSlices, units);
      while (units % slices != 0) --slices;
    }
    shape.num_mlp_slices = slices;
    shape.mlp_slice_rows = config.intermediate_size / slices;
  }
  return shape;
}

}  // namespace moebius
