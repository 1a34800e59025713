#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attend_wide.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/tensor_cores.cuh"
#include "kernels/cuda/warpgroups.cuh"

namespace moebius::wide {
namespace {

// Groups of four warps have 64 queries each, and share keys and values.
constexpr int kGroups = 2;
constexpr int kThreads = 128 * kGroups;
constexpr int kGroupQueries = 64;
constexpr int kQueries = kGroups * kGroupQueries;
constexpr int kDim = 128;
constexpr int kPieces = kDim / 8;  // of 16 bytes, of a token
constexpr int kTokens = 128;       // of a block of positions
constexpr int kPages = kTokens / kPageTokens;
// A matrix is of two halves of 64 dimensions, each of rows of 128 bytes
// (warpgroups.cuh).
constexpr int kHalfPieces = 8;
constexpr int kRowBytes = 128;
constexpr int kHalfBytes = kTokens * kRowBytes;
constexpr int kMatrixBytes = 2 * kHalfBytes;
constexpr int kQueryHalfBytes = kQueries * kRowBytes;
constexpr int kStages = 5;
// A stage is free when all warps have begun the second one after it.
constexpr int kAhead = kStages - 2;
constexpr int kSharedBytes = 2 * kQueryHalfBytes + kStages * kMatrixBytes;
constexpr int kSums = kDim / 2;       // of a thread
constexpr int kScores = kTokens / 2;  // of a thread

// Where a piece of a row is.
__device__ int PieceAt(int row, int piece, int half_bytes) {
  return piece / kHalfPieces * half_bytes + row * kRowBytes +
         (piece % kHalfPieces ^ row % 8) * 16;
}

// Brings keys and values into shared memory, in the order in which they are
// multiplied: keys of block 0, then of each block the next one's keys, and its
// values. A thread brings one piece of a token of every page.
class Loader {
 public:
  __device__ Loader(const AttendArguments& args, const QueryTile& tile,
                    std::byte* stages)
      : args_(args),
        tile_(tile),
        num_tokens_(tile.first_position + tile.num_rows),
        num_blocks_((num_tokens_ + kTokens - 1) / kTokens),
        stages_(stages + PieceAt(Token(), Piece(), kHalfBytes)) {
    FindPages();
  }

  __device__ int num_blocks() const { return num_blocks_; }

  // Begins to load the next matrix, if there is one.
  __device__ void LoadNext() {
    if (value_block_ < num_blocks_) {
      const bool keys = KeysAreNext();
      LoadMatrix(keys ? key_block_ : value_block_, keys);
      key_block_ += keys ? 1 : 0;
      value_block_ += keys ? 0 : 1;
      FindPages();
    }
    EndCopies();
  }

 private:
  static __device__ int Token() { return threadIdx.x / kPieces; }
  static __device__ int Piece() { return threadIdx.x % kPieces; }
  static_assert(kThreads == kPieces * kPageTokens);

  __device__ bool KeysAreNext() const {
    return key_block_ < num_blocks_ && key_block_ <= value_block_ + 1;
  }
  // Of the next matrix. They come while other work is done.
  __device__ void FindPages() {
    const int block = KeysAreNext() ? key_block_ : value_block_;
    const int last = (num_tokens_ - 1) / kPageTokens;
    const uint32_t* const ids = tile_.page_ids + tile_.kv_head;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      // A place to read from even where nothing is read.
      ids_[i] = ids[min(block * kPages + i, last) * args_.num_kv];
    }
  }
  __device__ void LoadMatrix(int block, bool keys) {
    std::byte* const to = stages_ + stage_ * kMatrixBytes;
    const int left = num_tokens_ - block * kTokens - Token();
    const std::byte* const from = args_.pages.base + args_.pages.k_offset +
                                  (keys ? 0 : args_.pages.matrix_bytes) +
                                  Token() * kDim * 2 + Piece() * 16;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      CopyAhead(to + i * kPageTokens * kRowBytes,
                from + ids_[i] * args_.pages.page_bytes,
                i * kPageTokens < left);
    }
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

