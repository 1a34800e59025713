// Which rows go to which expert: pure counting.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/workspace.h"

namespace moebius {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxGroups = 1024;

struct GroupArguments {
  const int32_t* experts = nullptr;
  const float* weights = nullptr;
  int count = 0;  // assignments
  int top_k = 0;
  ExpertRange range;
  int32_t* begins = nullptr;
  int32_t* rows = nullptr;
  float* sorted = nullptr;  // weights by group
  // Of several blocks, how many assignments each has of a group:
  // [blocks][groups]. Null: there is one.
  int32_t* of_blocks = nullptr;
};

// The group of an assignment; kMaxGroups when it is in none. Ids may be
// anything.
__device__ uint32_t GroupOf(const GroupArguments& args, int at, int end) {
  if (at >= end) return kMaxGroups;
  const uint32_t group = static_cast<uint32_t>(args.experts[at]) -
                         static_cast<uint32_t>(args.range.first);
  return group < static_cast<uint32_t>(args.range.count) ? group : kMaxGroups;
}

// The run of the assignments that a warp has.
struct Run {
  int begin = 0;
  int end = 0;
  __device__ explicit Run(int count) {
    const int warps = static_cast<int>(gridDim.x) * kWarps;
    const int warp = static_cast<int>(blockIdx.x) * kWarps +
                     static_cast<int>(threadIdx.x) / 32;
    const int run = (count + 32 * warps - 1) / (32 * warps) * 32;
    begin = min(count, warp * run);
    end = min(count, begin + run);
  }
};

// places[warp][group] = how many of the group the warp's run has.
__device__ void CountRuns(const GroupArguments& args, const Run& run,
                          int* places) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* const mine = places + warp * args.range.count;
  for (int g = lane; g < args.range.count; g += 32) mine[g] = 0;
  __syncwarp();
  for (int i = run.begin; i < run.end; i += 32) {
    const uint32_t group = GroupOf(args, i + lane, run.end);
    if (group < kMaxGroups) atomicAdd(&mine[group], 1);
  }
  __syncthreads();
}

extern __shared__ int shared_places[];  // [kWarps][groups]

__global__ void __launch_bounds__(kThreads)
    CountAssignments(const __grid_constant__ GroupArguments args) {
  WaitForEarlier();
  CountRuns(args, Run(args.count), shared_places);
  const int groups = args.range.count, g = static_cast<int>(threadIdx.x);
  if (g >= groups) return;
  int count = 0;
  for (int w = 0; w < kWarps; ++w) count += shared_places[w * groups + g];
  args.of_blocks[blockIdx.x * groups + g] = count;
}

// Where the block's part of group g begins, for the thread of that number. All
// threads call it.
__device__ int PlaceOfGroup(const GroupArguments& args, const int* places) {
  const int groups = args.range.count, g = static_cast<int>(threadIdx.x);
  int total = 0, before = 0;
  if (g < groups && args.of_blocks == nullptr) {
    for (int w = 0; w < kWarps; ++w) total += places[w * groups + g];
  } else if (g < groups) {
    for (unsigned b = 0; b < gridDim.x; ++b) {
      const int count = args.of_blocks[b * groups + g];
      total += count;
      if (b < blockIdx.x) before += count;
    }
  }
  const int at = SumBefore<kThreads>(total);
  if (g < groups && blockIdx.x == 0) {
    args.begins[g] = at;
    if (g == groups - 1) args.begins[groups] = at + total;
  }
  return at + before;
}

// Every warp counts the groups of its run, and, when it is known where its part
// of each group begins, puts them there in their order.
__global__ void __launch_bounds__(kThreads)
    GroupAssignments(const __grid_constant__ GroupArguments args) {
  int* const places = shared_places;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int groups = args.range.count;
  int* const mine = places + warp * groups;
  WaitForEarlier();
  const Run run(args.count);
  CountRuns(args, run, places);
  int at = PlaceOfGroup(args, places);
  const int g = static_cast<int>(threadIdx.x);
  if (g < groups) {
    for (int w = 0; w < kWarps; ++w) {
      const int count = places[w * groups + g];
      places[w * groups + g] = at;
      at += count;
    }
  }
  __syncthreads();
  for (int i = run.begin; i < run.end; i += 32) {
    const uint32_t group = GroupOf(args, i + lane, run.end);
    // Of this warp's 32, those of the same group, and how many are before.
    const uint32_t same = __match_any_sync(kAllLanes, group);
    const int before = __popc(same & ((1u << lane) - 1));
    const int first = group < kMaxGroups ? mine[group] : 0;
    __syncwarp();
    if (group < kMaxGroups) {
      args.rows[first + before] = (i + lane) / args.top_k;
      args.sorted[first + before] = args.weights[i + lane];
      if (before == 0) mine[group] = first + __popc(same);
    }
    __syncwarp();
  }
}

