#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "common/base/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wide_rows.h"
#include "kernels/cuda/wide_tiles.cuh"
#include "kernels/cuda/workspace.h"

namespace moebius::wide {
namespace {

constexpr int kTileRows = 16, kTileWords = 32;  // tiles.h

__host__ __device__ constexpr int DivideUp(int a, int b) {
  return (a + b - 1) / b;
}

// Of the warp: in its group of four, and which of the groups.
__device__ int WarpInGroup() { return threadIdx.x / 32 % 4; }
__device__ int WarpGroup() { return threadIdx.x / 128; }

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
template <int kRows>
__device__ void PutFloats(const float (&sums)[2][kRows / 2],
                          std::byte* results) {
  float* const to = reinterpret_cast<float*>(results) +
                    (WarpGroup() * 8 + WarpInGroup()) * kTileRows;
  ForSums<kRows>([&](int output, int row, int i) {
    float* const at = to + row * kFloatPitch + output;
    at[0] = sums[0][i];
    at[4 * kTileRows] = sums[1][i];
  });
}

// Rows to BF16, and zeros.
struct RoundArgs {
  View<const float, CudaFast> x;
  __nv_bfloat16* out = nullptr;
  PartialRows<CudaFast> zeros;
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
  if (row >= args.zeros.rows) return;
  float* const zeros = args.zeros.data + row * args.zeros.stride;
  for (int j = threadIdx.x * 4; j < args.zeros.cols; j += kRoundThreads * 4) {
    *reinterpret_cast<float4*>(zeros + j) = float4{};
  }
}

// Null without room.
__nv_bfloat16* RoundRows(const CudaFast& device,
                         const View<const float, CudaFast>& x,
                         const PartialRows<CudaFast>& zeros) {
  auto* const out = static_cast<__nv_bfloat16*>(device.workspace->Reserve(
      int64_t{x.rows} * x.cols * int64_t{sizeof(Bf16)}, device.failure));
  if (out == nullptr) return nullptr;
  LaunchEarly(device.stream, device.failure, "rounding of rows",
              {dim3(static_cast<unsigned>(x.rows)), kRoundThreads}, RoundKernel,
              RoundArgs{x, out, zeros});
  return out;
}

// Rows by all panels. Tiles that run at the same time share rows and panels: of
// kSharedRowBlocks blocks of rows all panels, before the next ones.
struct DenseArgs {
  const uint4* parts[kMaxParts] = {};
  int panel_ends[kMaxParts] = {};
  int num_parts = 0;
  TilePlaces places;
  Rows x;
  int num_rows = 0;
  float* out = nullptr;
  ptrdiff_t out_stride = 0;
};
constexpr int kSharedRowBlocks = 16;

template <int kRows>
class DenseTask {
 public:
  __device__ DenseTask(const DenseArgs& args, int*)
      : args_(args),
        num_panels_(args.panel_ends[args.num_parts - 1]),
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
      const int panel = min(tile.panel_block * kTilePanels + WarpGroup() * 8 +
                                m * 4 + WarpInGroup(),
                            num_panels_ - 1);
      int i = 0;
      while (panel >= args_.panel_ends[i]) ++i;
      const int in_part = panel - (i == 0 ? 0 : args_.panel_ends[i - 1]);
      panels[m] = args_.parts[i] + in_part * args_.places.panel;
    }
  }
  __device__ void Finish(const Tile&, const float (&sums)[2][kRows / 2],
                         std::byte* results) const {
    PutFloats<kRows>(sums, results);
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

struct ExpertArgs {
  ExpertSlot<CudaFast> slot;
  const int32_t* begins = nullptr;
  const int32_t* members = nullptr;
  const float* weights = nullptr;
  int num_groups = 0;
  TilePlaces places;
  Rows x;
  __nv_bfloat16* hidden = nullptr;
  PartialRows<CudaFast> sums;

  __device__ int intermediate() const { return slot.rows * slot.num_pieces; }
  // ExpertSlot::expert(e).data
  __device__ const uint4* Expert(int e) const {
    const ptrdiff_t owner = e / slot.experts_per_block;
    return reinterpret_cast<const uint4*>(
        slot.data + owner * slot.num_pieces * slot.piece_stride +
        e % slot.experts_per_block * (ptrdiff_t{3} * slot.rows * slot.hidden));
  }
  // Of gate, up or down in a piece.
  __device__ ptrdiff_t matrix_words() const {
    return ptrdiff_t{slot.rows} * slot.hidden / 8;
  }
};

// Groups of rows by panel_blocks blocks of panels each. A group's rows are cut
// into as few blocks as can be, of about the same size.
template <int kRows>
class GroupedTiles {
 public:
  // begins [num_groups + 1] is of the groups. All threads call it; `shared` has
  // room for two tables of kMaxGroups + 1.
  __device__ GroupedTiles(const int32_t* begins, int num_groups,
                          int panel_blocks, int* shared)
      : begins_(shared),
        ends_(shared + kMaxGroups + 1),
        num_groups_(num_groups),
        panel_blocks_(panel_blocks) {
    for (int i = threadIdx.x; i <= num_groups; i += kThreads) {
      begins_[i] = begins[i];
    }
    __syncthreads();
    if (threadIdx.x < 32) AddBlocks();
    __syncthreads();
  }

  __device__ Tile Find(int index) const {
    const int block = index / panel_blocks_;  // if panels were innermost
    if (num_groups_ == 0 || block >= ends_[num_groups_ - 1]) return {};
    int low = 0, high = num_groups_ - 1;  // the first group that ends behind it
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ends_[middle] > block) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const int before = low == 0 ? 0 : ends_[low - 1];
    const int blocks = ends_[low] - before;
    const int in_group = index - before * panel_blocks_;
    const int begin = begins_[low], rows = begins_[low + 1] - begin;
    const int block_rows = DivideUp(DivideUp(rows, blocks), 8) * 8;
    const int first = in_group % blocks * block_rows;
    return {low, in_group / blocks, begin + first,
            max(min(rows - first, block_rows), 0)};
  }

 private:
  // Where each group's blocks end, by one warp.
  __device__ void AddBlocks() {
    int before = 0;
    for (int first = 0; first < num_groups_; first += 32) {
      const int group = first + static_cast<int>(threadIdx.x);
      int end = group < num_groups_
                    ? DivideUp(begins_[group + 1] - begins_[group], kRows)
                    : 0;
      for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, end, distance);
        if (static_cast<int>(threadIdx.x) >= distance) end += other;
      }
      end += before;
      if (group < num_groups_) ends_[group] = end;
      before = __shfl_sync(0xffffffffu, end, 31);
    }
  }

  int* const begins_;
  int* const ends_;
  const int num_groups_;
  const int panel_blocks_;
};

