// The experts of a rank, in two kernels over the blocks of rows that their
// groups make: gate and up with silu into the routing's scratch room, then down
// into the sums.
//
// The host knows how many assignments there are, and not to which experts. So
// the grid is of as many blocks as there can be, and a thread block finds its
// block of rows in the groups, or nothing to do.
#include <limits>

#include "common/base/check.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/products.cuh"
#include "kernels/cuda/wide_rows.h"

namespace moebius {
namespace {

using namespace products;

constexpr int kOnePiece = std::numeric_limits<int>::max();

// Rows of one group, at most as many as a block takes.
struct RowBlock {
  int group = -1;  // none
  int first = 0;   // entry
  int count = 0;
};

// Block number `wanted` of those that groups are cut into, each on its own, in
// order. All threads of a warp call it. A lane has some groups at a time, whose
// begins it asks for at once: nothing else can be done until they are there.
__device__ RowBlock FindBlock(const int32_t* begins, int num_groups,
                              int block_rows, int wanted) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kLaneGroups = 4;
  const int lane = threadIdx.x % kWarpThreads;
  int before = 0;
  for (int first = 0; first < num_groups; first += kWarpThreads * kLaneGroups) {
    const int mine = first + lane * kLaneGroups;
    int begin[kLaneGroups + 1], ends[kLaneGroups];
#pragma unroll
    for (int j = 0; j <= kLaneGroups; ++j) {
      begin[j] = begins[min(mine + j, num_groups)];
    }
    int blocks = 0;
#pragma unroll
    for (int j = 0; j < kLaneGroups; ++j) {
      blocks += (begin[j + 1] - begin[j] + block_rows - 1) / block_rows;
      ends[j] = blocks;
    }
    int end = blocks;  // becomes the end of the lane's blocks
    for (int distance = 1; distance < kWarpThreads; distance *= 2) {
      const int other = __shfl_up_sync(kAll, end, distance);
      if (lane >= distance) end += other;
    }
    end += before;
    const unsigned behind = __ballot_sync(kAll, end > wanted);
    if (behind != 0) {
      const int in_lane = wanted - (end - blocks);  // of the lane found
      RowBlock block;
#pragma unroll
      for (int j = kLaneGroups - 1; j >= 0; --j) {
        if (ends[j] <= in_lane) continue;
        const int skip = (in_lane - (j == 0 ? 0 : ends[j - 1])) * block_rows;
        block = {mine + j, begin[j] + skip,
                 min(begin[j + 1] - begin[j] - skip, block_rows)};
      }
      const int found = __ffs(static_cast<int>(behind)) - 1;
      return {__shfl_sync(kAll, block.group, found),
              __shfl_sync(kAll, block.first, found),
              __shfl_sync(kAll, block.count, found)};
    }
    before = __shfl_sync(kAll, end, kWarpThreads - 1);
  }
  return {};
}

// Blocks that `entries` rows in `groups` groups can make.
int MostBlocks(int entries, int groups, int block_rows) {
  const int64_t used = std::min(entries, groups);
  return static_cast<int>(std::min<int64_t>(
      entries, (entries + used * (block_rows - 1)) / block_rows));
}

template <Numerics N>
struct ExpertArgs {
  ExpertSlot<Cuda<N>> slot;
  // Of the routing.
  const int32_t* begins = nullptr;
  const int32_t* rows = nullptr;
  const float* weights = nullptr;
  int num_groups = 0;
  float* hidden = nullptr;  // [entries][intermediate]

  View<const float, Cuda<N>> x;
  PartialRows<Cuda<N>> sums;
  Cut cut;  // of the kernel's reduced dimension

