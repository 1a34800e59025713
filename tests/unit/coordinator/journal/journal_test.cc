// The journal on a disk that works, and on one that does not.
#include "coordinator/journal/journal.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/journal/journal_frame.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/journal/journal_rig.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// ---- appending what is not right -------------------------------------------

TEST(Journal, ARefusedRecordLeavesNoTrace) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  const uint64_t size = journal->size_bytes();
  EXPECT_THAT(journal->Append(journal::Forgotten{RequestId{1}}),
              StatusIs(StatusCode::kNotFound));
  EXPECT_THAT(journal->Commit(), IsOk());
  EXPECT_EQ(journal->size_bytes(), size);
  EXPECT_EQ(journal->state(), JournalState());
}

TEST(Journal, ARecordOverItsBoundIsRefused) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  journal::Accepted accepted;
  accepted.generations = {{RequestId{1}, SampleGeneration()}};
  accepted.generations[0].generation.prompt.assign(1 << 24, 5);
  EXPECT_THAT(
      journal->Append(accepted),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("at most 67108864")));
  EXPECT_EQ(journal->state(), JournalState());
  EXPECT_TRUE(journal->healthy());
}

TEST(Journal, AStepOverTheBoundOfARecordIsSeveral) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  constexpr uint32_t kPrompt = 38000;
  journal::Accepted accepted;
  journal::StepTokens step{StepId{1}, {}};
  for (uint64_t id = 1; id <= 10; ++id) {
    Generation generation;
    generation.prompt.assign(kPrompt, 5);
    accepted.generations.push_back({RequestId{id}, generation});
    auto& added = step.tokens.emplace_back();
    added.request = RequestId{id};
    added.token.position = kPrompt;
    for (uint32_t at = 1; at < kPrompt; ++at) {
      added.prompt_logprobs.push_back({0, at, 5, -1.0f, {}});
      added.prompt_logprobs.back().top.resize(kMaxLogprobs, {5, -1.0f});
    }
  }
  ASSERT_THAT(journal->Append(accepted), IsOk());
  ASSERT_THAT(journal->Append(step), IsOk());
  ASSERT_THAT(journal->Commit(), IsOk());
  const JournalState state = journal->state();
  EXPECT_GT(disk.contents(disk.names()[0]).size(), journal::kMaxRecordBytes);
  journal.reset();
  disk.Restart(/*power_lost=*/true);
  EXPECT_TRUE(MustOpen(disk)->state() == state);
}

// ---- a disk that fails -----------------------------------------------------

TEST(Journal, AFailedCommitKeepsTheStateAndWritesNoMoreUntilHealed) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  AppendSamples(*journal);
  disk.FailFrom(disk.calls(), NoSpace());
  EXPECT_THAT(journal->Commit(), StatusIs(StatusCode::kResourceExhausted));
  disk.StopFailing();
  EXPECT_FALSE(journal->healthy());
  EXPECT_THAT(journal->trouble(), HasSubstr("no space left"));
  const uint64_t calls = disk.calls();
  EXPECT_THAT(journal->Append(journal::EpochProposed{Epoch{9}}), IsOk());
  EXPECT_THAT(journal->Commit(), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_EQ(disk.calls(), calls);
  EXPECT_EQ(journal->state().proposed(), Epoch{9});

  EXPECT_THAT(journal->TryHeal(), IsOk());
  EXPECT_TRUE(journal->healthy());
  EXPECT_THAT(disk.names(), ElementsAre("journal-000002.log"));
  EXPECT_THAT(journal->Append(journal::EpochProposed{Epoch{10}}), IsOk());
  EXPECT_THAT(journal->Commit(), IsOk());
  const JournalState state = journal->state();
  disk.Restart(/*power_lost=*/true);
  EXPECT_EQ(MustOpen(disk)->state(), state);
}

