// Attention over a paged KV cache, with grouped queries.
//
// The rows of a step are grouped in chunks: consecutive rows of one sequence
// at consecutive positions (one row in decode). Chunks name the pages of their
// sequence; nothing here knows of layouts or ranks.
//
// Exactness: a row's result depends on its query, its position and the K and V
// of the positions that it sees alone; not on the other rows, on the chunking,
// on which pages hold the tokens, or on what lies in a page beyond the row's
// position (those bytes may be anything). With a window neither pages nor their
// names are looked at before the stretch (kStretchTokens) in which the chunk's
// first row begins to see: both may be anything.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/formats.h"
#include "kernels/norm.h"

namespace moebius {

// Operators cut positions, counted from 0, into blocks of their own; a stretch
// is whole blocks of each.
inline constexpr int kStretchTokens = 256;

// Heads that a rank computes. A row of queries, keys and values is
// [num_q + 2 * num_kv][head_dim]; query head h uses KV head
// h / (num_q / num_kv).
struct HeadShape {
  int num_q = 0;
  int num_kv = 0;
  int head_dim = 0;
  int q_cols() const { return num_q * head_dim; }
  int kv_cols() const { return num_kv * head_dim; }
  int cols() const { return q_cols() + 2 * kv_cols(); }
};

// cos and sin of position * theta^(-2i/head_dim), i < head_dim/2:
// [max_positions][head_dim / 2] each.
template <class D>
struct Rotary {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int max_positions = 0;
  int head_dim = 0;

  const float* cos_at(int position) const requires(D::kHostMemory) {
    return cos + static_cast<ptrdiff_t>(position) * (head_dim / 2);
  }
  const float* sin_at(int position) const requires(D::kHostMemory) {
    return sin + static_cast<ptrdiff_t>(position) * (head_dim / 2);
  }
};

// What is done to queries and keys: RMSNorm of each head, or of all heads of a
// row at once (OLMoE, arXiv 2409.02060, section 4.2.5), then the rotation of
// Qwen3 and Llama that pairs element i with i + head_dim/2 (Su et al. 2021,
// arXiv 2104.09864; "half-split" order).
template <class D>
struct HeadPreparation {
  // Size 0: none; head_dim: of each head. Else of all heads of the model, whose
  // weights are those of the heads that are prepared, and whose sums of squares
  // are given: [rows][heads of the model], added in that order.
  Norm<D> q_norm, k_norm;
  View<const float, D> q_squares, k_squares;
  Rotary<D> rotary;
};

// Rows of a step, as attention sees them.
template <class D>
struct RowSet;

// The K and V of one layer in a rank's pages, and what of them a row sees.
template <class D>
struct KvLayer {
  PagePool<D> pool;
  int layer = 0;
  // Positions that a row sees, its own the last of them (Beltagy et al. 2020,
  // arXiv 2004.05150); 0: all.
  int window = 0;
  // [query heads that are computed] logits that take part in the softmax and
  // have no value (Xiao et al. 2023, arXiv 2309.17453; gpt-oss); null: none.
  const float* sinks = nullptr;
};

struct QueryChunk {
  int first_row = 0;  // of the step's activations
  int num_rows = 0;
  int first_position = 0;  // of first_row in its sequence
  // [block][KV heads held here], block = position / kPageTokens; covers every
  // block up to the chunk's last position.
  absl::Span<const uint32_t> pages;
};

template <>
struct RowSet<Cpu> {
  int size = 0;
  absl::Span<const int32_t> positions;  // [size]
  absl::Span<const QueryChunk> chunks;  // of all of the rows
};

// squares [rows][heads] = the sum of squares of each head of a row, by itself.
// REQUIRES: heads is [rows][squares.cols * head_dim].
void SquareHeads(const Cpu& device, int head_dim, ConstRows heads,
                 Rows squares);

// Prepares queries and keys in place, and stores keys and values in the rows'
// pages. `qkv` may be the columns of keys and values alone: shape.num_q == 0.
// REQUIRES: qkv is [rows.size][shape.cols()]; positions below max_positions; no
//   two rows share a token's place.
void PrepareHeads(const Cpu& device, const HeadShape& shape,
                  const HeadPreparation<Cpu>& how, const RowSet<Cpu>& rows,
                  const KvLayer<Cpu>& kv, Rows qkv);
// The same for queries alone: [rows.size][shape.q_cols()].
void PrepareQueries(const Cpu& device, const HeadShape& shape,
                    const HeadPreparation<Cpu>& how, const RowSet<Cpu>& rows,
                    Rows queries);

// Queries become softmax(q . K / sqrt(head_dim)) V over the positions of their
// sequence that they see. `queries` is [rows.size][shape.q_cols()].
// REQUIRES: K and V were stored of all positions up to the row's own, with a
//   window from the beginning of the stretch on in which it begins.
void Attend(const Cpu& device, const HeadShape& shape, const RowSet<Cpu>& rows,
            const KvLayer<Cpu>& kv, Rows queries);

}  // namespace moebius
