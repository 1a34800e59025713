#include "worker/peers/group_barrier.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moebius {
namespace {

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Not the private kind: the word is shared between processes.
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected,
               absl::Duration timeout) {
  const timespec limit = absl::ToTimespec(std::min(timeout, absl::Hours(24)));
  ::syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, nullptr, 0);
}

void FutexWakeAll(std::atomic<uint32_t>* word) {
  ::syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void RaiseTo(std::atomic<uint64_t>& word, uint64_t value) {
  uint64_t before = word.load(std::memory_order_relaxed);
  while (before < value && !word.compare_exchange_weak(
                               before, value, std::memory_order_seq_cst)) {
  }
}

std::vector<SignalsBlock*> BlocksAt(absl::Span<std::byte* const> signals) {
  std::vector<SignalsBlock*> blocks;
  for (std::byte* base : signals) blocks.push_back(SignalsAt(base));
  return blocks;
}

}  // namespace

GroupBarrier::GroupBarrier(Rank rank, absl::Span<std::byte* const> signals,
                           BarrierOptions options)
    : rank_(rank), options_(options), blocks_(BlocksAt(signals)) {
  CHECK(!blocks_.empty() && blocks_.size() <= kMaxRanks);
  CHECK(rank >= 0 && rank < static_cast<int>(blocks_.size()));
  own_ = blocks_[rank];
  bell_ = &blocks_[0]->bell.rings;
}

bool GroupBarrier::AllArrived(uint64_t sequence) const {
  for (const SignalsBlock* block : blocks_) {
    if (block->arrival.sequence.load(std::memory_order_seq_cst) < sequence) {
      return false;
    }
  }
  return true;
}

bool GroupBarrier::AnyAbort(uint64_t sequence) const {
  for (const SignalsBlock* block : blocks_) {
    if (block->arrival.aborted_through.load(std::memory_order_seq_cst) >=
        sequence) {
      return true;
    }
  }
  return false;
}

absl::Status GroupBarrier::Wait(uint64_t sequence, absl::Duration timeout) {
  if (sequence > arrived()) {
    own_->arrival.sequence.store(sequence, std::memory_order_seq_cst);
  }
  // An arrival wins over an abort and the deadline: a barrier is complete or
  // not, whatever happened since.
  if (AllArrived(sequence)) {
    RingForSleepers();
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerBarrier));
  const Deadline deadline = Deadline::After(timeout);
  if (Spin(sequence, deadline)) return absl::OkStatus();
  Sleep(sequence, deadline);
  return AllArrived(sequence) ? absl::OkStatus() : WhyNot(sequence, timeout);
}

// True when all have arrived.
bool GroupBarrier::Spin(uint64_t sequence, const Deadline& deadline) const {
  const absl::Duration spin =
      std::min(absl::Microseconds(options_.spin_us), deadline.left());
  if (spin <= absl::ZeroDuration()) return false;
  const Deadline until = Deadline::After(spin);
  const Deadline keep_core = Deadline::After(std::min(spin, kKeepCore));
  do {
    // The clock is as dear as a dozen looks.
    for (int i = 0; i < 16; ++i) {
      if (AllArrived(sequence)) return true;
      Pause();
    }
  } while (!keep_core.expired());
  while (!until.expired()) {
    if (AnyAbort(sequence)) return false;
    ::sched_yield();
    if (AllArrived(sequence)) return true;
  }
  return false;
}

// Returns when all have arrived, somebody aborted, or the deadline has passed.
void GroupBarrier::Sleep(uint64_t sequence, const Deadline& deadline) {
  own_->arrival.asleep.store(1, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t rings = bell_->load(std::memory_order_seq_cst);
    if (AllArrived(sequence) || AnyAbort(sequence)) break;
    const absl::Duration left = deadline.left();
    if (left <= absl::ZeroDuration()) break;
    FutexWait(bell_, rings, std::min(left, options_.look_again));
  }
  own_->arrival.asleep.store(0, std::memory_order_relaxed);
}

void GroupBarrier::RingForSleepers() {
  for (const SignalsBlock* block : blocks_) {
    if (block->arrival.asleep.load(std::memory_order_seq_cst) != 0) {
      bell_->fetch_add(1, std::memory_order_seq_cst);
      FutexWakeAll(bell_);
      return;
    }
  }
}

absl::Status GroupBarrier::WhyNot(uint64_t sequence,
                                  absl::Duration timeout) const {
  std::vector<int> missing;
  for (size_t rank = 0; rank < blocks_.size(); ++rank) {
    const SignalsArrival& arrival = blocks_[rank]->arrival;
    if (arrival.aborted_through.load(std::memory_order_seq_cst) >= sequence) {
      return absl::AbortedError(
          absl::StrCat("rank ", rank, " aborted barrier ", sequence));
    }
    if (arrival.sequence.load(std::memory_order_seq_cst) < sequence) {
      missing.push_back(static_cast<int>(rank));
    }
  }
  if (missing.empty()) return absl::OkStatus();  // they came in between
  return absl::DeadlineExceededError(
      absl::StrCat("rank ", absl::StrJoin(missing, ", "), " not at barrier ",
                   sequence, " within ", absl::FormatDuration(timeout)));
}

void GroupBarrier::Abort(uint64_t through) {
  RaiseTo(own_->arrival.aborted_through, through);
  bell_->fetch_add(1, std::memory_order_seq_cst);
  FutexWakeAll(bell_);
}

// After a recovery the group goes on with the number above all that any rank
// has arrived at or aborted. A rank that has got there shows it; one that has
// not is about to, and no rank passes it without us. A device is somewhere
// among the numbers that were announced for it.
void GroupBarrier::AbortWhereverOthersAre() { Abort(Furthest() + 1); }

uint64_t GroupBarrier::Furthest() const {
  uint64_t furthest = 0;
  for (const SignalsBlock* block : blocks_) {
    const SignalsArrival& arrival = block->arrival;
    furthest =
        std::max({furthest, arrival.sequence.load(std::memory_order_seq_cst),
                  arrival.announced.load(std::memory_order_seq_cst),
                  arrival.aborted_through.load(std::memory_order_seq_cst)});
  }
  return furthest;
}

// Let the predecessor's last arrival be s. All had passed s - 1, and nobody can
// pass s + 1. So some live peer may stand at s - 1 or s still, all of
// them before they stop at s + 1: two beyond the highest that has arrived so
// far is the furthest that s + 1 can be. What is complete stays so. After a
// recovery that the predecessor did not live to go on from, the others are one
// above all that was arrived at or aborted.
void GroupBarrier::AbortForPeers() {
  const uint64_t through = Furthest() + 2;
  for (SignalsBlock* block : blocks_) {
    if (block != own_) RaiseTo(block->arrival.aborted_through, through);
  }
  Abort(through);
}

int DefaultSpinUs(int num_ranks, int threads_per_rank, int num_cores) {
  if (num_ranks <= 1) return 0;
  return num_ranks * threads_per_rank <= num_cores ? 200 : 100;
}

}  // namespace moebius