  __device__ int intermediate() const { return slot.rows * slot.num_pieces; }
  // ExpertSlot::expert(e).data
  __device__ const uint4* Expert(int e) const {
    const ptrdiff_t owner = e / slot.experts_per_block;
    return reinterpret_cast<const uint4*>(
        slot.data + owner * slot.num_pieces * slot.piece_stride +
        e % slot.experts_per_block * (ptrdiff_t{3} * slot.rows * slot.hidden));
  }
  __device__ ptrdiff_t piece_words() const { return slot.piece_stride / 8; }
  // Of gate, up or down in a piece.
  __device__ ptrdiff_t matrix_words() const {
    return ptrdiff_t{slot.rows} * slot.hidden / 8;
  }
};

// Together all blocks set the sums to zero.
template <Numerics N>
__device__ void ZeroSums(const PartialRows<Cuda<N>>& sums) {
  constexpr int kWordPartials = 16 / sizeof(typename Cuda<N>::Partial);
  const int words = sums.cols / kWordPartials;
  const int64_t step = int64_t{gridDim.x} * gridDim.y * kThreads;
  int64_t i =
      (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * kThreads + threadIdx.x;
  for (; i < int64_t{sums.rows} * words; i += step) {
    reinterpret_cast<uint4*>(sums.data + i / words * sums.stride)[i % words] =
        uint4{};
  }
}

// Units' gates and ups take turns: panel 2u is the gate of unit u. Beyond the
// last one: the last one.
template <Numerics N>
__device__ const uint4* GateOrUp(const ExpertArgs<N>& args, const uint4* expert,
                                 int panel) {
  const int unit = min(panel / 2, args.intermediate() / kUnitRows - 1);
  const int piece_units = args.slot.rows / kUnitRows;
  return expert + unit / piece_units * args.piece_words() +
         unit % piece_units * (ptrdiff_t{args.cut.num_tiles} * kTileWords) +
         panel % 2 * args.matrix_words();
}

__device__ inline float AddBias(const float* bias, ptrdiff_t at, float value) {
  return bias == nullptr ? value : value + bias[at];
}

// hidden = silu(x gate^T) * (x up^T) * weight
template <Numerics N, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<N, false, T>)
    GateUpKernel(const __grid_constant__ ExpertArgs<N> args) {
  static_assert(T::kPanels % 2 == 0);
  AwaitPrevious();
  ZeroSums<N>(args.sums);
  const RowBlock block =
      FindBlock(args.begins, args.num_groups, T::kBlockRows, blockIdx.y);
  if (block.group < 0) return;
  const uint4* const expert = args.Expert(block.group);
  const int first_panel = blockIdx.x * T::kBlockPanels;
  Work<T> work;
#pragma unroll
  for (int p = 0; p < T::kReadPanels; ++p) {
    work.panels[p] =
        GateOrUp<N>(args, expert, first_panel + T::ReadPanel() + p);
  }
  work.steps = {kTileWords, kOnePiece, 0};
  work.cut = args.cut;
  work.rows = {args.x.data, args.x.stride, args.rows, block.first, block.count};
  const int num_units = args.intermediate() / kUnitRows;
  float* const hidden =
      args.hidden + ptrdiff_t{block.first} * args.intermediate();
  const float* const weights = args.weights + block.first;
  const ExpertBias<Cuda<N>>& bias = args.slot.bias;
  const ptrdiff_t bias_at = block.group * bias.rows_stride;
  MultiplyRows<N, false, T>(work, [&](int panel, int row, int output,
                                      const float(&values)[T::kPanels]) {
    float* const of_row =
        hidden + ptrdiff_t{row} * args.intermediate() + output;
#pragma unroll
    for (int p = 0; p < T::kPanels; p += 2) {
      const int unit = (first_panel + panel + p) / 2;
      if (unit >= num_units) continue;
      const ptrdiff_t at = bias_at + unit * kUnitRows + output;
      of_row[unit * kUnitRows] =
          Activate(args.slot.activation, AddBias(bias.gate, at, values[p]),
                   AddBias(bias.up, at, values[p + 1])) *
          weights[row];
    }
  });
}

__device__ inline void AddTo(int64_t* sum, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum),
            static_cast<unsigned long long>(value));
}
__device__ inline void AddTo(float* sum, float value) { atomicAdd(sum, value); }

