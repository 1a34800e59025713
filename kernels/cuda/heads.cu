// Heads before attention: their norm, their rotation, and where keys and values
// are kept.
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/reduce.cuh"

namespace moebius {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;
constexpr int kMaxPairs = kMaxHeadDim / 2 / 32;  // of a lane

// Of queries, or of keys.
struct HeadNorm {
  const float* weight = nullptr;  // null: no norm
  float eps = 0.0f;
  int size = 0;
  // Sums of squares of all heads of the rows; null: each head has its own norm.
  const float* squares = nullptr;
  ptrdiff_t squares_stride = 0;
  int num_squares = 0;
};

struct HeadArguments {
  float* x = nullptr;  // rows of num_q + 2 * num_kv heads
  ptrdiff_t stride = 0;
  int num_q = 0;
  int num_kv = 0;
  int head_dim = 0;
  HeadNorm q_norm, k_norm;
  const float* cos = nullptr;
  const float* sin = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* chunk_of = nullptr;
  const GpuChunk* chunks = nullptr;
  const uint32_t* page_ids = nullptr;
  LayerPages pages;
};

__device__ void Store(float value, float* to) { *to = value; }
__device__ void Store(float value, __nv_bfloat16* to) {
  *to = __float2bfloat16_rn(value);
}

// Elements i and i + head_dim / 2 of a head, for a lane's i.
struct HeadPairs {
  float low[kMaxPairs];
  float high[kMaxPairs];
};

// Calls fn(j, i): pair number j of this lane begins at element i.
template <class Fn>
__device__ void ForPairs(int half, const Fn& fn) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < kMaxPairs; ++j) {
    if (const int i = lane + 32 * j; i < half) fn(j, i);
  }
}

__device__ float SumOfSquares(int half, const HeadPairs& pairs) {
  float squares = 0.0f;
  ForPairs(half, [&](int j, int) {
    squares = fmaf(pairs.low[j], pairs.low[j], squares);
    squares = fmaf(pairs.high[j], pairs.high[j], squares);
  });
  return SumOfWarp(squares);
}

// The weights of the norm of head number `head` of its kind.
__device__ HeadPairs NormWeights(const HeadNorm& norm, int head_dim, int head) {
  const int half = head_dim / 2;
  const float* const weight =
      norm.weight + (norm.squares == nullptr ? 0 : head * head_dim);
  HeadPairs weights;
  ForPairs(half, [&](int j, int i) {
    weights.low[j] = weight[i];
    weights.high[j] = weight[half + i];
  });
  return weights;
}

// Root-mean-square norm of a head of a row.
__device__ void NormPairs(const HeadNorm& norm, int half, int row,
                          const HeadPairs& weights, HeadPairs& pairs) {
  float squares = 0.0f;
  if (norm.squares == nullptr) {
    squares = SumOfSquares(half, pairs);
  } else {
    const float* const of_row = norm.squares + row * norm.squares_stride;
    for (int h = 0; h < norm.num_squares; ++h) squares += of_row[h];
  }
  const float mean = squares / static_cast<float>(norm.size);
  const float scale = 1.0f / sqrtf(mean + norm.eps);
  ForPairs(half, [&](int j, int) {
    pairs.low[j] = pairs.low[j] * scale * weights.low[j];
    pairs.high[j] = pairs.high[j] * scale * weights.high[j];
  });
}

// The cosines (low) and sines (high) of a position.
__device__ HeadPairs AnglesOf(const HeadArguments& args, int position) {
  const int half = args.head_dim / 2;
  const ptrdiff_t at = static_cast<ptrdiff_t>(position) * half;
  HeadPairs angles;
  ForPairs(half, [&](int j, int i) {
    angles.low[j] = args.cos[at + i];
    angles.high[j] = args.sin[at + i];
  });
  return angles;
}

__device__ void TurnPairs(int half, const HeadPairs& angles, HeadPairs& pairs) {
  ForPairs(half, [&](int j, int) {
    const float a = pairs.low[j], b = pairs.high[j];
    const float c = angles.low[j], s = angles.high[j];
    pairs.low[j] = fmaf(-b, s, a * c);
    pairs.high[j] = fmaf(a, s, b * c);
  });
}

// Where a token's K or V is kept.
template <class T>
__device__ T* PlaceInPage(const HeadArguments& args, int row, int position,
                          int head) {
  const bool value = head >= args.num_q + args.num_kv;
  const int kv_head = (head - args.num_q) % args.num_kv;
  const GpuChunk chunk = args.chunks[args.chunk_of[row]];
  const uint32_t page =
      args.page_ids[chunk.pages_at + position / kPageTokens * args.num_kv +
                    kv_head];
  return args.pages.Token<T>(page, position % kPageTokens, args.head_dim,
                             value);
}

// A warp a head of a row. T: the elements of pages.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    PrepareHead(const HeadArguments args) {
  const int row = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
  AllowNext();
  const bool there = head < args.num_q + 2 * args.num_kv;
  const int position = there ? args.positions[row] : -1;
  if (position < 0) return AwaitPrevious();  // padding
  const int half = args.head_dim / 2;
  const bool query = head < args.num_q;
  const bool value = head >= args.num_q + args.num_kv;
  const HeadNorm& norm = query ? args.q_norm : args.k_norm;
  const bool normed = !value && norm.weight != nullptr;
  // What is there already, before the heads are.
  HeadPairs weights, angles;
  if (normed) {
    weights =
        NormWeights(norm, args.head_dim, query ? head : head - args.num_q);
  }
  if (!value) angles = AnglesOf(args, position);
  T* const kept = query ? nullptr : PlaceInPage<T>(args, row, position, head);
  AwaitPrevious();
  float* const x = args.x + row * args.stride + head * args.head_dim;
  HeadPairs pairs;
  ForPairs(half, [&](int j, int i) {
    pairs.low[j] = x[i];
    pairs.high[j] = x[half + i];
  });
  if (!value) {
    if (normed) NormPairs(norm, half, row, weights, pairs);
    TurnPairs(half, angles, pairs);
    ForPairs(half, [&](int j, int i) {
      x[i] = pairs.low[j];
      x[half + i] = pairs.high[j];
    });
  }
  if (query) return;
  ForPairs(half, [&](int j, int i) {
    Store(pairs.low[j], kept + i);
    Store(pairs.high[j], kept + half + i);
  });
}

