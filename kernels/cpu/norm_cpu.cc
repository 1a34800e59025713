#include <algorithm>
#include <cmath>

#include "common/base/check.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm_cpu.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// In four interleaved sums of vectors; what is left over is added last.
HWY_INLINE float SumOfSquares(const float* x, int n) {
  const hn::CappedTag<float, 16> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto a = hn::LoadU(d, x + i);
    const auto b = hn::LoadU(d, x + i + lanes);
    const auto c = hn::LoadU(d, x + i + 2 * lanes);
    const auto e = hn::LoadU(d, x + i + 3 * lanes);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
    s2 = hn::MulAdd(c, c, s2);
    s3 = hn::MulAdd(e, e, s3);
  }
  for (; i + lanes <= n; i += lanes) {
    const auto a = hn::LoadU(d, x + i);
    s0 = hn::MulAdd(a, a, s0);
  }
  float sum =
      hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < n; ++i) sum += x[i] * x[i];
  return sum;
}

HWY_INLINE void NormalizeRow(const float* x, const float* weight, float eps,
                             int n, float* out) {
  const hn::CappedTag<float, 16> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const float mean = SumOfSquares(x, n) / static_cast<float>(n);
  const float scale = 1.0f / std::sqrt(mean + eps);
  const auto factor = hn::Set(d, scale);
  int i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto scaled = hn::Mul(hn::LoadU(d, x + i), factor);
    hn::StoreU(hn::Mul(scaled, hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void NormalizeRows(ConstRows x, const float* weight, float eps, Rows out,
                   int begin, int end) {
  for (int i = begin; i < end; ++i) {
    NormalizeRow(x.row(i), weight, eps, x.cols, out.row(i));
  }
}

HWY_INLINE float Dot(const float* x, const float* w, int n) {
  const hn::CappedTag<float, 16> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  auto sums = hn::Zero(d);
  int i = 0;
  for (; i + lanes <= n; i += lanes) {
    sums = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, w + i), sums);
  }
  float sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < n; ++i) sum += x[i] * w[i];
  return sum;
}

void DotRows(ConstRows x, const float* w, float* out, int begin, int end) {
  for (int i = begin; i < end; ++i) out[i] = Dot(x.row(i), w, x.cols);
}

void SquareRows(ConstRows heads, int head_dim, Rows squares, int begin,
                int end) {
  for (int i = begin; i < end; ++i) {
    for (int h = 0; h < squares.cols; ++h) {
      squares.row(i)[h] =
          SumOfSquares(heads.row(i) + ptrdiff_t{h} * head_dim, head_dim);
    }
  }
}

void ScaleRows(Rows heads, const Norm<Cpu>& norm, ConstRows squares, int begin,
               int end) {
  const hn::CappedTag<float, 16> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int i = begin; i < end; ++i) {
    float sum = 0.0f;
    for (int h = 0; h < squares.cols; ++h) sum += squares.row(i)[h];
    const float mean = sum / static_cast<float>(norm.size);
    const auto factor = hn::Set(d, 1.0f / std::sqrt(mean + norm.eps));
    float* const row = heads.row(i);
    // A head is a multiple of 16.
    for (int j = 0; j < heads.cols; j += lanes) {
      const auto scaled = hn::Mul(hn::LoadU(d, row + j), factor);
      hn::StoreU(hn::Mul(scaled, hn::LoadU(d, norm.weight + j)), d, row + j);
    }
  }
}

