#include "worker/peers/group_barrier.h"

#include <sched.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr absl::Duration kLong = absl::Seconds(20);

// Memory shared with children: the signals of a group, and a line of plain
// words for each rank.
class Group {
 public:
  explicit Group(int num_ranks) : num_ranks_(num_ranks) {
    memory_ = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory_, MAP_FAILED);
    for (Rank rank = 0; rank < num_ranks; ++rank) {
      signals_[rank] = static_cast<std::byte*>(memory_) + rank * kRankBytes;
      InitSignals(signals_[rank], rank, num_ranks, Incarnation{1});
    }
  }
  ~Group() { ::munmap(memory_, kBytes); }

  GroupBarrier Barrier(Rank rank, BarrierOptions options = {}) const {
    return GroupBarrier(rank, absl::MakeConstSpan(signals_.data(), num_ranks_),
                        options);
  }
  SignalsBlock* block(Rank rank) const { return SignalsAt(signals_[rank]); }
  // Not atomic: what the barrier must order.
  uint64_t* word(Rank rank) const {
    return reinterpret_cast<uint64_t*>(signals_[rank] + 2048);
  }

  // Waits until `rank` sleeps in the kernel, or is about to.
  void AwaitAsleep(Rank rank) const {
    while (block(rank)->arrival.asleep.load() == 0) ::sched_yield();
  }

 private:
  static constexpr size_t kRankBytes = 4096;
  static constexpr size_t kBytes = kRankBytes * kMaxRanks;
  const int num_ranks_;
  void* memory_ = nullptr;
  std::array<std::byte*, kMaxRanks> signals_{};
};

TEST(GroupBarrier, DeadlineNamesTheRanksThatHaveNotArrived) {
  const Group group(4);
  GroupBarrier two = group.Barrier(2);
  group.block(1)->arrival.sequence = 7;
  for (int spin_us : {0, 20}) {
    GroupBarrier barrier = group.Barrier(0, {.spin_us = spin_us});
    const absl::Status status = barrier.Wait(7, absl::Milliseconds(3));
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kDeadlineExceeded,
                                 AllOf(HasSubstr("rank 2, 3 not at barrier 7"),
                                       Not(HasSubstr("1,")))));
  }
}

