// What the kernels of sampling share: places of a row, and scans over slices of
// its logits.
//
// A row is cut into slices of kSliceLogits logits, whatever else there is to
// do, and a slice's results go to the row's scratch. A thread of a slice has 16
// logits, a group; the highest of each group says above which value at least so
// many logits are, so that few candidates need a closer look.
#pragma once

#include <cstdint>

#include "kernels/cuda/order.cuh"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/select.cuh"

namespace moebius {

inline constexpr int kScanThreads = 256;
inline constexpr int kEach = 16;  // logits of a thread
inline constexpr int kSliceLogits = kScanThreads * kEach;
inline constexpr int kMaxSlices = 1024;
// Those of a row that are looked at in shared memory. Where there are more, the
// row itself is read again and again.
inline constexpr int kMaxCandidates = 4096;
inline constexpr uint32_t kNoCut = ~0u;  // above all keys

// What a slice gave. The sums are of exponentials relative to its highest.
struct SlicePart {
  unsigned long long highest;  // key, then ~id: the lowest of equals
  double plain_sum;            // of the logits as they are
  double draw_sum;             // at the temperature
  int32_t finite;
  int32_t unused;
};

struct Candidate {
  uint32_t key;
  uint32_t id;
};

struct RowState {
  int32_t token;
  float plain_highest;
  double log_sum;
  double draw_sum;  // over all, relative to draw_highest
  float draw_highest;
  uint32_t draw_cut;   // keys of candidates, from there on; kNoCut: drawn
  uint32_t plain_cut;  // the same for log-probabilities; kNoCut: none wanted
  uint32_t num_candidates;
  uint32_t num_above;  // logits above the token's
};

struct SampleArguments {
  float* logits = nullptr;
  ptrdiff_t stride = 0;
  int vocabulary = 0;
  int slices = 0;
  const GpuSampleRow* rows = nullptr;
  GpuSampledRow* results = nullptr;
  int first = 0, step = 1;  // places of the rows
  TokenPlaces tokens;
  SlicePart* parts = nullptr;
  uint32_t* groups = nullptr;
  Candidate* candidates = nullptr;
  RowState* states = nullptr;

  __device__ int place(int row) const { return first + row * step; }
  __device__ const GpuSampleRow& wanted(int row) const {
    return rows[place(row)];
  }
  __device__ float* logits_of(int row) const { return logits + row * stride; }
  __device__ SlicePart* parts_of(int row) const {
    return parts + int64_t{row} * slices;
  }
  __device__ uint32_t* groups_of(int row) const {
    return groups + int64_t{row} * slices * kScanThreads;
  }
  __device__ Candidate* candidates_of(int row) const {
    return candidates + int64_t{row} * kMaxCandidates;
  }
};

// The token that a row has drawn, by one thread.
__device__ inline void StoreToken(const SampleArguments& args, int row,
                                  int32_t token) {
  args.results[args.place(row)].token = token;
  const int32_t place = args.wanted(row).place;
  if (place < 0 || place >= args.tokens.count) return;
  for (int r = 0; r < args.tokens.num_ranks; ++r) {
    args.tokens.of_rank[r][place] = token;
  }
}

__device__ inline float NanToMinusInfinity(float value) {
  return isnan(value) ? -INFINITY : value;
}

// exp((value - highest) * factor). Infinite logits share the mass.
__device__ inline float WeightOf(float value, float highest, float factor) {
  if (isinf(highest)) return highest > 0.0f && value == highest ? 1.0f : 0.0f;
  return expf((NanToMinusInfinity(value) - highest) * factor);
}
// The factor of a slice's sum among those of the row.
__device__ inline double ScaleOf(float of_slice, float highest, float factor) {
  if (isinf(highest)) return of_slice == highest ? 1.0 : 0.0;
  return exp((double{of_slice} - double{highest}) * double{factor});
}

// A thread's logits of a slice: 4 each at 4 places, ascending. `valid` has a
// bit for each that is there.
struct SliceLogits {
  float values[kEach];
  uint32_t valid;

  __device__ static int IdOf(int slice, int i) {
    return slice * kSliceLogits + i / 4 * 4 * kScanThreads +
           static_cast<int>(threadIdx.x) * 4 + i % 4;
  }
  // All of them are on their way before the first is looked at.
  __device__ void Load(const float* logits, int vocabulary, int slice) {
    valid = 0;
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      const int id = IdOf(slice, i);
      float4 four = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
      if (id + 3 < vocabulary) {
        four = *reinterpret_cast<const float4*>(logits + id);
        valid |= 15u << i;
      } else if (id < vocabulary) {
        const int left = vocabulary - id;  // 1 to 3
        four.x = logits[id];
        if (left > 1) four.y = logits[id + 1];
        if (left > 2) four.z = logits[id + 2];
        valid |= ((1u << left) - 1) << i;
      }
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    }
  }
};

