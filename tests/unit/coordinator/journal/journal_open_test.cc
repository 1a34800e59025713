// What the journal makes of a directory: which bytes it opens, to what, and
// which it refuses.
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/journal/disk_posix.h"
#include "coordinator/journal/journal.h"
#include "coordinator/journal/journal_codec.h"
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

TEST(JournalOpen, ASecondOneOnTheDirectoryIsRefused) {
  SimulatedDisk disk(1);
  const auto first = MustOpen(disk);
  EXPECT_THAT(Journal::Open(Options(), disk),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("locked")));
}

// Without its last record, which forgets the results.
std::string WithResults(const Written& written) {
  return written.bytes.substr(0, written.ends[written.ends.size() - 2]);
}

TEST(JournalOpen, WhatAnotherCheckpointHasBegunEndsAndResultsAreKept) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put(written.name, WithResults(written));
  JournalOptions options = Options();
  options.checkpoint = 1;
  options.unix_ms = 1700000009000;
  auto opened = Journal::Open(options, disk);
  ASSERT_THAT(opened, IsOk());
  EXPECT_TRUE(opened->other_checkpoint);
  EXPECT_EQ(opened->num_given_up, 1u);
  const JournalState& before = written.states[written.states.size() - 2];
  const JournalState& state = opened->journal->state();
  EXPECT_EQ(*state.Find(RequestId{1}), *before.Find(RequestId{1}));
  EXPECT_EQ(*state.Find(RequestId{2}), *before.Find(RequestId{2}));
  ASSERT_FALSE(before.Find(RequestId{3})->finish.has_value());
  EXPECT_EQ(state.Find(RequestId{3})->tokens,
            before.Find(RequestId{3})->tokens);
  EXPECT_EQ(state.Find(RequestId{3})->finish,
            (JournalChoice::Finish{FinishReason::kAbort, kOtherCheckpoint,
                                   1700000009000}));
  // They do not come back in the next term, which has the same checkpoint.
  const JournalState given_up = state;
  opened->journal.reset();
  disk.Restart(/*power_lost=*/false);
  auto again = Journal::Open(options, disk);
  ASSERT_THAT(again, IsOk());
  EXPECT_FALSE(again->other_checkpoint);
  EXPECT_EQ(again->num_given_up, 0u);
  EXPECT_EQ(again->journal->state(), given_up);
}

TEST(JournalOpen, TheSameCheckpointGoesOn) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  auto opened = OpenBytes(disk, WithResults(written));
  ASSERT_THAT(opened, IsOk());
  EXPECT_FALSE(opened->other_checkpoint);
  EXPECT_EQ(opened->journal->state(),
            written.states[written.states.size() - 2]);
}

// Nothing says yet that what is on the disk is the new checkpoint's.
TEST(JournalOpen, OnAFullDiskAnotherCheckpointGivesUpEachTime) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put(written.name, WithResults(written));
  disk.set_capacity_bytes(1);
  JournalOptions options = Options();
  options.checkpoint = 1;
  for (int term = 0; term < 2; ++term) {
    auto opened = Journal::Open(options, disk);
    ASSERT_THAT(opened, IsOk());
    EXPECT_FALSE(opened->journal->healthy());
    EXPECT_EQ(opened->num_given_up, 1u);
    opened->journal.reset();
    disk.Restart(/*power_lost=*/false);
  }
}

TEST(JournalOpen, ASegmentUnderAnothersNameIsCorruption) {
  SimulatedDisk disk(1);
  disk.Put("journal-000002.log", WriteSamples().bytes);
  EXPECT_THAT(Journal::Open(Options(), disk),
              StatusIs(StatusCode::kDataLoss,
                       HasSubstr("journal-000002.log: at offset 16: this is "
                                 "segment 1")));
}

TEST(JournalOpen, ARecordThatCannotFollowIsCorruption) {
  std::string frame(kFrameHeaderBytes, '\0');
  ASSERT_THAT(journal::Encode(journal::Forgotten{RequestId{5}}, frame), IsOk());
  SealFrame(1, 0, frame);
  SimulatedDisk disk(1);
  EXPECT_THAT(
      OpenBytes(disk,
                EncodeHeader({1, 1, kSegmentHeaderBytes, kModel, 0}) + frame),
      StatusIs(StatusCode::kDataLoss,
               HasSubstr("simulated/journal-000001.log: at offset 56: no "
                         "request begins with id 5")));
}

