// The control side of the barriers that steps and switches use: to give them up
// and to go on from a number.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "worker/peers/barrier.h"
#include "worker/peers/group_barrier.h"

namespace moebius {

// GroupFence
//
// Every rank passes the same barriers in the same order, so each counts for
// itself, from a number that all are given in each round of recovery. What
// waits at them is the device's; the host says from here when to stop waiting.
// Threading: one call at a time, beside what waits.
class GroupFence {
 public:
  virtual ~GroupFence() = default;
  // We wait no more, and nobody has to wait for us: barriers that we have not
  // arrived at end with kAborted everywhere. What waits here, or would next,
  // ends so too, until GoOn.
  virtual void Abandon() = 0;
  // For a successor with new memory: nobody has to wait for our predecessor.
  virtual void AbandonForPeers() = 0;
  // No barrier up to this number will be waited for by us.
  virtual uint64_t abandoned() const = 0;
  // Goes on with barrier `next`. REQUIRES: above every rank's abandoned();
  // nothing waits.
  virtual void GoOn(uint64_t next) = 0;
};

// A fence whose device is the processor: its threads wait at the barriers
// themselves, one at a time.
class CpuFence : public GroupFence, public Barrier {};

// The one between processes.
class SignalsFence final : public CpuFence {
 public:
  SignalsFence(Rank rank, absl::Span<std::byte* const> signals,
               BarrierOptions options, absl::Duration timeout)
      : barrier_(rank, signals, options),
        timeout_(timeout),
        next_(barrier_.arrived() + 1) {}

  absl::Status Wait() override {
    const uint64_t number = next_++;
    // A step that was passing a barrier while it was given up goes no further,
    // and nobody waits for it at the next.
    if (abandoned_.load()) {
      barrier_.Abort(number);
      return absl::AbortedError("the barriers were given up here");
    }
    return barrier_.Wait(number, timeout_);
  }
  // The first of `count` numbers for barriers at which devices meet, one after
  // the other. Those that are not used are nobody's. Given up as Wait is: if
  // not here then by Abandon, which sees what was announced.
  uint64_t Take(int count) {
    const uint64_t first = next_;
    next_ += static_cast<uint64_t>(count);
    barrier_.Announce(next_ - 1);
    if (abandoned_.load()) barrier_.Abort(next_ - 1);
    return first;
  }
  void Abandon() override {
    abandoned_.store(true);
    barrier_.AbortWhereverOthersAre();
  }
  void AbandonForPeers() override { barrier_.AbortForPeers(); }
  uint64_t abandoned() const override { return barrier_.abandoned(); }
  void GoOn(uint64_t next) override {
    abandoned_.store(false);
    next_ = next;
  }

 private:
  GroupBarrier barrier_;
  absl::Duration timeout_;
  std::atomic<bool> abandoned_{false};
  uint64_t next_;
};

}  // namespace moebius
