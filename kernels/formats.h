// How the operators of this folder see memory: rows of activations, packed
// weights, pages of the KV cache; and the pure functions that pack weights.
//
// "W is [n][k]" means a checkpoint matrix of n rows (outputs) and k columns
// (inputs), row-major, so that y = x W^T. All weights are BF16; activations are
// float32.
//
// Packed weights hold 16 outputs side by side, one a SIMD lane, and two steps
// of the reduced dimension in each 32-bit word (the even one in the lower
// half):
//
//   line(j, p)    [16 outputs 16j..16j+15][2]    64 bytes, k = 2p and 2p + 1
//
//   PackedMatrix       [ceil(n/16)][k/2] lines: a panel of 16 outputs is one
//                      contiguous block. Rows beyond n are zero.
//   RowParallelMatrix  [k/16][n/16][8] lines: a unit of 16 steps of the reduced
//                      dimension is one contiguous block, over all outputs.
//   ExpertBlock        gate, up, down of I rows of the intermediate dimension,
//                      each in I/16 units of 16*H elements. gate and up are
//                      PackedMatrix [I][H] (a panel is a unit), down is a
//                      RowParallelMatrix with k = I, n = H.
//
// So any run of whole units of an expert is one contiguous block in each of
// its three matrices, which is what moves when the layout switches.
//
// An expert lies in one ExpertBlock or in several at a fixed stride: pieces of
// equal numbers of rows, piece p with rows [p * rows, (p + 1) * rows) of the
// intermediate dimension. Operators take an ExpertView of it. Two experts e0
// and e1 of hidden = 32 and 32 rows in 2 pieces, where blocks s0 and s1 hold
// one piece of every expert:
//
//   byte      0       3072      6144      9216     12288
//             | e0 s0 | e1 s0   | e0 s1   | e1 s1   |
//   e1 is {slot + 1536, hidden 32, rows 16, num_pieces 2, piece_stride 3072}:
//   piece 0   gate 0..15 at  3072, up 0..15 at  4096, down 0..15 at  5120
//   piece 1   gate 16..31 at 9216, up 16..31 at 10240, down 16..31 at 11264
//
// A KV head page holds, for one KV head and kPageTokens tokens, for every layer
// in turn, K as [head_dim][16 tokens] and then V as [16 tokens][head_dim].
//
// Base addresses of packed weights and of pages must be multiples of 64.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "common/base/check.h"
#include "common/base/ids.h"
#include "kernels/bf16.h"
#include "kernels/view.h"

namespace moebius {

inline constexpr int kPanelRows = 16;  // outputs side by side in a line
inline constexpr int kUnitRows = 16;   // steps of k that stay together

// Activations.
using Rows = View<float, Cpu>;
using ConstRows = View<const float, Cpu>;

// Partial sums: 64-bit fixed point with kFixedPointBits fraction bits.
inline constexpr int kFixedPointBits = 32;
// Partial sums are clamped to +-kFixedPointLimit before conversion.
inline constexpr float kFixedPointLimit = 262144.0f;  // 2^18
using FixedRows = PartialRows<Cpu>;
using ConstFixedRows = ConstPartialRows<Cpu>;

// Column-parallel weights, W [n][k]; k even.
template <class D>
struct ColumnParallel {
  const Bf16* data = nullptr;
  int n = 0;
  int k = 0;
  const float* bias = nullptr;  // [n], added to the outputs; null: none

  static constexpr size_t NumElements(int n, int k) {
    return size_t{kPanelRows} * ((static_cast<size_t>(n) + 15) / 16) *
           static_cast<size_t>(k);
  }
  const Bf16* panel(int j) const {
    return data + static_cast<size_t>(j) * kPanelRows * k;
  }
  // Outputs [begin, end) as a view. REQUIRES: begin is a multiple of 16.
  ColumnParallel OutputRange(int begin, int end) const {
    CHECK(begin % kPanelRows == 0 && 0 <= begin && begin <= end && end <= n);
    return {panel(begin / kPanelRows), end - begin, k,
            bias == nullptr ? nullptr : bias + begin};
  }
};
using PackedMatrix = ColumnParallel<Cpu>;

// Row-parallel weights, W [n][k]; n and k multiples of 16.
template <class D>
struct RowParallel {
  const Bf16* data = nullptr;
  int n = 0;
  int k = 0;

  static constexpr size_t NumElements(int n, int k) {
    return static_cast<size_t>(n) * static_cast<size_t>(k);
  }
};
using RowParallelMatrix = RowParallel<Cpu>;

// One expert, or the slice of `intermediate` rows of it that a rank holds; both
// sizes multiples of 16.
struct ExpertBlock {
  const Bf16* data = nullptr;
  int hidden = 0;
  int intermediate = 0;

  static constexpr size_t NumElements(int hidden, int intermediate) {
    return size_t{3} * static_cast<size_t>(hidden) *
           static_cast<size_t>(intermediate);
  }
  size_t matrix_elements() const {
    return static_cast<size_t>(hidden) * static_cast<size_t>(intermediate);
  }
  PackedMatrix gate() const { return {data, intermediate, hidden}; }
  PackedMatrix up() const {
    return {data + matrix_elements(), intermediate, hidden};
  }
  RowParallelMatrix down() const {
    return {data + 2 * matrix_elements(), hidden, intermediate};
  }
};

// What stands between the two products of an expert, of gate g and up u:
// silu(g) * u (Shazeer 2020, arXiv 2002.05202), or, with a limit,
// g' * sigmoid(alpha * g') * (u' + 1), where g' is g up to `limit`, and u' is u
// within +-limit (gpt-oss).
struct GatedActivation {
  float limit = 0.0f;  // 0: none
  float alpha = 1.0f;
};

// Biases of the products of experts, or of one; null: none.
template <class D>
struct ExpertBias {
  const float* gate = nullptr;  // of the first row that is held
  const float* up = nullptr;
  // [hidden], weighted like the expert; null where another rank adds it, which
  // has the expert's first row.
  const float* down = nullptr;
  ptrdiff_t rows_stride = 0;    // of gate and up, from an expert to the next
  ptrdiff_t hidden_stride = 0;  // of down