void RotateRows(Rows heads, const float* weight, float eps,
                const int32_t* positions, const Rotary<Cpu>& table, int begin,
                int end) {
  const hn::CappedTag<float, 8> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const int head_dim = table.head_dim;
  const int half = head_dim / 2;
  for (int i = begin; i < end; ++i) {
    const float* cos = table.cos_at(positions[i]);
    const float* sin = table.sin_at(positions[i]);
    for (int column = 0; column < heads.cols; column += head_dim) {
      float* head = heads.row(i) + column;
      if (weight != nullptr) NormalizeRow(head, weight, eps, head_dim, head);
      for (int j = 0; j < half; j += lanes) {
        const auto a = hn::LoadU(d, head + j);
        const auto b = hn::LoadU(d, head + half + j);
        const auto c = hn::LoadU(d, cos + j);
        const auto s = hn::LoadU(d, sin + j);
        hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, head + j);
        hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), d, head + half + j);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius {
namespace {

HWY_EXPORT(NormalizeRows);
HWY_EXPORT(DotRows);
HWY_EXPORT(SquareRows);
HWY_EXPORT(ScaleRows);
HWY_EXPORT(RotateRows);

// Calls fn(begin, end) for the rows, shared out among the threads.
template <typename Fn>
void ForRows(ThreadPool* pool, int rows, const Fn& fn) {
  const int tasks = std::min(rows, NumThreads(pool));
  ParallelFor(pool, tasks, [&](int task) {
    fn(static_cast<int>(int64_t{rows} * task / tasks),
       static_cast<int>(int64_t{rows} * (task + 1) / tasks));
  });
}

}  // namespace

void EmbedRows(PackedMatrix table, absl::Span<const int32_t> ids, Rows out,
               ThreadPool* pool) {
  CHECK(out.rows == static_cast<int>(ids.size()) && out.cols == table.k);
  for (const int32_t id : ids) CHECK(0 <= id && id < table.n);
  ForRows(pool, out.rows, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const Bf16* from =
          table.panel(ids[i] / kPanelRows) + 2 * (ids[i] % kPanelRows);
      float* to = out.row(i);
      for (int k = 0; k < table.k; k += 2, from += 2 * kPanelRows) {
        to[k] = ToFloat(from[0]);
        to[k + 1] = ToFloat(from[1]);
      }
    }
  });
}

void RmsNorm(ConstRows x, absl::Span<const float> weight, float eps, Rows out,
             ThreadPool* pool) {
  CHECK(static_cast<int>(weight.size()) == x.cols);
  CHECK(out.rows == x.rows && out.cols == x.cols);
  ForRows(pool, x.rows, [&](int begin, int end) {
    HWY_DYNAMIC_DISPATCH(NormalizeRows)
    (x, weight.data(), eps, out, begin, end);
  });
}

void RowDots(ConstRows x, const float* w, absl::Span<float> out,
             ThreadPool* pool) {
  CHECK(static_cast<int>(out.size()) == x.rows);
  ForRows(pool, x.rows, [&](int begin, int end) {
    HWY_DYNAMIC_DISPATCH(DotRows)(x, w, out.data(), begin, end);
  });
}

void HeadSquares(ConstRows heads, int head_dim, Rows squares,
                 ThreadPool* pool) {
  CHECK(heads.rows == squares.rows && heads.cols == squares.cols * head_dim);
  ForRows(pool, heads.rows, [&](int begin, int end) {
    HWY_DYNAMIC_DISPATCH(SquareRows)(heads, head_dim, squares, begin, end);
  });
}

void WholeRowNorm(Rows heads, const Norm<Cpu>& norm, ConstRows squares,
                  ThreadPool* pool) {
  CHECK(squares.rows == heads.rows && heads.cols % kPanelRows == 0);
  ForRows(pool, heads.rows, [&](int begin, int end) {
    HWY_DYNAMIC_DISPATCH(ScaleRows)(heads, norm, squares, begin, end);
  });
}

void HeadNormRotary(Rows heads, absl::Span<const float> weight, float eps,
                    absl::Span<const int32_t> positions,
                    const Rotary<Cpu>& table, ThreadPool* pool) {
  CHECK(heads.cols % table.head_dim == 0);
  CHECK(weight.empty() || static_cast<int>(weight.size()) == table.head_dim);
  CHECK(static_cast<int>(positions.size()) == heads.rows);
  for (const int32_t position : positions) {
    CHECK(0 <= position && position < table.max_positions);
  }
  ForRows(pool, heads.rows, [&](int begin, int end) {
    HWY_DYNAMIC_DISPATCH(RotateRows)
    (heads, weight.empty() ? nullptr : weight.data(), eps, positions.data(),
     table, begin, end);
  });
}

}  // namespace moebius
#endif  // HWY_ONCE