// A warp a head of a row.
__global__ void __launch_bounds__(32 * kWarps)
    SquareHead(const float* x, ptrdiff_t stride, int head_dim, int num_heads,
               float* squares, ptrdiff_t squares_stride) {
  const int row = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
  WaitForEarlier();
  if (head >= num_heads) return;
  const int half = head_dim / 2;
  const float* const of_head = x + row * stride + head * head_dim;
  HeadPairs pairs;
  ForPairs(half, [&](int j, int i) {
    pairs.low[j] = of_head[i];
    pairs.high[j] = of_head[half + i];
  });
  const float sum = SumOfSquares(half, pairs);
  if (threadIdx.x % 32 == 0) squares[row * squares_stride + head] = sum;
}

template <Numerics N>
HeadNorm NormOf(const Norm<Cuda<N>>& norm,
                const View<const float, Cuda<N>>& squares, int head_dim) {
  if (norm.size == 0) return {};
  if (norm.size <= head_dim) return {norm.weight, norm.eps, norm.size};
  return {norm.weight,  norm.eps,       norm.size,
          squares.data, squares.stride, squares.cols};
}

template <Numerics N>
HeadArguments ArgumentsOf(const HeadShape& shape,
                          const HeadPreparation<Cuda<N>>& how,
                          const RowSet<Cuda<N>>& rows, View<float, Cuda<N>> x) {
  HeadArguments args;
  args.x = x.data;
  args.stride = x.stride;
  args.num_q = shape.num_q;
  args.head_dim = shape.head_dim;
  args.q_norm = NormOf<N>(how.q_norm, how.q_squares, shape.head_dim);
  args.k_norm = NormOf<N>(how.k_norm, how.k_squares, shape.head_dim);
  args.cos = how.rotary.cos;
  args.sin = how.rotary.sin;
  args.positions = rows.positions;
  args.chunk_of = rows.chunk_of;
  args.chunks = rows.chunks;
  args.page_ids = rows.pages;
  return args;
}

template <Numerics N>
void Launch(const Cuda<N>& device, const HeadArguments& args, int num_rows,
            KvType type) {
  const int heads = args.num_q + 2 * args.num_kv;
  if (num_rows == 0 || heads == 0) return;
  if (args.head_dim > kMaxHeadDim) {
    return device.failure->Note(
        absl::UnimplementedError("heads of more than 256 dimensions"));
  }
  const dim3 grid(static_cast<unsigned>(num_rows),
                  static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  const auto kernel = type == KvType::kFloat32 ? PrepareHead<float>
                                               : PrepareHead<__nv_bfloat16>;
  LaunchEarly(device.stream, device.failure, "the heads of rows",
              {grid, 32 * kWarps}, kernel, args);
}

}  // namespace

template <Numerics N>
void PrepareHeads(const Cuda<N>& device, const HeadShape& shape,
                  Given<const HeadPreparation<Cuda<N>>&> how,
                  Given<const RowSet<Cuda<N>>&> rows,
                  Given<const KvLayer<Cuda<N>>&> kv, GpuRows<N> qkv) {
  HeadArguments args = ArgumentsOf(shape, how, rows, qkv);
  args.num_kv = shape.num_kv;
  args.pages = PagesOf(kv);
  Launch(device, args, rows.size, kv.pool.format.type);
}

template <Numerics N>
void PrepareQueries(const Cuda<N>& device, const HeadShape& shape,
                    Given<const HeadPreparation<Cuda<N>>&> how,
                    Given<const RowSet<Cuda<N>>&> rows, GpuRows<N> queries) {
  Launch(device, ArgumentsOf(shape, how, rows, queries), rows.size,
         KvType::kFloat32);
}

template <Numerics N>
void SquareHeads(const Cuda<N>& device, int head_dim, ConstGpuRows<N> heads,
                 GpuRows<N> squares) {
  if (heads.rows == 0 || squares.cols == 0) return;
  if (head_dim > kMaxHeadDim) {
    return device.failure->Note(
        absl::UnimplementedError("heads of more than 256 dimensions"));
  }
  const dim3 grid(static_cast<unsigned>(heads.rows),
                  static_cast<unsigned>((squares.cols + kWarps - 1) / kWarps));
  LaunchEarly(device.stream, device.failure, "the squares of heads",
              {grid, 32 * kWarps}, SquareHead, heads.data, heads.stride,
              head_dim, squares.cols, squares.data, squares.stride);
}

#define MOEBIUS_INSTANTIATE(N)                                                \
  template void PrepareHeads<N>(                                              \
      const Cuda<N>&, const HeadShape&, const HeadPreparation<Cuda<N>>&,      \
      const RowSet<Cuda<N>>&, const KvLayer<Cuda<N>>&, View<float, Cuda<N>>); \
  template void PrepareQueries<N>(                                            \
      const Cuda<N>&, const HeadShape&, const HeadPreparation<Cuda<N>>&,      \
      const RowSet<Cuda<N>>&, View<float, Cuda<N>>);                          \
  template void SquareHeads<N>(                                               \
      const Cuda<N>&, int, View<const float, Cuda<N>>, View<float, Cuda<N>>);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
