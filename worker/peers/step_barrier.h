// The barrier as steps and switches use it: numbered by itself, with one
// deadline, and to be given up.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "worker/peers/barrier.h"
#include "worker/peers/group_barrier.h"

namespace moebius {

// StepBarrier
//
// Every rank passes the same barriers in the same order, so each counts for
// itself, from a number that all are given in each round of recovery.
// Threading: one Wait at a time.
class StepBarrier : public Barrier {
 public:
  // We wait no more, and nobody has to wait for us: barriers that we have not
  // arrived at end with kAborted everywhere.
  virtual void Abandon() = 0;
  // For a successor with new memory: nobody has to wait for our predecessor.
  virtual void AbandonForPeers() = 0;
  // No barrier up to this number will be waited for by us.
  virtual uint64_t abandoned() const = 0;
  // Goes on with barrier `next`. REQUIRES: above every rank's abandoned().
  virtual void GoOn(uint64_t next) = 0;
};

// The one between processes.
class GroupStepBarrier final : public StepBarrier {
 public:
  GroupStepBarrier(Rank rank, absl::Span<std::byte* const> signals,
                   BarrierOptions options, absl::Duration timeout)
      : barrier_(rank, signals, options),
        timeout_(timeout),
        next_(barrier_.arrived() + 1) {}

  absl::Status Wait() override { return barrier_.Wait(next_++, timeout_); }
  void Abandon() override { barrier_.AbortWhereverOthersAre(); }
  void AbandonForPeers() override { barrier_.AbortForPeers(); }
  uint64_t abandoned() const override { return barrier_.abandoned(); }
  void GoOn(uint64_t next) override { next_ = next; }

 private:
  GroupBarrier barrier_;
  absl::Duration timeout_;
  uint64_t next_;
};

}  // namespace moebius