TEST(JournalOpen, BytesThatAreNoRecordAreCorruption) {
  std::string frame(kFrameHeaderBytes, '\0');
  frame += std::string(16, '\xff');
  SealFrame(1, 0, frame);
  SimulatedDisk disk(1);
  EXPECT_THAT(
      OpenBytes(disk,
                EncodeHeader({1, 1, kSegmentHeaderBytes, kModel, 0}) + frame),
      StatusIs(StatusCode::kDataLoss, HasSubstr("at offset 56: malformed")));
}

TEST(JournalOpen, EveryTruncationOpensToWhatIsWholeOrIsReported) {
  const Written written = WriteSamples();
  for (size_t size = 0; size < written.bytes.size(); ++size) {
    SCOPED_TRACE(size);
    SimulatedDisk disk(1);
    auto opened = OpenBytes(disk, written.bytes.substr(0, size));
    if (size < written.ends[0]) {  // header and snapshot
      EXPECT_THAT(opened, StatusIs(StatusCode::kDataLoss));
      continue;
    }
    ASSERT_THAT(opened, IsOk());
    size_t whole = 0;
    while (written.ends[whole + 1] <= size) ++whole;
    EXPECT_EQ(opened->journal->state(), written.states[whole]);
    const uint64_t end = written.ends[whole];
    if (size == end) {
      EXPECT_FALSE(opened->cut_off.has_value());
    } else {
      EXPECT_EQ(opened->cut_off, (Journal::CutOff{"simulated/" + written.name,
                                                  end, size - end}));
    }
  }
}

TEST(JournalOpen, EveryFlippedByteIsReportedOrCutOff) {
  const Written written = WriteSamples();
  const uint64_t last = written.ends[written.ends.size() - 2];
  for (size_t at = 0; at < written.bytes.size(); ++at) {
    SCOPED_TRACE(at);
    SimulatedDisk disk(1);
    std::string bytes = written.bytes;
    bytes[at] ^= 0x40;
    auto opened = OpenBytes(disk, bytes);
    if (at < last) {
      EXPECT_FALSE(opened.ok());
      // It is left for people to look at.
      EXPECT_EQ(disk.contents(written.name), bytes);
      continue;
    }
    ASSERT_THAT(opened, IsOk());
    EXPECT_EQ(opened->cut_off->offset, last);
    EXPECT_EQ(opened->journal->state(),
              written.states[written.states.size() - 2]);
  }
}

TEST(JournalOpen, ADamagedSnapshotIsReportedEvenAtTheEnd) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  ASSERT_THAT(OpenBytes(disk, written.bytes), IsOk());
  // All of it is snapshot now.
  const std::string name = "journal-000002.log";
  ASSERT_THAT(disk.names(), ElementsAre(name));
  const std::string bytes = disk.contents(name);
  for (size_t at = 0; at < bytes.size(); ++at) {
    disk.Restart(/*power_lost=*/false);
    disk.contents(name) = bytes;
    disk.contents(name)[at] ^= 4;
    EXPECT_FALSE(Journal::Open(Options(), disk).ok()) << at;
  }
}

TEST(JournalOpen, AnOlderSegmentIsNoSubstituteForADamagedOne) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put("journal-000001.log", written.bytes);
  disk.Put("journal-000002.log", "MOEBJRNL");
  EXPECT_THAT(Journal::Open(Options(), disk),
              StatusIs(StatusCode::kDataLoss, HasSubstr("journal-000002.log")));
}

TEST(JournalOpen, AJournalOpensWhereNothingCanBeWritten) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put(written.name, written.bytes);
  disk.FailFrom(0, NoSpace());
  auto opened = Journal::Open(Options(), disk);
  ASSERT_THAT(opened, IsOk());
  EXPECT_FALSE(opened->journal->healthy());
  EXPECT_THAT(opened->journal->trouble(), HasSubstr("no space left"));
  EXPECT_EQ(opened->journal->state(), written.states.back());
  EXPECT_EQ(disk.contents(written.name), written.bytes);
  disk.StopFailing();
  EXPECT_THAT(opened->journal->TryHeal(), IsOk());
  EXPECT_TRUE(opened->journal->healthy());
  EXPECT_THAT(opened->journal->trouble(), IsEmpty());
}