TEST(Journal, AFullDiskTornWriteAndAHealLeaveOneHistory) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  AppendSamples(*journal);
  ASSERT_THAT(journal->Commit(), IsOk());
  const JournalState committed = journal->state();
  disk.set_capacity_bytes(journal->size_bytes() + 20);
  journal::StepTokens step{StepId{20}, {{RequestId{3}, {0, 3, 7, 0, {}}, {}}}};
  ASSERT_THAT(journal->Append(step), IsOk());
  EXPECT_THAT(journal->Commit(), StatusIs(StatusCode::kResourceExhausted,
                                          HasSubstr("no space left")));
  EXPECT_THAT(journal->TryHeal(), StatusIs(StatusCode::kResourceExhausted));
  // What the failed attempt wrote takes no room.
  EXPECT_THAT(disk.names(), ElementsAre("journal-000001.log"));
  step = {StepId{21}, {{RequestId{3}, {0, 4, 8, 0, {}}, {}}}};
  ASSERT_THAT(journal->Append(step), IsOk());
  // A crash now opens to what was committed.
  {
    SimulatedDisk copy(2);
    copy.Put("journal-000001.log", disk.contents("journal-000001.log"));
    auto opened = Journal::Open(Options(), copy);
    ASSERT_THAT(opened, IsOk());
    EXPECT_EQ(opened->cut_off->size_bytes, 20);
    EXPECT_EQ(opened->journal->state(), committed);
  }
  disk.set_capacity_bytes(1 << 30);
  EXPECT_THAT(journal->TryHeal(), IsOk());
  const JournalState state = journal->state();
  EXPECT_EQ(state.Find(RequestId{3})->tokens.size(), 3);
  disk.Restart(/*power_lost=*/true);
  EXPECT_EQ(MustOpen(disk)->state(), state);
}

// The system says yes to the second sync, though it has dropped the bytes.
TEST(Journal, ASyncThatFailedIsNotAskedForAgain) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SimulatedDisk disk(seed);
    auto journal = MustOpen(disk);
    AppendSamples(*journal);
    disk.FailFrom(disk.calls() + 1, absl::UnavailableError("i/o error"));
    EXPECT_THAT(journal->Commit(), StatusIs(StatusCode::kUnavailable));
    disk.StopFailing();
    ASSERT_THAT(journal->TryHeal(), IsOk());
    disk.Restart(/*power_lost=*/true);
    EXPECT_EQ(MustOpen(disk)->state(), SampleState());
  }
}

TEST(Journal, ACompactionThatFailsEarlyLeavesTheSegmentInUse) {
  SimulatedDisk disk(1);
  JournalOptions options = Options();
  options.rotate_bytes = 100;
  auto journal = MustOpen(disk, options);
  // It grows to twice its snapshot, and then there is no room for another.
  disk.set_capacity_bytes(3 * journal->size_bytes() - 10);
  uint64_t term = 0;
  while (journal->trouble().empty()) {
    ASSERT_THAT(journal->Append(journal::TermBegun{Term{++term}}), IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
    ASSERT_LT(term, 10);
  }
  EXPECT_TRUE(journal->healthy());
  EXPECT_THAT(journal->trouble(), HasSubstr("no space left"));
  EXPECT_THAT(disk.names(), ElementsAre("journal-000001.log"));
  disk.set_capacity_bytes(1 << 20);
  while (!journal->trouble().empty()) {
    ASSERT_THAT(journal->Append(journal::TermBegun{Term{++term}}), IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
    ASSERT_LT(term, 20);
  }
  EXPECT_THAT(disk.names(), ElementsAre("journal-000002.log"));
  disk.Restart(/*power_lost=*/true);
  EXPECT_EQ(MustOpen(disk, options)->state().term(), Term{term});
}

// Once the new segment may have its name, the old one may not be read again.
TEST(Journal, ACompactionThatFailsLateIsTrouble) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    for (uint64_t later : {0, 1}) {  // at the rename, at the sync of names
      SimulatedDisk disk(seed);
      JournalOptions options = Options();
      options.rotate_bytes = 1;
      auto journal = MustOpen(disk, options);
      // Grows to twice its size with this.
      journal::Accepted accepted;
      accepted.generations = {{RequestId{1}, SampleGeneration()}};
      ASSERT_THAT(journal->Append(accepted), IsOk());
      // Write, sync; make, header, snapshot, sync; rename.
      disk.FailFrom(disk.calls() + 6 + later, NoSpace());
      EXPECT_FALSE(journal->Commit().ok());
      EXPECT_FALSE(journal->healthy());
      disk.StopFailing();
      if (seed % 2 == 0) {
        ASSERT_THAT(journal->TryHeal(), IsOk());
      }
      const JournalState state = journal->state();
      disk.Restart(/*power_lost=*/true);
      EXPECT_EQ(MustOpen(disk, options)->state(), state);
    }
  }
}