// hidden = silu(x gate^T) * (x up^T) * weight. A tile is 8 units' gates and
// ups; a warp has both of a unit.
template <int kRows>
class GateUpTask {
 public:
  __device__ GateUpTask(const ExpertArgs& args, int* shared)
      : args_(args),
        num_units_(args.intermediate() / kTileRows),
        tiles_(args.begins, args.num_groups, DivideUp(num_units_, kTileUnits),
               shared) {}

  __device__ Tile Find(int index) const { return tiles_.Find(index); }
  __device__ Rows rows() const { return args_.x; }
  __device__ const TilePlaces& places() const { return args_.places; }
  __device__ void Panels(const Tile& tile, const uint4* (&panels)[2]) const {
    const int unit =
        min(tile.panel_block * kTileUnits + WarpGroup() * 4 + WarpInGroup(),
            num_units_ - 1);
    const int piece_units = args_.slot.rows / kTileRows;
    panels[0] = args_.Expert(tile.group) +
                unit / piece_units * (args_.slot.piece_stride / 8) +
                unit % piece_units * args_.places.panel;
    panels[1] = panels[0] + args_.matrix_words();
  }
  __device__ void Finish(const Tile& tile, const float (&sums)[2][kRows / 2],
                         std::byte* results) const {
    __nv_bfloat16* const to = reinterpret_cast<__nv_bfloat16*>(results) +
                              (WarpGroup() * 4 + WarpInGroup()) * kTileRows;
    const float* const weights = args_.weights + tile.first;
    ForSums<kRows>([&](int output, int row, int i) {
      const float weight = row < tile.count ? weights[row] : 0.0f;
      const float gate = sums[0][i];
      const float silu = __fdividef(gate, 1.0f + __expf(-gate));
      to[row * kHiddenPitch + output] =
          __float2bfloat16_rn(silu * sums[1][i] * weight);
    });
  }
  __device__ void Store(const Tile& tile, int row, std::byte* results) const {
    const int first = tile.panel_block * kTileUnits;
    const int units = min(num_units_ - first, kTileUnits);
    StoreBulk(
        args_.hidden + ptrdiff_t{tile.first + row} * args_.intermediate() +
            first * kTileRows,
        reinterpret_cast<const __nv_bfloat16*>(results) + row * kHiddenPitch,
        units * kTileRows * int{sizeof(__nv_bfloat16)});
  }

 private:
  static constexpr int kTileUnits = kTilePanels / 2;
  const ExpertArgs& args_;
  const int num_units_;
  const GroupedTiles<kRows> tiles_;
};

// sums += hidden down^T
template <int kRows>
class DownTask {
 public:
  __device__ DownTask(const ExpertArgs& args, int* shared)
      : args_(args),
        num_panels_(args.slot.hidden / kTileRows),
        tiles_(args.begins, args.num_groups, DivideUp(num_panels_, kTilePanels),
               shared) {}

