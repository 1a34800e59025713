// A block of threads of wide_rows.h: tiles of 256 outputs by at most 128 rows,
// one after the other.
//
// Two groups of four warps have 128 outputs each, a warp 16 of them twice. A
// stage is 64 steps of the reduced dimension: its rows are in a ring in shared
// memory, by copies that run kAhead stages ahead; its weights in registers, two
// stages in turn. While a tile's results go out by bulk copies, the next tile's
// first stages come.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_cores.cuh"
#include "kernels/cuda/warpgroups.cuh"
#include "kernels/cuda/wide_rows.h"

namespace moebius::wide {

inline constexpr int kTileRows = 16, kTileWords = 32;  // tiles.h

__host__ __device__ constexpr int DivideUp(int a, int b) {
  return (a + b - 1) / b;
}

inline constexpr int kThreads = 256;
inline constexpr int kTilePanels = 16;  // of 16 outputs
inline constexpr int kTileOutputs = 256;
inline constexpr int kMostRows = 128;
inline constexpr int kStageTiles = 4;  // of 16 steps
inline constexpr int kHalfTiles = 2;   // of a stage
inline constexpr int kStageSteps = 64;
inline constexpr int kStageBytes = kMostRows * kStageSteps * 2;
inline constexpr int kStages = 5;
// A stage is free when all warps have begun the second one after it.
inline constexpr int kAhead = kStages - 2;
// Of a row of results in shared memory: 16 bytes more than there are, so that
// the threads of a warp meet 32 banks.
inline constexpr int kFloatPitch = kTileOutputs + 4;
inline constexpr int kHiddenPitch = kTileOutputs / 2 + 8;
inline constexpr int kOutputPitch = kTileOutputs + 8;
inline constexpr int kResultBytes = kMostRows * kFloatPitch * 4;
inline constexpr int kSharedBytes = kStages * kStageBytes + kResultBytes +
                                    2 * (kMaxGroups + 1) * int{sizeof(int)};

// What is computed at once. No rows: nothing.
struct Tile {
  int group = 0;
  int panel_block = 0;
  int first = 0;  // of its rows
  int count = 0;
};

struct Rows {
  const __nv_bfloat16* data = nullptr;
  int cols = 0;
  const int32_t* indices = nullptr;  // null: row i is number i
};

__device__ inline uint4 LoadWeights(const uint4* at) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(at));
  return out;
}

// Begins to copy results from shared memory.
__device__ inline void StoreBulk(void* to, const void* from, int bytes) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
      "r"(at), "r"(bytes)
      : "memory");
}
__device__ inline void EndStores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until this thread's have been read out of shared memory, or are done.
__device__ inline void AwaitStoreReads() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ inline void AwaitStores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Where a thread's part of the work lies in the reduced dimension: `count`
// steps from `first` on, which is a multiple of a stage's.
struct Steps {
  int first = 0;
  int count = 0;
};

// Brings stages of a tile's rows into shared memory: of kThreads threads each
// has one piece of 16 bytes of every (kThreads / 8)th row.
template <int kRows, int kThreads>
class RowLoader {
 public:
  __device__ void Begin(const Rows& rows, const Tile& tile,
                        const Steps& steps) {
    const int row = threadIdx.x / kHalfLine, piece = threadIdx.x % kHalfLine;
    steps_left_ = steps.count - piece * 8;
    stages_left_ = (steps.count + kStageSteps - 1) / kStageSteps;
    rows_left_ = tile.count - row;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int in_tile = i * kRound < rows_left_ ? row + i * kRound : 0;
      const int entry = tile.first + in_tile;
      const int number = rows.indices == nullptr ? entry : rows.indices[entry];
      from_[i] = static_cast<uint32_t>(number) * (rows.cols / 8) +
                 steps.first / 8 + piece;
    }
  }
  // Begins to load the next stage.
  __device__ void Load(const Rows& rows, std::byte* stage) {
    if (stages_left_ > 0) {
      const int row = threadIdx.x / kHalfLine, piece = threadIdx.x % kHalfLine;
      stage += row * 128 + (piece ^ row % 8) * 16;
      const auto* const data = reinterpret_cast<const uint4*>(rows.data);
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        CopyAhead(stage + i * kRound * 128, data + from_[i],
                  i * kRound < rows_left_ && steps_left_ > 0);
        from_[i] += kStageSteps / 8;
      }
      steps_left_ -= kStageSteps;
      --stages_left_;
    }
    EndCopies();
  }

 private:
  static constexpr int kHalfLine = 8;                  // threads of a row
  static constexpr int kRound = kThreads / kHalfLine;  // rows
  static constexpr int kRounds = kRows / kRound;
  uint32_t from_[kRounds];  // in words of 16 bytes
  int rows_left_;           // from this thread's first row on
  int stages_left_;
  int steps_left_;  // from this thread's piece on
};