TEST(GroupBarrier, PassedDeadlineIsAnErrorAtOnce) {
  const Group group(2);
  GroupBarrier barrier = group.Barrier(0, {.spin_us = 1000000});
  EXPECT_THAT(barrier.Wait(1, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(barrier.Wait(2, -absl::Seconds(1)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(GroupBarrier, SpinEndsWithTheDeadline) {
  const Group group(2);
  GroupBarrier barrier = group.Barrier(0, {.spin_us = 1000000000});
  EXPECT_THAT(barrier.Wait(1, absl::Milliseconds(5)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(GroupBarrier, AbortEndsSleepersAndLaterWaitsUpToItsNumber) {
  const Group group(3);
  GroupBarrier zero =
      group.Barrier(0, {.look_again = absl::InfiniteDuration()});
  Child aborter([&] {
    group.AwaitAsleep(0);
    group.Barrier(2).Abort(2);
    return 0;
  });
  const auto aborted =
      StatusIs(absl::StatusCode::kAborted, HasSubstr("rank 2 aborted"));
  EXPECT_THAT(zero.Wait(1, kLong), aborted);
  EXPECT_THAT(zero.Wait(2, kLong), aborted);
  EXPECT_THAT(group.Barrier(1, {.spin_us = 50}).Wait(1, kLong), aborted);
  EXPECT_EQ(aborter.Join(), 0);
  EXPECT_EQ(group.Barrier(2).abandoned(), 2u);
  group.Barrier(2).Abort(1);  // does not take anything back
  EXPECT_THAT(zero.Wait(2, kLong), aborted);
  // Behind it the group goes on.
  EXPECT_THAT(zero.Wait(3, absl::Milliseconds(1)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(zero.abandoned(), 3u);
}

// A process dies after it was told to go on with number 20 and before it has:
// its own last arrival is 7.
TEST(GroupBarrier, AbortWhereverOthersAreReachesThoseWhoHaveGoneOn) {
  const Group group(2);
  group.block(0)->arrival.sequence = 19;
  group.block(1)->arrival.sequence = 7;
  GroupBarrier survivor = group.Barrier(0), successor = group.Barrier(1);
  std::thread waiting([&] {
    EXPECT_THAT(survivor.Wait(20, kLong),
                StatusIs(absl::StatusCode::kAborted,
                         HasSubstr("rank 1 aborted barrier 20")));
  });
  group.AwaitAsleep(0);
  successor.AbortWhereverOthersAre();
  waiting.join();
  EXPECT_EQ(group.block(1)->arrival.aborted_through, 21u);
}

TEST(GroupBarrier, AbortWhereverOthersAreReachesThoseWhoAreOnTheirWay) {
  const Group group(2);
  group.block(0)->arrival.sequence = 7;
  group.block(0)->arrival.aborted_through = 19;
  GroupBarrier survivor = group.Barrier(0), successor = group.Barrier(1);
  successor.AbortWhereverOthersAre();
  EXPECT_THAT(survivor.Wait(20, kLong), StatusIs(absl::StatusCode::kAborted));
}

TEST(GroupBarrier, AbortDoesNotUndoACompletedBarrier) {
  const Group group(2);
  GroupBarrier zero = group.Barrier(0);
  GroupBarrier one = group.Barrier(1);
  EXPECT_THAT(zero.Wait(1, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(one.Wait(1, kLong), IsOk());
  one.Abort(2);
  EXPECT_THAT(zero.Wait(1, kLong), IsOk());
  EXPECT_THAT(zero.Wait(2, kLong), StatusIs(absl::StatusCode::kAborted));
}

TEST(GroupBarrier, KilledPeerBecomesADeadlineThatNamesIt) {
  for (int spin_us : {0, 50}) {
    const Group group(3);
    Child living([&] {
      GroupBarrier barrier = group.Barrier(1, {.spin_us = spin_us});
      EXPECT_THAT(barrier.Wait(1, kLong), IsOk());
      EXPECT_THAT(barrier.Wait(2, absl::Milliseconds(300)),
                  StatusIs(absl::StatusCode::kDeadlineExceeded,
                           HasSubstr("rank 2 not at barrier 2")));
      return 0;
    });
    Child dying([&] {
      EXPECT_THAT(group.Barrier(2, {.spin_us = spin_us}).Wait(1, kLong),
                  IsOk());
      return ::kill(::getpid(), SIGKILL);
    });
    GroupBarrier barrier = group.Barrier(0, {.spin_us = spin_us});
    EXPECT_THAT(barrier.Wait(1, kLong), IsOk());
    EXPECT_EQ(dying.Join(), -SIGKILL);
    EXPECT_THAT(barrier.Wait(2, absl::Milliseconds(300)),
                StatusIs(absl::StatusCode::kDeadlineExceeded,
                         HasSubstr("rank 2 not at barrier 2")));
    EXPECT_EQ(living.Join(), 0);
  }
}

TEST(GroupBarrier, PeerKilledAsleepIsOvertakenByItsSuccessor) {
  const Group group(2);
  {
    Child predecessor(
        [&] { return group.Barrier(1).Wait(1, kLong).ok() ? 0 : 1; });
    group.AwaitAsleep(1);
    predecessor.Kill();
  }
  Child successor([&] {
    GroupBarrier barrier = group.Barrier(1);
    EXPECT_EQ(barrier.arrived(), 1u);
    EXPECT_THAT(barrier.Wait(1, kLong), IsOk());  // the same once more
    EXPECT_THAT(barrier.Wait(2, kLong), IsOk());
    EXPECT_EQ(barrier.arrived(), 2u);
    return 0;
  });
  GroupBarrier barrier = group.Barrier(0);
  EXPECT_THAT(barrier.Wait(1, kLong), IsOk());
  EXPECT_THAT(barrier.Wait(2, kLong), IsOk());
  EXPECT_EQ(successor.Join(), 0);
}

TEST(GroupBarrier, ArrivalWhoseBellNeverRangIsSeenAllTheSame) {
  const Group group(2);
  Child waiter([&] {
    GroupBarrier barrier =
        group.Barrier(1, {.look_again = absl::Milliseconds(1)});
    return barrier.Wait(1, kLong).ok() ? 0 : 1;
  });
  group.AwaitAsleep(1);
  // Rank 0 arrives and dies before it rings.
  group.block(0)->arrival.sequence.store(1);
  EXPECT_EQ(waiter.Join(), 0);
}

TEST(GroupBarrier, OneRankNeverWaits) {
  const Group group(1);
  GroupBarrier barrier = group.Barrier(0);
  EXPECT_THAT(barrier.Wait(1, absl::ZeroDuration()), IsOk());
  EXPECT_THAT(barrier.Wait(5, absl::ZeroDuration()), IsOk());
  EXPECT_EQ(barrier.arrived(), 5u);
}

TEST(GroupBarrier, LaterArrivalCountsForEarlierBarriers) {
  const Group group(2);
  group.block(1)->arrival.sequence = 9;
  GroupBarrier barrier = group.Barrier(0);
  for (uint64_t sequence : {3, 4, 9}) {
    EXPECT_THAT(barrier.Wait(sequence, absl::ZeroDuration()), IsOk());
  }
  EXPECT_THAT(barrier.Wait(10, absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

// One rank's part of the stress: between two barriers every rank writes its
// word, between the next two everyone reads all words.
int StressRank(const Group& group, int num_ranks, Rank rank, int rounds,
               BarrierOptions options) {
  GroupBarrier barrier = group.Barrier(rank, options);
  uint64_t sequence = 0;
  for (int round = 1; round <= rounds; ++round) {
    *group.word(rank) = round * 1000 + rank;
    if (!barrier.Wait(++sequence, kLong).ok()) return 1;
    for (Rank peer = 0; peer < num_ranks; ++peer) {
      if (*group.word(peer) != static_cast<uint64_t>(round * 1000 + peer)) {
        return 2;
      }
    }
    if (!barrier.Wait(++sequence, kLong).ok()) return 3;
  }
  return 0;
}

struct StressCase {
  int num_ranks;
  int rounds;
  int spin_us;
};

class GroupBarrierStressTest : public testing::TestWithParam<StressCase> {};

// Sleepers never look again by themselves: a lost wake-up is a deadline.
TEST_P(GroupBarrierStressTest, OrdersWritesOfProcessesAndLosesNoWakeUp) {
  const StressCase& c = GetParam();
  const Group group(c.num_ranks);
  std::vector<Child> children;
  for (Rank rank = 0; rank < c.num_ranks; ++rank) {
    children.emplace_back([&, rank] {
      return StressRank(
          group, c.num_ranks, rank, c.rounds,
          {.spin_us = c.spin_us, .look_again = absl::InfiniteDuration()});
    });
  }
  for (Child& child : children) EXPECT_EQ(child.Join(), 0);
  for (Rank rank = 0; rank < c.num_ranks; ++rank) {
    EXPECT_EQ(group.block(rank)->arrival.sequence.load(),
              2u * static_cast<uint64_t>(c.rounds));
    EXPECT_EQ(group.block(rank)->arrival.asleep.load(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modes, GroupBarrierStressTest,
    testing::Values(StressCase{2, 5000, 0}, StressCase{2, 5000, 1},
                    StressCase{2, 5000, 100}, StressCase{3, 3000, 0},
                    StressCase{4, 3000, 0}, StressCase{4, 3000, 20},
                    StressCase{8, 1500, 0}, StressCase{8, 1500, 5},
                    StressCase{8, 1500, 100}),
    [](const auto& info) {
      return std::to_string(info.param.num_ranks) + "RanksSpin" +
             std::to_string(info.param.spin_us);
    });

// The same in threads, for the race detector.
TEST(GroupBarrier, OrdersWritesOfThreads) {
  const Group group(4);
  std::array<std::atomic<int>, 4> results{};
  std::vector<std::thread> threads;
  for (Rank rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      results[rank] = StressRank(group, 4, rank, 500, {.spin_us = 5});
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, 0);
}

TEST(DefaultSpin, LongestWhenEveryThreadHasACoreAndNoneForOneRank) {
  EXPECT_EQ(DefaultSpinUs(1, 1, 8), 0);
  EXPECT_GT(DefaultSpinUs(8, 1, 2), 0);
  EXPECT_GT(DefaultSpinUs(2, 1, 2), DefaultSpinUs(2, 2, 2));
  EXPECT_EQ(DefaultSpinUs(2, 4, 8), DefaultSpinUs(2, 1, 2));
}

TEST(Signals, AnothersRegionIsRefused) {
  const Group group(2);
  const auto* base = reinterpret_cast<const std::byte*>(group.block(1));
  EXPECT_THAT(CheckSignals(base, 1, 2), IsOk());
  EXPECT_THAT(CheckSignals(base, 0, 2),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(CheckSignals(base, 1, 4),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  alignas(kSignalsLine) const std::byte zeros[sizeof(SignalsBlock)] = {};
  EXPECT_THAT(CheckSignals(zeros, 0, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(Signals, SwitchProgressIsReadAsItWasWritten) {
  const Group group(1);
  EXPECT_EQ(LoadSwitchProgress(*group.block(0)), SwitchProgress{});
  for (const SwitchProgress& progress :
       {SwitchProgress{Epoch{1}, Side::kLow, 0, 0},
        SwitchProgress{Epoch{7}, Side::kHigh, 94, 3},
        SwitchProgress{Epoch{(uint64_t{1} << 39) - 1}, Side::kLow, 4095, 4095},
        SwitchProgress{Epoch{(uint64_t{1} << 39) - 1}, Side::kHigh, 4095,
                       4095}}) {
    StoreSwitchProgress(group.block(0), progress);
    EXPECT_EQ(LoadSwitchProgress(*group.block(0)), progress);
  }
}

}  // namespace
}  // namespace moebius
