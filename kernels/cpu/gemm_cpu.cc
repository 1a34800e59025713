#include <algorithm>

#include "common/base/check.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/targets.h"
#include "kernels/project.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gemm_cpu.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

// Rows whose activations stay in the second-level cache while all weights of a
// task pass by.
constexpr size_t kActivationBytes = size_t{384} << 10;

HWY_INLINE int RowsPerChunk(int k) {
  const size_t rows = kActivationBytes / (sizeof(float) * std::max(k, 1));
  return std::max<int>(static_cast<int>(std::min<size_t>(rows, 1024)) /
                           kMaxTileRows * kMaxTileRows,
                       kMaxTileRows);
}

// A panel of a part, and the columns that it gives.
struct Panel {
  const float* bias;  // null: none
  int column;
  int count;
};

// Walks the panels of parts that stand side by side.
class PanelCursor {
 public:
  PanelCursor(absl::Span<const PackedMatrix> parts, int panel) : parts_(parts) {
    while (part_ < parts_.size() && panel >= PanelsOf(part_)) {
      panel -= PanelsOf(part_);
      column_ += parts_[part_].n;
      ++part_;
    }
    panel_ = panel;
  }
  // The next panel, and its weights.
  Panel Take(const Bf16** weights) {
    while (panel_ == PanelsOf(part_)) {
      column_ += parts_[part_].n;
      ++part_;
      panel_ = 0;
    }
    *weights = parts_[part_].panel(panel_);
    const int first = panel_ * kPanelRows;
    const float* const bias = parts_[part_].bias;
    ++panel_;
    return {bias == nullptr ? nullptr : bias + first, column_ + first,
            std::min(kPanelRows, parts_[part_].n - first)};
  }

 private:
  int PanelsOf(size_t part) const {
    return (parts_[part].n + kPanelRows - 1) / kPanelRows;
  }
  absl::Span<const PackedMatrix> parts_;
  size_t part_ = 0;
  int panel_ = 0;
  int column_ = 0;
};

HWY_INLINE void StorePanel(const PanelVec (&v)[kVecs], const Panel& panel,
                           float* out) {
  const PanelFloats df;
  if (panel.count == kPanelRows) {
    for (int i = 0; i < kVecs; ++i) {
      PanelVec sum = v[i];
      if (panel.bias != nullptr) {
        sum = hn::Add(sum, hn::LoadU(df, panel.bias + i * kVecLanes));
      }
      hn::StoreU(sum, df, out + i * kVecLanes);
    }
    return;
  }
  HWY_ALIGN float lanes[kPanelRows];
  for (int i = 0; i < kVecs; ++i) hn::Store(v[i], df, lanes + i * kVecLanes);
  for (int i = 0; i < panel.count; ++i) {
    out[i] = panel.bias == nullptr ? lanes[i] : lanes[i] + panel.bias[i];
  }
}

void GemmPanels(ConstRows x, absl::Span<const PackedMatrix> parts, Rows out,
                int begin, int end) {
  const int chunk = RowsPerChunk(x.cols);
  for (int first_row = 0; first_row < x.rows; first_row += chunk) {
    const TileCutter tiles(std::min(chunk, x.rows - first_row));
    const int most = MaxPanels(tiles.MaxSize());
    PanelCursor cursor(parts, begin);
    for (int panel = begin; panel < end;) {
      const int panels = PanelsToTake(end - panel, most);
      const Bf16* weights[8];
      Panel places[8];
      for (int j = 0; j < panels; ++j) places[j] = cursor.Take(&weights[j]);
      int row = first_row;
      for (int t = 0; t < tiles.tiles; ++t) {
        const int size = tiles.SizeOf(t);
        const float* rows[kMaxTileRows];
        for (int m = 0; m < size; ++m) rows[m] = x.row(row + m);
        WithTile(size, panels, [&]<int kRows, int kPanels>() HWY_ATTR {
          Accumulators<kRows, kPanels> acc;
          Chains<kRows, kPanels>(rows, weights, x.cols, acc);
          for (int m = 0; m < kRows; ++m) {
            for (int j = 0; j < kPanels; ++j) {
              StorePanel(acc.v[m][j], places[j],
                         out.row(row + m) + places[j].column);
            }
          }
        });
        row += size;
      }
      panel += panels;
    }
  }
}

void RowParallelRows(ConstRows x, RowParallelMatrix w, SliceRange range,
                     FixedRows acc, int begin, int end) {
  constexpr int kChunk = 64;
  for (int first = 0; first < x.rows; first += kChunk) {
    const int rows = std::min(kChunk, x.rows - first);
    const float* from[kChunk];
    int64_t* to[kChunk];
    for (int m = 0; m < rows; ++m) {
      from[m] = x.row(first + m);
      to[m] = acc.row(first + m);
    }
    RowParallelPanels(from, rows, w, range, begin, end, to);
  }
}