// What a part of a bias adds to a sum.
template <Numerics N>
__device__ typename Cuda<N>::Partial PartialOf(float value) {
  if constexpr (N == Numerics::kExact) {
    return ToFixedPoint(value);
  } else {
    return value;
  }
}

// sums += hidden down^T
template <Numerics N, class T>
__global__ void __launch_bounds__(kThreads, kBlocks<N, true, T>)
    DownKernel(const __grid_constant__ ExpertArgs<N> args) {
  using Partial = typename Cuda<N>::Partial;
  // The kernel before this one has let it begin behind its own wait for the
  // groups.
  const RowBlock block =
      FindBlock(args.begins, args.num_groups, T::kBlockRows, blockIdx.y);
  if (block.group < 0) {
    AwaitPrevious();
    return;
  }
  const int first_panel = blockIdx.x * T::kBlockPanels;
  const int num_panels = args.slot.hidden / kPanelRows;
  const uint4* const down = args.Expert(block.group) + 2 * args.matrix_words();
  Work<T> work;
#pragma unroll
  for (int p = 0; p < T::kReadPanels; ++p) {
    const int panel = min(first_panel + T::ReadPanel() + p, num_panels - 1);
    work.panels[p] = down + ptrdiff_t{panel} * kTileWords;
  }
  work.steps = {ptrdiff_t{num_panels} * kTileWords, args.slot.rows / kTileRows,
                args.piece_words()};
  work.cut = args.cut;
  work.rows = {args.hidden, args.intermediate(), nullptr, block.first,
               block.count};
  const int32_t* const rows = args.rows + block.first;
  const float* const weights = args.weights + block.first;
  const ExpertBias<Cuda<N>>& biases = args.slot.bias;
  const float* const bias =
      biases.down == nullptr ? nullptr
                             : biases.down + block.group * biases.hidden_stride;
  MultiplyRows<N, true, T>(work, [&](int panel, int row, int output,
                                     const Partial(&values)[T::kPanels]) {
    Partial* const of_row = args.sums.data + rows[row] * args.sums.stride;
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) {
      const int at = first_panel + panel + p;
      if (at >= num_panels) continue;
      const int col = at * kPanelRows + output;
      Partial value = values[p];
      if (bias != nullptr) value += PartialOf<N>(bias[col] * weights[row]);
      AddTo(of_row + col, value);
    }
  });
}

// Groups have `rows` rows on average, and the second product `chains` chains:
// few where a rank has a slice of each expert.
struct GroupSizes {
  int rows = 0;
  int chains = 0;
};

// These call run(T()) with the kind of kernel that is quickest for such groups.
template <Numerics N, class Run>
void WithKindOfManyRows(int rows, const Run& run) {
  if (rows <= 48) return run(ManyRows<4, 1>());
  run(LargeBlocks<N>());
}

// Up to how many rows kernels for few rows are quicker (measured on an H200
// with the experts of Qwen3-30B-A3B, and a quarter of each).
int MostOfFewRows(const GroupSizes& sizes) {
  return sizes.chains < kWarps ? 8 : 1;
}

template <Numerics N, class Run>
void WithKindOfGateUp(const GroupSizes& sizes, const Run& run) {
  if (sizes.rows > MostOfFewRows(sizes)) {
    return WithKindOfManyRows<N>(sizes.rows, run);
  }
  if (sizes.rows <= 2) return run(FewRows<2, 1>());
  run(FewRows<4, 2>());
}
template <Numerics N, class Run>
void WithKindOfDown(const GroupSizes& sizes, const Run& run) {
  if (sizes.rows > MostOfFewRows(sizes)) {
    return WithKindOfManyRows<N>(sizes.rows, run);
  }
  const auto split = [&]<int kGroups>(std::integral_constant<int, kGroups>) {
    if (sizes.chains <= 2) return run(FewRows<2, kGroups, 4>());
    if (sizes.chains <= 4) return run(FewRows<2, kGroups, 2>());
    run(FewRows<2, kGroups>());
  };
  if (sizes.rows <= 2) return split(std::integral_constant<int, 1>());
  split(std::integral_constant<int, 2>());
}

