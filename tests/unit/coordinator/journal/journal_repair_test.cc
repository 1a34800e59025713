// A damaged journal, looked at and mended: what is whole goes on, and nothing
// that was there is gone.
#include "coordinator/journal/journal_repair.h"

#include <string>

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

TEST(JournalRepair, OneThatACoordinatorHasIsRefused) {
  SimulatedDisk disk(1);
  const auto journal = MustOpen(disk);
  EXPECT_THAT(RepairJournal(disk), StatusIs(StatusCode::kFailedPrecondition));
}

TEST(JournalRepair, AnotherVersionsIsLeftAlone) {
  Written written = WriteSamples();
  written.bytes[8] = 77;
  SimulatedDisk disk(1);
  disk.Put(written.name, written.bytes);
  EXPECT_THAT(RepairJournal(disk),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("version")));
  EXPECT_THAT(disk.names(), ElementsAre(written.name));
  EXPECT_EQ(disk.contents(written.name), written.bytes);
}

TEST(JournalRepair, ASoundOneIsLeftAlone) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put(written.name, written.bytes);
  const auto repairs = RepairJournal(disk);
  ASSERT_THAT(repairs, IsOk());
  EXPECT_THAT(*repairs, IsEmpty());
  EXPECT_EQ(disk.contents(written.name), written.bytes);
  const auto reports = CheckJournal(disk);
  ASSERT_THAT(reports, IsOk());
  ASSERT_EQ(reports->size(), 1u);
  const SegmentReport& report = reports->front();
  EXPECT_THAT(report.damage, IsOk());
  EXPECT_FALSE(report.torn.has_value());
  EXPECT_EQ(report.whole_bytes, written.bytes.size());
  EXPECT_EQ(report.header.checkpoint, kModel);
  EXPECT_EQ(report.requests, 1u);
  EXPECT_EQ(report.unfinished, 1u);
}

TEST(JournalRepair, ATornTailIsNoDamage) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put(written.name, written.bytes.substr(0, written.bytes.size() - 1));
  const auto reports = CheckJournal(disk);
  ASSERT_THAT(reports, IsOk());
  EXPECT_THAT(reports->front().damage, IsOk());
  EXPECT_TRUE(reports->front().torn.has_value());
  EXPECT_THAT(*RepairJournal(disk), IsEmpty());
}

// Wherever a byte has gone bad: what is before it goes on, all of it is kept.
TEST(JournalRepair, EveryFlippedByteIsMended) {
  const Written written = WriteSamples();
  const uint64_t last = written.ends[written.ends.size() - 2];
  for (size_t at = 0; at < last; ++at) {
    if (at >= 8 && at < 16) continue;  // the version, and its checksum
    SCOPED_TRACE(at);
    SimulatedDisk disk(1);
    std::string bytes = written.bytes;
    bytes[at] ^= 0x40;
    disk.Put(written.name, bytes);
    const auto reports = CheckJournal(disk);
    ASSERT_THAT(reports, IsOk());
    ASSERT_EQ(reports->size(), 1u);
    EXPECT_THAT(reports->front().damage, StatusIs(StatusCode::kDataLoss));
    const auto repairs = RepairJournal(disk);
    ASSERT_THAT(repairs, IsOk());
    ASSERT_EQ(repairs->size(), 1u);
    EXPECT_EQ(disk.contents(repairs->front().aside), bytes);
    disk.Restart(/*power_lost=*/true);
    EXPECT_EQ(disk.contents(repairs->front().aside), bytes);
    auto opened = Journal::Open(Options(), disk);
    ASSERT_THAT(opened, IsOk());
    EXPECT_FALSE(opened->cut_off.has_value());
    if (at < written.ends[0]) {  // header or snapshot
      EXPECT_TRUE(opened->journal->state().requests().empty());
      continue;
    }
    size_t whole = 0;
    while (written.ends[whole + 1] <= at) ++whole;
    EXPECT_EQ(opened->journal->state(), written.states[whole]);
    EXPECT_EQ(repairs->front().kept_bytes, written.ends[whole]);
  }
}

TEST(JournalRepair, AFileThatEndsInItsSnapshotIsMended) {
  SimulatedDisk source(1);
  {
    auto journal = MustOpen(source);
    AppendSamples(*journal);
    ASSERT_THAT(journal->Commit(), IsOk());
  }
  source.Restart(/*power_lost=*/false);
  MustOpen(source).reset();  // writes the next one, which is all snapshot
  const std::string name = source.names()[0];
  const std::string whole = source.contents(name);
  for (size_t size = kSegmentHeaderBytes; size < whole.size(); ++size) {
    SCOPED_TRACE(size);
    SimulatedDisk disk(1);
    disk.Put(name, whole.substr(0, size));
    const auto repairs = RepairJournal(disk);
    ASSERT_THAT(repairs, IsOk());
    ASSERT_EQ(repairs->size(), 1u);
    disk.Restart(/*power_lost=*/false);
    EXPECT_THAT(Journal::Open(Options(), disk), IsOk());
  }
}

TEST(JournalRepair, BehindOneThatCannotBeReadAtAllTheOlderOneCounts) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  disk.Put(written.name, written.bytes);
  disk.Put("journal-000002.log", "nothing of a journal");
  const auto repairs = RepairJournal(disk);
  ASSERT_THAT(repairs, IsOk());
  ASSERT_EQ(repairs->size(), 1u);
  EXPECT_EQ(repairs->front().kept_bytes, 0u);
  EXPECT_EQ(disk.contents("journal-000002.log.damaged"),
            "nothing of a journal");
  disk.Restart(/*power_lost=*/false);
  EXPECT_EQ(MustOpen(disk)->state(), written.states.back());
}

TEST(JournalRepair, ASecondDamageDoesNotTakeTheNameOfTheFirst) {
  const Written written = WriteSamples();
  SimulatedDisk disk(1);
  for (const char* aside : {".damaged", ".damaged2"}) {
    std::string bytes = written.bytes;
    bytes[written.ends[1]] ^= 1;
    disk.Put(written.name, bytes);
    const auto repairs = RepairJournal(disk);
    ASSERT_THAT(repairs, IsOk());
    EXPECT_EQ(repairs->front().aside, written.name + aside);
    disk.Restart(/*power_lost=*/false);
  }
}

// Whatever call it dies at: the next attempt, or an opening, finds the bytes.
TEST(JournalRepair, ACrashAtAnyCallLosesNothing) {
  const Written written = WriteSamples();
  std::string bytes = written.bytes;
  bytes[written.ends[2]] ^= 1;
  for (uint64_t call = 0; call < 40; ++call) {
    SCOPED_TRACE(call);
    SimulatedDisk disk(static_cast<uint32_t>(call) + 1);
    disk.Put(written.name, bytes);
    disk.CrashAt(call);
    RepairJournal(disk).IgnoreError();
    disk.Restart(/*power_lost=*/true);
    ASSERT_THAT(RepairJournal(disk), IsOk());
    bool kept = false;
    for (const std::string& name : disk.names()) {
      kept = kept || disk.contents(name) == bytes;
    }
    EXPECT_TRUE(kept);
    disk.Restart(/*power_lost=*/false);
    EXPECT_EQ(MustOpen(disk)->state(), written.states[2]);
  }
}

}  // namespace
}  // namespace moebius
