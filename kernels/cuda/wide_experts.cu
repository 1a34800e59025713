// The experts of wide_rows.h: gate and up into rows of the intermediate
// dimension, down into an output for each entry of a group, and then each row's
// outputs are added, in one order. Sums by atomic additions would take as long
// as the products.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <limits>

#include "common/base/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/wide_rows.h"
#include "kernels/cuda/wide_tiles.cuh"

namespace moebius::wide {
namespace {

struct ExpertArgs {
  ExpertSlot<CudaFast> slot;
  const int32_t* begins = nullptr;
  const int32_t* members = nullptr;
  const float* weights = nullptr;
  int num_groups = 0;
  TilePlaces places;
  Rows x;
  __nv_bfloat16* hidden = nullptr;   // [entries][intermediate]
  __nv_bfloat16* outputs = nullptr;  // [entries][hidden size]
  // The entries of each row, as lists: the first one and the next, or -1.
  int32_t* first_of_row = nullptr;  // [rows]
  int32_t* next = nullptr;          // [entries]
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

// As Activate (products.cuh).
__device__ float ActivateFast(const GatedActivation& activation, float gate,
                              float up) {
  if (activation.limit <= 0.0f) {
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
  }
  const float g = fminf(gate, activation.limit);
  const float u = fminf(fmaxf(up, -activation.limit), activation.limit);
  return __fdividef(g, 1.0f + __expf(-activation.alpha * g)) * (u + 1.0f);
}

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
    const int unit =
        tile.panel_block * kTileUnits + WarpGroup() * 4 + WarpInGroup();
    const ExpertBias<CudaFast>& bias = args_.slot.bias;
    const ptrdiff_t bias_at =
        tile.group * bias.rows_stride + ptrdiff_t{unit} * kTileRows;
    const bool biased = bias.gate != nullptr && unit < num_units_;
    ForSums<kRows>([&](int output, int row, int i) {
      const float weight = row < tile.count ? weights[row] : 0.0f;
      float gate = sums[0][i], up = sums[1][i];
      if (biased) {
        gate += bias.gate[bias_at + output];
        up += bias.up[bias_at + output];
      }
      to[row * kHiddenPitch + output] = __float2bfloat16_rn(
          ActivateFast(args_.slot.activation, gate, up) * weight);
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

// outputs = hidden down^T
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
  __device__ void Finish(const Tile& tile, const float (&sums)[2][kRows / 2],
                         std::byte* results) const {
    const int first = WarpGroup() * 8 + WarpInGroup();
    __nv_bfloat16* const to =
        reinterpret_cast<__nv_bfloat16*>(results) + first * kTileRows;
    const int panel = tile.panel_block * kTilePanels + first;
    const ExpertBias<CudaFast>& biases = args_.slot.bias;
    const float* const bias =
        biases.down == nullptr
            ? nullptr
            : biases.down + tile.group * biases.hidden_stride;
    const float* const weights = args_.weights + tile.first;
    ForSums<kRows>([&](int output, int row, int i) {
      __nv_bfloat16* const at = to + row * kOutputPitch + output;
      float low = sums[0][i], high = sums[1][i];
      if (bias != nullptr && row < tile.count) {
        const float* const of = bias + panel * kTileRows + output;
        if (panel < num_panels_) low += of[0] * weights[row];
        if (panel + 4 < num_panels_) high += of[4 * kTileRows] * weights[row];
      }
      at[0] = __float2bfloat16_rn(low);
      at[4 * kTileRows] = __float2bfloat16_rn(high);
    });
  }
  __device__ void Store(const Tile& tile, int row, std::byte* results) const {
    const int first = tile.panel_block * kTilePanels;
    const int panels = min(num_panels_ - first, kTilePanels);
    StoreBulk(
        args_.outputs + ptrdiff_t{tile.first + row} * args_.slot.hidden +
            first * kTileRows,
        reinterpret_cast<const __nv_bfloat16*>(results) + row * kOutputPitch,
        panels * kTileRows * int{sizeof(__nv_bfloat16)});
  }

 private:
  const ExpertArgs& args_;
  const int num_panels_;
  const GroupedTiles<kRows> tiles_;
};

// The lists of rows' entries.
constexpr int kListThreads = 256;
__global__ void __launch_bounds__(kListThreads)
    EmptyLists(const __grid_constant__ ExpertArgs args) {
  WaitForEarlier();
  const int row = blockIdx.x * kListThreads + threadIdx.x;
  if (row < args.sums.rows) args.first_of_row[row] = -1;
}
__global__ void __launch_bounds__(kListThreads)
    MakeLists(const __grid_constant__ ExpertArgs args) {
  WaitForEarlier();
  const int entry = blockIdx.x * kListThreads + threadIdx.x;
  if (entry >= args.begins[args.num_groups]) return;
  args.next[entry] = atomicExch(&args.first_of_row[args.members[entry]], entry);
}

// Entries of a row from `first` on, at most 32, the lowest first: in the list
// they are in any order. Lane i has number i. Returns how many, and in `first`
// where the list goes on; all threads of a warp call it.
__device__ int TakeEntries(const int32_t* next, int& first, int& entry) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  int count = 0, unsorted = 0;
  for (; first >= 0 && count < 32; ++count) {
    if (lane == count) unsorted = first;
    first = next[first];
  }
  int place = 0;
  for (int i = 0; i < count; ++i) {
    if (__shfl_sync(kAll, unsorted, i) < unsorted) ++place;
  }
  for (int i = 0; i < count; ++i) {
    const int to = __shfl_sync(kAll, place, i);
    const int that = __shfl_sync(kAll, unsorted, i);
    if (lane == to) entry = that;
  }
  return count;
}

// sums = of each row the sum of its entries' outputs. A block a row, a thread 8
// columns at a time.
__global__ void __launch_bounds__(kListThreads)
    SumOutputs(const __grid_constant__ ExpertArgs args) {
  WaitForEarlier();
  const int row = blockIdx.x;
  float* const sums = args.sums.data + row * args.sums.stride;
  const int cols = args.slot.hidden;
  for (int begin = 0; begin < cols; begin += kListThreads * 8) {
    const int col = begin + static_cast<int>(threadIdx.x) * 8;
    const int from_col = min(col, cols - 8);
    float sum[8] = {};
    int first = args.first_of_row[row];
    while (first >= 0) {
      int mine = 0;
      const int count = TakeEntries(args.next, first, mine);
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const ptrdiff_t entry = __shfl_sync(0xffffffffu, mine, i);
        const uint4 part = *reinterpret_cast<const uint4*>(
            args.outputs + entry * cols + from_col);
        const uint32_t pairs[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[2 * j] += FirstOf(pairs[j]);
          sum[2 * j + 1] += SecondOf(pairs[j]);
        }
      }
    }
    if (col >= cols) continue;
    auto* const to = reinterpret_cast<float4*>(sums + col);
    to[0] = {sum[0], sum[1], sum[2], sum[3]};
    to[1] = {sum[4], sum[5], sum[6], sum[7]};
  }
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
  const auto blocks = [](int threads) {
    return dim3(static_cast<unsigned>(DivideUp(threads, kListThreads)));
  };
  LaunchEarly(device.stream, device.failure, "entries of rows",
              {blocks(args.sums.rows), kListThreads}, EmptyLists, args);
  LaunchEarly(device.stream, device.failure, "entries of rows",
              {blocks(routing.max_entries), kListThreads}, MakeLists, args);
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
  LaunchEarly(device.stream, device.failure, "sums of experts",
              {dim3(static_cast<unsigned>(args.sums.rows)), kListThreads},
              SumOutputs, args);
}

}  // namespace

void MultiplyExperts(const CudaFast& device, const ExpertProducts& products) {
  const Routing<CudaFast>& routing = *products.routing;
  const ExpertSlot<CudaFast>& slot = products.slot;
  CHECK(routing.num_groups <= kMaxGroups);
  const int64_t entries = routing.max_entries, rows = products.sums.rows;
  const int64_t output_bytes = entries * slot.hidden * 2;
  const RoundedRows x =
      RoundRows(device, products.x.RowRange(0, products.sums.rows),
                output_bytes + (entries + rows) * int64_t{sizeof(int32_t)});
  if (x.rows == nullptr) return;
  ExpertArgs args;
  args.slot = slot;
  args.begins = routing.begins.data();
  args.members = routing.rows.data();
  args.weights = routing.weights.data();
  args.num_groups = routing.num_groups;
  args.hidden = reinterpret_cast<__nv_bfloat16*>(products.hidden);
  args.sums = products.sums;
  args.x = {x.rows, slot.hidden, args.members};
  args.outputs = reinterpret_cast<__nv_bfloat16*>(x.more);
  args.next = reinterpret_cast<int32_t*>(x.more + output_bytes);
  args.first_of_row = args.next + entries;
  if (routing.max_entries > 64 * routing.num_groups) {
    LaunchExperts<kMostRows>(device, args, routing);
  } else {
    LaunchExperts<64>(device, args, routing);
  }
}

}  // namespace moebius::wide