  __device__ Tile Find(int index) const { return tiles_.Find(index); }
  __device__ Rows rows() const { return args_.x; }
  __device__ const TilePlaces& places() const { return args_.places; }
  __device__ void Panels(const Tile& tile, const uint4* (&panels)[2]) const {
    const uint4* const down =
        args_.Expert(tile.group) + 2 * args_.matrix_words();
    for (int m = 0; m < 2; ++m) {
      const int panel = tile.panel_block * kTilePanels + WarpGroup() * 8 +
                        m * 4 + WarpInGroup();
      panels[m] = down + min(panel, num_panels_ - 1) * args_.places.panel;
    }
  }
  __device__ void Finish(const Tile&, const float (&sums)[2][kRows / 2],
                         std::byte* results) const {
    PutFloats<kRows>(sums, results);
  }
  __device__ void Store(const Tile& tile, int row, std::byte* results) const {
    const int first = tile.panel_block * kTilePanels;
    const int panels = min(num_panels_ - first, kTilePanels);
    const ptrdiff_t to = args_.members[tile.first + row];
    AddBulk(args_.sums.data + to * args_.sums.stride + first * kTileRows,
            reinterpret_cast<const float*>(results) + row * kFloatPitch,
            panels * kTileRows * int{sizeof(float)});
  }

 private:
  const ExpertArgs& args_;
  const int num_panels_;
  const GroupedTiles<kRows> tiles_;
};

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

// Gate and up, then down, in tiles of at most kRows rows. args.x is BF16 rows
// of all.
template <int kRows>
void LaunchExperts(const CudaFast& device, ExpertArgs args,
                   const Routing<CudaFast>& routing) {
  const ExpertSlot<CudaFast>& slot = args.slot;
  const int intermediate = slot.rows * slot.num_pieces;
  const int hidden_tiles = slot.hidden / kTileRows;
  const int64_t most_blocks = routing.max_entries / kRows + routing.num_groups;
  args.places = {ptrdiff_t{hidden_tiles} * kTileWords, kTileWords, 0,
                 std::numeric_limits<int>::max(), hidden_tiles};
  Launch<GateUpTask, kRows>(
      device, "gate and up of experts",
      most_blocks * DivideUp(intermediate, kTileOutputs / 2), args);
  args.x = {args.hidden, intermediate, nullptr};
  args.places = {kTileWords, ptrdiff_t{hidden_tiles} * kTileWords,
                 slot.piece_stride / 8, slot.rows / kTileRows,
                 intermediate / kTileRows};
  Launch<DownTask, kRows>(device, "down of experts",
                          most_blocks * DivideUp(slot.hidden, kTileOutputs),
                          args);
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

void Multiply(const CudaFast& device, const char* what,
              const DenseProduct& product) {
  DenseArgs args;
  for (int i = 0; i < product.num_parts; ++i) {
    args.parts[i] = reinterpret_cast<const uint4*>(product.parts[i]);
    args.panel_ends[i] = product.panel_ends[i];
  }
  args.num_parts = product.num_parts;
  args.places = product.places;
  args.num_rows = product.x.rows;
  args.out = product.out.data;
  args.out_stride = product.out.stride;
  const __nv_bfloat16* const x = RoundRows(device, product.x, {});
  if (x == nullptr) return;
  args.x = {x, product.x.cols, nullptr};
  const int64_t panels = args.panel_ends[args.num_parts - 1];
  Launch<DenseTask, kMostRows>(device, what,
                               (panels + kTilePanels - 1) / kTilePanels *
                                   DivideUp(args.num_rows, kMostRows),
                               args);
}

void MultiplyExperts(const CudaFast& device, const ExpertProducts& products) {
  const Routing<CudaFast>& routing = *products.routing;
  const ExpertSlot<CudaFast>& slot = products.slot;
  CHECK(routing.num_groups <= kMaxGroups);
  const __nv_bfloat16* const x = RoundRows(
      device, products.x.RowRange(0, products.sums.rows), products.sums);
  if (x == nullptr) return;
  ExpertArgs args;
  args.slot = slot;
  args.begins = routing.begins.data();
  args.members = routing.rows.data();
  args.weights = routing.weights.data();
  args.num_groups = routing.num_groups;
  args.hidden = reinterpret_cast<__nv_bfloat16*>(products.hidden);
  args.sums = products.sums;
  args.x = {x, slot.hidden, args.members};
  if (routing.max_entries > 64 * routing.num_groups) {
    LaunchExperts<kMostRows>(device, args, routing);
  } else {
    LaunchExperts<64>(device, args, routing);
  }
}

}  // namespace moebius::wide