  ExpertBias Of(int e) const {
    const auto at = [e](const float* first, ptrdiff_t stride) {
      return first == nullptr ? nullptr : first + e * stride;
    };
    return {at(gate, rows_stride), at(up, rows_stride), at(down, hidden_stride),
            rows_stride, hidden_stride};
  }
};

// One expert, or the part of it that a rank holds, in pieces (drawn above).
template <class D>
struct Expert {
  const Bf16* data = nullptr;  // of the first piece
  int hidden = 0;
  int rows = 0;  // of a piece; a multiple of 16
  int num_pieces = 1;
  ptrdiff_t piece_stride = 0;  // elements from one piece to the next
  GatedActivation activation;
  ExpertBias<D> bias;

  int intermediate() const { return rows * num_pieces; }
  ExpertBlock piece(int p) const requires(D::kHostMemory) {
    return {data + p * piece_stride, hidden, rows};
  }
};
using ExpertView = Expert<Cpu>;

// All experts of one slot, as a rank holds them: of each owner in turn
// `experts_per_block` experts, whose pieces lie in the owner's blocks
// (common/layout/blocks.h). A dense MLP is a slot of one expert.
template <class D>
struct ExpertSlot {
  const Bf16* data = nullptr;
  int hidden = 0;
  int rows = 0;  // of a piece; a multiple of 16
  int num_pieces = 1;
  ptrdiff_t piece_stride = 0;  // elements: of a block
  int num_experts = 0;
  int experts_per_block = 1;
  GatedActivation activation;
  ExpertBias<D> bias;  // of the first expert

  Expert<D> expert(int e) const {
    const ptrdiff_t owner = e / experts_per_block;
    const ptrdiff_t piece = ptrdiff_t{3} * rows * hidden;
    return {data + owner * num_pieces * piece_stride +
                e % experts_per_block * piece,
            hidden,
            rows,
            num_pieces,
            piece_stride,
            activation,
            bias.Of(e)};
  }
  // Pieces [begin, end) of every expert as a view; may be none.
  // REQUIRES: one block of owners, and no biases.
  ExpertSlot PieceRange(int begin, int end) const {
    CHECK(0 <= begin && begin <= end && end <= num_pieces);
    CHECK(num_experts <= experts_per_block && bias.gate == nullptr);
    ExpertSlot range = *this;
    range.data += begin * piece_stride;
    range.num_pieces = end - begin;
    return range;
  }
};

// W [n][k] row-major with `stride` elements a row -> PackedMatrix order.
// REQUIRES: k even; `out` has PackedMatrix::NumElements(n, k) elements.
// A run of whole panels of W packs to the same run of panels of `out`.
void PackMatrix(const Bf16* w, int n, int k, ptrdiff_t stride, Bf16* out);
void UnpackMatrix(PackedMatrix packed, Bf16* w, ptrdiff_t stride);

// W [n][k] row-major with `stride` elements a row -> RowParallelMatrix order.
// Columns [16a, 16b) of W pack to units [a, b) of the whole matrix: to pack a
// slice, pass w + 16a, k = 16(b - a) and the stride of the whole matrix.
// REQUIRES: n and k multiples of 16.
void PackRowParallel(const Bf16* w, int n, int k, ptrdiff_t stride, Bf16* out);
void UnpackRowParallel(RowParallelMatrix packed, Bf16* w, ptrdiff_t stride);

// Rows [begin, end) of the intermediate dimension of an expert whose matrices
// are, as in a checkpoint, gate and up [I][H] and down [H][I].
// REQUIRES: H, begin and end multiples of 16; `out` has
// ExpertBlock::NumElements(hidden, end - begin) elements.
void PackExpert(const Bf16* gate, const Bf16* up, const Bf16* down, int hidden,
                int intermediate, int begin, int end, Bf16* out);

enum class KvType : uint8_t { kFloat32, kBf16 };

// Sizes and offsets in a head page.
struct KvPageFormat {
  int num_layers = 0;
  int head_dim = 0;  // a multiple of 16
  KvType type = KvType::kFloat32;

  size_t element_bytes() const { return type == KvType::kFloat32 ? 4 : 2; }
  size_t matrix_bytes() const {
    return element_bytes() * static_cast<size_t>(head_dim) * kPageTokens;
  }
  size_t page_bytes() const {
    return 2 * matrix_bytes() * static_cast<size_t>(num_layers);
  }
  size_t k_offset(int layer) const {
    return 2 * matrix_bytes() * static_cast<size_t>(layer);
  }
  size_t v_offset(int layer) const { return k_offset(layer) + matrix_bytes(); }
};

// The pages of a rank: page p starts at base + p * format.page_bytes().
template <class D>
struct PagePool {
  std::byte* base = nullptr;
  uint32_t num_pages = 0;
  KvPageFormat format;
};
using KvPool = PagePool<Cpu>;

}  // namespace moebius