// Adds those of a thread's logits whose keys are at least `cut` to the row's
// candidates, in any order. REQUIRES: whole warps call.
__device__ inline void AddCandidates(const SliceLogits& mine, int slice,
                                     uint32_t cut, RowState* state,
                                     Candidate* candidates) {
  uint32_t chosen = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (KeyOf(mine.values[i]) >= cut) chosen |= 1u << i;
  }
  chosen &= mine.valid;
  if (__any_sync(~0u, chosen != 0) == 0) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t count = static_cast<uint32_t>(__popc(chosen));
  uint32_t end = count;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, end, step);
    if (lane >= step) end += other;
  }
  uint32_t base = 0;
  if (lane == 31) base = atomicAdd(&state->num_candidates, end);
  uint32_t at = __shfl_sync(~0u, base, 31) + end - count;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if ((chosen >> i & 1) == 0) continue;
    if (at < kMaxCandidates) {
      candidates[at] = {KeyOf(mine.values[i]),
                        static_cast<uint32_t>(SliceLogits::IdOf(slice, i))};
    }
    ++at;
  }
}

// ---- elements to select from ----------------------------------------------

struct ListElements {
  const Candidate* list;
  int count;
  template <class F>
  __device__ void ForEach(const F& f) const {
    for (int i = static_cast<int>(threadIdx.x); i < count;
         i += kSelectThreads) {
      f(list[i].key, list[i].id);
    }
  }
};
struct RowElements {
  const float* logits;
  int count;
  template <class F>
  __device__ void ForEach(const F& f) const {
    for (int i = static_cast<int>(threadIdx.x); i < count;
         i += kSelectThreads) {
      f(KeyOf(logits[i]), static_cast<uint32_t>(i));
    }
  }
};
struct GroupElements {
  const uint32_t* keys;
  int count;
  template <class F>
  __device__ void ForEach(const F& f) const {
    for (int i = static_cast<int>(threadIdx.x); i < count;
         i += kSelectThreads) {
      f(keys[i], static_cast<uint32_t>(i));
    }
  }
};

// The lowest and the highest key of groups that have one, and how many have.
struct GroupKeys {
  uint32_t lowest = ~0u;
  uint32_t highest = 0;
  unsigned long long count = 0;
};
// REQUIRES: all threads of a block of kSelectThreads call.
__device__ inline GroupKeys KeysOf(const GroupElements& groups,
                                   SelectRoom& room) {
  GroupKeys keys;
  unsigned long long mine = 0;
  groups.ForEach([&](uint32_t key, uint32_t) {
    if (key == 0) return;  // of a group without a logit
    keys.lowest = min(keys.lowest, key);
    keys.highest = max(keys.highest, key);
    ++mine;
  });
  InclusiveSum(mine, room.warps, &keys.count);
  keys.lowest = __reduce_min_sync(~0u, keys.lowest);
  keys.highest = __reduce_max_sync(~0u, keys.highest);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    room.warps[threadIdx.x / 32] = uint64_t{keys.highest} << 32 | keys.lowest;
  }
  __syncthreads();
  for (const unsigned long long of_warp : room.warps) {
    keys.lowest = min(keys.lowest, static_cast<uint32_t>(of_warp));
    keys.highest = max(keys.highest, static_cast<uint32_t>(of_warp >> 32));
  }
  return keys;
}

// A key that at least `count` logits reach, and few more.
__device__ inline uint32_t CutOf(const SampleArguments& args, int row,
                                 int count, SelectRoom& room) {
  const GroupElements groups{args.groups_of(row), args.slices * kScanThreads};
  const GroupKeys keys = KeysOf(groups, room);
  const auto wanted = static_cast<unsigned long long>(count);
  if (wanted > keys.count) return 0;
  // Relative to the lowest: else the first bits of all are nearly the same.
  const int bits = 32 - __clz(static_cast<int>(keys.highest - keys.lowest));
  return keys.lowest +
         Select(
             groups, bits, wanted,
             [&](uint32_t key, uint32_t) {
               return key == 0 ? Weighed{} : Weighed{key - keys.lowest, 1};
             },
             room)
             .number;
}

// ---- what the slices gave, together ---------------------------------------

struct CombineRoom {
  unsigned long long highest[kSelectThreads / 32];
  double sums[kMaxSlices];
  double total;
};

// The highest logit and its id, to all threads. `finite`: whether all are.
__device__ inline unsigned long long HighestOf(const SampleArguments& args,
                                               int row, CombineRoom& room,
                                               bool* finite) {
  const SlicePart* const parts = args.parts_of(row);
  unsigned long long highest = 0;
  bool mine = true;
  for (int i = static_cast<int>(threadIdx.x); i < args.slices;
       i += kSelectThreads) {
    highest = max(highest, parts[i].highest);
    mine = mine && parts[i].finite != 0;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    highest = max(highest, __shfl_xor_sync(~0u, highest, step));
  }
  if (threadIdx.x % 32 == 0) room.highest[threadIdx.x / 32] = highest;
  *finite = __syncthreads_and(mine ? 1 : 0) != 0;
  for (int w = 0; w < kSelectThreads / 32; ++w) {
    highest = max(highest, room.highest[w]);
  }
  return highest;
}

// The sum of the slices' sums, which are left in room.sums relative to the
// row's highest. Added one after the other.
__device__ inline double SumOfSlices(const SampleArguments& args, int row,
                                     double SlicePart::*sum, float highest,
                                     float factor, CombineRoom& room) {
  const SlicePart* const parts = args.parts_of(row);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < args.slices;
       i += kSelectThreads) {
    const float of_slice =
        ValueOf(static_cast<uint32_t>(parts[i].highest >> 32));
    room.sums[i] = parts[i].*sum * ScaleOf(of_slice, highest, factor);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int i = 0; i < args.slices; ++i) total += room.sums[i];
    room.total = total;
  }
  __syncthreads();
  return room.total;
}

}  // namespace moebius
