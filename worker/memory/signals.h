// The signals region: the words through which workers tell one another where
// they are. Every rank has one; every process of the group maps all of them for
// reading and writing, yet each word has one writer, its rank, but for the bell
// and for aborted_through, which only grows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"

namespace moebius {

// Two lines of 64 bytes: processors fetch them in pairs.
inline constexpr size_t kSignalsLine = 128;

// The owner of the region. Written before the region is shared; the incarnation
// again by each successor that adopts it.
struct alignas(kSignalsLine) SignalsIdentity {
  static constexpr uint64_t kMagic = 0x31736c616e67694dULL;  // "Mignals1"
  uint64_t magic = kMagic;
  int32_t rank = 0;
  int32_t num_ranks = 0;
  // Release by its owner when it has taken the memory over; acquire by others.
  std::atomic<uint64_t> incarnation{0};
  uint64_t memory = 0;  // the incarnation that made it
};

// A rank's side of the GroupBarrier, which states the ordering.
struct alignas(kSignalsLine) SignalsArrival {
  std::atomic<uint64_t> sequence{0};  // of the last barrier arrived at
  std::atomic<uint32_t> asleep{0};    // 1: rings the bell of rank 0 for me
  // Barriers up to this number that are not complete never will be.
  std::atomic<uint64_t> aborted_through{0};
  // The highest barrier that a device of the rank may have arrived at: where it
  // is among those up to this number, only devices see.
  std::atomic<uint64_t> announced{0};
};

// The word that every rank of the group sleeps on: that of rank 0. Any rank
// counts it up before it wakes the others; its value means nothing.
struct alignas(kSignalsLine) SignalsBell {
  std::atomic<uint32_t> rings{0};
};

// What a rank has done. Release by its owner after the bytes it speaks of are
// in place; a rank that reads it with acquire may read those bytes.
struct alignas(kSignalsLine) SignalsProgress {
  std::atomic<uint64_t> step{0};           // last step completed
  std::atomic<uint64_t> switch_record{0};  // SwitchProgress, packed
  // 1: a model is in the regions, and this is its checksum over all ranks.
  std::atomic<uint64_t> loaded{0};
  std::atomic<uint64_t> weight_checksum{0};
  std::atomic<uint64_t> epochs_over{0};  // Stand.epochs_over
};

// The first bytes of the region. The rest is free for later use.
struct SignalsBlock {
  SignalsIdentity identity;
  SignalsArrival arrival;
  SignalsBell bell;
  SignalsProgress progress;
};
static_assert(sizeof(SignalsIdentity) == kSignalsLine);
static_assert(sizeof(SignalsArrival) == kSignalsLine);
static_assert(sizeof(SignalsBell) == kSignalsLine);
static_assert(sizeof(SignalsProgress) == kSignalsLine);
static_assert(sizeof(SignalsBlock) == 4 * kSignalsLine);
static_assert(std::atomic<uint64_t>::is_always_lock_free &&
                  std::atomic<uint32_t>::is_always_lock_free,
              "shared between processes, so no hidden locks");

// Makes a new block at the start of a region of our own; its bytes may be
// anything. REQUIRES: not shared yet.
SignalsBlock* InitSignals(std::byte* base, Rank rank, int num_ranks,
                          Incarnation incarnation);

// The block in a mapped region; kFailedPrecondition unless it is that of `rank`
// in a group of `num_ranks`.
absl::Status CheckSignals(const std::byte* base, Rank rank, int num_ranks);
SignalsBlock* SignalsAt(std::byte* base);

// How far a rank is in a switch. The four travel in one word, so a reader
// never meets the numbers of one switch under the epoch of another.
struct SwitchProgress {
  Epoch epoch;             // below 2^39
  Side side = Side::kLow;  // where all layers lay before
  int layers_done = 0;     // of the switch's order of layers, below 4096
  int waves_done = 0;      // of the KV plan, below 4096
  friend bool operator==(const SwitchProgress&,
                         const SwitchProgress&) = default;
};
void StoreSwitchProgress(SignalsBlock* own, const SwitchProgress& progress);
SwitchProgress LoadSwitchProgress(const SignalsBlock& block);

}  // namespace moebius
