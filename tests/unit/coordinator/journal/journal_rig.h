// A journal on a simulated disk, with the sample history in it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/journal/journal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/journal/journal_samples.h"
#include "tests/unit/coordinator/journal/simulated_disk.h"

namespace moebius {

inline constexpr uint64_t kModel = 0xfeed;

inline JournalOptions Options(FsyncPolicy fsync = FsyncPolicy::kStep) {
  JournalOptions options;
  options.checkpoint = kModel;
  options.salt = 0x5ca1ab1e0ddba11;
  options.fsync = fsync;
  return options;
}

inline std::unique_ptr<Journal> MustOpen(
    Disk& disk, const JournalOptions& options = Options()) {
  auto opened = Journal::Open(options, disk);
  EXPECT_THAT(opened, IsOk());
  EXPECT_FALSE(opened->cut_off.has_value());
  return std::move(opened->journal);
}

inline void AppendSamples(Journal& journal) {
  for (const journal::Record& record : SampleHistory()) {
    ASSERT_THAT(journal.Append(record), IsOk());
  }
}

inline JournalState SampleState() {
  JournalState state;
  for (const journal::Record& record : SampleHistory()) {
    EXPECT_THAT(state.Apply(record), IsOk());
  }
  return state;
}

inline absl::Status NoSpace() {
  return absl::ResourceExhaustedError("no space left on device");
}

// One record a commit, and the bytes of the segment.
struct Written {
  std::string name;
  std::string bytes;
  std::vector<JournalState> states;  // [commits]
  std::vector<uint64_t> ends;        // [commits] bytes
};
inline Written WriteSamples() {
  SimulatedDisk disk(1);
  auto journal = MustOpen(disk);
  Written written;
  written.states.push_back(journal->state());
  written.ends.push_back(journal->size_bytes());
  for (const journal::Record& record : SampleHistory()) {
    EXPECT_THAT(journal->Append(record), IsOk());
    EXPECT_THAT(journal->Commit(), IsOk());
    written.states.push_back(journal->state());
    written.ends.push_back(journal->size_bytes());
  }
  EXPECT_THAT(disk.names(), testing::ElementsAre("journal-000001.log"));
  written.name = disk.names()[0];
  written.bytes = disk.contents(written.name);
  return written;
}

inline absl::StatusOr<Journal::Opened> OpenBytes(SimulatedDisk& disk,
                                                 const std::string& bytes) {
  disk.Put("journal-000001.log", bytes);
  return Journal::Open(Options(), disk);
}

}  // namespace moebius
