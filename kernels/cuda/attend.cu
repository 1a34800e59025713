#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>

#include "kernels/attend.h"
#include "kernels/cuda/attend_tile.cuh"
#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/attend_worker.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"

namespace moebius {
namespace {

constexpr int kMaxGroup = 16;
constexpr int kMaxHeadDim = 256;

extern __shared__ __align__(16) std::byte shared_memory[];

// Chunks of one row: [splits side by side][KV heads][chunks] blocks.
template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kDim > 128 ? 1 : 2)
    AttendRow(const __grid_constant__ AttendArguments args) {
  AllowNext();
  const GpuChunk chunk = args.chunks[blockIdx.z];
  if (chunk.num_rows != 1) return WaitForEarlier();
  const QueryTile tile{chunk.first_row,
                       1,
                       chunk.first_position,
                       args.page_ids + chunk.pages_at,
                       static_cast<int>(blockIdx.y),
                       static_cast<int>(blockIdx.z)};
  TileWorker<P>(args, tile, shared_memory)
      .Run(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
}

// Chunks of several rows: [tiles of rows][KV heads] blocks. A tile's rows may
// be of several chunks, which come one after the other.
template <class P>
__global__ void __launch_bounds__(P::kThreads,
                                  P::kDim > 128 ? 1 : 8 / P::kWarps)
    AttendRows(const __grid_constant__ AttendArguments args) {
  WaitForEarlier();
  const int tile_rows = P::kQueries / args.group;
  // The last rows of a chunk see the most positions, and begin first.
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * tile_rows;
  const int end = min(first + tile_rows, args.num_rows);
  for (int row = first; row < end;) {
    const int index = args.chunk_of[row];
    const GpuChunk chunk = args.chunks[index];
    const int count = min(end, chunk.first_row + chunk.num_rows) - row;
    if (count <= 0) return;  // rows that no chunk has
    if (chunk.num_rows > 1) {
      const QueryTile tile{row,
                           count,
                           chunk.first_position + row - chunk.first_row,
                           args.page_ids + chunk.pages_at,
                           static_cast<int>(blockIdx.y),
                           index};
      __syncthreads();
      TileWorker<P>(args, tile, shared_memory).Run(0, 1);
    }
    row += count;
  }
}

// Parts of a query, at most 32 of them, in their order. The factors of all are
// found at once, each by a lane, since they follow from maxima alone.
struct PartFactors {
  float first, second, weights;
  // Lane l has part l. `maximum` is of the parts before, and then of these too.
  __device__ PartFactors(const float* part, int head_dim, bool there,
                         float& maximum)
      : first(1.0f), second(0.0f), weights(0.0f) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const float own = there ? part[head_dim + 1] : -INFINITY;
    if (there) weights = part[head_dim];
    float highest = fmaxf(maximum, own);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float before = __shfl_up_sync(0xffffffffu, highest, step);
      if (lane >= step) highest = fmaxf(highest, before);
    }
    const float before = __shfl_up_sync(0xffffffffu, highest, 1);
    const MergeFactors factors(lane == 0 ? maximum : before, own);
    first = factors.first;
    second = factors.second;
    maximum = __shfl_sync(0xffffffffu, highest, 31);
  }
};