// Brings kTiles tiles at a time of each of a warp's panels into registers.
template <int kPanels, int kTiles>
class WeightLoader {
 public:
  // Panels from the first tile on.
  __device__ void Begin(const uint4* const (&panels)[kPanels], int num_tiles,
                        int piece_tiles) {
    for (int m = 0; m < kPanels; ++m) from_[m] = panels[m] + threadIdx.x % 32;
    tiles_left_ = num_tiles;
    piece_left_ = piece_tiles;
  }
  __device__ void Load(const TilePlaces& places, uint4 (&to)[kTiles][kPanels]) {
#pragma unroll
    for (int s = 0; s < kTiles; ++s) {
#pragma unroll
      for (int m = 0; m < kPanels; ++m) to[s][m] = LoadWeights(from_[m]);
      ptrdiff_t step = places.tile;
      if (--piece_left_ == 0) {
        piece_left_ = places.piece_tiles;
        step = places.piece - (places.piece_tiles - 1) * places.tile;
      }
      // The last tile again and again: rows are zeros there.
      if (--tiles_left_ <= 0) step = 0;
#pragma unroll
      for (int m = 0; m < kPanels; ++m) from_[m] += step;
    }
  }

 private:
  const uint4* from_[kPanels];
  int tiles_left_;
  int piece_left_;
};

// Of the warp: in its group of four, and which of the groups.
__device__ inline int WarpInGroup() { return threadIdx.x / 32 % 4; }
__device__ inline int WarpGroup() { return threadIdx.x / 128; }

// Calls put(output, row, m, i) for the place of the sums sums[m][i] in the
// thread's two products of 64 outputs; `output` is of those 16 of the warp.
template <int kRows, class Put>
__device__ void ForSums(const Put& put) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    put(lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2, i);
  }
}
// Runs tiles blockIdx.x, blockIdx.x + gridDim.x, ... of the task:
//   Tile Find(int index)        that tile; no rows beyond the last one
//   Rows rows()                 what tiles' rows are of
//   const TilePlaces& places()
//   Panels(tile, panels)        where the warp's two panels begin
//   Finish<kRows>(tile, sums, results)
//                               puts what the thread has of the results into
//                               shared memory
//   Store(tile, row, results)   begins to store the results of a row
template <class Task, int kRows>
class TileRunner {
 public:
  __device__ TileRunner(const Task& task, std::byte* shared)
      : task_(task),
        stages_(shared),
        results_(shared + kStages * kStageBytes) {}

  __device__ void Run() {
    Begin();
    while (tile_.count > 0) RunTile();
    AwaitStores();
  }

 private:
  // The next tile's first stages.
  __device__ void Begin() {
    tile_ = task_.Find(index_);
    index_ += static_cast<int>(gridDim.x);
    if (tile_.count == 0) return;
    rows_.Begin(task_.rows(), tile_, {0, task_.rows().cols});
    for (int i = 0; i < kAhead; ++i)
      rows_.Load(task_.rows(), stages_ + i * kStageBytes);
    const uint4* panels[2];
    task_.Panels(tile_, panels);
    weights_.Begin(panels, task_.places().num_tiles,
                   task_.places().piece_tiles);
    weights_.Load(task_.places(), tiles_[0]);
    weights_.Load(task_.places(), tiles_[1]);
    load_at_ = kAhead * kStageBytes;
    read_at_ = 0;
  }

