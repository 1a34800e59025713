// A barrier among the processes of a group, over their signals regions.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/deadline.h"
#include "common/base/ids.h"
#include "worker/memory/signals.h"

namespace moebius {

struct BarrierOptions {
  // How long to look at the others' counters before sleeping in the kernel: for
  // the first kKeepCore without letting go of the core, then offering it to
  // others before each look. 0 sleeps at once. See DefaultSpinUs.
  int spin_us = 0;
  // A sleeper looks again after this long unwoken; see below.
  absl::Duration look_again = absl::Milliseconds(50);
};

// GroupBarrier
//
// Wait(s) returns when every rank has called Wait of s or of a later sequence
// number. What a rank wrote to any memory before its Wait(s) is seen by every
// rank after its own.
//
// Sequence numbers are the caller's: the same on all ranks, growing. Calling it
// again with a number arrived at before (a layer done again by a successor)
// waits for the others without going back.
//
// Example, each rank:
//   for (uint64_t s = barrier.arrived() + 1; ...; ++s) {
//     Pull(layer);
//     RETURN_IF_ERROR(barrier.Wait(s, absl::Seconds(5)));
//   }
//
// Errors:
//   kDeadlineExceeded  names the ranks that have not arrived
//   kAborted           names the rank that called Abort
// After an error our own arrival stands, so the others may complete a barrier
// at which we gave up; call Abort(arrived() + 1) to let them know at the latest
// at their next. When all have stopped, they go on with numbers that are above
// everyone's abandoned().
//
// Cost: with one rank none. Otherwise one store, and a look at each rank's
// line. No system call while the others come within the spin; one to sleep,
// and one by the last to arrive when anybody sleeps.
// Threading: one Wait at a time of a rank; Abort from any thread.
//
// Why no wake-up is lost. Each rank arrives with a sequentially consistent
// store to its `sequence` and then reads everyone's; of all ranks the one whose
// store is last in the single total order, L, must find that all have arrived,
// and it then reads everyone's `asleep`. A rank W that goes to sleep stores
// `asleep`, reads `rings` of the bell, then reads everyone's `sequence`, all
// sequentially consistent. If W misses an arrival, its reads precede L's store
// in the total order, hence so do its store of `asleep` and its reading of
// `rings`: L sees W asleep, counts `rings` up and wakes. The kernel compares
// `rings` with what W read under the lock of the queue, so W either does not
// fall asleep or is woken. Abort counts the bell up without asking who sleeps.
// Should L die between its store and the bell, W looks again after
// `look_again`.
class GroupBarrier {
 public:
  // `signals[r]`: the signals region of rank r, mapped read-write here, which
  // must outlive this. REQUIRES: 1 to kMaxRanks of them.
  GroupBarrier(Rank rank, absl::Span<std::byte* const> signals,
               BarrierOptions options);

  absl::Status Wait(uint64_t sequence, absl::Duration timeout);

  // Sequence number of the last barrier that we have arrived at; a successor
  // goes on from there.
  uint64_t arrived() const {
    return own_->arrival.sequence.load(std::memory_order_relaxed);
  }

  // Ends every Wait of the group up to sequence number `through` that is not
  // complete, now and later, with kAborted. Cannot be undone.
  void Abort(uint64_t through);

  // The same for a successor with new memory, whose predecessor's arrivals
  // only the peers' old mappings show: ends the barrier at which they wait for
  // it, or will. REQUIRES: no process of this rank has waited on this memory.
  void AbortForPeers();

  // Ends every barrier at which anybody may wait for us now. Where our own
  // arrival is that of a process that died before it went on after a recovery,
  // the others are at a number that it never heard of.
  void AbortWhereverOthersAre();

  // A device of ours is to arrive at barriers up to this number, where the
  // processor sees it not. To be called before it can.
  void Announce(uint64_t through) {
    own_->arrival.announced.store(through, std::memory_order_seq_cst);
  }

  // No barrier up to this number will be waited for by us any more, nor by our
  // device once it has come to its end.
  uint64_t abandoned() const {
    return std::max(
        {arrived(), own_->arrival.announced.load(std::memory_order_relaxed),
         own_->arrival.aborted_through.load(std::memory_order_relaxed)});
  }

  static constexpr absl::Duration kKeepCore = absl::Microseconds(2);

 private:
  // The highest number that any rank has arrived at, announced or aborted.
  uint64_t Furthest() const;
  bool AllArrived(uint64_t sequence) const;
  bool AnyAbort(uint64_t sequence) const;
  bool Spin(uint64_t sequence, const Deadline& deadline) const;
  void Sleep(uint64_t sequence, const Deadline& deadline);
  void RingForSleepers();
  absl::Status WhyNot(uint64_t sequence, absl::Duration timeout) const;

  const Rank rank_;
  const BarrierOptions options_;
  std::vector<SignalsBlock*> blocks_;  // [rank]
  SignalsBlock* own_;
  std::atomic<uint32_t>* bell_;
};

// BarrierOptions::spin_us for a group of num_ranks * threads_per_rank threads
// on `num_cores` cores. To be woken costs 50 us where the core went idle and a
// few dozen where others want it, so it pays to look for longer than the usual
// wait within a step, longest when every thread has a core of its own. Since
// the core is on offer meanwhile, it pays even when there are fewer cores than
// threads: tests/bench/copy_bench has the figures.
int DefaultSpinUs(int num_ranks, int threads_per_rank, int num_cores);

}  // namespace moebius