// A block of kDim threads a query, a thread a column: [query heads][chunks of
// one row] blocks. Adds what WeightedSums::Merge would.
template <int kDim, int kSplitTokens, bool kSplitIsPart>
__global__ void __launch_bounds__(kDim)
    MergeParts(const __grid_constant__ AttendArguments args) {
  AllowNext();
  const GpuChunk chunk = args.chunks[blockIdx.y];
  AwaitPrevious();
  if (chunk.num_rows != 1) return;
  const int col = static_cast<int>(threadIdx.x), lane = col % 32;
  const int size = args.head_dim + 2;
  const float* const parts =
      args.partials +
      (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * args.num_parts * size;
  const int splits = chunk.first_position / kSplitTokens + 1 -
                     FirstSeen(args, chunk.first_position) / kSplitTokens;
  const int count = kSplitIsPart ? splits : min(splits, args.num_parts);
  float sum = 0.0f, weights = 0.0f, maximum = -INFINITY;
  for (int begin = 0; begin < count; begin += 32) {
    const float* const from = parts + begin * size;
    float values[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const bool there = begin + i < count && col < args.head_dim;
      values[i] = there ? from[i * size + col] : 0.0f;
    }
    const PartFactors mine(from + lane * size, args.head_dim,
                           begin + lane < count, maximum);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (begin + i >= count) break;
      const float first = __shfl_sync(0xffffffffu, mine.first, i);
      const float second = __shfl_sync(0xffffffffu, mine.second, i);
      const float next = __shfl_sync(0xffffffffu, mine.weights, i);
      sum = fmaf(values[i], second, sum * first);
      weights = fmaf(next, second, weights * first);
    }
  }
  if (col >= args.head_dim) return;
  weights += SinkWeight(args, static_cast<int>(blockIdx.x), maximum);
  args.queries[chunk.first_row * args.stride +
               static_cast<int>(blockIdx.x) * args.head_dim + col] =
      sum / weights;
}

template <Numerics N>
struct AttendLaunch {
  const Cuda<N>& device;
  const RowSet<Cuda<N>>& rows;
  AttendArguments args;
};

template <class P, Numerics N, class Kernel>
void LaunchKernel(const AttendLaunch<N>& launch, dim3 grid, Kernel* kernel) {
  const Cuda<N>& device = launch.device;
  device.failure->Note(CudaStatus(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           P::kSharedBytes),
      "the shared memory of attention"));
  LaunchEarly(device.stream, device.failure, "attention",
              {grid, P::kThreads, P::kSharedBytes}, kernel, launch.args);
}

// How many blocks of threads share the splits of a row and KV head where there
// are enough: so many that all of them find room at once.
int MostBeside(int num_multiprocessors, int rows, int num_kv) {
  constexpr int kMost = 64;
  return std::clamp(2 * num_multiprocessors / (rows * num_kv), 1, kMost);
}

template <Numerics N>
int BlocksBeside(const AttendLaunch<N>& launch, int num_splits) {
  if (launch.rows.scratch == nullptr) return 1;
  return std::min(num_splits,
                  MostBeside(launch.device.num_multiprocessors,
                             launch.rows.num_chunks, launch.args.num_kv));
}

// Room for parts of every query of a row; null, and noted, without. As much as
// any number of rows takes, since graphs name it: where several blocks share a
// row and KV head, MostBeside() has found room for two of each at least.
template <Numerics N>
float* MakeRoom(const AttendLaunch<N>& launch) {
  const AttendArguments& args = launch.args;
  AttentionScratch<N>& scratch = *launch.rows.scratch;
  const int64_t sms = launch.device.num_multiprocessors;
  const int64_t parts = N == Numerics::kExact ? sms * args.num_parts : 2 * sms;
  const int64_t room = parts * args.group * (args.head_dim + 2);
  if (scratch.room < room) {
    scratch.partials =
        Buffer<float, Cuda<N>>(launch.device, "parts of attention", room);
    scratch.room = scratch.partials.data() == nullptr ? 0 : room;
  }
  return scratch.partials.data();
}

// Chunks of one row.
template <Numerics N, class T, int kDim>
void LaunchRow(AttendLaunch<N> launch) {
  using P = AttendPlan<N, T, kDim, true>;
  constexpr int kSplitTokens = P::kSplitBlocks * kBlockTokens;
  AttendArguments& args = launch.args;
  const auto num_kv = static_cast<unsigned>(args.num_kv);
  const auto chunks = static_cast<unsigned>(launch.rows.num_chunks);
  const int splits = launch.rows.max_position / kSplitTokens + 1;
  const int beside = BlocksBeside(launch, splits);
  if (beside > 1) {
    args.num_parts = P::kExact ? splits : beside;
    args.partials = MakeRoom(launch);
    if (args.partials == nullptr) return;
  }
  LaunchKernel<P>(launch, dim3(static_cast<unsigned>(beside), num_kv, chunks),
                  AttendRow<P>);
  if (beside == 1) return;
  LaunchEarly(launch.device.stream, launch.device.failure,
              "the sum of attention",
              {dim3(num_kv * static_cast<unsigned>(args.group), chunks), kDim},
              MergeParts<kDim, kSplitTokens, P::kExact>, args);
}

