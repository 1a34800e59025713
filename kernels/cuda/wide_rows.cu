#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wide_rows.h"
#include "kernels/cuda/wide_tiles.cuh"
#include "kernels/cuda/workspace.h"

namespace moebius::wide {
namespace {

// Rows to BF16.
struct RoundArgs {
  View<const float, CudaFast> x;
  __nv_bfloat16* out = nullptr;
};

constexpr int kRoundThreads = 256;

// A block a row, a thread 8 columns at a time.
__global__ void __launch_bounds__(kRoundThreads)
    RoundKernel(const __grid_constant__ RoundArgs args) {
  WaitForEarlier();
  const int row = blockIdx.x;
  const float* const from = args.x.data + row * args.x.stride;
  __nv_bfloat16* const to = args.out + ptrdiff_t{row} * args.x.cols;
  for (int j = threadIdx.x * 8; j < args.x.cols; j += kRoundThreads * 8) {
    const float4 a = *reinterpret_cast<const float4*>(from + j);
    const float4 b = *reinterpret_cast<const float4*>(from + j + 4);
    *reinterpret_cast<uint4*>(to + j) = {PackBf16(a.x, a.y), PackBf16(a.z, a.w),
                                         PackBf16(b.x, b.y),
                                         PackBf16(b.z, b.w)};
  }
}

// Rows by all panels. Tiles that run at the same time share rows and panels: of
// kSharedRowBlocks blocks of rows all panels, before the next ones.
struct DenseArgs {
  const uint4* parts[kMaxParts] = {};
  const float* biases[kMaxParts] = {};  // null: none
  int panel_ends[kMaxParts] = {};
  int num_parts = 0;
  TilePlaces places;
  Rows x;
  int num_rows = 0;
  float* out = nullptr;
  ptrdiff_t out_stride = 0;

  __device__ int num_panels() const { return panel_ends[num_parts - 1]; }
  // Beyond the last one: the last one.
  __device__ const uint4* Panel(int panel) const {
    panel = min(panel, num_panels() - 1);
    int i = 0;
    while (panel >= panel_ends[i]) ++i;
    return parts[i] + (panel - (i == 0 ? 0 : panel_ends[i - 1])) * places.panel;
  }
  // Of a panel's outputs; null: none.
  __device__ const float* BiasOf(int panel) const {
    panel = min(panel, num_panels() - 1);
    int i = 0;
    while (panel >= panel_ends[i]) ++i;
    if (biases[i] == nullptr) return nullptr;
    return biases[i] + (panel - (i == 0 ? 0 : panel_ends[i - 1])) * kTileRows;
  }
};
constexpr int kSharedRowBlocks = 16;

template <int kRows>
class DenseTask {
 public:
  __device__ DenseTask(const DenseArgs& args, int*)
      : args_(args),
        num_panels_(args.num_panels()),
        panel_blocks_(DivideUp(num_panels_, kTilePanels)),
        row_blocks_(DivideUp(args.num_rows, kRows)) {}