  // Half a stage, whose weights are tiles_[kTurn].
  template <int kTurn>
  __device__ void RunHalf(uint64_t rows, int adds,
                          float (&sums)[2][kRows / 2]) {
    BeginProducts();
#pragma unroll
    for (int s = 0; s < kHalfTiles; ++s) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        MultiplyRowsBy<kRows>(sums[m], tiles_[kTurn][s][m],
                              rows + s * kNextSixteen, adds + s);
      }
    }
    EndProducts();
    AwaitProducts<1>();  // those of the half before
    weights_.Load(task_.places(), tiles_[(kTurn + 2) % 3]);
  }
  // Stage number t, whose weights are from tiles_[kTurn] on.
  template <int kTurn>
  __device__ void RunStage(int t, float (&sums)[2][kRows / 2]) {
    WaitForCopies<kAhead - 1>();
    ShowToProducts();
    __syncthreads();
    rows_.Load(task_.rows(), stages_ + load_at_);
    const uint64_t rows = SwizzledRows(stages_ + read_at_);
    RunHalf<kTurn>(rows, t, sums);
    RunHalf<(kTurn + 1) % 3>(rows + kHalfTiles * kNextSixteen, 1, sums);
    Pass(load_at_);
    Pass(read_at_);
  }
  static __device__ void Pass(int& at) {
    at += kStageBytes;
    if (at == kStages * kStageBytes) at = 0;
  }

  __device__ void RunTile() {
    float sums[2][kRows / 2];
    const int num_stages =
        (task_.places().num_tiles + kStageTiles - 1) / kStageTiles;
    for (int t = 0;; t += 3) {
      RunStage<0>(t, sums);
      if (t + 1 >= num_stages) break;
      RunStage<2>(t + 1, sums);
      if (t + 2 >= num_stages) break;
      RunStage<1>(t + 2, sums);
      if (t + 3 >= num_stages) break;
    }
    AwaitProducts<0>();
    AwaitStoreReads();
    __syncthreads();
    const Tile tile = tile_;
    Begin();
    task_.Finish(tile, sums, results_);
    ShowToProducts();
    __syncthreads();
    const int row = threadIdx.x;
    if (row < tile.count) task_.Store(tile, row, results_);
    EndStores();
  }

  const Task& task_;
  std::byte* const stages_;
  std::byte* const results_;
  int index_ = blockIdx.x;
  Tile tile_;
  RowLoader<kRows, kThreads> rows_;
  WeightLoader<2, kHalfTiles> weights_;
  uint4 tiles_[3][kHalfTiles][2];
  int load_at_ = 0;  // bytes
  int read_at_ = 0;
};

// Rows in BF16, in the device's workspace, in front of `more_bytes` for the
// caller: null without room.
struct RoundedRows {
  __nv_bfloat16* rows = nullptr;
  std::byte* more = nullptr;
};
RoundedRows RoundRows(const CudaFast& device,
                      const View<const float, CudaFast>& x, int64_t more_bytes);

template <template <int> class Task, int kRows, class Args>
__global__ void __launch_bounds__(kThreads, 1)
    WideKernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(1024) std::byte shared[];
  WaitForEarlier();
  const Task<kRows> task(
      args,
      reinterpret_cast<int*>(shared + kStages * kStageBytes + kResultBytes));
  TileRunner<Task<kRows>, kRows>(task, shared).Run();
}

template <template <int> class Task, int kRows, class Args>
void Launch(const CudaFast& device, const char* what, int64_t most_tiles,
            const Args& args) {
  const auto kernel = WideKernel<Task, kRows, Args>;
  device.failure->Note(CudaStatus(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSharedBytes),
      what));
  const int blocks = static_cast<int>(
      std::min<int64_t>(most_tiles, device.num_multiprocessors));
  LaunchEarly(device.stream, device.failure, what,
              {dim3(static_cast<unsigned>(blocks)), kThreads, kSharedBytes},
              kernel, args);
}

}  // namespace moebius::wide
