#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "kernels/formats.h"
#include "worker/peers/exchange_kernels.h"
#include "worker/peers/meeting.cuh"

namespace moebius {
namespace {

constexpr int kThreads = 256;  // of a block; at least kMaxRanks
constexpr int kWarps = kThreads / 32;

// ---- sums of rows

// Four elements side by side.
struct FixedSum4 {
  int64_t v[4] = {0, 0, 0, 0};
  __device__ void Add(const int64_t* at) {
    const longlong2 low = reinterpret_cast<const longlong2*>(at)[0];
    const longlong2 high = reinterpret_cast<const longlong2*>(at)[1];
    v[0] += low.x;
    v[1] += low.y;
    v[2] += high.x;
    v[3] += high.y;
  }
  // The integer is rounded once; the factor is a power of two.
  __device__ float Value(int i) const {
    return __ll2float_rn(v[i]) * (1.0f / (int64_t{1} << kFixedPointBits));
  }
};

struct FloatSum4 {
  float v[4] = {0, 0, 0, 0};
  __device__ void Add(const float* at) {
    const float4 x = *reinterpret_cast<const float4*>(at);
    v[0] += x.x;
    v[1] += x.y;
    v[2] += x.z;
    v[3] += x.w;
  }
  __device__ float Value(int i) const { return v[i]; }
};

// The same on every thread, added in one order.
__device__ float SumOfBlock(float x) {
  __shared__ float of_warp[kWarps];
  for (int mask = 16; mask > 0; mask /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, mask);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += of_warp[w];
  return sum;
}

__device__ uint32_t RanksOfRow(const RowSources& from, int row) {
  if (from.experts == nullptr) return (1u << from.num_sources) - 1;
  const int32_t* const of_row = from.experts + int64_t{row} * from.top_k;
  uint32_t ranks = 0;
  for (int t = 0; t < from.top_k; ++t) {
    const int first = of_row[t] / from.group_experts * from.tp_size;
    if (of_row[t] < 0 || first + from.tp_size > from.num_sources) continue;
    ranks |= ((1u << from.tp_size) - 1) << first;
  }
  return ranks;
}

// residual += sums of its sources; the root mean square's norm of that. A block
// a row, behind a meeting.
template <class Partial, class Sum>
__global__ void __launch_bounds__(kThreads)
    SumRowsKernel(const __grid_constant__ MeetingRanks ranks, int meeting,
                  const __grid_constant__ RowSources from,
                  const __grid_constant__ SummedRows to) {
  if (!Meet(ranks, meeting)) return;
  __shared__ const Partial* sources[kMaxRanks];
  __shared__ int num_sources;
  const int row = blockIdx.x;
  if (threadIdx.x == 0) {
    const uint32_t of_row = RanksOfRow(from, row);
    int count = 0;
    for (int r = 0; r < from.num_sources; ++r) {
      if ((of_row >> r & 1) == 0) continue;
      sources[count++] =
          static_cast<const Partial*>(from.sums[r]) + int64_t{row} * to.hidden;
    }
    num_sources = count;
  }
  __syncthreads();
  float* const residual = to.residual + row * to.residual_stride;
  float* const normed = to.normed + row * to.normed_stride;
  const int count = num_sources;
  float squares = 0;
  for (int j = 4 * threadIdx.x; j < to.hidden; j += 4 * kThreads) {
    Sum sum;
#pragma unroll 4
    for (int s = 0; s < count; ++s) sum.Add(sources[s] + j);
    float4 x = *reinterpret_cast<const float4*>(residual + j);
    x.x += sum.Value(0);
    x.y += sum.Value(1);
    x.z += sum.Value(2);
    x.w += sum.Value(3);
    *reinterpret_cast<float4*>(residual + j) = x;
    squares = fmaf(x.x, x.x, squares);
    squares = fmaf(x.y, x.y, squares);
    squares = fmaf(x.z, x.z, squares);
    squares = fmaf(x.w, x.w, squares);
  }
  const float mean = SumOfBlock(squares) / static_cast<float>(to.hidden);
  const float scale = 1.0f / sqrtf(mean + to.eps);
  for (int j = 4 * threadIdx.x; j < to.hidden; j += 4 * kThreads) {
    const float4 x = *reinterpret_cast<const float4*>(residual + j);
    const float4 w = *reinterpret_cast<const float4*>(to.weight + j);
    *reinterpret_cast<float4*>(normed + j) =
        make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z,
                    x.w * scale * w.w);
  }
}

// ---- rows that enter a MoE layer

// Everybody's assignments, and the rows that some expert here wants. A block a
// row, behind a meeting.
__global__ void __launch_bounds__(kThreads)
    GatherKernel(const __grid_constant__ MeetingRanks ranks, int meeting,
                 const __grid_constant__ ShownRows from,
                 const __grid_constant__ EnteredRows to) {
  if (!Meet(ranks, meeting)) return;
  const int row = blockIdx.x;
  int rank = from.num_ranks - 1;
  while (from.first_row[rank] > row) --rank;
  const int64_t there = row - from.first_row[rank];
  bool here = false;
  for (int t = threadIdx.x; t < to.top_k; t += kThreads) {
    const int32_t expert = from.experts[rank][there * to.top_k + t];
    to.experts[int64_t{row} * to.top_k + t] = expert;
    to.weights[int64_t{row} * to.top_k + t] =
        from.weights[rank][there * to.top_k + t];
    here = here || (to.range.first <= expert &&
                    expert < to.range.first + to.range.count);
  }
  if (!__syncthreads_or(here)) return;
  const float* const source = from.rows[rank] + there * to.hidden;
  float* const target = to.rows + int64_t{row} * to.hidden;
  for (int j = 4 * threadIdx.x; j < to.hidden; j += 4 * kThreads) {
    *reinterpret_cast<float4*>(target + j) =
        *reinterpret_cast<const float4*>(source + j);
  }
}

// ---- logits

constexpr int kLogitsOfBlock = 4 * 4 * kThreads;

// Block (piece, row, rank) copies a piece of a rank's columns of a row.
__global__ void __launch_bounds__(kThreads)
    LogitsKernel(const __grid_constant__ MeetingRanks ranks, int meeting,
                 const __grid_constant__ LogitParts parts) {
  if (!Meet(ranks, meeting)) return;
  const int rank = blockIdx.z;
  const int64_t row = parts.first_row + int64_t{blockIdx.y} * parts.every;
  const float* const from = parts.columns[rank] + row * parts.stride;
  float* const to =
      parts.out + blockIdx.y * parts.out_stride + parts.begin[rank];
  const int begin = blockIdx.x * kLogitsOfBlock;
  const int end = min(parts.size[rank], begin + kLogitsOfBlock);
  for (int j = begin + 4 * threadIdx.x; j < end; j += 4 * kThreads) {
    if (j + 4 <= end) {
      *reinterpret_cast<float4*>(to + j) =
          *reinterpret_cast<const float4*>(from + j);
    } else {
      for (int i = j; i < end; ++i) to[i] = from[i];
    }
  }
}

__global__ void MeetKernel(const __grid_constant__ MeetingRanks ranks,
                           int meeting) {
  Meet(ranks, meeting);
}

unsigned Pieces(const LogitParts& parts) {
  const int most = *std::max_element(parts.size, parts.size + kMaxRanks);
  return static_cast<unsigned>((most + kLogitsOfBlock - 1) / kLogitsOfBlock);
}

void NoteLaunch(const BehindMeeting& at, const char* what) {
  at.failure->Note(CudaStatus(cudaGetLastError(), what));
}

}  // namespace