  __device__ Tile Find(int index) const {
    const int sharing = kSharedRowBlocks * panel_blocks_;
    const int first_block = index / sharing * kSharedRowBlocks;
    if (first_block >= row_blocks_) return {};
    const int blocks = min(row_blocks_ - first_block, kSharedRowBlocks);
    const int rest = index % sharing;
    if (rest >= blocks * panel_blocks_) return {};
    const int first = (first_block + rest % blocks) * kRows;
    return {0, rest / blocks, first, min(args_.num_rows - first, kRows)};
  }
  __device__ Rows rows() const { return args_.x; }
  __device__ const TilePlaces& places() const { return args_.places; }
  __device__ void Panels(const Tile& tile, const uint4* (&panels)[2]) const {
    for (int m = 0; m < 2; ++m) {
      panels[m] = args_.Panel(tile.panel_block * kTilePanels + WarpGroup() * 8 +
                              m * 4 + WarpInGroup());
    }
  }
  __device__ void Finish(const Tile& tile, const float (&sums)[2][kRows / 2],
                         std::byte* results) const {
    float* const to = reinterpret_cast<float*>(results) +
                      (WarpGroup() * 8 + WarpInGroup()) * kTileRows;
    const int panel =
        tile.panel_block * kTilePanels + WarpGroup() * 8 + WarpInGroup();
    const float* const low = args_.BiasOf(panel);
    const float* const high = args_.BiasOf(panel + 4);
    ForSums<kRows>([&](int output, int row, int i) {
      float* const at = to + row * kFloatPitch + output;
      at[0] = low == nullptr ? sums[0][i] : sums[0][i] + low[output];
      at[4 * kTileRows] =
          high == nullptr ? sums[1][i] : sums[1][i] + high[output];
    });
  }
  __device__ void Store(const Tile& tile, int row, std::byte* results) const {
    const int first = tile.panel_block * kTilePanels;
    const int panels = min(num_panels_ - first, kTilePanels);
    StoreBulk(
        args_.out + (tile.first + row) * args_.out_stride + first * kTileRows,
        reinterpret_cast<const float*>(results) + row * kFloatPitch,
        panels * kTileRows * int{sizeof(float)});
  }

 private:
  const DenseArgs& args_;
  const int num_panels_;
  const int panel_blocks_;
  const int row_blocks_;
};

// A cluster's blocks have 64 outputs of at most kRows rows, and each some of
// the steps; then each adds up some of the rows.
inline constexpr int kClusterThreads = 128;
inline constexpr int kClusterPanels = 4;
inline constexpr int kClusterOutputs = 64;
inline constexpr int kClusterPitch = kClusterOutputs + 4;
inline constexpr int kMostBlocks = 8;  // of a cluster, anywhere

template <int kRows>
inline constexpr int kClusterStageBytes = kRows* kStageSteps * 2;
// Sums lie where stages were.
template <int kRows>
inline constexpr int kClusterSharedBytes =
    std::max(kStages* kClusterStageBytes<kRows>, kRows* kClusterPitch * 4);

template <int kRows>
class ClusterRunner {
 public:
  __device__ ClusterRunner(const DenseArgs& args, std::byte* shared)
      : args_(args),
        cluster_(cooperative_groups::this_cluster()),
        shared_(shared) {
    const int row_blocks = DivideUp(args.num_rows, kRows);
    const int tile = blockIdx.x / cluster_.num_blocks();
    tile_.panel_block = tile / row_blocks;
    tile_.first = tile % row_blocks * kRows;
    tile_.count = min(args.num_rows - tile_.first, kRows);
  }

  __device__ void Run() {
    float sums[kRows / 2];
    Multiply(sums);
    __syncthreads();
    float* const mine = reinterpret_cast<float*>(shared_);
    ForSums<kRows>([&](int output, int row, int i) {
      mine[row * kClusterPitch + WarpInGroup() * kTileRows + output] = sums[i];
    });
    cluster_.sync();
    AddUp(mine);
    cluster_.sync();  // until then others read from here
  }