// ---- what is right

TEST(JournalOpen, WhatIsInTheDirectoryBesidesIsLeftAlone) {
  SimulatedDisk disk(1);
  disk.Put("lock", "");
  disk.Put("notes.txt", "mine");
  disk.Put("journal-1.log", "not a name of ours");
  disk.Put("journal-000007.tmp", "of a process that ended early");
  auto journal = MustOpen(disk);
  EXPECT_THAT(disk.names(), ElementsAre("journal-000001.log", "journal-1.log",
                                        "lock", "notes.txt"));
}

TEST(JournalOpen, NumbersOfSegmentsGoBeyondTheirDigits) {
  SimulatedDisk disk(1);
  disk.Put("journal-999999.log",
           EncodeHeader({999999, 1, kSegmentHeaderBytes, kModel, 0}));
  auto journal = MustOpen(disk);
  EXPECT_THAT(disk.names(), ElementsAre("journal-1000000.log"));
  AppendSamples(*journal);
  ASSERT_THAT(journal->Commit(), IsOk());
  journal.reset();
  disk.Restart(false);
  EXPECT_EQ(MustOpen(disk)->state(), SampleState());
  EXPECT_THAT(disk.names(), ElementsAre("journal-1000001.log"));
}

TEST(JournalOpen, WorksOnAFileSystem) {
  std::string base = testing::TempDir() + "/journalXXXXXX";
  ASSERT_NE(mkdtemp(base.data()), nullptr);
  JournalState state;
  for (int term = 1; term <= 3; ++term) {
    auto disk = PosixDisk::Open(base + "/journal");
    ASSERT_THAT(disk, IsOk());
    auto journal = MustOpen(**disk);
    EXPECT_EQ(journal->state(), state);
    auto other = PosixDisk::Open(base + "/journal");
    ASSERT_THAT(other, IsOk());
    EXPECT_THAT(Journal::Open(Options(), **other),
                StatusIs(StatusCode::kFailedPrecondition));
    if (term == 1) {
      AppendSamples(*journal);
    } else {
      ASSERT_THAT(
          journal->Append(journal::TermBegun{journal->state().term().next()}),
          IsOk());
    }
    ASSERT_THAT(journal->Commit(), IsOk());
    state = journal->state();
  }
  std::filesystem::remove_all(base);
}

TEST(JournalOpen, OneThatSomebodyRemovesIsWrittenAnew) {
  std::string base = testing::TempDir() + "/journalXXXXXX";
  ASSERT_NE(mkdtemp(base.data()), nullptr);
  JournalState state;
  {
    auto disk = PosixDisk::Open(base + "/journal");
    ASSERT_THAT(disk, IsOk());
    auto journal = MustOpen(**disk);
    AppendSamples(*journal);
    ASSERT_THAT(journal->Commit(), IsOk());
    EXPECT_THAT(journal->CheckPresence(), IsOk());
    std::filesystem::remove_all(base);  // and its parent with it
    EXPECT_THAT(journal->CheckPresence(),
                StatusIs(StatusCode::kNotFound,
                         HasSubstr("journal-000001.log was removed")));
    EXPECT_FALSE(journal->healthy());
    EXPECT_THAT(journal->TryHeal(), StatusIs(StatusCode::kNotFound));
    ASSERT_TRUE(std::filesystem::create_directory(base));
    EXPECT_THAT(journal->TryHeal(), IsOk());
    ASSERT_THAT(
        journal->Append(journal::TermBegun{journal->state().term().next()}),
        IsOk());
    ASSERT_THAT(journal->Commit(), IsOk());
    state = journal->state();
    // It is its journal again, not the next one's.
    auto other = PosixDisk::Open(base + "/journal");
    ASSERT_THAT(other, IsOk());
    EXPECT_THAT(Journal::Open(Options(), **other),
                StatusIs(StatusCode::kFailedPrecondition));
  }
  auto disk = PosixDisk::Open(base + "/journal");
  ASSERT_THAT(disk, IsOk());
  EXPECT_EQ(MustOpen(**disk)->state(), state);
  std::filesystem::remove_all(base);
}

}  // namespace
}  // namespace moebius
