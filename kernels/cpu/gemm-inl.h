// Inner loops of products with packed weights, for one instruction set.
// Included once a target by the .cc files that use Highway's foreach_target.

#if defined(MOEBIUS_KERNELS_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_KERNELS_GEMM_INL_H_
#undef MOEBIUS_KERNELS_GEMM_INL_H_
#else
#define MOEBIUS_KERNELS_GEMM_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/targets.h"
#include "kernels/formats.h"

#ifndef MOEBIUS_KERNELS_SLICE_RANGE_
#define MOEBIUS_KERNELS_SLICE_RANGE_
namespace moebius {

// Slices [begin, end) of a reduced dimension that lies in one matrix, or in
// several of one shape at a fixed stride.
struct SliceRange {
  int begin = 0;
  int end = 0;
  int slice_pairs = 0;  // pairs of k
  int slices_per_matrix = 0;
  ptrdiff_t matrix_stride = 0;  // elements
};

}  // namespace moebius
#endif

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A panel's 16 lanes are kVecs vectors: 1 with AVX-512, 2 with AVX2, else 4.
using PanelFloats = hn::CappedTag<float, kPanelRows>;
using PanelWords = hn::Repartition<uint32_t, PanelFloats>;
using PanelVec = hn::Vec<PanelFloats>;
inline constexpr int kVecLanes = static_cast<int>(hn::MaxLanes(PanelFloats()));
inline constexpr int kVecs = kPanelRows / kVecLanes;
inline constexpr int kLineElements = 2 * kPanelRows;

// Rows that share one load of weights, and panels that share one load of
// activations: enough independent chains to hide the latency of a multiply-add
// (8 vectors and more), few enough to stay in registers.
inline constexpr int kMaxTileRows = kVecs == 1 ? 8 : 4;
constexpr int MaxPanels(int rows) {
  if (kVecs == 1) return rows == 1 ? 8 : rows <= 4 ? 4 : 2;
  if (kVecs == 2) return rows == 1 ? 4 : rows == 2 ? 2 : 1;
  return rows == 1 ? 2 : 1;
}

// Cuts `count` rows into tiles of at most kMaxTileRows, sizes differing by one
// at most; the larger ones come first.
struct TileCutter {
  explicit TileCutter(int count)
      : tiles((count + kMaxTileRows - 1) / kMaxTileRows),
        size(tiles == 0 ? 0 : count / tiles),
        larger(tiles == 0 ? 0 : count % tiles) {}
  int SizeOf(int tile) const { return size + (tile < larger ? 1 : 0); }
  int MaxSize() const { return size + (larger > 0 ? 1 : 0); }
  int tiles, size, larger;
};

template <int kRows, int kPanels>
struct Accumulators {
  PanelVec v[kRows][kPanels][kVecs];
};

template <int kRows, int kPanels>
HWY_INLINE void SetZero(Accumulators<kRows, kPanels>& acc) {
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    MOEBIUS_UNROLL
    for (int j = 0; j < kPanels; ++j) {
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        acc.v[m][j][v] = hn::Zero(PanelFloats());
      }
    }
  }
}

// One line of every panel: two steps of each chain.
//   x0, offset: x[m][offset], x[m][offset + 1] are the activations
template <int kRows, int kPanels>
HWY_INLINE void Step2(const float* const* x, ptrdiff_t offset,
                      const Bf16* const* lines, ptrdiff_t line_offset,
                      Accumulators<kRows, kPanels>& acc) {
  const PanelFloats df;
  const PanelWords du;
  const auto odd_mask = hn::Set(du, 0xffff0000u);
  PanelVec even[kPanels][kVecs], odd[kPanels][kVecs];
  MOEBIUS_UNROLL
  for (int j = 0; j < kPanels; ++j) {
    const auto* words =
        reinterpret_cast<const uint32_t*>(lines[j] + line_offset);
    MOEBIUS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const auto both = hn::LoadU(du, words + v * kVecLanes);
      even[j][v] = hn::BitCast(df, hn::ShiftLeft<16>(both));
      odd[j][v] = hn::BitCast(df, hn::And(both, odd_mask));
    }
  }
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    const PanelVec x0 = hn::Set(df, x[m][offset]);
    MOEBIUS_UNROLL
    for (int j = 0; j < kPanels; ++j) {
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        acc.v[m][j][v] = hn::MulAdd(even[j][v], x0, acc.v[m][j][v]);
      }
    }
  }
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    const PanelVec x1 = hn::Set(df, x[m][offset + 1]);
    MOEBIUS_UNROLL
    for (int j = 0; j < kPanels; ++j) {
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        acc.v[m][j][v] = hn::MulAdd(odd[j][v], x1, acc.v[m][j][v]);
      }
    }
  }
}