 private:
  // Of the reduced dimension, in stages, those of this block.
  __device__ void Multiply(float (&sums)[kRows / 2]) {
    const int num_tiles = args_.places.num_tiles;
    const int all = DivideUp(num_tiles, kStageTiles);
    const int rank = cluster_.block_rank(), blocks = cluster_.num_blocks();
    const int first = all * rank / blocks;
    num_stages_ = all * (rank + 1) / blocks - first;
    const int first_tile = first * kStageTiles;
    const int tiles = min(num_stages_ * kStageTiles, num_tiles - first_tile);
    const uint4* const panels[1] = {
        args_.Panel(tile_.panel_block * kClusterPanels + WarpInGroup()) +
        first_tile * args_.places.tile};
    weights_.Begin(panels, tiles, args_.places.piece_tiles);
    weights_.Load(args_.places, tiles_[0]);
    weights_.Load(args_.places, tiles_[1]);
    // Weights are nobody's work.
    WaitForEarlier();
    rows_.Begin(args_.x, tile_, {first_tile * kTileRows, tiles * kTileRows});
    for (int i = 0; i < kAhead; ++i) {
      rows_.Load(args_.x, shared_ + i * kClusterStageBytes<kRows>);
    }
    for (int t = 0;; t += 3) {
      RunStage<0>(t, sums);
      if (t + 1 >= num_stages_) break;
      RunStage<1>(t + 1, sums);
      if (t + 2 >= num_stages_) break;
      RunStage<2>(t + 2, sums);
      if (t + 3 >= num_stages_) break;
    }
    AwaitProducts<0>();
  }
  // Stage number t, whose weights are tiles_[kTurn].
  template <int kTurn>
  __device__ void RunStage(int t, float (&sums)[kRows / 2]) {
    WaitForCopies<kAhead - 1>();
    ShowToProducts();
    __syncthreads();
    rows_.Load(args_.x, shared_ + load_at_);
    const uint64_t rows = SwizzledRows(shared_ + read_at_);
    BeginProducts();
#pragma unroll
    for (int s = 0; s < kStageTiles; ++s) {
      MultiplyRowsBy<kRows>(sums, tiles_[kTurn][s][0], rows + s * kNextSixteen,
                            t + s);
    }
    EndProducts();
    AwaitProducts<1>();  // those of the stage before
    weights_.Load(args_.places, tiles_[(kTurn + 2) % 3]);
    Pass(load_at_);
    Pass(read_at_);
  }
  static __device__ void Pass(int& at) {
    at += kClusterStageBytes<kRows>;
    if (at == kStages * kClusterStageBytes<kRows>) at = 0;
  }

  // Of every num_blocks()th row the sums of all blocks.
  __device__ void AddUp(float* mine) {
    constexpr int kRowThreads = kClusterOutputs / 4;
    constexpr int kRound = kClusterThreads / kRowThreads;
    const int blocks = cluster_.num_blocks();
    const int col = threadIdx.x % kRowThreads * 4;
    const int first_col = tile_.panel_block * kClusterOutputs;
    if (first_col + col >= args_.num_panels() * kTileRows) return;
    const float* bias = args_.BiasOf((first_col + col) / kTileRows);
    if (bias != nullptr) bias += col % kTileRows;
    for (int row = threadIdx.x / kRowThreads * blocks + cluster_.block_rank();
         row < tile_.count; row += kRound * blocks) {
      float4 sum{};
      if (bias != nullptr) sum = {bias[0], bias[1], bias[2], bias[3]};
      for (int block = 0; block < blocks; ++block) {
        const float4 part = *reinterpret_cast<const float4*>(
            cluster_.map_shared_rank(mine, block) + row * kClusterPitch + col);
        sum.x += part.x;
        sum.y += part.y;
        sum.z += part.z;
        sum.w += part.w;
      }
      *reinterpret_cast<float4*>(args_.out +
                                 (tile_.first + row) * args_.out_stride +
                                 first_col + col) = sum;
    }
  }

