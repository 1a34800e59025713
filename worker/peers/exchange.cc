#include "worker/peers/exchange.h"

#include <algorithm>

#include "common/base/check.h"

namespace moebius {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kMaxLogitRows = 256;

}  // namespace

IndexRange LogitShare(const ModelShape& shape, Layout attention, Rank rank) {
  const int vocab = shape.spec.vocab_size;
  const IndexRange panels = ShareOf((vocab + kPanelRows - 1) / kPanelRows,
                                    attention.tp_size, attention.part_of(rank));
  return {std::min(panels.begin * kPanelRows, vocab),
          std::min(panels.end * kPanelRows, vocab)};
}

ExchangeLayout PlanExchange(const ModelShape& shape, int max_rows,
                            const ExchangeElements& elements) {
  CHECK(max_rows >= 1);
  const int64_t rows = max_rows;
  const int64_t hidden = shape.spec.hidden_size;
  const int64_t top_k = shape.top_k;
  ExchangeLayout layout;
  layout.max_rows = max_rows;

  int64_t next = 0;
  const auto take = [&next](int64_t bytes) {
    const int64_t at = next;
    next += (bytes + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  layout.sums[0] = take(rows * hidden * elements.partial_bytes);
  layout.rows = take(rows * hidden * 4);
  layout.experts = take(rows * top_k * 4);
  layout.weights = take(rows * top_k * 4);
  layout.sums[1] = take(rows * hidden * elements.partial_bytes);

  const auto whole_row_norm = [](const LayerSpec& layer) {
    return std::get<GroupedQueryAttention>(layer.attention).qk_norm ==
           GroupedQueryAttention::QkNorm::kWholeRow;
  };
  layout.squares = next;
  if (std::any_of(shape.spec.layers.begin(), shape.spec.layers.end(),
                  whole_row_norm)) {
    take(rows * 4 *
         (shape.attention.num_q_heads + shape.attention.num_kv_heads));
  }
  layout.shared = next;
  if (shape.num_shared_slices > 0) take(rows * hidden * elements.partial_bytes);

  const int64_t row_bytes = int64_t{shape.spec.vocab_size} * 4;
  layout.logit_rows =
      static_cast<int>(std::clamp<int64_t>(
          elements.logit_chunk_bytes / row_bytes, kMaxRanks, kMaxLogitRows)) /
      shape.num_ranks * shape.num_ranks;
  for (const Layout attention : LayoutsOf(shape.attention)) {
    if (attention.is_ep()) continue;  // nobody is shown any
    for (Rank r = 0; r < shape.num_ranks; ++r) {
      const int64_t panels =
          (LogitShare(shape, attention, r).size() + kPanelRows - 1) /
          kPanelRows;
      layout.logit_cols = std::max(layout.logit_cols, panels * kPanelRows);
    }
  }
  for (int64_t& logits : layout.logits) {
    logits = shape.num_ranks == 1
                 ? next
                 : take(layout.logit_rows * layout.logit_cols * 4);
  }
  layout.size_bytes = next;
  return layout;
}

}  // namespace moebius
