// How a kernel meets the other ranks (gpu_meetings.h).
#pragma once

#include <cstdint>

#include "worker/peers/exchange_kernels.h"

namespace moebius {

__device__ inline uint64_t LoadAcquire(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(at)
               : "memory");
  return value;
}

__device__ inline uint64_t LoadRelaxed(const uint64_t* at) {
  uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];"
               : "=l"(value)
               : "l"(at)
               : "memory");
  return value;
}

__device__ inline void StoreRelease(uint64_t* at, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value)
               : "memory");
}

__device__ inline uint64_t NanosecondsNow() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

__device__ inline bool HasArrived(const MeetingRanks& ranks, int rank,
                                  uint64_t number) {
  return rank == ranks.rank ||
         LoadAcquire(&ranks.lines[rank].arrived) >= number;
}

// The first to give up says why.
__device__ inline void GiveUp(const MeetingRanks& ranks, uint64_t number,
                              int aborted_by) {
  if (atomicCAS(&ranks.state->gave_up, 0u, 1u) != 0) return;
  uint32_t missing = 0;
  for (int r = 0; r < ranks.num_ranks; ++r) {
    if (!HasArrived(ranks, r, number)) missing |= 1u << r;
  }
  ranks.report->missing = missing;
  ranks.report->aborted_by = aborted_by;
  ranks.report->number = number;
  __threadfence_system();
}

// By one thread of a pass's first kernel.
__device__ inline void StartMeetings(const MeetingStart& start) {
  if (start.state == nullptr) return;
  start.state->first = start.first;
  if (start.gave_up >= 0) {
    start.state->gave_up = static_cast<uint32_t>(start.gave_up);
  }
}

// Waits for one rank. Host memory, far away, is looked at now and then.
__device__ inline bool AwaitRank(const MeetingRanks& ranks, int rank,
                                 uint64_t number) {
  constexpr unsigned kLooksBetween = 64;
  const uint64_t begin = NanosecondsNow();
  for (unsigned look = 1;; ++look) {
    if (HasArrived(ranks, rank, number)) return true;
    if (look % kLooksBetween != 0) continue;
    if (*static_cast<volatile uint32_t*>(&ranks.state->gave_up) != 0) {
      return false;
    }
    int aborted_by = -1;
    for (int r = ranks.num_ranks - 1; r >= 0; --r) {
      if (LoadRelaxed(ranks.aborted_through[r]) >= number) aborted_by = r;
    }
    if (aborted_by < 0 && NanosecondsNow() - begin < ranks.timeout_ns) continue;
    // An arrival wins over an abort and the deadline.
    if (HasArrived(ranks, rank, number)) return true;
    GiveUp(ranks, number, aborted_by);
    return false;
  }
}

// Meeting `index` of the pass, for all threads of the block; the first block of
// the grid arrives for its rank, so what we show the others was written by
// kernels before this one. True: all ranks have arrived, and what they showed
// can be read. REQUIRES: a thread for each rank.
__device__ inline bool Meet(const MeetingRanks& ranks, int index) {
  if (index == kNoMeeting) return true;
  const int rank = static_cast<int>(threadIdx.x);
  bool here = true;
  if (rank < ranks.num_ranks) {
    const uint64_t number = ranks.state->first + static_cast<uint64_t>(index);
    here = *static_cast<volatile uint32_t*>(&ranks.state->gave_up) == 0;
    if (here && rank != ranks.rank) {
      const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
      if (first) StoreRelease(&ranks.line_at[rank]->arrived, number);
      here = AwaitRank(ranks, rank, number);
    }
  }
  return __syncthreads_and(here) != 0;
}

}  // namespace moebius