void ReduceRow(const int64_t* const* sources, int num_sources, int cols,
               float* residual) {
  constexpr float kUnit = 1.0f / (int64_t{1} << kFixedPointBits);
  const int64_t* const first = sources[0];
  if (num_sources == 1) {
    for (int j = 0; j < cols; ++j) {
      residual[j] += static_cast<float>(first[j]) * kUnit;
    }
    return;
  }
  if (num_sources == 2) {
    const int64_t* const second = sources[1];
    for (int j = 0; j < cols; ++j) {
      residual[j] += static_cast<float>(first[j] + second[j]) * kUnit;
    }
    return;
  }
  for (int j = 0; j < cols; ++j) {
    int64_t sum = 0;
    for (int s = 0; s < num_sources; ++s) sum += sources[s][j];
    residual[j] += static_cast<float>(sum) * kUnit;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius {
namespace {

HWY_EXPORT(GemmPanels);
HWY_EXPORT(RowParallelRows);
HWY_EXPORT(ReduceRow);

// Tasks for `panels` panels: one a thread would wait for the slowest.
int NumTasks(const ThreadPool* pool, int panels) {
  const int threads = NumThreads(pool);
  return threads == 1 ? 1 : std::min(panels, 4 * threads);
}

}  // namespace

void Gemm(ConstRows x, absl::Span<const PackedMatrix> parts, Rows out,
          ThreadPool* pool) {
  int panels = 0, columns = 0;
  for (const PackedMatrix& part : parts) {
    CHECK(part.k == x.cols && part.k % 2 == 0);
    panels += (part.n + kPanelRows - 1) / kPanelRows;
    columns += part.n;
  }
  CHECK(out.rows == x.rows && out.cols == columns);
  if (panels == 0 || x.rows == 0) return;
  const int tasks = NumTasks(pool, panels);
  ParallelFor(pool, tasks, [&](int task) {
    const int begin = static_cast<int>(int64_t{panels} * task / tasks);
    const int end = static_cast<int>(int64_t{panels} * (task + 1) / tasks);
    HWY_DYNAMIC_DISPATCH(GemmPanels)(x, parts, out, begin, end);
  });
}

void RowParallelGemm(ConstRows x, RowParallelMatrix w, int k_begin,
                     int slice_rows, FixedRows acc, ThreadPool* pool) {
  CHECK(w.n % kPanelRows == 0 && w.k % kUnitRows == 0);
  CHECK(slice_rows > 0 && slice_rows % 2 == 0);
  CHECK(k_begin >= 0 && k_begin % slice_rows == 0 && x.cols % slice_rows == 0 &&
        k_begin + x.cols <= w.k);
  CHECK(acc.rows == x.rows && acc.cols == w.n);
  const int begin_slice = k_begin / slice_rows;
  const int end_slice = begin_slice + x.cols / slice_rows;
  const SliceRange range{begin_slice, end_slice, slice_rows / 2,
                         std::max(end_slice, 1), ptrdiff_t{w.n} * w.k};
  const int panels = w.n / kPanelRows;
  if (panels == 0 || x.rows == 0) return;
  const int tasks = NumTasks(pool, panels);
  ParallelFor(pool, tasks, [&](int task) {
    const int begin = static_cast<int>(int64_t{panels} * task / tasks);
    const int end = static_cast<int>(int64_t{panels} * (task + 1) / tasks);
    HWY_DYNAMIC_DISPATCH(RowParallelRows)(x, w, range, acc, begin, end);
  });
}

void ZeroFixedPoint(FixedRows acc, ThreadPool* pool) {
  const int tasks = std::min(acc.rows, NumThreads(pool));
  ParallelFor(pool, tasks, [&](int task) {
    const int end = static_cast<int>(int64_t{acc.rows} * (task + 1) / tasks);
    for (int i = static_cast<int>(int64_t{acc.rows} * task / tasks); i < end;
         ++i) {
      std::fill_n(acc.row(i), acc.cols, int64_t{0});
    }
  });
}

void ReduceFixedPoint(absl::Span<const ConstFixedRows> sources, Rows residual,
                      ThreadPool* pool) {
  CHECK(!sources.empty() && sources.size() <= kMaxSumSources);
  for (const ConstFixedRows& source : sources) {
    CHECK(source.rows == residual.rows && source.cols == residual.cols);
  }
  const int tasks = std::min(residual.rows, NumThreads(pool));
  ParallelFor(pool, tasks, [&](int task) {
    const int end =
        static_cast<int>(int64_t{residual.rows} * (task + 1) / tasks);
    for (int i = static_cast<int>(int64_t{residual.rows} * task / tasks);
         i < end; ++i) {
      const int64_t* rows[kMaxSumSources];
      for (size_t s = 0; s < sources.size(); ++s) rows[s] = sources[s].row(i);
      HWY_DYNAMIC_DISPATCH(ReduceRow)
      (rows, static_cast<int>(sources.size()), residual.cols, residual.row(i));
    }
  });
}

}  // namespace moebius
#endif  // HWY_ONCE