  const AttendArguments& args_;
  const QueryTile& tile_;
  const int num_tokens_;
  const int num_blocks_;
  std::byte* const stages_;  // from this thread's first piece on
  uint32_t ids_[kPages];
  int key_block_ = 0;
  int value_block_ = 0;
  int stage_ = 0;
};

// Query number i of a tile is head i % group of row i / group. Of a warp's 16
// queries a thread has g and g + 8 (g = lane / 4), and of each 8 tokens or
// dimensions two, 2p and 2p + 1 (p = lane % 4).
class Worker {
 public:
  __device__ Worker(const AttendArguments& args, const QueryTile& tile,
                    std::byte* shared)
      : args_(args),
        tile_(tile),
        queries_(shared),
        stages_(shared + 2 * kQueryHalfBytes),
        first_query_(static_cast<int>(threadIdx.x) / 32 * kTileQueries) {
    for (int r = 0; r < 2; ++r) {
      const int row = Query(r) / args.group;
      position_[r] = row < tile.num_rows ? tile.first_position + row : -1;
    }
    first_position_ = tile.first_position + first_query_ / args.group;
  }

  __device__ void Run() {
    Loader loader(args_, tile_, stages_);
    const int num_blocks = loader.num_blocks();
    for (int i = 0; i < kAhead; ++i) loader.LoadNext();
    LoadQueries();
    float scores[kScores];
    NextMatrix(loader);
    MultiplyKeys(scores);
    AwaitProducts<0>();
    float factors[2];
    Soften(0, scores, factors);
#pragma unroll
    for (float& sum : sums_) sum = 0.0f;
    uint32_t p[kTokens / 16][4];
    // Of a block the values are multiplied while the next one's scores become
    // probabilities.
    for (int block = 1; block < num_blocks; ++block) {
      Round(scores, p);
      NextMatrix(loader);
      MultiplyKeys(scores);
      NextMatrix(loader);
      AddValues(p);
      AwaitProducts<1>();
      Soften(block, scores, factors);
      AwaitProducts<0>();
      Rescale(factors);
    }
    Round(scores, p);
    NextMatrix(loader);
    AddValues(p);
    AwaitProducts<0>();
    WriteResults();
  }

 private:
  __device__ int Query(int r) const {
    return first_query_ + static_cast<int>(threadIdx.x) % 32 / 4 + 8 * r;
  }
  // Columns of a row of the step.
  __device__ float* HeadOf(int query) const {
    const int head = tile_.kv_head * args_.group + query % args_.group;
    return args_.queries +
           (tile_.first_row + query / args_.group) * args_.stride + head * kDim;
  }

  // Into shared memory, scaled and rounded.
  __device__ void LoadQueries() const {
    const int count = tile_.num_rows * args_.group;
    for (int at = static_cast<int>(threadIdx.x); at < kQueries * kPieces;
         at += kThreads) {
      const int query = at / kPieces, piece = at % kPieces;
      float4 x{}, y{};
      if (query < count) {
        const auto* const from =
            reinterpret_cast<const float4*>(HeadOf(query) + piece * 8);
        x = from[0];
        y = from[1];
      }
      const float scale = args_.scale;
      *reinterpret_cast<uint4*>(queries_ +
                                PieceAt(query, piece, kQueryHalfBytes)) = {
          PackBf16(x.x * scale, x.y * scale),
          PackBf16(x.z * scale, x.w * scale),
          PackBf16(y.x * scale, y.y * scale),
          PackBf16(y.z * scale, y.w * scale)};
    }
  }

  // Waits for the next matrix, and lets the loader fill a stage that all have
  // read. What threads wrote to shared memory before is seen after.
  __device__ void NextMatrix(Loader& loader) {
    WaitForCopies<kAhead - 1>();
    ShowToProducts();
    __syncthreads();
    loader.LoadNext();
    matrix_ = stages_ + stage_ * kMatrixBytes;
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
  }

