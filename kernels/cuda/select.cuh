// Selection by weight without sorting: bits of a number are found from the
// highest on, from sums of weights over all numbers that begin alike. Weights
// are integers, so that no order of adding them means anything.
#pragma once

#include <cstdint>

namespace moebius {

inline constexpr int kSelectBits = 10;  // of a number at a time
inline constexpr int kSelectBins = 1 << kSelectBits;
inline constexpr int kSelectThreads = kSelectBins;  // of the block

// Sums of 64 bits in two halves: the hardware adds 32 bits in shared memory,
// and would try again and again with 64 where many threads add to one.
struct SelectBins {
  uint32_t low[kSelectBins];
  uint32_t high[kSelectBins];

  __device__ void Clear(int bin) { low[bin] = high[bin] = 0; }
  __device__ void Add(uint32_t bin, unsigned long long weight) {
    const auto less = static_cast<uint32_t>(weight);
    const uint32_t before = atomicAdd(&low[bin], less);
    const uint32_t carry = before + less < before ? 1 : 0;
    const uint32_t more = static_cast<uint32_t>(weight >> 32) + carry;
    if (more != 0) atomicAdd(&high[bin], more);
  }
  __device__ unsigned long long At(int bin) const {
    return uint64_t{high[bin]} << 32 | low[bin];
  }
};

struct SelectRoom {
  SelectBins bins;
  unsigned long long warps[kSelectThreads / 32];
  unsigned long long above;
  uint32_t digit;
};

// The sum over the threads up to and including this one; `total` is of all.
// REQUIRES: all threads of a block of kSelectThreads call.
template <class T>
__device__ T InclusiveSum(T value, T (&warps)[kSelectThreads / 32], T* total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += other;
  }
  __syncthreads();  // nobody reads the sums of the last call any more
  if (lane == 31) warps[warp] = value;
  __syncthreads();
  T sum = warps[lane];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  *total = __shfl_sync(~0u, sum, 31);
  const T before = __shfl_sync(~0u, sum, max(warp - 1, 0));
  return warp == 0 ? value : before + value;
}

struct Weighed {
  uint32_t number = 0;
  unsigned long long weight = 0;  // 0: not there
};

struct Selected {
  uint32_t number = 0;
  unsigned long long above = 0;  // weight of all higher numbers
};

// The highest number such that it and all higher ones weigh at least `target`;
// the lowest that has weight when all of them weigh less. `elements` gives each
// thread its share of (key, id), and `weigh` makes each a Weighed whose number
// has at most `bits` bits.
// REQUIRES: target > 0, and all threads of a block of kSelectThreads call.
template <class Elements, class Weigh>
__device__ Selected Select(const Elements& elements, int bits,
                           unsigned long long target, const Weigh& weigh,
                           SelectRoom& room) {
  const int bin = kSelectBins - 1 - static_cast<int>(threadIdx.x);
  Selected found;
  for (int shift = bits; shift > 0;) {
    const int higher = shift;
    const int digit_bits = min(shift, kSelectBits);
    shift -= digit_bits;
    __syncthreads();
    room.bins.Clear(bin);
    if (threadIdx.x == 0) {
      room.digit = 0;
      room.above = found.above;
    }
    __syncthreads();
    elements.ForEach([&](uint32_t key, uint32_t id) {
      const Weighed element = weigh(key, id);
      const uint32_t prefix = higher >= 32 ? 0 : element.number >> higher;
      if (element.weight == 0 || prefix != found.number) return;
      const uint32_t digit =
          (element.number >> shift) & ((1u << digit_bits) - 1);
      room.bins.Add(digit, element.weight);
    });
    __syncthreads();
    const unsigned long long mine = room.bins.At(bin);
    unsigned long long total;
    const unsigned long long sum =
        found.above + InclusiveSum(mine, room.warps, &total);
    const unsigned long long goal = min(target, found.above + total);
    if (sum >= goal && sum - mine < goal) {
      room.digit = static_cast<uint32_t>(bin);
      room.above = sum - mine;
    }
    __syncthreads();
    found.number = found.number << digit_bits | room.digit;
    found.above = room.above;
  }
  return found;
}

// The sum of the weights of all elements.
template <class Elements, class Weigh>
__device__ unsigned long long SumOfWeights(const Elements& elements,
                                           const Weigh& weigh,
                                           SelectRoom& room) {
  unsigned long long sum = 0, total;
  elements.ForEach(
      [&](uint32_t key, uint32_t id) { sum += weigh(key, id).weight; });
  InclusiveSum(sum, room.warps, &total);
  return total;
}

}  // namespace moebius