// acc[m][j] = chain over all of k of panel j with row m.
template <int kRows, int kPanels>
HWY_INLINE void Chains(const float* const* x, const Bf16* const* panels, int k,
                       Accumulators<kRows, kPanels>& acc) {
  const float* rows[kRows];
  const Bf16* lines[kPanels];
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) rows[m] = x[m];
  MOEBIUS_UNROLL
  for (int j = 0; j < kPanels; ++j) lines[j] = panels[j];
  // Local, so that nothing else can point to it.
  Accumulators<kRows, kPanels> sums;
  SetZero(sums);
  for (ptrdiff_t i = 0; i < k; i += 2) {
    Step2<kRows, kPanels>(rows, i, lines, i * kPanelRows, sums);
  }
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    MOEBIUS_UNROLL
    for (int j = 0; j < kPanels; ++j) {
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) acc.v[m][j][v] = sums.v[m][j][v];
    }
  }
}

// Calls fn.template operator()<rows, panels>() for the run-time `rows` and
// `panels`. REQUIRES: 1 <= rows <= kMaxTileRows; panels a power of two up to
// MaxPanels(rows).
template <int kRows, int kPanels, typename Fn>
HWY_INLINE void WithPanels(int panels, const Fn& fn) {
  if constexpr (kPanels > 1) {
    if (panels < kPanels) return WithPanels<kRows, kPanels / 2>(panels, fn);
  }
  fn.template operator()<kRows, kPanels>();
}
template <int kRows = kMaxTileRows, typename Fn>
HWY_INLINE void WithTile(int rows, int panels, const Fn& fn) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return WithTile<kRows - 1>(rows, panels, fn);
  }
  WithPanels<kRows, MaxPanels(kRows)>(panels, fn);
}

// The largest power of two that is at most `available` and `most`.
HWY_INLINE int PanelsToTake(int available, int most) {
  int take = most;
  while (take > available) take /= 2;
  return take;
}

// Adds fixed(v) to 16 integers.
HWY_INLINE void AddFixed(const PanelVec (&v)[kVecs], int64_t* acc) {
  // 1.5 * 2^20 has an ulp of 2^-32: the sum rounds to that grid, and its bits
  // count in units of it.
  constexpr double kMagic = 1.5 * (1 << (52 - kFixedPointBits));
  constexpr int64_t kMagicBits = std::bit_cast<int64_t>(kMagic);
  const PanelFloats df;
  const auto limit = hn::Set(df, kFixedPointLimit);
  const auto minus_limit = hn::Set(df, -kFixedPointLimit);
  MOEBIUS_UNROLL
  for (int i = 0; i < kVecs; ++i) {
    const auto clamped = hn::Min(hn::Max(v[i], minus_limit), limit);
    int64_t* to = acc + i * kVecLanes;
#if HWY_TARGET == HWY_SCALAR
    *to += std::bit_cast<int64_t>(hn::GetLane(clamped) + kMagic) - kMagicBits;
#else
    const hn::Half<PanelFloats> dh;
    const hn::Repartition<double, PanelFloats> dd;
    const hn::RebindToSigned<decltype(dd)> di;
    const auto magic = hn::Set(dd, kMagic);
    const auto magic_bits = hn::Set(di, kMagicBits);
    const auto low =
        hn::Add(hn::PromoteTo(dd, hn::LowerHalf(dh, clamped)), magic);
    const auto high =
        hn::Add(hn::PromoteTo(dd, hn::UpperHalf(dh, clamped)), magic);
    hn::StoreU(
        hn::Add(hn::LoadU(di, to), hn::Sub(hn::BitCast(di, low), magic_bits)),
        di, to);
    hn::StoreU(hn::Add(hn::LoadU(di, to + kVecLanes / 2),
                       hn::Sub(hn::BitCast(di, high), magic_bits)),
               di, to + kVecLanes / 2);
#endif
  }
}

