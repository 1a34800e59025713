#include "common/layout/layout.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace moebius {
namespace {

absl::Status CheckRanks(int num_ranks) {
  if (num_ranks < 1 || num_ranks > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a group has 1 to ", kMaxRanks, " ranks, not ", num_ranks));
  }
  return absl::OkStatus();
}

// Appends a segment, joined to the last one when both ends continue it.
void Append(CopySegment segment, std::vector<CopySegment>& segments) {
  if (!segments.empty()) {
    CopySegment& last = segments.back();
    if (last.src_rank == segment.src_rank &&
        last.src_offset + last.size_bytes == segment.src_offset &&
        last.dst_offset + last.size_bytes == segment.dst_offset) {
      last.size_bytes += segment.size_bytes;
      return;
    }
  }
  segments.push_back(segment);
}

}  // namespace

std::string_view LayoutName(Layout layout) {
  return layout.tp_size == 1 ? "ep" : "tp";
}

absl::Status Validate(const ExpertShape& shape) {
  if (absl::Status status = CheckRanks(shape.num_ranks); !status.ok()) {
    return status;
  }
  if (shape.num_moe_layers < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the number of MoE layers is ", shape.num_moe_layers));
  }
  if (shape.num_moe_layers == 0) return absl::OkStatus();  // a dense model
  if (shape.num_experts < 1 || shape.intermediate_rows < 1 ||
      shape.unit_rows < 1 || shape.row_bytes < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "an expert shape must be positive: ", shape.num_experts, " experts of ",
        shape.intermediate_rows, " rows in units of ", shape.unit_rows, ", ",
        shape.row_bytes, " bytes a row"));
  }
  if (shape.num_experts % shape.num_ranks != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shape.num_experts, " experts cannot be divided over ",
                     shape.num_ranks, " ranks"));
  }
  const int64_t quantum = int64_t{shape.num_ranks} * shape.unit_rows;
  if (shape.intermediate_rows % quantum != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("moe_intermediate_size ", shape.intermediate_rows,
                     " cannot be divided over ", shape.num_ranks,
                     " ranks in units of ", shape.unit_rows, " rows"));
  }
  // The region's size, and every offset with it, must fit an int64.
  int64_t bytes = 3;
  for (const int64_t factor :
       {int64_t{shape.num_experts}, int64_t{shape.intermediate_rows},
        shape.row_bytes, int64_t{shape.num_moe_layers} + 1}) {
    if (__builtin_mul_overflow(bytes, factor, &bytes)) {
      return absl::InvalidArgumentError(
          "the experts are larger than 2^63 bytes");
    }
  }
  return absl::OkStatus();
}

int SlotOf(Layout layout, int moe_layer) {
  return layout.tp_size == 1 ? moe_layer + 1 : moe_layer;
}

std::vector<CopySegment> PlanSlot(const ExpertShape& shape, Layout from,
                                  Layout to, Rank rank) {
  const int n = shape.num_ranks;
  CHECK(from.tp_size == 1 || from.tp_size == n);
  CHECK(to.tp_size == 1 || to.tp_size == n);
  CHECK(rank >= 0 && rank < n);
  if (from == to) return {{rank, 0, 0, shape.slot_bytes()}};

  const int local_experts = shape.num_experts / n;
  const int64_t slice = int64_t{shape.intermediate_rows} / n * shape.row_bytes;
  const int64_t matrix = slice * n;
  std::vector<CopySegment> segments;
  if (to.tp_size == n) {
    // Our rows of every matrix of every expert, from the expert's owner.
    segments.reserve(size_t{3} * shape.num_experts);
    for (int expert = 0; expert < shape.num_experts; ++expert) {
      const int local = expert % local_experts;
      for (int m = 0; m < 3; ++m) {
        Append({.src_rank = expert / local_experts,
                .src_offset = (int64_t{local} * 3 + m) * matrix + rank * slice,
                .dst_offset = (int64_t{expert} * 3 + m) * slice,
                .size_bytes = slice},
               segments);
      }
    }
    return segments;
  }
  // Every rank's rows of every matrix of our experts.
  segments.reserve(size_t{3} * shape.num_experts);
  for (int local = 0; local < local_experts; ++local) {
    const int expert = rank * local_experts + local;
    for (int m = 0; m < 3; ++m) {
      for (Rank src = 0; src < n; ++src) {
        Append({.src_rank = src,
                .src_offset = (int64_t{expert} * 3 + m) * slice,
                .dst_offset = (int64_t{local} * 3 + m) * matrix + src * slice,
                .size_bytes = slice},
               segments);
      }
    }
  }
  return segments;
}

std::vector<int> SwitchLayerOrder(int num_moe_layers, Layout to) {
  std::vector<int> order(num_moe_layers);
  for (int i = 0; i < num_moe_layers; ++i) {
    order[i] = to.tp_size == 1 ? num_moe_layers - 1 - i : i;
  }
  return order;
}

absl::Status Validate(const AttentionShape& shape) {
  if (absl::Status status = CheckRanks(shape.num_ranks); !status.ok()) {
    return status;
  }
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
  const int n = shape.num_ranks;
  CHECK(layout.tp_size == 1 || layout.tp_size == n);
  CHECK(rank >= 0 && rank < n);
  if (layout.tp_size == 1) {
    return {0, shape.num_q_heads, 0, shape.num_kv_heads};
  }
  const int q = shape.num_q_heads / n;
  HeadRange range{rank * q, (rank + 1) * q, 0, 0};
  if (n <= shape.num_kv_heads) {
    const int kv = shape.num_kv_heads / n;
    range.kv_begin = rank * kv;
    range.kv_end = range.kv_begin + kv;
  } else {
    range.kv_begin = rank / (n / shape.num_kv_heads);
    range.kv_end = range.kv_begin + 1;
  }
  return range;
}

}  // namespace moebius