  __device__ void MultiplyKeys(float (&scores)[kScores]) const {
    const int group = static_cast<int>(threadIdx.x) / 128;
    BeginProducts();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t queries = SwizzledRows(queries_ + half * kQueryHalfBytes +
                                            group * kGroupQueries * kRowBytes);
      const uint64_t keys = SwizzledRows(matrix_ + half * kHalfBytes);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        MultiplyShared128(scores, queries + s * kNextSixteen,
                          keys + s * kNextSixteen, half + s);
      }
    }
    EndProducts();
  }
  static __device__ void Round(const float (&scores)[kScores],
                               uint32_t (&p)[kTokens / 16][4]) {
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      p[i / 8][i % 8 / 2] = PackBf16(scores[i], scores[i + 1]);
    }
  }
  __device__ void AddValues(const uint32_t (&p)[kTokens / 16][4]) {
    BeginProducts();
#pragma unroll
    for (int i = 0; i < kTokens / 16; ++i) {
      AddByCols128(sums_, p[i],
                   SwizzledCols(matrix_ + i * 16 * kRowBytes, kHalfBytes));
    }
    EndProducts();
  }

  // What queries do not see.
  __device__ void HideTokens(int first_token, float (&scores)[kScores]) const {
    const int first = first_token + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      if (first + i / 4 * 8 + i % 2 > position_[i / 2 % 2]) {
        scores[i] = -INFINITY;
      }
    }
  }

  // Scores become probabilities, relative to the maximum so far; `factors` are
  // those of what was summed before.
  __device__ void Soften(int block, float (&scores)[kScores],
                         float (&factors)[2]) {
    const int first_token = block * kTokens;
    if (first_token + kTokens - 1 > first_position_) {
      HideTokens(first_token, scores);
    }
    float seen[2] = {maximum_[0], maximum_[1]};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      seen[i / 2 % 2] = fmaxf(seen[i / 2 % 2], scores[i]);
    }
    float base[2], added[2] = {0.0f, 0.0f};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      seen[r] = fmaxf(seen[r], __shfl_xor_sync(0xffffffffu, seen[r], 1));
      seen[r] = fmaxf(seen[r], __shfl_xor_sync(0xffffffffu, seen[r], 2));
      base[r] = BaseOf(seen[r]);
      factors[r] = PowerOfTwo(maximum_[r] - base[r]);
      maximum_[r] = seen[r];
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] = PowerOfTwo(scores[i] - base[i / 2 % 2]);
      added[i / 2 % 2] += scores[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weights_[r] = fmaf(weights_[r], factors[r], added[r]);
    }
  }

  __device__ void Rescale(const float (&factors)[2]) {
    // Most of the time maxima stay, and all factors are 1.
    if (__all_sync(0xffffffffu, factors[0] == 1.0f && factors[1] == 1.0f)) {
      return;
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums_[i] *= factors[i / 2 % 2];
  }

  __device__ void WriteResults() const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float weight = weights_[r];
      weight += __shfl_xor_sync(0xffffffffu, weight, 1);
      weight += __shfl_xor_sync(0xffffffffu, weight, 2);
      if (position_[r] < 0) continue;
      float* const to =
          HeadOf(Query(r)) + static_cast<int>(threadIdx.x) % 4 * 2;
      const float factor = 1.0f / weight;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        *reinterpret_cast<float2*>(to + 8 * i) = {
            sums_[4 * i + 2 * r] * factor, sums_[4 * i + 2 * r + 1] * factor};
      }
    }
  }

  const AttendArguments& args_;
  const QueryTile& tile_;
  std::byte* const queries_;
  std::byte* const stages_;
  const int first_query_;  // of the warp
  int position_[2];        // of this thread's queries; -1: none
  int first_position_;     // of the warp's queries
  const std::byte* matrix_ = nullptr;
  int stage_ = 0;
  float sums_[kSums];
  float weights_[2] = {0.0f, 0.0f};  // of this thread's tokens
  float maximum_[2] = {-INFINITY, -INFINITY};
};

// [tiles of rows][KV heads] blocks. A tile's rows may be of several chunks,
// which come one after the other.
__global__ void __launch_bounds__(kThreads, 1)
    AttendKernel(const __grid_constant__ AttendArguments args) {
  extern __shared__ __align__(1024) std::byte shared[];
  WaitForEarlier();
  const int tile_rows = kQueries / args.group;
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
      Worker(args, tile, shared).Run();
    }
    row += count;
  }
}

}  // namespace

void Attend(const CudaFast& device, const AttendArguments& args) {
  const char* const what = "attention of many rows";
  device.failure->Note(CudaStatus(
      cudaFuncSetAttribute(AttendKernel,
                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSharedBytes),
      what));
  const int tile_rows = kQueries / args.group;
  LaunchEarly(
      device.stream, device.failure, what,
      {dim3(static_cast<unsigned>((args.num_rows + tile_rows - 1) / tile_rows),
            static_cast<unsigned>(args.num_kv)),
       kThreads, kSharedBytes},
      AttendKernel, args);
}

}  // namespace moebius::wide