template <int kRows, int kPanels>
HWY_INLINE void AddFixed(const Accumulators<kRows, kPanels>& sums,
                         int64_t* const* acc) {
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) {
    MOEBIUS_UNROLL
    for (int j = 0; j < kPanels; ++j) {
      AddFixed(sums.v[m][j], acc[m] + j * kPanelRows);
    }
  }
}

// acc[m][0 .. 16 * kPanels) += the slices' sums for panels j, j + 1, ...
//   x[m]    activations, from the first slice on
//   w       the matrix of slice 0
//   acc[m]  at column 16 j
template <int kRows, int kPanels>
HWY_INLINE void SlicedChains(const float* const* x, RowParallelMatrix w,
                             int first_panel, SliceRange range,
                             int64_t* const* acc) {
  constexpr int kUnitPairs = kUnitRows / 2;
  constexpr ptrdiff_t kPanelStride = kUnitPairs * kLineElements;
  const ptrdiff_t unit_stride = ptrdiff_t{kUnitRows} * w.n;
  const int last_unit = w.k / kUnitRows - 1;
  // From the last unit of a matrix to the first one of the next.
  const ptrdiff_t matrix_jump = range.matrix_stride - last_unit * unit_stride;
  const Bf16* base =
      w.data + first_panel * kPanelStride +
      range.begin / range.slices_per_matrix * range.matrix_stride;
  const float* rows[kRows];
  MOEBIUS_UNROLL
  for (int m = 0; m < kRows; ++m) rows[m] = x[m];
  int in_matrix = range.begin % range.slices_per_matrix;
  int pair = in_matrix * range.slice_pairs;
  ptrdiff_t offset = 0;
  for (int s = range.begin; s < range.end; ++s, ++in_matrix) {
    if (in_matrix == range.slices_per_matrix) {
      in_matrix = 0;
      pair = 0;
      base += range.matrix_stride;
    }
    const int end = pair + range.slice_pairs;
    Accumulators<kRows, kPanels> sums;
    SetZero(sums);
    while (pair < end) {
      const int unit = pair / kUnitPairs;
      const int in_unit = pair % kUnitPairs;
      const int run =
          kUnitPairs - in_unit < end - pair ? kUnitPairs - in_unit : end - pair;
      const ptrdiff_t jump = unit != last_unit   ? unit_stride
                             : s + 1 < range.end ? matrix_jump
                                                 : 0;
      const Bf16* lines[kPanels];
      MOEBIUS_UNROLL
      for (int j = 0; j < kPanels; ++j) {
        lines[j] = base + unit * unit_stride + in_unit * kLineElements +
                   j * kPanelStride;
      }
      for (ptrdiff_t i = 0; i < run; ++i, offset += 2) {
        // Few rows wait for memory, and the next unit is a jump away that no
        // hardware foresees.
        if constexpr (kRows <= 2) {
          MOEBIUS_UNROLL
          for (int j = 0; j < kPanels; ++j) {
            hwy::Prefetch(lines[j] + jump + i * kLineElements);
          }
        }
        Step2<kRows, kPanels>(rows, offset, lines, i * kLineElements, sums);
      }
      pair += run;
    }
    AddFixed(sums, acc);
  }
}

// For all rows: acc[m] += slices, over panels [begin, end). x and acc are
// arrays of `rows` pointers; acc[m] at column 0.
HWY_INLINE void RowParallelPanels(const float* const* x, int rows,
                                  RowParallelMatrix w, SliceRange range,
                                  int begin, int end, int64_t* const* acc) {
  const TileCutter tiles(rows);
  const int most = MaxPanels(tiles.MaxSize());
  for (int panel = begin; panel < end;) {
    const int panels = PanelsToTake(end - panel, most);
    int first = 0;
    for (int t = 0; t < tiles.tiles; ++t) {
      const int size = tiles.SizeOf(t);
      int64_t* to[kMaxTileRows];
      for (int m = 0; m < size; ++m) {
        to[m] = acc[first + m] + ptrdiff_t{panel} * kPanelRows;
      }
      WithTile(size, panels, [&]<int kRows, int kPanels>() HWY_ATTR {
        SlicedChains<kRows, kPanels>(x + first, w, panel, range, to);
      });
      first += size;
    }
    panel += panels;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#endif