// Whether Hopper's own kernel goes through chunks of several rows.
template <Numerics N, class T>
bool GoesWide(const AttendLaunch<N>& launch) {
  constexpr int kFewestRows = 16;
  return N == Numerics::kFast && std::is_same_v<T, __nv_bfloat16> &&
         launch.args.head_dim == 128 && launch.args.window == 0 &&
         launch.args.sinks == nullptr &&
         launch.rows.max_chunk_rows >= kFewestRows && wide::HasWarpgroups();
}

template <Numerics N, class T, int kDim>
void LaunchRows(const AttendLaunch<N>& launch) {
  if constexpr (N == Numerics::kFast && kDim == 128) {
    if (GoesWide<N, T>(launch)) {
      return wide::Attend(launch.device, launch.args);
    }
  }
  using P = AttendPlan<N, T, kDim, false>;
  const int tile_rows = P::kQueries / launch.args.group;
  const int tiles = (launch.rows.size + tile_rows - 1) / tile_rows;
  LaunchKernel<P>(launch,
                  dim3(static_cast<unsigned>(tiles),
                       static_cast<unsigned>(launch.args.num_kv)),
                  AttendRows<P>);
}

template <Numerics N, class T, int kDim>
void LaunchAttend(const AttendLaunch<N>& launch) {
  if (launch.rows.max_chunk_rows > 1) {
    LaunchRows<N, T, kDim>(launch);
    if (launch.rows.num_chunks == 1) return;
  }
  LaunchRow<N, T, kDim>(launch);
}

template <Numerics N, class T>
void AttendWith(const AttendLaunch<N>& launch) {
  if (launch.args.head_dim <= 64) {
    LaunchAttend<N, T, 64>(launch);
  } else if (launch.args.head_dim <= 128) {
    LaunchAttend<N, T, 128>(launch);
  } else {
    LaunchAttend<N, T, 256>(launch);
  }
}

}  // namespace

template <Numerics N>
void Attend(const Cuda<N>& device, const HeadShape& shape,
            Given<const RowSet<Cuda<N>>&> rows,
            Given<const KvLayer<Cuda<N>>&> kv, GpuRows<N> queries) {
  if (rows.size == 0 || rows.num_chunks == 0 || shape.num_q == 0) return;
  if (shape.head_dim > kMaxHeadDim || shape.num_q > kMaxGroup * shape.num_kv) {
    return device.failure->Note(absl::UnimplementedError(
        "attention of more than 256 dimensions, or of more than 16 query heads "
        "a KV head"));
  }
  AttendArguments args;
  args.queries = queries.data;
  args.stride = queries.stride;
  args.pages = PagesOf(kv);
  args.page_ids = rows.pages;
  args.chunk_of = rows.chunk_of;
  args.chunks = rows.chunks;
  args.num_rows = rows.size;
  args.num_kv = shape.num_kv;
  args.group = shape.num_q / shape.num_kv;
  args.head_dim = shape.head_dim;
  args.scale =
      static_cast<float>(1.0 / (std::log(2.0) * std::sqrt(shape.head_dim)));
  args.window = kv.window;
  args.sinks = kv.sinks;
  const AttendLaunch<N> launch{device, rows, args};
  if (kv.pool.format.type == KvType::kFloat32) {
    AttendWith<N, float>(launch);
  } else {
    AttendWith<N, __nv_bfloat16>(launch);
  }
}

template <Numerics N>
int PositionsAttendedAlike(const Cuda<N>& device, int rows, int num_kv) {
  if (rows < 1 || num_kv < 1) return 1;
  const int splits = MostBeside(device.num_multiprocessors, rows, num_kv);
  return (splits - 1) * SplitBlocks<N>() * kBlockTokens + 1;
}

#define MOEBIUS_INSTANTIATE(N)                                             \
  template int PositionsAttendedAlike<N>(const Cuda<N>&, int, int);        \
  template void Attend<N>(const Cuda<N>&, const HeadShape&,                \
                          const RowSet<Cuda<N>>&, const KvLayer<Cuda<N>>&, \
                          View<float, Cuda<N>>);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
