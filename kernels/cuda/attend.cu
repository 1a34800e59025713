#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>

#include "kernels/attend.h"
#include "kernels/cuda/attend_tile.cuh"
#include "kernels/cuda/operators.h"

namespace moebius {
namespace {

constexpr int kMaxGroup = 16;
constexpr int kMaxHeadDim = 256;

// Query number i of a tile is head i % group of row i / group.
template <class P>
class TileWorker {
 public:
  __device__ TileWorker(const AttendArguments& args, const QueryTile& tile,
                        std::byte* shared)
      : args_(args),
        tile_(tile),
        queries_(reinterpret_cast<__nv_bfloat16*>(shared)),
        stages_(queries_ + P::kQueryParts * P::kQueryMatrix),
        scores_(reinterpret_cast<float*>(stages_ +
                                         P::kStages * P::kParts * P::kMatrix)),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {
    for (int r = 0; r < 2; ++r) {
      const int row = Query(r) / args.group;
      position_[r] = row < tile.num_rows ? tile.first_position + row : -1;
    }
    const int last =
        min(first_query() + kTileQueries - 1, tile.num_rows * args.group - 1) /
        args.group;
    last_position_ = first_query() < tile.num_rows * args.group
                         ? tile.first_position + last
                         : -1;
  }

  // Goes through every `step`th split from `first_split` on.
  __device__ void Run(int first_split, int step) {
    BlockWalk walk(first_split, step);
    const int num_tokens = tile_.first_position + tile_.num_rows;
    if (walk.block * kBlockTokens >= num_tokens) return;
    KvLoader<P> loader(args_, tile_, walk, stages_);
    for (int i = 0; i < P::kStages - 1; ++i) loader.LoadNext();
    LoadQueries();
    sums_.Clear();
    WeightedSums<P::kWarpDims> total;
    if constexpr (kMerges) total.Clear();
    while (walk.block * kBlockTokens < num_tokens) {
      float scores[8][4];
      NextMatrix(loader);
      const bool seen = walk.block * kBlockTokens <= last_position_;
      if (seen) Scores(scores);
      NextStage();
      NextMatrix(loader);
      if (seen) {
        if constexpr (P::kShared) ReadScores(scores);
        AddBlock(scores, walk.block);
      }
      NextStage();
      const int split = walk.block / kSplitBlocks;
      const bool ends = walk.EndsSplit();
      walk.Next();
      if (!ends && walk.block * kBlockTokens < num_tokens) continue;
      if (IsPart()) {
        WritePartials(split);
        sums_.Clear();
      } else if constexpr (kMerges) {
        total.Merge(sums_);
        sums_.Clear();
      }
    }
    if (IsPart()) return;
    if constexpr (kMerges) {
      WriteResults(total);
    } else {
      WriteResults(sums_);
    }
  }

 private:
  // Without exactness a sum need not begin anew.
  static constexpr bool kMerges = P::kExact;

  // Whether somebody else merges the splits.
  __device__ bool IsPart() const {
    return P::kShared && args_.partials != nullptr;
  }

  __device__ int first_query() const {
    return P::kShared ? 0 : warp_ * kTileQueries;
  }
  __device__ int Query(int r) const {
    return first_query() + lane_ / 4 + 8 * r;
  }
  // Columns of a row of the step.
  __device__ float* HeadOf(int query) const {
    const int head = tile_.kv_head * args_.group + query % args_.group;
    return args_.queries +
           (tile_.first_row + query / args_.group) * args_.stride +
           head * args_.head_dim;
  }

