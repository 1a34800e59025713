// What tests of switches share: the ranks of a group, with all that a switch
// needs, and threads for processes.
#pragma once

#include <sched.h>

#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "worker/peers/group_fence.h"
#include "worker/switch/switch_executor.h"
#include "worker/switch/thread_mover.h"
#include "worker/switch/weight_checksum.h"

namespace moebius {

// CPUs that the calling thread may use.
inline cpu_set_t AllowedHere() {
  cpu_set_t allowed;
  EXPECT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  return allowed;
}

// SwitchRanks
//
// Real regions, whose experts hold bytes that tell ranks and places apart.
// Sequences and KV are the test's to fill, then Start().
class SwitchRanks {
 protected:
  struct Sizes {
    int64_t page_bytes = 0;
    uint32_t pages = 0, slots = 0;
  };
  static constexpr int32_t kVocabulary = 100;

  SwitchRanks(const AttentionShape& attention, const ExpertShape& experts,
              const Sizes& sizes)
      : attention_(attention), experts_(experts), sizes_(sizes) {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = experts_.region_bytes();
    geometry[RegionKind::kKv] = sizes_.pages * sizes_.page_bytes;
    auto memories = WorkerMemory::CreateInProcess(ranks(), geometry);
    EXPECT_THAT(memories, IsOk());
    memories_ = *std::move(memories);
    for (Rank r = 0; r < ranks(); ++r) AddRank(r);
  }

  // `barrier`: of a rank, if it is not its fence.
  void Start(const ExpertsState& state,
             const std::function<Barrier*(Rank)>& barrier = nullptr) {
    for (Rank r = 0; r < ranks(); ++r) {
      executors_.push_back(std::make_unique<SwitchExecutor>(SwitchContext{
          r, ranks(), experts_, attention_, sizes_.pages, memories_[r].get(),
          sequences_[r].get(), barrier ? barrier(r) : fences_[r].get(), nullptr,
          movers_[r].get()}));
      EXPECT_THAT(executors_[r]->GoOn(state, Epoch{0}), IsOk());
    }
  }

  int ranks() const { return attention_.num_ranks; }

  // Of the weights of all.
  uint64_t Checksum(const ExpertsState& state) const {
    uint64_t sum = 0;
    for (Rank r = 0; r < ranks(); ++r) {
      sum +=
          WeightChecksum(experts_, state, r,
                         memories_[r]->base(RegionKind::kExperts, r), nullptr);
    }
    return sum;
  }

  // PREPARE and COMMIT on every rank, each on a thread, which then has the
  // cores that it had.
  std::vector<wire::Switched> Switch(Epoch epoch, Layout target,
                                     const KvPlan& plan) {
    std::vector<wire::Switched> switched(ranks());
    std::vector<std::thread> threads;
    for (Rank r = 0; r < ranks(); ++r) {
      threads.emplace_back([&, r] {
        const wire::Prepared prepared =
            executors_[r]->Prepare(wire::Prepare{epoch, target, plan});
        EXPECT_TRUE(prepared.ok) << prepared.reason;
        const cpu_set_t allowed = AllowedHere();
        const auto done = executors_[r]->Commit(wire::Commit{epoch, StepId{9}});
        const cpu_set_t after = AllowedHere();
        EXPECT_TRUE(CPU_EQUAL(&allowed, &after));
        EXPECT_THAT(done, IsOk());
        if (done.ok()) switched[r] = *done;
      });
    }
    for (std::thread& thread : threads) thread.join();
    return switched;
  }

  const AttentionShape attention_;
  const ExpertShape experts_;
  const Sizes sizes_;
  std::vector<std::unique_ptr<WorkerMemory>> memories_;
  std::vector<std::unique_ptr<CpuFence>> fences_;
  std::vector<std::unique_ptr<DeviceSlots>> slots_;
  std::vector<std::unique_ptr<SequenceTable>> sequences_;
  std::vector<std::unique_ptr<Mover>> movers_;
  std::vector<std::unique_ptr<SwitchExecutor>> executors_;

 private:
  void AddRank(Rank r) {
    std::byte* const experts = memories_[r]->mutable_base(RegionKind::kExperts);
    for (int64_t i = 0; i < experts_.region_bytes(); ++i) {
      experts[i] = static_cast<std::byte>((i * 7 + i / 251 + r * 131) & 255);
    }
    fences_.push_back(std::make_unique<SignalsFence>(
        r, memories_[r]->all_signals(), BarrierOptions{.spin_us = 10},
        absl::Seconds(20)));
    slots_.push_back(
        std::make_unique<DeviceSlots>(r, sizes_.slots, kVocabulary));
    sequences_.push_back(std::make_unique<SequenceTable>(
        SequenceTable::Options{r, ranks(), attention_, sizes_.slots, 16,
                               sizes_.pages, 64, kVocabulary},
        slots_[r].get()));
    movers_.push_back(std::make_unique<ThreadMover>(
        memories_[r].get(), sizes_.page_bytes, nullptr));
  }
};

}  // namespace moebius
