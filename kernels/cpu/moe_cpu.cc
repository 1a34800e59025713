#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/check.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moe_cpu.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/gemm-inl.h"

#ifndef MOEBIUS_KERNELS_MOE_ARGS_
#define MOEBIUS_KERNELS_MOE_ARGS_
namespace moebius {

// Rows of one expert and where their intermediate results go.
struct ExpertRows {
  const int32_t* rows = nullptr;
  const float* weights = nullptr;
  int count = 0;
  float* hidden = nullptr;  // [count][intermediate]
  ptrdiff_t stride = 0;     // elements
  float* row(int i) const { return hidden + i * stride; }
};

}  // namespace moebius
#endif

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

// ---- routing ---------------------------------------------------------------

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Index of the highest of n values, lowest on ties. `values` is padded with
// -infinity to a multiple of 16. -1 when nothing is above -infinity.
HWY_INLINE int HighestIndex(const float* values, int padded) {
  const PanelFloats d;
  auto highest = hn::Set(d, -kInfinity);
  for (int i = 0; i < padded; i += kVecLanes) {
    highest = hn::Max(highest, hn::LoadU(d, values + i));
  }
  const float value = hn::GetLane(hn::MaxOfLanes(d, highest));
  if (!(value > -kInfinity)) return -1;
  const auto wanted = hn::Set(d, value);
  for (int i = 0; i < padded; i += kVecLanes) {
    const intptr_t lane =
        hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, values + i), wanted));
    if (lane >= 0) return i + static_cast<int>(lane);
  }
  return -1;
}