__global__ void GroupEveryRow(int num_rows, int32_t* begins, int32_t* rows,
                              float* weights) {
  WaitForEarlier();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i == 0) {
    begins[0] = 0;
    begins[1] = num_rows;
  }
  if (i >= num_rows) return;
  rows[i] = i;
  weights[i] = 1.0f;
}

constexpr int kGateWarps = 8;

// A warp a row: its weight is sigmoid(gate . x). Behind GroupEveryRow.
__global__ void __launch_bounds__(32 * kGateWarps)
    WeighRows(const float* x, ptrdiff_t stride, int num_rows, int cols,
              const float* gate, float* weights) {
  const int row = static_cast<int>(blockIdx.x * kGateWarps + threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  WaitForEarlier();
  if (row >= num_rows) return;
  const float* const of_row = x + row * stride;
  float sum = 0.0f;
  for (int j = lane; j < cols; j += 32) sum = fmaf(of_row[j], gate[j], sum);
  sum = SumOfWarp(sum);
  if (lane == 0) weights[row] = 1.0f / (1.0f + expf(-sum));
}

template <Numerics N>
void LaunchGrouping(const Cuda<N>& device, void (*kernel)(GroupArguments),
                    int blocks, const GroupArguments& args) {
  constexpr int kMostBytes = kWarps * kMaxGroups * int{sizeof(int)};
  // The most that any launch wants: other threads launch it as well.
  device.failure->Note(CudaStatus(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kMostBytes),
      "the shared memory of groups"));
  LaunchEarly(device.stream, device.failure, "groups of rows",
              {dim3(static_cast<unsigned>(blocks)), kThreads,
               kWarps * args.range.count * int{sizeof(int)}},
              kernel, args);
}

}  // namespace

template <Numerics N>
void Group(const Cuda<N>& device,
           Given<const Assignments<Cuda<N>>&> assignments, ExpertRange range,
           Given<Routing<Cuda<N>>&> routing) {
  const int count = assignments.rows * assignments.top_k;
  routing.num_groups = range.count;
  routing.max_entries = count;
  routing.num_rows = assignments.rows;
  if (range.count > kMaxGroups) {
    return device.failure->Note(
        absl::UnimplementedError("more than 1,024 experts of a rank"));
  }
  if (range.count == 0 || routing.IsGrouped(assignments, range)) return;
  routing.grouped = {};
  if (!MakeRoom(device, range.count, count, routing)) return;
  GroupArguments args{assignments.experts,
                      assignments.weights,
                      count,
                      assignments.top_k,
                      range,
                      routing.begins.data(),
                      routing.rows.data(),
                      routing.weights.data()};
  // Of fewer a single block makes short work.
  constexpr int kBlockAssignments = 4096, kMostBlocks = 64;
  const int blocks = std::min(count / kBlockAssignments, kMostBlocks);
  if (blocks > 1 && device.workspace != nullptr) {
    args.of_blocks = static_cast<int32_t*>(device.workspace->Reserve(
        int64_t{blocks} * range.count * int64_t{sizeof(int32_t)},
        device.failure));
    if (args.of_blocks == nullptr) return;
    LaunchGrouping(device, CountAssignments, blocks, args);
  }
  LaunchGrouping(device, GroupAssignments,
                 args.of_blocks == nullptr ? 1 : blocks, args);
}

template <Numerics N>
void GroupAllRows(const Cuda<N>& device, int num_rows,
                  Given<Routing<Cuda<N>>&> routing) {
  routing.num_groups = 1;
  routing.max_entries = num_rows;
  routing.num_rows = num_rows;
  routing.grouped = {};
  if (!MakeRoom(device, 1, num_rows, routing)) return;
  constexpr int kBlock = 256;
  LaunchEarly(device.stream, device.failure, "one group of rows",
              {dim3(static_cast<unsigned>(num_rows / kBlock + 1)), kBlock},
              GroupEveryRow, num_rows, routing.begins.data(),
              routing.rows.data(), routing.weights.data());
}

template <Numerics N>
void GroupGatedRows(const Cuda<N>& device, ConstGpuRows<N> x, const float* gate,
                    Given<Routing<Cuda<N>>&> routing) {
  GroupAllRows<N>(device, x.rows, routing);
  if (x.rows == 0 || x.rows > routing.entry_room) return;
  LaunchEarly(
      device.stream, device.failure, "the gates of rows",
      {dim3(static_cast<unsigned>(x.rows / kGateWarps + 1)), 32 * kGateWarps},
      WeighRows, x.data, x.stride, x.rows, x.cols, gate,
      routing.weights.data());
}

#define MOEBIUS_INSTANTIATE(N)                                                \
  template void Group<N>(const Cuda<N>&, const Assignments<Cuda<N>>&,         \
                         ExpertRange, Routing<Cuda<N>>&);                     \
  template void GroupAllRows<N>(const Cuda<N>&, int, Routing<Cuda<N>>&);      \
  template void GroupGatedRows<N>(const Cuda<N>&, View<const float, Cuda<N>>, \
                                  const float*, Routing<Cuda<N>>&);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
