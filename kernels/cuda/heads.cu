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

struct HeadArguments {
  float* x = nullptr;  // rows of num_q + 2 * num_kv heads
  ptrdiff_t stride = 0;
  int num_q = 0;
  int num_kv = 0;
  int head_dim = 0;
  const float* q_weight = nullptr;  // null: no norm
  const float* k_weight = nullptr;
  float q_eps = 0.0f;
  float k_eps = 0.0f;
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

// Root-mean-square norm of the head, unless `weight` is null; then the
// rotation.
__device__ void PreparePairs(const HeadArguments& args, const float* weight,
                             float eps, int position, HeadPairs& pairs) {
  const int half = args.head_dim / 2;
  if (weight != nullptr) {
    float squares = 0.0f;
    ForPairs(half, [&](int j, int) {
      squares = fmaf(pairs.low[j], pairs.low[j], squares);
      squares = fmaf(pairs.high[j], pairs.high[j], squares);
    });
    const float mean = SumOfWarp(squares) / static_cast<float>(args.head_dim);
    const float scale = 1.0f / sqrtf(mean + eps);
    ForPairs(half, [&](int j, int i) {
      pairs.low[j] = pairs.low[j] * scale * weight[i];
      pairs.high[j] = pairs.high[j] * scale * weight[half + i];
    });
  }
  const ptrdiff_t at = static_cast<ptrdiff_t>(position) * half;
  ForPairs(half, [&](int j, int i) {
    const float a = pairs.low[j], b = pairs.high[j];
    const float c = args.cos[at + i], s = args.sin[at + i];
    pairs.low[j] = fmaf(-b, s, a * c);
    pairs.high[j] = fmaf(a, s, b * c);
  });
}

// A warp a head of a row. T: the elements of pages.
template <class T>
__global__ void __launch_bounds__(32 * kWarps)
    PrepareHead(const HeadArguments args) {
  const int row = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y * kWarps + threadIdx.x / 32);
  WaitForEarlier();
  if (head >= args.num_q + 2 * args.num_kv) return;
  const int half = args.head_dim / 2;
  const int position = args.positions[row];
  if (position < 0) return;  // padding
  float* const x = args.x + row * args.stride + head * args.head_dim;
  HeadPairs pairs;
  ForPairs(half, [&](int j, int i) {
    pairs.low[j] = x[i];
    pairs.high[j] = x[half + i];
  });
  const bool query = head < args.num_q;
  const bool value = head >= args.num_q + args.num_kv;
  if (!value) {
    PreparePairs(args, query ? args.q_weight : args.k_weight,
                 query ? args.q_eps : args.k_eps, position, pairs);
    ForPairs(half, [&](int j, int i) {
      x[i] = pairs.low[j];
      x[half + i] = pairs.high[j];
    });
  }
  if (query) return;
  const int kv_head = (head - args.num_q) % args.num_kv;
  const GpuChunk chunk = args.chunks[args.chunk_of[row]];
  const uint32_t page =
      args.page_ids[chunk.pages_at + position / kPageTokens * args.num_kv +
                    kv_head];
  T* const to =
      args.pages.Token<T>(page, position % kPageTokens, args.head_dim, value);
  ForPairs(half, [&](int j, int i) {
    Store(pairs.low[j], to + i);
    Store(pairs.high[j], to + half + i);
  });
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
  args.q_weight = how.q_norm.size == 0 ? nullptr : how.q_norm.weight;
  args.k_weight = how.k_norm.size == 0 ? nullptr : how.k_norm.weight;
  args.q_eps = how.q_norm.eps;
  args.k_eps = how.k_norm.eps;
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

#define MOEBIUS_INSTANTIATE(N)                                                \
  template void PrepareHeads<N>(                                              \
      const Cuda<N>&, const HeadShape&, const HeadPreparation<Cuda<N>>&,      \
      const RowSet<Cuda<N>>&, const KvLayer<Cuda<N>>&, View<float, Cuda<N>>); \
  template void PrepareQueries<N>(                                            \
      const Cuda<N>&, const HeadShape&, const HeadPreparation<Cuda<N>>&,      \
      const RowSet<Cuda<N>>&, View<float, Cuda<N>>);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