// Replaces values by exp(value - highest); returns their sum. Infinite values
// share the mass; when all are -infinity all do.
HWY_INLINE float Exponentials(float* values, int n, int padded, float highest) {
  if (std::isinf(highest)) {
    float sum = 0.0f;
    for (int i = 0; i < padded; ++i) {
      values[i] = i < n && values[i] == highest ? 1.0f : 0.0f;
      sum += values[i];
    }
    return sum;
  }
  const PanelFloats d;
  const auto shift = hn::Set(d, highest);
  auto sum = hn::Zero(d);
  for (int i = 0; i < padded; i += kVecLanes) {
    const auto e = FastExp(d, hn::Sub(hn::LoadU(d, values + i), shift));
    hn::StoreU(e, d, values + i);
    sum = hn::Add(sum, e);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// scratch: 2 * padded floats.
void RouteRow(const float* logits, int num_experts, int top_k, bool renormalize,
              float* scratch, int32_t* experts, float* weights) {
  const int padded = (num_experts + kPanelRows - 1) / kPanelRows * kPanelRows;
  float* values = scratch;
  float* left = scratch + padded;  // not chosen yet
  for (int i = 0; i < padded; ++i) {
    const float value = i < num_experts ? logits[i] : -kInfinity;
    values[i] = left[i] = std::isnan(value) ? -kInfinity : value;
  }
  int highest = -1;
  for (int j = 0; j < top_k; ++j) {
    int best = HighestIndex(left, padded);
    if (best < 0) {  // only -infinity is left: the lowest ids not chosen
      best = 0;
      while (std::find(experts, experts + j, best) != experts + j) ++best;
    }
    if (j == 0) highest = best;
    experts[j] = best;
    left[best] = -kInfinity;
  }
  float total = Exponentials(values, num_experts, padded, values[highest]);
  if (renormalize) {
    total = 0.0f;
    for (int j = 0; j < top_k; ++j) total += values[experts[j]];
  }
  for (int j = 0; j < top_k; ++j) weights[j] = values[experts[j]] / total;
}

// ---- experts ---------------------------------------------------------------

HWY_INLINE PanelVec SiluTimes(PanelVec gate, PanelVec up, PanelVec weight) {
  const PanelFloats d;
  const auto one = hn::Set(d, 1.0f);
  const auto denominator = hn::Add(one, FastExp(d, hn::Neg(gate)));
  return hn::Mul(hn::Mul(hn::Div(gate, denominator), up), weight);
}

HWY_INLINE PanelVec ClampedTimes(PanelVec gate, PanelVec up, PanelVec weight,
                                 const GatedActivation& activation) {
  const PanelFloats d;
  const auto one = hn::Set(d, 1.0f);
  const auto limit = hn::Set(d, activation.limit);
  const auto g = hn::Min(gate, limit);
  const auto u = hn::Max(hn::Min(up, limit), hn::Neg(limit));
  const auto exponent = hn::Mul(g, hn::Set(d, -activation.alpha));
  const auto swish = hn::Div(g, hn::Add(one, FastExp(d, exponent)));
  return hn::Mul(hn::Mul(swish, hn::Add(u, one)), weight);
}

// Vectors v of the bias of 16 rows from `row` on, added.
HWY_INLINE PanelVec AddBias(PanelVec x, const float* bias, ptrdiff_t row,
                            int v) {
  if (bias == nullptr) return x;
  const PanelFloats d;
  return hn::Add(x, hn::LoadU(d, bias + row + v * kVecLanes));
}

// The panels of units [unit, unit + units): all gates, then all ups.
HWY_INLINE void UnitPanels(const ExpertView& expert, int unit, int units,
                           const Bf16** panels) {
  const int piece_units = expert.rows / kUnitRows;
  for (int j = 0; j < units; ++j) {
    const ExpertBlock piece = expert.piece((unit + j) / piece_units);
    const int panel = (unit + j) % piece_units;
    panels[j] = piece.gate().panel(panel);
    panels[units + j] = piece.up().panel(panel);
  }
}

// hidden = silu(x gate^T) * (x up^T) * weight, units [begin, end).
void GateUpUnits(ConstRows x, const ExpertView& expert, const ExpertRows& rows,
                 int begin, int end) {
  const PanelFloats d;
  const TileCutter tiles(rows.count);
  const int most = std::max(2, MaxPanels(tiles.MaxSize()));
  for (int unit = begin; unit < end;) {
    const int units = PanelsToTake(end - unit, most / 2);
    const Bf16* panels[8] = {};
    UnitPanels(expert, unit, units, panels);
    int first = 0;
    for (int t = 0; t < tiles.tiles; ++t) {
      const int size = tiles.SizeOf(t);
      const float* from[kMaxTileRows] = {};
      for (int m = 0; m < size; ++m) from[m] = x.row(rows.rows[first + m]);
      const auto store = [&](int m, int j, const PanelVec(&g)[kVecs],
                             const PanelVec(&u)[kVecs]) HWY_ATTR {
        const auto weight = hn::Set(d, rows.weights[first + m]);
        const ptrdiff_t row = ptrdiff_t{unit + j} * kUnitRows;
        float* to = rows.row(first + m) + row;
        for (int v = 0; v < kVecs; ++v) {
          const PanelVec gate = AddBias(g[v], expert.bias.gate, row, v);
          const PanelVec up = AddBias(u[v], expert.bias.up, row, v);
          hn::StoreU(expert.activation.limit > 0.0f
                         ? ClampedTimes(gate, up, weight, expert.activation)
                         : SiluTimes(gate, up, weight),
                     d, to + v * kVecLanes);
        }
      };
      // On targets whose tiles take one panel, gate and up run one by one.
      if (2 * units <= MaxPanels(size)) {
        WithTile(size, 2 * units, [&]<int kRows, int kPanels>() HWY_ATTR {
          Accumulators<kRows, kPanels> acc;
          Chains<kRows, kPanels>(from, panels, x.cols, acc);
          if constexpr (kPanels >= 2) {
            for (int m = 0; m < kRows; ++m) {
              for (int j = 0; j < kPanels / 2; ++j) {
                store(m, j, acc.v[m][j], acc.v[m][kPanels / 2 + j]);
              }
            }
          }
        });
      } else {
        WithTile(size, 1, [&]<int kRows, int kPanels>() HWY_ATTR {
          if constexpr (kPanels == 1) {
            for (int j = 0; j < units; ++j) {
              Accumulators<kRows, 1> g, u;
              Chains<kRows, 1>(from, panels + j, x.cols, g);
              Chains<kRows, 1>(from, panels + units + j, x.cols, u);
              for (int m = 0; m < kRows; ++m) {
                store(m, j, g.v[m][0], u.v[m][0]);
              }
            }
          }
        });
      }
      first += size;
    }
    unit += units;
  }
}

// The steps of the reduced dimension that run over a chunk of rows together:
// activations and weights of a dense MLP would else not stay in the caches.
constexpr int kRunSteps = 1536;

// acc += fixed(weight * bias), panels [begin, end).
HWY_INLINE void AddDownBias(const float* bias, const ExpertRows& rows,
                            FixedRows acc, int begin, int end) {
  const PanelFloats d;
  for (int m = 0; m < rows.count; ++m) {
    const auto weight = hn::Set(d, rows.weights[m]);
    for (int panel = begin; panel < end; ++panel) {
      const ptrdiff_t column = ptrdiff_t{panel} * kPanelRows;
      PanelVec sums[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        sums[v] = hn::Mul(hn::LoadU(d, bias + column + v * kVecLanes), weight);
      }
      AddFixed(sums, acc.row(rows.rows[m]) + column);
    }
  }
}

// acc += fixed(hidden down^T), panels [begin, end).
void DownPanels(const ExpertView& expert, const ExpertRows& rows,
                int slice_rows, FixedRows acc, int begin, int end) {
  constexpr int kChunk = 64;
  if (expert.bias.down != nullptr) {
    AddDownBias(expert.bias.down, rows, acc, begin, end);
  }
  const int num_slices = expert.intermediate() / slice_rows;
  const int run = std::max(1, kRunSteps / slice_rows);
  for (int slice = 0; slice < num_slices; slice += run) {
    const SliceRange range{slice, std::min(slice + run, num_slices),
                           slice_rows / 2, expert.rows / slice_rows,
                           expert.piece_stride};
    for (int first = 0; first < rows.count; first += kChunk) {
      const int count = std::min(kChunk, rows.count - first);
      const float* from[kChunk];
      int64_t* to[kChunk];
      for (int m = 0; m < count; ++m) {
        from[m] = rows.row(first + m) + ptrdiff_t{slice} * slice_rows;
        to[m] = acc.row(rows.rows[first + m]);
      }
      RowParallelPanels(from, count, expert.piece(0).down(), range, begin, end,
                        to);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius {
namespace {

HWY_EXPORT(RouteRow);
HWY_EXPORT(GateUpUnits);
HWY_EXPORT(DownPanels);

int LargestGroup(const ExpertGroups& groups) {
  int most = 0;
  for (int e = 0; e < groups.num_experts(); ++e) {
    most = std::max(most, groups.offsets[e + 1] - groups.offsets[e]);
  }
  return most;
}

void CheckShapes(ConstRows x, absl::Span<const ExpertView> experts,
                 int slice_rows, ConstFixedRows acc) {
  const ExpertView& first = experts[0];
  CHECK(first.hidden % kPanelRows == 0 && first.hidden == x.cols &&
        first.hidden == acc.cols);
  CHECK(slice_rows > 0 && slice_rows % kUnitRows == 0 &&
        first.rows % slice_rows == 0);
  for (const ExpertView& expert : experts) {
    CHECK(expert.hidden == first.hidden && expert.rows == first.rows &&
          expert.num_pieces == first.num_pieces);
  }
}

}  // namespace

void RouteTopK(ConstRows logits, int top_k, bool renormalize,
               absl::Span<int32_t> experts, absl::Span<float> weights,
               ThreadPool* pool) {
  CHECK(1 <= top_k && top_k <= logits.cols && top_k <= kMaxExpertsPerToken);
  const size_t size = static_cast<size_t>(logits.rows) * top_k;
  CHECK(experts.size() == size && weights.size() == size);
  const int tasks = std::min(logits.rows, NumThreads(pool));
  ParallelFor(pool, tasks, [&](int task) {
    thread_local std::vector<float> scratch;
    scratch.resize(2 * (static_cast<size_t>(logits.cols) + kPanelRows));
    const int end = static_cast<int>(int64_t{logits.rows} * (task + 1) / tasks);
    for (int i = static_cast<int>(int64_t{logits.rows} * task / tasks); i < end;
         ++i) {
      const size_t at = static_cast<size_t>(i) * top_k;
      HWY_DYNAMIC_DISPATCH(RouteRow)
      (logits.row(i), logits.cols, top_k, renormalize, scratch.data(),
       experts.data() + at, weights.data() + at);
    }
  });
}

void ExpertsFfn(ConstRows x, absl::Span<const ExpertView> experts,
                const ExpertGroups& groups, int slice_rows, FixedRows acc,
                ExpertWorkspace* workspace, ThreadPool* pool) {
  const int num_experts = groups.num_experts();
  CHECK(num_experts == static_cast<int>(experts.size()));
  if (num_experts == 0 || groups.rows.empty()) return;
  CheckShapes(x, experts, slice_rows, acc);
  const int units = experts[0].intermediate() / kUnitRows;
  if (units == 0) return;
  const int panels = x.cols / kPanelRows;
  // A line more, so that the rows of a tile do not share the sets of a cache.
  const ptrdiff_t stride = experts[0].intermediate() + ptrdiff_t{16};
  const auto rows_of = [&](int expert, float* results) {
    const int32_t begin = groups.offsets[expert];
    return ExpertRows{groups.rows.data() + begin, groups.weights.data() + begin,
                      groups.offsets[expert + 1] - begin, results, stride};
  };

  if (NumThreads(pool) == 1) {
    // One expert at a time: its results are still in the cache.
    float* results =
        workspace->Reserve(static_cast<size_t>(LargestGroup(groups) * stride));
    for (int e = 0; e < num_experts; ++e) {
      const ExpertRows rows = rows_of(e, results);
      if (rows.count == 0) continue;
      HWY_DYNAMIC_DISPATCH(GateUpUnits)(x, experts[e], rows, 0, units);
      HWY_DYNAMIC_DISPATCH(DownPanels)
      (experts[e], rows, slice_rows, acc, 0, panels);
    }
    return;
  }

  // First all intermediate rows, by expert and units; then all sums, by
  // columns of acc, so that no two threads add to one place.
  float* results =
      workspace->Reserve(groups.rows.size() * static_cast<size_t>(stride));
  const auto rows_at = [&](int expert) {
    return rows_of(expert, results + groups.offsets[expert] * stride);
  };
  // Several tasks a thread also where there is one expert.
  const int parts =
      std::min(units, std::max(1, 4 / num_experts) * NumThreads(pool));
  ParallelFor(pool, num_experts * parts, [&](int task) {
    const int e = task / parts, part = task % parts;
    const ExpertRows rows = rows_at(e);
    if (rows.count == 0) return;
    HWY_DYNAMIC_DISPATCH(GateUpUnits)
    (x, experts[e], rows, units * part / parts, units * (part + 1) / parts);
  });
  const int tasks = std::min(panels, 4 * NumThreads(pool));
  ParallelFor(pool, tasks, [&](int task) {
    for (int e = 0; e < num_experts; ++e) {
      const ExpertRows rows = rows_at(e);
      if (rows.count == 0) continue;
      HWY_DYNAMIC_DISPATCH(DownPanels)
      (experts[e], rows, slice_rows, acc, panels * task / tasks,
       panels * (task + 1) / tasks);
    }
  });
}

}  // namespace moebius
#endif  // HWY_ONCE
