// Grouping: pure counting, no arithmetic on activations.
#include "kernels/cpu/moe.h"

#include <algorithm>

#include "common/base/check.h"

namespace moebius {

void GroupByExpert(absl::Span<const int32_t> experts,
                   absl::Span<const float> weights, int top_k, int first_expert,
                   int num_experts, ExpertGroups* groups) {
  CHECK(top_k > 0 && experts.size() % top_k == 0 &&
        weights.size() == experts.size() && num_experts >= 0);
  // Ids below first_expert wrap around to large numbers.
  const auto local = [&](int32_t expert) {
    return static_cast<uint32_t>(expert) - static_cast<uint32_t>(first_expert);
  };
  const uint32_t bound = static_cast<uint32_t>(num_experts);
  groups->offsets.assign(num_experts + 1, 0);
  for (const int32_t expert : experts) {
    if (local(expert) < bound) ++groups->offsets[local(expert) + 1];
  }
  for (int e = 0; e < num_experts; ++e) {
    groups->offsets[e + 1] += groups->offsets[e];
  }
  groups->rows.resize(groups->offsets[num_experts]);
  groups->weights.resize(groups->offsets[num_experts]);
  // offsets[e] runs through group e, then is set back.
  for (size_t i = 0; i < experts.size(); ++i) {
    if (local(experts[i]) >= bound) continue;
    const int32_t at = groups->offsets[local(experts[i])]++;
    groups->rows[at] = static_cast<int32_t>(i / top_k);
    groups->weights[at] = weights[i];
  }
  for (int e = num_experts; e > 0; --e) {
    groups->offsets[e] = groups->offsets[e - 1];
  }
  groups->offsets[0] = 0;
}

void GroupAllRows(int num_rows, ExpertGroups* groups) {
  groups->offsets = {0, num_rows};
  groups->rows.resize(num_rows);
  for (int i = 0; i < num_rows; ++i) groups->rows[i] = i;
  groups->weights.assign(num_rows, 1.0f);
}

float* ExpertWorkspace::Reserve(size_t num_elements) {
  if (buffer_.size() < num_elements) {
    buffer_.resize(std::max(num_elements, 2 * buffer_.size()));
  }
  return buffer_.data();
}

}  // namespace moebius
