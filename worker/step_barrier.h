// The group barrier as steps and switches use it: numbered by itself, with one
// deadline.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/memory/group_barrier.h"
#include "worker/model/barrier.h"

namespace moebius {

// StepBarrier
//
// Every rank passes the same barriers in the same order, so each counts for
// itself, from a number that all are given in each round of recovery.
// Threading: one Wait at a time.
class StepBarrier final : public Barrier {
 public:
  // `barrier` must outlive this.
  StepBarrier(GroupBarrier* barrier, absl::Duration timeout)
      : barrier_(barrier), timeout_(timeout), next_(barrier->arrived() + 1) {}

  absl::Status Wait() override { return barrier_->Wait(next_++, timeout_); }

  // We wait no more, and nobody has to wait for us: barriers that we have not
  // arrived at end with kAborted everywhere.
  void Abandon() { barrier_->Abort(barrier_->arrived() + 1); }
  // No barrier up to this number will be waited for by us.
  uint64_t abandoned() const { return barrier_->abandoned(); }
  // Goes on with barrier `next`. REQUIRES: above every rank's abandoned().
  void GoOn(uint64_t next) { next_ = next; }

 private:
  GroupBarrier* barrier_;
  absl::Duration timeout_;
  uint64_t next_;
};

}  // namespace moebius
