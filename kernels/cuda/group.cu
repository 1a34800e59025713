// Which rows go to which expert: pure counting.
#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"

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
};

// The group of an assignment; kMaxGroups when it is in none. Ids may be
// anything.
__device__ uint32_t GroupOf(const GroupArguments& args, int at, int end) {
  if (at >= end) return kMaxGroups;
  const uint32_t group = static_cast<uint32_t>(args.experts[at]) -
                         static_cast<uint32_t>(args.range.first);
  return group < static_cast<uint32_t>(args.range.count) ? group : kMaxGroups;
}

// The sum of all threads before this one.
__device__ int SumBefore(int value) {
  __shared__ int sums[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(kAllLanes, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int before = sum - value;
  for (int w = 0; w < warp; ++w) before += sums[w];
  return before;
}

// One block. Every warp has a run of the assignments, counts its groups, and,
// when it is known where its part of each group begins, puts them there in
// their order.
__global__ void __launch_bounds__(kThreads)
    GroupAssignments(const __grid_constant__ GroupArguments args) {
  extern __shared__ int places[];  // [kWarps][groups]
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int groups = args.range.count;
  const int run = (args.count + kThreads - 1) / kThreads * 32;  // of a warp
  const int begin = min(args.count, warp * run);
  const int end = min(args.count, begin + run);
  int* const mine = places + warp * groups;
  for (int g = lane; g < groups; g += 32) mine[g] = 0;
  __syncwarp();
  WaitForEarlier();
  for (int i = begin; i < end; i += 32) {
    const uint32_t group = GroupOf(args, i + lane, end);
    if (group < kMaxGroups) atomicAdd(&mine[group], 1);
  }
  __syncthreads();
  const int g = static_cast<int>(threadIdx.x);
  int total = 0;
  if (g < groups) {
    for (int w = 0; w < kWarps; ++w) total += places[w * groups + g];
  }
  int at = SumBefore(total);
  if (g < groups) {
    args.begins[g] = at;
    if (g == groups - 1) args.begins[groups] = at + total;
    for (int w = 0; w < kWarps; ++w) {
      const int count = places[w * groups + g];
      places[w * groups + g] = at;
      at += count;
    }
  }
  __syncthreads();
  for (int i = begin; i < end; i += 32) {
    const uint32_t group = GroupOf(args, i + lane, end);
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

// Room for `groups` groups of `entries` assignments; false, and noted, without.
template <Numerics N>
bool MakeRoom(const Cuda<N>& device, int groups, int entries,
              Routing<Cuda<N>>& routing) {
  if (routing.group_room < groups + 1) {
    routing.begins =
        Buffer<int32_t, Cuda<N>>(device, "groups of rows", groups + 1);
    routing.group_room = routing.begins.data() == nullptr ? 0 : groups + 1;
  }
  if (routing.entry_room < entries) {
    routing.rows = Buffer<int32_t, Cuda<N>>(device, "rows of experts", entries);
    routing.weights =
        Buffer<float, Cuda<N>>(device, "weights of experts", entries);
    const bool there =
        routing.rows.data() != nullptr && routing.weights.data() != nullptr;
    routing.entry_room = there ? entries : 0;
  }
  return groups < routing.group_room && entries <= routing.entry_room;
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
  if (range.count == 0 || !MakeRoom(device, range.count, count, routing)) {
    return;
  }
  const GroupArguments args{assignments.experts,
                            assignments.weights,
                            count,
                            assignments.top_k,
                            range,
                            routing.begins.data(),
                            routing.rows.data(),
                            routing.weights.data()};
  const int shared_bytes = kWarps * range.count * int{sizeof(int)};
  // The most that any launch wants: other threads launch it as well.
  device.failure->Note(CudaStatus(
      cudaFuncSetAttribute(GroupAssignments,
                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                           kWarps * kMaxGroups * int{sizeof(int)}),
      "the shared memory of groups"));
  LaunchEarly(device.stream, device.failure, "groups of rows",
              {dim3(1), kThreads, shared_bytes}, GroupAssignments, args);
}

template <Numerics N>
void GroupAllRows(const Cuda<N>& device, int num_rows,
                  Given<Routing<Cuda<N>>&> routing) {
  routing.num_groups = 1;
  routing.max_entries = num_rows;
  routing.num_rows = num_rows;
  if (!MakeRoom(device, 1, num_rows, routing)) return;
  constexpr int kBlock = 256;
  LaunchEarly(device.stream, device.failure, "one group of rows",
              {dim3(static_cast<unsigned>(num_rows / kBlock + 1)), kBlock},
              GroupEveryRow, num_rows, routing.begins.data(),
              routing.rows.data(), routing.weights.data());
}

#define MOEBIUS_INSTANTIATE(N)                                        \
  template void Group<N>(const Cuda<N>&, const Assignments<Cuda<N>>&, \
                         ExpertRange, Routing<Cuda<N>>&);             \
  template void GroupAllRows<N>(const Cuda<N>&, int, Routing<Cuda<N>>&);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