  // Into shared memory, scaled and split.
  __device__ void LoadQueries() {
    constexpr int kPieces = P::kDim / 4;
    const int count = tile_.num_rows * args_.group;
    for (int at = static_cast<int>(threadIdx.x); at < P::kQueries * kPieces;
         at += P::kThreads) {
      const int query = at / kPieces, col = at % kPieces * 4;
      float4 x{};
      if (query < count && col < args_.head_dim) {
        x = *reinterpret_cast<const float4*>(HeadOf(query) + col);
      }
      x.x *= args_.scale;
      x.y *= args_.scale;
      x.z *= args_.scale;
      x.w *= args_.scale;
      const uint2 packed{PackBf16(x.x, x.y), PackBf16(x.z, x.w)};
      __nv_bfloat16* const to = queries_ + query * P::kStride + col;
      *reinterpret_cast<uint2*>(to) = packed;
      if constexpr (P::kQueryParts == 2) {
        *reinterpret_cast<uint2*>(to + P::kQueryMatrix) = {
            PackRest(x.x, x.y, packed.x), PackRest(x.z, x.w, packed.y)};
      }
    }
  }

  // Waits for the next matrix, and lets the loader fill the stage that was read
  // last. Whatever threads wrote to shared memory before is seen after.
  __device__ void NextMatrix(KvLoader<P>& loader) {
    if constexpr (P::kFloats) {
      __syncthreads();
      loader.LoadNext();
    } else {
      WaitForCopies<P::kStages - 2>();
    }
    __syncthreads();
    if constexpr (!P::kFloats) loader.LoadNext();
  }
  __device__ void NextStage() {
    stage_ = stage_ + 1 == P::kStages ? 0 : stage_ + 1;
  }
  __device__ const __nv_bfloat16* Matrix(int part) const {
    return stages_ + (stage_ * P::kParts + part) * P::kMatrix;
  }