// From how many rows of a group on, on average, wide tiles are quicker.
constexpr int kWideRows = 24;

bool GoesWide(const CudaFast& device, int entries, int experts) {
  return DivideUp(entries, experts) >= kWideRows &&
         experts <= wide::kMaxGroups && wide::CanMultiply(device);
}

// False if there is no memory for that.
template <Numerics N>
bool MakeRoom(const Cuda<N>& device, int64_t elements,
              Routing<Cuda<N>>& routing) {
  if (elements > routing.hidden_room) {
    routing.hidden = {};
    routing.hidden = {device, "intermediate rows of experts", elements};
    routing.hidden_room = routing.hidden.data() == nullptr ? 0 : elements;
  }
  return elements <= routing.hidden_room;
}

}  // namespace

template <Numerics N>
void Experts(const Cuda<N>& device, Given<const ExpertSlot<Cuda<N>>&> slot,
             int slice_rows, ConstGpuRows<N> x,
             Given<Routing<Cuda<N>>&> routing,
             Given<PartialRows<Cuda<N>>> sums) {
  CHECK(routing.num_groups == slot.num_experts);
  CHECK(slot.hidden == x.cols && slot.hidden == sums.cols);
  CHECK(routing.num_rows <= x.rows && routing.num_rows <= sums.rows);
  const int entries = routing.max_entries;
  if (routing.num_rows == 0 || entries == 0) return;
  const PartialRows<Cuda<N>> used = sums.RowRange(0, routing.num_rows);
  const int intermediate = slot.rows * slot.num_pieces;
  if (intermediate == 0) {
    constexpr size_t kBytes = sizeof(*used.data);
    device.failure->Note(CudaStatus(
        cudaMemset2DAsync(used.data, used.stride * kBytes, 0,
                          used.cols * kBytes, used.rows, device.stream),
        "sums of no experts"));
    return;
  }
  CHECK(slice_rows > 0 && slice_rows % kUnitRows == 0 &&
        slot.rows % slice_rows == 0);
  if (!MakeRoom(device, int64_t{entries} * intermediate, routing)) return;
  if constexpr (N == Numerics::kFast) {
    if (GoesWide(device, entries, slot.num_experts)) {
      return wide::MultiplyExperts(
          device, {slot, x, &routing,
                   reinterpret_cast<Bf16*>(routing.hidden.data()), used});
    }
  }
  ExpertArgs<N> args{slot,
                     routing.begins.data(),
                     routing.rows.data(),
                     routing.weights.data(),
                     routing.num_groups,
                     routing.hidden.data(),
                     x,
                     used,
                     Cut::Of(slot.hidden, slot.hidden)};
  const Cut down_cut = Cut::Of(intermediate, slice_rows);
  const GroupSizes sizes{DivideUp(entries, slot.num_experts),
                         down_cut.num_chains};
  const auto grid = [&]<class T>(T, int panels) {
    return dim3(DivideUp(panels, T::kBlockPanels),
                MostBlocks(entries, slot.num_experts, T::kBlockRows));
  };
  WithKindOfGateUp<N>(sizes, [&]<class T>(T kind) {
    Launch<T>(device, "gate and up of experts", GateUpKernel<N, T>,
              grid(kind, 2 * intermediate / kUnitRows), args);
  });
  args.cut = down_cut;
  WithKindOfDown<N>(sizes, [&]<class T>(T kind) {
    Launch<T>(device, "down of experts", DownKernel<N, T>,
              grid(kind, slot.hidden / kPanelRows), args);
  });
}

template void Experts(const CudaExact&, const ExpertSlot<CudaExact>&, int,
                      ConstGpuRows<Numerics::kExact>, Routing<CudaExact>&,
                      PartialRows<CudaExact>);
template void Experts(const CudaFast&, const ExpertSlot<CudaFast>&, int,
                      ConstGpuRows<Numerics::kFast>, Routing<CudaFast>&,
                      PartialRows<CudaFast>);

}  // namespace moebius
