#include "worker/model/model_shape.h"

#include <algorithm>
#include <numeric>

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

ExpertShape ExpertsOf(const ModelConfig& config, int num_ranks) {
  ExpertShape shape;
  shape.num_ranks = num_ranks;
  shape.num_moe_layers = config.num_moe_layers();
  if (shape.num_moe_layers == 0) return shape;
  shape.num_experts = config.num_experts;
  shape.intermediate_rows = config.moe_intermediate_size;
  shape.unit_rows = kUnitRows;
  shape.row_bytes = int64_t{config.hidden_size} * int64_t{sizeof(Bf16)};
  return shape;
}

bool Divides(const ModelConfig& config, int num_ranks) {
  return Validate(AttentionOf(config, num_ranks)).ok() &&
         Validate(ExpertsOf(config, num_ranks)).ok();
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
                                          int num_ranks) {
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
  shape.experts = ExpertsOf(config, num_ranks);
  RETURN_IF_ERROR(Validate(shape.attention));
  RETURN_IF_ERROR(Validate(shape.experts));

  int num_slices = 1;
  for (int n = 1; n <= kMaxRanks; ++n) {
    if (Divides(config, n)) num_slices = std::lcm(num_slices, n);
  }
  shape.output_slice_rows = shape.q_size() / num_slices;
  CHECK(shape.output_slice_rows * num_slices == shape.q_size());
  if (num_moe_layers > 0) {
    shape.expert_slice_rows = config.moe_intermediate_size / num_slices;
    CHECK(shape.expert_slice_rows % kUnitRows == 0);
  }
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