  const DenseArgs& args_;
  const cooperative_groups::cluster_group cluster_;
  std::byte* const shared_;
  Tile tile_;
  RowLoader<kRows, kClusterThreads> rows_;
  WeightLoader<1, kStageTiles> weights_;
  uint4 tiles_[3][kStageTiles][1];
  int num_stages_ = 0;
  int load_at_ = kAhead * kClusterStageBytes<kRows>;
  int read_at_ = 0;
};

template <int kRows>
__global__ void __launch_bounds__(kClusterThreads)
    ClusterKernel(const __grid_constant__ DenseArgs args) {
  extern __shared__ __align__(1024) std::byte shared[];
  ClusterRunner<kRows>(args, shared).Run();
}

template <int kRows>
void LaunchClustersOf(const CudaFast& device, const char* what,
                      const DenseArgs& args) {
  constexpr int kSharedBytes = kClusterSharedBytes<kRows>;
  const auto kernel = ClusterKernel<kRows>;
  device.failure->Note(CudaStatus(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kSharedBytes),
      what));
  const int tiles =
      DivideUp(args.panel_ends[args.num_parts - 1], kClusterPanels) *
      DivideUp(args.num_rows, kRows);
  const int stages = DivideUp(args.places.num_tiles, kStageTiles);
  // All at once, and of a few stages at least. A cluster needs its blocks' room
  // in one part of the GPU, so that not all room for large blocks can be used.
  const int most_blocks = device.num_multiprocessors * (kRows > 64 ? 3 : 4) / 2;
  int blocks = 1;
  while (blocks < kMostBlocks && 8 * blocks <= stages &&
         2 * blocks * tiles <= most_blocks) {
    blocks *= 2;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(tiles * blocks));
  config.blockDim = dim3(kClusterThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = device.stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  device.failure->Note(
      CudaStatus(cudaLaunchKernelEx(&config, kernel, args), what));
}

// As many tiles keep most of the multiprocessors busy by themselves.
bool HasManyTiles(const CudaFast& device, int rows, int panels) {
  return 3 * DivideUp(panels, kTilePanels) * DivideUp(rows, kMostRows) >
         device.num_multiprocessors;
}

// Few tiles of many steps: clusters of blocks share a tile's steps.
bool LaunchClusters(const CudaFast& device, const char* what,
                    const DenseArgs& args) {
  if (HasManyTiles(device, args.num_rows,
                   args.panel_ends[args.num_parts - 1])) {
    return false;
  }
  if (args.num_rows <= 32) {
    LaunchClustersOf<32>(device, what, args);
  } else if (args.num_rows <= 64) {
    LaunchClustersOf<64>(device, what, args);
  } else {
    LaunchClustersOf<128>(device, what, args);
  }
  return true;
}

}  // namespace

bool HasWarpgroups() {
  int gpu = 0, major = 0;
  cudaGetDevice(&gpu);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu);
  return major == 9;
}

bool CanMultiply(const CudaFast& device) {
  return device.workspace != nullptr && HasWarpgroups();
}

bool ShouldMultiply(const CudaFast& device, int rows, int panels) {
  constexpr int kFewest = 17, kFewestOfManyTiles = 64;
  return rows >= (HasManyTiles(device, rows, panels) ? kFewestOfManyTiles
                                                     : kFewest) &&
         CanMultiply(device);
}

RoundedRows RoundRows(const CudaFast& device,
                      const View<const float, CudaFast>& x,
                      int64_t more_bytes) {
  const int64_t bytes = (int64_t{x.rows} * x.cols * 2 + 255) / 256 * 256;
  auto* const room = static_cast<std::byte*>(
      device.workspace->Reserve(bytes + more_bytes, device.failure));
  if (room == nullptr) return {};
  auto* const rows = reinterpret_cast<__nv_bfloat16*>(room);
  LaunchEarly(device.stream, device.failure, "rounding of rows",
              {dim3(static_cast<unsigned>(x.rows)), kRoundThreads}, RoundKernel,
              RoundArgs{x, rows});
  return {rows, room + bytes};
}

void Multiply(const CudaFast& device, const char* what,
              const DenseProduct& product) {
  DenseArgs args;
  for (int i = 0; i < product.num_parts; ++i) {
    args.parts[i] = reinterpret_cast<const uint4*>(product.parts[i]);
    args.biases[i] = product.biases[i];
    args.panel_ends[i] = product.panel_ends[i];
  }
  args.num_parts = product.num_parts;
  args.places = product.places;
  args.num_rows = product.x.rows;
  args.out = product.out.data;
  args.out_stride = product.out.stride;
  const RoundedRows x = RoundRows(device, product.x, 0);
  if (x.rows == nullptr) return;
  args.x = {x.rows, product.x.cols, nullptr};
  if (LaunchClusters(device, what, args)) return;
  const int64_t panels = args.panel_ends[args.num_parts - 1];
  Launch<DenseTask, kMostRows>(device, what,
                               (panels + kTilePanels - 1) / kTilePanels *
                                   DivideUp(args.num_rows, kMostRows),
                               args);
}
}  // namespace moebius::wide
