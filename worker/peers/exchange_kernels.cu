#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/formats.h"
#include "worker/peers/exchange_kernels.h"
#include "worker/peers/meeting.cuh"

namespace moebius {
namespace {

constexpr int kThreads = 256;  // of a block; at least kMaxRanks

// ---- sums of rows

// A block has the same number of threads whatever it is for, since the order of
// a norm's sum follows from it.
constexpr int kSumThreads = 512;
constexpr int kStripe = 4 * kSumThreads;  // four elements a thread

__device__ float* Elements(float4& x) { return reinterpret_cast<float*>(&x); }

// Four elements of a row of partial sums, and sums of such.
struct FixedSum4 {
  struct Part {
    longlong2 low = {0, 0}, high = {0, 0};
  };
  static __device__ Part Load(const int64_t* at) {
    return {reinterpret_cast<const longlong2*>(at)[0],
            reinterpret_cast<const longlong2*>(at)[1]};
  }
  int64_t v[4] = {0, 0, 0, 0};
  __device__ void Add(const Part& part) {
    v[0] += part.low.x;
    v[1] += part.low.y;
    v[2] += part.high.x;
    v[3] += part.high.y;
  }
  // The integer is rounded once; the factor is a power of two.
  __device__ float Value(int i) const {
    return __ll2float_rn(v[i]) * (1.0f / (int64_t{1} << kFixedPointBits));
  }
};

struct FloatSum4 {
  struct Part {
    float4 x = {0, 0, 0, 0};
  };
  static __device__ Part Load(const float* at) {
    return {*reinterpret_cast<const float4*>(at)};
  }
  float v[4] = {0, 0, 0, 0};
  __device__ void Add(const Part& part) {
    v[0] += part.x.x;
    v[1] += part.x.y;
    v[2] += part.x.z;
    v[3] += part.x.w;
  }
  __device__ float Value(int i) const { return v[i]; }
};

// The same on every thread, added in one order.
__device__ float SumOfBlock(float x) {
  constexpr int kWarps = kSumThreads / 32;
  __shared__ float of_warp[kWarps];
  for (int mask = 16; mask > 0; mask /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, mask);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
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

// Of the sources in `ranks`, ascending; some are on their way at once.
template <class Sum, class Partial>
__device__ Sum SumOfSources(const RowSources& from, uint32_t ranks,
                            int64_t at) {
  constexpr int kAtOnce = 4;
  Sum sum;
  for (int first = 0; first < from.num_sources; first += kAtOnce) {
    typename Sum::Part parts[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int r = first + i;
      if (r >= from.num_sources || (ranks >> r & 1) == 0) continue;
      parts[i] = Sum::Load(static_cast<const Partial*>(from.sums[r]) + at);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum.Add(parts[i]);
  }
  return sum;
}

// residual += sums of its sources; the root mean square's norm of that. A block
// a row of at most kStripes stripes, behind a meeting; what is our own is read
// while the others come, and weights while the kernels before end.
template <class Partial, class Sum, int kStripes>
__global__ void __launch_bounds__(kSumThreads)
    SumRowsKernel(const __grid_constant__ MeetingRanks ranks, int meeting,
                  const __grid_constant__ RowSources from,
                  const __grid_constant__ SummedRows to) {
  if (meeting == kNoMeeting) AllowNext();
  const int row = blockIdx.x;
  const int begin = 4 * static_cast<int>(threadIdx.x);
  float4 weights[kStripes];
#pragma unroll
  for (int i = 0; i < kStripes; ++i) {
    const int j = begin + i * kStripe;
    if (j < to.hidden) {
      weights[i] = *reinterpret_cast<const float4*>(to.weight + j);
    }
  }
  AwaitPrevious();
  float* const residual = to.residual + row * to.residual_stride;
  float4 x[kStripes];
#pragma unroll
  for (int i = 0; i < kStripes; ++i) {
    const int j = begin + i * kStripe;
    if (j < to.hidden) x[i] = *reinterpret_cast<const float4*>(residual + j);
  }
  const uint32_t of_row = RanksOfRow(from, row);
  if (!Meet(ranks, meeting)) return;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kStripes; ++i) {
    const int j = begin + i * kStripe;
    if (j >= to.hidden) break;
    const int64_t at = int64_t{row} * to.hidden + j;
    Sum sum = SumOfSources<Sum, Partial>(from, of_row, at);
    for (int s = 0; s < from.num_shared; ++s) {
      sum.Add(Sum::Load(static_cast<const Partial*>(from.shared[s]) + at));
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float& element = Elements(x[i])[e];
      element += sum.Value(e);
      if (to.bias != nullptr) element += to.bias[j + e];
      squares = fmaf(element, element, squares);
    }
    *reinterpret_cast<float4*>(residual + j) = x[i];
  }
  const float mean = SumOfBlock(squares) / static_cast<float>(to.hidden);
  const float scale = 1.0f / sqrtf(mean + to.eps);
  float* const normed = to.normed + row * to.normed_stride;
#pragma unroll
  for (int i = 0; i < kStripes; ++i) {
    const int j = begin + i * kStripe;
    if (j >= to.hidden) break;
    const float4 w = weights[i];
    *reinterpret_cast<float4*>(normed + j) =
        make_float4(x[i].x * scale * w.x, x[i].y * scale * w.y,
                    x[i].z * scale * w.z, x[i].w * scale * w.w);
  }
}

// ---- squares of heads

__global__ void __launch_bounds__(kThreads)
    SquaresKernel(const __grid_constant__ MeetingRanks ranks, int meeting,
                  const __grid_constant__ SquareParts parts) {
  if (!Meet(ranks, meeting)) return;
  const int64_t row = int64_t{blockIdx.x} * parts.stride;
  for (int head = parts.begin + static_cast<int>(threadIdx.x); head < parts.end;
       head += kThreads) {
    for (int i = 0; i < parts.num_parts; ++i) {
      const bool has = (parts.q_begin[i] <= head && head < parts.q_end[i]) ||
                       (parts.k_begin[i] <= head && head < parts.k_end[i]);
      if (!has) continue;
      parts.out[row + head] = parts.squares[i][row + head];
      break;
    }
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
  int group = from.num_groups - 1;
  while (from.first_row[group] > row) --group;
  const int64_t there = row - from.first_row[group];
  bool here = false;
  for (int t = threadIdx.x; t < to.top_k; t += kThreads) {
    const int32_t expert = from.experts[group][there * to.top_k + t];
    to.experts[int64_t{row} * to.top_k + t] = expert;
    to.weights[int64_t{row} * to.top_k + t] =
        from.weights[group][there * to.top_k + t];
    here = here || (to.range.first <= expert &&
                    expert < to.range.first + to.range.count);
  }
  if (!__syncthreads_or(here)) return;
  const float* const source = from.rows[group] + there * to.hidden;
  float* const target = to.rows + int64_t{row} * to.hidden;
  for (int j = 4 * threadIdx.x; j < to.hidden; j += 4 * kThreads) {
    *reinterpret_cast<float4*>(target + j) =
        *reinterpret_cast<const float4*>(source + j);
  }
}

// ---- logits

constexpr int kLogitsOfBlock = 4 * 4 * kThreads;

// Block (piece, row, part) copies a piece of a rank's columns of a row.
__global__ void __launch_bounds__(kThreads)
    LogitsKernel(const __grid_constant__ MeetingRanks ranks, int meeting,
                 const __grid_constant__ LogitParts parts) {
  if (!Meet(ranks, meeting)) return;
  const int part = blockIdx.z;
  const int64_t row = parts.first_row + int64_t{blockIdx.y} * parts.every;
  const float* const from = parts.columns[part] + row * parts.stride;
  float* const to =
      parts.out + blockIdx.y * parts.out_stride + parts.begin[part];
  const int begin = blockIdx.x * kLogitsOfBlock;
  const int end = min(parts.size[part], begin + kLogitsOfBlock);
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
  using Partial = typename Cuda<N>::Partial;
  const auto launch = [&](auto* kernel) {
    constexpr const char* kWhat = "sums of ranks' rows";
    const dim3 grid(static_cast<unsigned>(to.rows));
    if (at.index == kNoMeeting) {
      return LaunchEarly(at.stream, at.failure, kWhat, {grid, kSumThreads},
                         kernel, at.ranks, at.index, from, to);
    }
    kernel<<<grid, kSumThreads, 0, at.stream>>>(at.ranks, at.index, from, to);
    NoteLaunch(at, kWhat);
  };
  const int stripes = (to.hidden + kStripe - 1) / kStripe;
  if (stripes == 1) {
    launch(SumRowsKernel<Partial, Sum, 1>);
  } else if (stripes == 2) {
    launch(SumRowsKernel<Partial, Sum, 2>);
  } else if (stripes <= 4) {
    launch(SumRowsKernel<Partial, Sum, 4>);
  } else {
    launch(SumRowsKernel<Partial, Sum, kMaxSumHidden / kStripe>);
  }
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

void LaunchSquares(const BehindMeeting& at, const SquareParts& parts) {
  SquaresKernel<<<static_cast<unsigned>(parts.rows), kThreads, 0, at.stream>>>(
      at.ranks, at.index, parts);
  NoteLaunch(at, "squares of heads");
}

int64_t LogitBlocks(const LogitParts& parts) {
  return int64_t{Pieces(parts)} * parts.rows * parts.num_parts;
}

void LaunchLogits(const BehindMeeting& at, const LogitParts& parts) {
  const dim3 grid(Pieces(parts), static_cast<unsigned>(parts.rows),
                  static_cast<unsigned>(parts.num_parts));
  LogitsKernel<<<grid, kThreads, 0, at.stream>>>(at.ranks, at.index, parts);
  NoteLaunch(at, "whole rows of logits");
}

}  // namespace moebius