void LaunchMeeting(const BehindMeeting& at) {
  MeetKernel<<<1, 32, 0, at.stream>>>(at.ranks, at.index);
  NoteLaunch(at, "a meeting of ranks");
}

template <Numerics N>
void LaunchSum(const BehindMeeting& at, const RowSources& from,
               const SummedRows& to) {
  using Sum = std::conditional_t<N == Numerics::kExact, FixedSum4, FloatSum4>;
  SumRowsKernel<typename Cuda<N>::Partial, Sum>
      <<<to.rows, kThreads, 0, at.stream>>>(at.ranks, at.index, from, to);
  NoteLaunch(at, "sums of ranks' rows");
}
template void LaunchSum<Numerics::kExact>(const BehindMeeting&,
                                          const RowSources&, const SummedRows&);
template void LaunchSum<Numerics::kFast>(const BehindMeeting&,
                                         const RowSources&, const SummedRows&);

void LaunchGather(const BehindMeeting& at, const ShownRows& from,
                  const EnteredRows& to) {
  GatherKernel<<<to.count, kThreads, 0, at.stream>>>(at.ranks, at.index, from,
                                                     to);
  NoteLaunch(at, "rows for a rank's experts");
}

int64_t LogitBlocks(const LogitParts& parts) {
  return int64_t{Pieces(parts)} * parts.rows * parts.num_ranks;
}

void LaunchLogits(const BehindMeeting& at, const LogitParts& parts) {
  const dim3 grid(Pieces(parts), static_cast<unsigned>(parts.rows),
                  static_cast<unsigned>(parts.num_ranks));
  LogitsKernel<<<grid, kThreads, 0, at.stream>>>(at.ranks, at.index, parts);
  NoteLaunch(at, "whole rows of logits");
}

}  // namespace moebius