  // scores[i] of tokens 8i .. 8i + 7 of the block; where warps share queries,
  // this warp's quarter of them, in shared memory.
  __device__ void Scores(float (&scores)[8][4]) {
    constexpr int kPairs = P::kShared ? 1 : 4;  // of 8 tokens
    const int first_pair = P::kShared ? warp_ : 0;
    float sums[2 * kPairs][4] = {};
#pragma unroll
    for (int k = 0; k < P::kDim; k += 16) {
      uint32_t query[P::kQueryParts][4];
#pragma unroll
      for (int part = 0; part < P::kQueryParts; ++part) {
        LoadMatrices(query[part],
                     queries_ + part * P::kQueryMatrix +
                         (first_query() + lane_ % 16) * P::kStride + k +
                         lane_ / 16 * 8);
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int at =
            ((first_pair + i) * 16 + lane_ / 16 * 8 + lane_ % 8) * P::kStride +
            k + lane_ / 8 % 2 * 8;
        uint32_t key[4];
        LoadMatrices(key, Matrix(0) + at);
#pragma unroll
        for (int part = 0; part < P::kQueryParts; ++part) {
          MultiplyTile(sums[2 * i], query[part], key[0], key[1]);
          MultiplyTile(sums[2 * i + 1], query[part], key[2], key[3]);
        }
        if constexpr (P::kParts == 2) {
          LoadMatrices(key, Matrix(1) + at);
          MultiplyTile(sums[2 * i], query[0], key[0], key[1]);
          MultiplyTile(sums[2 * i + 1], query[0], key[2], key[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      if constexpr (P::kShared) {
        float* const to = scores_ + lane_ / 4 * P::kScoreStride +
                          (2 * first_pair + i) * 8 + lane_ % 4 * 2;
        *reinterpret_cast<float2*>(to) = {sums[i][0], sums[i][1]};
        *reinterpret_cast<float2*>(to + 8 * P::kScoreStride) = {sums[i][2],
                                                                sums[i][3]};
      } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[i][c] = sums[i][c];
      }
    }
  }

  // All scores of the block, as if this warp had computed them.
  __device__ void ReadScores(float (&scores)[8][4]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float* const from =
          scores_ + lane_ / 4 * P::kScoreStride + i * 8 + lane_ % 4 * 2;
      const float2 low = *reinterpret_cast<const float2*>(from);
      const float2 high =
          *reinterpret_cast<const float2*>(from + 8 * P::kScoreStride);
      scores[i][0] = low.x;
      scores[i][1] = low.y;
      scores[i][2] = high.x;
      scores[i][3] = high.y;
    }
  }

  // Scores become probabilities, relative to the maximum so far, and values
  // are added by them.
  __device__ void AddBlock(float (&scores)[8][4], int block) {
    float seen[2] = {-INFINITY, -INFINITY};
    const int first_token = block * kBlockTokens + lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (first_token + 8 * i + c % 2 > position_[c / 2]) {
          scores[i][c] = -INFINITY;
        }
        seen[c / 2] = fmaxf(seen[c / 2], scores[i][c]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      seen[r] = fmaxf(seen[r], __shfl_xor_sync(0xffffffffu, seen[r], 1));
      seen[r] = fmaxf(seen[r], __shfl_xor_sync(0xffffffffu, seen[r], 2));
    }
    sums_.Raise(seen);
    const float base[2] = {BaseOf(sums_.maximum[0]), BaseOf(sums_.maximum[1])};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[i][c] = PowerOfTwo(scores[i][c] - base[c / 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) AddValues(scores[2 * i], scores[2 * i + 1], i);
  }

  // Tokens 16i .. 16i + 15 of the block, by their probabilities: the sums of
  // scores are in the order that the product's first operand wants.
  __device__ void AddValues(const float (&low)[4], const float (&high)[4],
                            int i) {
    constexpr uint32_t kOnes = 0x3f803f80u;
    uint32_t p[P::kQueryParts][4] = {
        {PackBf16(low[0], low[1]), PackBf16(low[2], low[3]),
         PackBf16(high[0], high[1]), PackBf16(high[2], high[3])}};
    if constexpr (P::kQueryParts == 2) {
      p[1][0] = PackRest(low[0], low[1], p[0][0]);
      p[1][1] = PackRest(low[2], low[3], p[0][1]);
      p[1][2] = PackRest(high[0], high[1], p[0][2]);
      p[1][3] = PackRest(high[2], high[3], p[0][3]);
    }
#pragma unroll
    for (int part = 0; part < P::kQueryParts; ++part) {
      MultiplyTile(sums_.weights, p[part], kOnes, kOnes);
    }
    const int first_col = P::kShared ? warp_ * P::kWarpDims : 0;
    const int at =
        (i * 16 + lane_ % 16) * P::kStride + first_col + lane_ / 16 * 8;
#pragma unroll
    for (int j = 0; j < P::kWarpDims / 16; ++j) {
      uint32_t value[4];
      LoadTransposed(value, Matrix(0) + at + j * 16);
#pragma unroll
      for (int part = 0; part < P::kQueryParts; ++part) {
        MultiplyTile(sums_.values[2 * j], p[part], value[0], value[1]);
        MultiplyTile(sums_.values[2 * j + 1], p[part], value[2], value[3]);
      }
      if constexpr (P::kParts == 2) {
        LoadTransposed(value, Matrix(1) + at + j * 16);
        MultiplyTile(sums_.values[2 * j], p[0], value[0], value[1]);
        MultiplyTile(sums_.values[2 * j + 1], p[0], value[2], value[3]);
      }
    }
  }

  // Calls fn(r, col, i, c): values[i][c] and [c + 1] are columns `col` and the
  // next of query r of this thread.
  template <class Fn>
  __device__ void ForColumns(const Fn& fn) const {
    const int first_col =
        (P::kShared ? warp_ * P::kWarpDims : 0) + lane_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (position_[r] < 0) continue;
#pragma unroll
      for (int i = 0; i < P::kWarpDims / 8; ++i) {
        const int col = first_col + 8 * i;
        if (col < args_.head_dim) fn(r, col, i, 2 * r);
      }
    }
  }

  __device__ void WriteResults(const WeightedSums<P::kWarpDims>& sums) const {
    ForColumns([&](int r, int col, int i, int c) {
      *reinterpret_cast<float2*>(HeadOf(Query(r)) + col) = {
          sums.values[i][c] / sums.weights[c],
          sums.values[i][c + 1] / sums.weights[c]};
    });
  }

  __device__ void WritePartials(int split) const {
    const int num_q = args_.num_kv * args_.group;
    const auto place = [&](int r) {
      const int head = tile_.kv_head * args_.group + Query(r) % args_.group;
      const int64_t at =
          (int64_t{tile_.chunk} * num_q + head) * args_.num_splits + split;
      return args_.partials + at * (args_.head_dim + 2);
    };
    ForColumns([&](int r, int col, int i, int c) {
      *reinterpret_cast<float2*>(place(r) + col) = {sums_.values[i][c],
                                                    sums_.values[i][c + 1]};
    });
    if (lane_ % 4 != 0 || (P::kShared && warp_ != 0)) return;
    for (int r = 0; r < 2; ++r) {
      if (position_[r] < 0) continue;
      *reinterpret_cast<float2*>(place(r) + args_.head_dim) = {
          sums_.weights[2 * r], sums_.maximum[r]};
    }
  }

  const AttendArguments& args_;
  const QueryTile& tile_;
  __nv_bfloat16* const queries_;  // [kQueryParts][kQueries][kStride]
  __nv_bfloat16* const stages_;   // [kStages][kParts][kBlockTokens][kStride]
  float* const scores_;           // [kTileQueries][kScoreStride], if shared
  const int warp_;
  const int lane_;
  int position_[2];    // of this thread's queries; -1: none
  int last_position_;  // of the warp's queries
  int stage_ = 0;
  WeightedSums<P::kWarpDims> sums_;
};

extern __shared__ __align__(16) std::byte shared_memory[];

// Chunks of one row: [splits side by side][KV heads][chunks] blocks.
template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kDim > 128 ? 1 : 2)
    AttendRow(const __grid_constant__ AttendArguments args) {
  const GpuChunk chunk = args.chunks[blockIdx.z];
  if (chunk.num_rows != 1) return;
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
__global__ void __launch_bounds__(P::kThreads, 1)
    AttendRows(const __grid_constant__ AttendArguments args) {
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

// A warp a query: [query heads][chunks of one row] blocks.
template <int kDim>
__global__ void __launch_bounds__(32)
    MergeSplits(const __grid_constant__ AttendArguments args) {
  const GpuChunk chunk = args.chunks[blockIdx.y];
  if (chunk.num_rows != 1) return;
  const int lane = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.x);
  const int size = args.head_dim + 2;
  const float* from = args.partials + (int64_t{blockIdx.y} * gridDim.x + head) *
                                          args.num_splits * size;
  const int splits = chunk.first_position / kSplitTokens + 1;
  float sums[kDim / 32] = {};
  float weights = 0.0f, maximum = -INFINITY;
#pragma unroll 4
  for (int split = 0; split < splits; ++split, from += size) {
    const MergeFactors factors(maximum, from[args.head_dim + 1]);
    maximum = factors.maximum;
    weights = factors.Sum(weights, from[args.head_dim]);
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const int col = lane + 32 * i;
      if (col < args.head_dim) sums[i] = factors.Sum(sums[i], from[col]);
    }
  }
  float* const to =
      args.queries + chunk.first_row * args.stride + head * args.head_dim;
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    if (const int col = lane + 32 * i; col < args.head_dim) {
      to[col] = sums[i] / weights;
    }
  }
}

struct AttendLaunch {
  CUstream_st* stream = nullptr;
  CudaFailure* failure = nullptr;
  int num_multiprocessors = 0;
  int num_chunks = 0;
  int max_chunk_rows = 0;
};

template <class P, class Kernel>
void LaunchKernel(const AttendLaunch& launch, dim3 grid,
                  const AttendArguments& args, Kernel* kernel) {
  launch.failure->Note(CudaStatus(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           P::kSharedBytes),
      "the shared memory of attention"));
  kernel<<<grid, P::kThreads, P::kSharedBytes, launch.stream>>>(args);
  launch.failure->Note(CudaStatus(cudaGetLastError(), "attention"));
}

// How many blocks of threads share the splits of a row and KV head: so many
// that all of them find room at once.
int BlocksBeside(const AttendLaunch& launch, int num_kv, int num_splits) {
  const int beside =
      2 * launch.num_multiprocessors / (launch.num_chunks * num_kv);
  return std::clamp(beside, 1, num_splits);
}

template <Numerics N, class T, int kDim>
void LaunchAttend(const AttendLaunch& launch, AttendArguments args,
                  int num_splits, AttentionScratch<N>* scratch,
                  const Cuda<N>& device) {
  const auto num_kv = static_cast<unsigned>(args.num_kv);
  if (launch.max_chunk_rows > 1) {
    using P = AttendPlan<N, T, kDim, false>;
    const int tile_rows = P::kQueries / args.group;
    const auto tiles =
        static_cast<unsigned>((args.num_rows + tile_rows - 1) / tile_rows);
    LaunchKernel<P>(launch, dim3(tiles, num_kv), args, AttendRows<P>);
    if (launch.num_chunks == 1) return;
  }
  using P = AttendPlan<N, T, kDim, true>;
  const int beside = BlocksBeside(launch, args.num_kv, num_splits);
  if (beside > 1 && scratch != nullptr) {
    const int64_t room = int64_t{launch.num_chunks} * args.num_kv * args.group *
                         num_splits * (args.head_dim + 2);
    if (scratch->room < room) {
      scratch->partials =
          Buffer<float, Cuda<N>>(device, "parts of attention", room);
      scratch->room = scratch->partials.data() == nullptr ? 0 : room;
    }
    args.partials = scratch->partials.data();
    args.num_splits = num_splits;
  }
  const auto chunks = static_cast<unsigned>(launch.num_chunks);
  const auto splits =
      static_cast<unsigned>(args.partials == nullptr ? 1 : beside);
  LaunchKernel<P>(launch, dim3(splits, num_kv, chunks), args, AttendRow<P>);
  if (args.partials == nullptr) return;
  const dim3 heads(num_kv * static_cast<unsigned>(args.group), chunks);
  MergeSplits<kDim><<<heads, 32, 0, launch.stream>>>(args);
  launch.failure->Note(CudaStatus(cudaGetLastError(), "the sum of attention"));
}

template <Numerics N, class T>
void AttendWith(const Cuda<N>& device, const RowSet<Cuda<N>>& rows,
                const AttendArguments& args) {
  const AttendLaunch launch{device.stream, device.failure,
                            device.num_multiprocessors, rows.num_chunks,
                            rows.max_chunk_rows};
  const int splits = rows.max_position / kSplitTokens + 1;
  if (args.head_dim <= 64) {
    LaunchAttend<N, T, 64>(launch, args, splits, rows.scratch, device);
  } else if (args.head_dim <= 128) {
    LaunchAttend<N, T, 128>(launch, args, splits, rows.scratch, device);
  } else {
    LaunchAttend<N, T, 256>(launch, args, splits, rows.scratch, device);
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
  if (kv.pool.format.type == KvType::kFloat32) {
    AttendWith<N, float>(device, rows, args);
  } else {
    AttendWith<N, __nv_bfloat16>(device, rows, args);
  }
}

#define MOEBIUS_INSTANTIATE(N)                                             \
  template void Attend<N>(const Cuda<N>&, const HeadShape&,                \
                          const RowSet<Cuda<N>>&, const KvLayer<Cuda<N>>&, \
                          View<float, Cuda<N>>);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