TEST(Journal, SegmentsThatCannotBeRemovedAreTriedAgain) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  AppendSamples(*journal);
  ASSERT_THAT(journal->Commit(), IsOk());
  journal.reset();
  // Lock, list, read; make, header, snapshot, sync, rename, sync of names.
  disk.Restart(false);
  disk.FailFrom(disk.calls() + 9, NoSpace());
  journal = MustOpen(disk);
  EXPECT_TRUE(journal->healthy());
  disk.StopFailing();
  journal.reset();
  disk.Restart(false);
  journal = MustOpen(disk);
  EXPECT_THAT(disk.names(), ElementsAre("journal-000003.log"));
  EXPECT_EQ(journal->state(), SampleState());
}

TEST(Journal, SegmentsThatCannotBeRemovedAreOnlySoMany) {
  SimulatedDisk disk(1);
  JournalOptions options = Options();
  options.rotate_bytes = 1;
  auto journal = MustOpen(disk, options);
  disk.set_removals_fail(true);
  uint64_t term = 0;
  while (journal->trouble().empty()) {
    ASSERT_THAT(journal->Append(journal::TermBegun{Term{++term}}), IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
    ASSERT_LT(term, 1000);
  }
  EXPECT_TRUE(journal->healthy());
  EXPECT_THAT(journal->trouble(), HasSubstr("65 old segments cannot be "
                                            "removed"));
  disk.set_removals_fail(false);
  while (!journal->trouble().empty()) {
    ASSERT_THAT(journal->Append(journal::TermBegun{Term{++term}}), IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
    ASSERT_LT(term, 1000);
  }
  EXPECT_EQ(disk.names().size(), 1);
  disk.Restart(/*power_lost=*/true);
  EXPECT_EQ(MustOpen(disk, options)->state().term(), Term{term});
}

// More of them than the bound are removed before anything else; but not as long
// as the name of the newest may still be lost.
TEST(Journal, ManyOldSegmentsAreRemovedBehindANameOnDisk) {
  const std::string newest = "journal-000200.log";
  for (uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    SimulatedDisk disk(seed);
    disk.Put(newest, EncodeHeader({200, 1, kSegmentHeaderBytes, kModel, 0}));
    auto journal = MustOpen(disk);
    AppendSamples(*journal);
    ASSERT_THAT(journal->Commit(), IsOk());
    journal.reset();
    // Lock, list, read; make, header, snapshot, sync, rename; the end.
    disk.Restart(/*power_lost=*/false);
    disk.CrashAt(disk.calls() + 8);
    Journal::Open(Options(), disk).status().IgnoreError();
    disk.Restart(/*power_lost=*/false);
    disk.Put("journal-000100.log", "");
    for (size_t i = 0; i < Journal::kMaxOldSegments; ++i) {
      disk.Put(absl::StrCat("journal-0001", 10 + i, ".log"), "");
    }
    disk.CrashAt(disk.calls() + seed);
    Journal::Open(Options(), disk).status().IgnoreError();
    disk.Restart(/*power_lost=*/true);
    EXPECT_EQ(MustOpen(disk)->state(), SampleState());
  }
}

// ---- a disk that works -----------------------------------------------------

TEST(Journal, WhatIsNotCommittedIsNotWritten) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  const uint64_t calls = disk.calls();
  AppendSamples(*journal);
  EXPECT_EQ(disk.calls(), calls);
  journal.reset();
  disk.Restart(false);
  EXPECT_EQ(MustOpen(disk)->state(), JournalState());
}

TEST(Journal, SyncsAsThePolicySays) {
  const uint64_t records = SampleHistory().size();
  for (const auto& [fsync, syncs, writes] :
       std::vector<std::tuple<FsyncPolicy, uint64_t, uint64_t>>{
           {FsyncPolicy::kNone, 0, 1},
           {FsyncPolicy::kStep, 1, 1},
           {FsyncPolicy::kAlways, records, records}}) {
    SimulatedDisk disk(1);
    auto journal = MustOpen(disk, Options(fsync));
    for (int round = 0; round < 2; ++round) {
      if (round == 0) {
        AppendSamples(*journal);
      } else {
        ASSERT_THAT(journal->Append(journal::EpochProposed{Epoch{9}}), IsOk());
      }
      const uint64_t calls = disk.calls();
      const uint64_t syncs_before = journal->figures().syncs;
      ASSERT_THAT(journal->Commit(), IsOk());
      const uint64_t expected_syncs =
          round == 0 ? syncs : std::min<uint64_t>(syncs, 1);
      const uint64_t expected_writes = round == 0 ? writes : 1;
      EXPECT_EQ(journal->figures().syncs - syncs_before, expected_syncs);
      EXPECT_EQ(disk.calls() - calls, expected_syncs + expected_writes);
    }
    const JournalState state = journal->state();
    journal.reset();
    disk.Restart(/*power_lost=*/fsync != FsyncPolicy::kNone);
    EXPECT_EQ(MustOpen(disk)->state(), state);
  }
}

TEST(Journal, NothingIsWrittenForAnEmptyCommit) {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  const uint64_t calls = disk.calls();
  EXPECT_THAT(journal->Commit(), IsOk());
  EXPECT_THAT(journal->TryHeal(), IsOk());
  EXPECT_EQ(disk.calls(), calls);
}

TEST(Journal, SegmentsAreCompacted) {
  SimulatedDisk disk(1);
  JournalOptions options = Options();
  options.rotate_bytes = 4096;
  auto journal = MustOpen(disk, options);
  AppendSamples(*journal);
  for (uint64_t i = 0; i < 2000; ++i) {
    const RequestId id{100 + i};
    ASSERT_THAT(journal->Append(journal::Accepted{
                    {{id, SampleGeneration()}}, "context", int64_t(i)}),
                IsOk());
    ASSERT_THAT(journal->Append(
                    journal::Ended{id, FinishReason::kAbort, "", int64_t(i)}),
                IsOk());
    ASSERT_THAT(journal->Append(journal::Forgotten{id}), IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
    ASSERT_EQ(disk.names().size(), 1);
    ASSERT_LT(journal->size_bytes(), 3 * 4096);
  }
  EXPECT_GT(journal->figures().segments, 50);
  EXPECT_LT(journal->figures().segments, 500);
  const JournalState state = journal->state();
  disk.Restart(/*power_lost=*/true);
  EXPECT_EQ(MustOpen(disk, options)->state(), state);
}

TEST(Journal, ALargeStateIsNotCompactedForLittle) {
  SimulatedDisk disk(1);
  JournalOptions options = Options();
  options.rotate_bytes = 1024;
  auto journal = MustOpen(disk, options);
  AppendSamples(*journal);
  ASSERT_THAT(
      journal->Append(journal::Accepted{
          {{RequestId{50}, SampleGeneration()}}, std::string(1 << 20, 'c'), 0}),
      IsOk());
  ASSERT_THAT(journal->Commit(), IsOk());
  const uint64_t segments = journal->figures().segments;
  for (uint64_t epoch = 10; epoch < 3000; ++epoch) {
    ASSERT_THAT(journal->Append(journal::EpochProposed{Epoch{epoch}}), IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
  }
  EXPECT_EQ(journal->figures().segments, segments);
}

TEST(Journal, MoreThanTheBoundBetweenCommitsIsWrittenEarly) {
  SimulatedDisk disk(1);
  JournalOptions options = Options();
  options.rotate_bytes = 1;  // and compacted with it
  auto journal = MustOpen(disk, options);
  for (uint64_t id = 1; id <= 14; ++id) {
    ASSERT_THAT(journal->Append(journal::Accepted{
                    {{RequestId{id}, SampleGeneration()}},
                    std::string(journal::kMaxContextBytes, 'c'),
                    0}),
                IsOk());
  }
  EXPECT_EQ(journal->figures().commits, 1);
  ASSERT_THAT(journal->Commit(), IsOk());
  const JournalState state = journal->state();
  disk.Restart(/*power_lost=*/true);
  EXPECT_TRUE(MustOpen(disk)->state() == state);
}

}  // namespace
}  // namespace moebius
