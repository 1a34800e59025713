#include "common/layout/layout.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {

std::string_view LayoutName(Layout layout) {
  return layout.is_ep() ? "ep" : "tp";
}

absl::Status ValidateNumRanks(int num_ranks) {
  if (num_ranks < 1 || num_ranks > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a group has 1 to ", kMaxRanks, " ranks, not ", num_ranks));
  }
  return absl::OkStatus();
}

absl::Status Validate(const AttentionShape& shape) {
  RETURN_IF_ERROR(ValidateNumRanks(shape.num_ranks));
  if (shape.num_q_heads < 1 || shape.num_kv_heads < 1 ||
      shape.num_q_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shape.num_q_heads, " query heads cannot share ",
                     shape.num_kv_heads, " KV heads evenly"));
  }
  if (shape.num_q_heads % shape.num_ranks != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shape.num_q_heads, " query heads cannot be divided over ",
                     shape.num_ranks, " ranks"));
  }
  if (shape.num_kv_heads % shape.num_ranks != 0 &&
      shape.num_ranks % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("of ", shape.num_kv_heads, " KV heads and ",
                     shape.num_ranks, " ranks neither divides the other"));
  }
  return absl::OkStatus();
}

HeadRange HeadsOf(const AttentionShape& shape, Layout layout, Rank rank) {
  CHECK(layout.served(shape.num_ranks));
  CHECK(rank >= 0 && rank < shape.num_ranks);
  const int t = layout.tp_size, part = layout.part_of(rank);
  const int q = shape.num_q_heads / t;
  HeadRange range{part * q, (part + 1) * q, 0, 0};
  if (t <= shape.num_kv_heads) {
    const int kv = shape.num_kv_heads / t;
    range.kv_begin = part * kv;
    range.kv_end = range.kv_begin + kv;
  } else {
    range.kv_begin = part / (t / shape.num_kv_heads);
    range.kv_end = range.kv_begin + 1;
  }
  return range;
}

}  // namespace moebius
