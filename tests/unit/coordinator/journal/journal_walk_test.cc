// The journal at random: histories, crashes at every call of the disk, losses
// of power that tear what was not synced, full and broken disks, heals.
// Whatever happens, it opens to a prefix of what was appended, with all that
// was committed in it.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/journal/journal.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/journal/journal_samples.h"
#include "tests/unit/coordinator/journal/simulated_disk.h"

namespace moebius {
namespace {

// Under a sanitizer all of it takes twenty times as long.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kSlowness = 4;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
constexpr int kSlowness = 4;
#else
constexpr int kSlowness = 1;
#endif
#else
constexpr int kSlowness = 1;
#endif

struct WalkFigures {
  uint64_t records = 0, commits = 0, failed_commits = 0, heals = 0,
           failed_heals = 0, compactions = 0, failed_compactions = 0,
           crashes = 0, crashes_in_open = 0, power_losses = 0, unhealthy = 0,
           cut_offs = 0, lost_records = 0, damaged = 0;
};

class Walk {
 public:
  Walk(uint32_t seed, FsyncPolicy fsync, WalkFigures& figures)
      : random_(seed),
        history_(seed),
        fsync_(fsync),
        figures_(figures),
        disk_(std::make_unique<SimulatedDisk>(seed)) {}

  void Run(int terms) {
    for (int term = 0; term < terms; ++term) {
      if (Chance(2)) disk_->CrashAt(disk_->calls() + Below(80));
      ASSERT_NO_FATAL_FAILURE(Open());
      if (journal_ != nullptr) {
        ASSERT_NO_FATAL_FAILURE(Live(Below(60)));
      }
      End();
    }
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % n); }
  bool Chance(int one_in) { return Below(one_in) == 0; }

  // Ends the process, or the machine.
  void End() {
    figures_.crashes += disk_->crashed();
    journal_.reset();
    const bool power_lost = Chance(2);
    figures_.power_losses += power_lost;
    disk_->Restart(power_lost);
    if (power_lost) committed_ = on_disk_;
    may_be_damaged_ |= power_lost && fsync_ == FsyncPolicy::kNone;
  }

  void Open() {
    JournalOptions options;
    options.fsync = fsync_;
    options.salt = random_();
    options.rotate_bytes = 1 + Below(4000);
    if (Chance(8)) {
      disk_->FailFrom(disk_->calls() + Below(12),
                      absl::UnavailableError("simulated: broken"));
    }
    const uint64_t cut_offs = figures_.cut_offs;
    auto opened = Journal::Open(options, *disk_);
    if (!opened.ok() && disk_->crashed()) {
      ++figures_.crashes_in_open;
      return;
    }
    if (may_be_damaged_ && absl::IsDataLoss(opened.status())) {
      // Bytes before others were lost: that is what kNone risks.
      ++figures_.damaged;
      may_be_damaged_ = false;
      disk_ = std::make_unique<SimulatedDisk>(static_cast<uint32_t>(random_()));
      states_ = {JournalState()};
      committed_ = on_disk_ = 0;
      return;
    }
    ASSERT_THAT(opened, IsOk());
    journal_ = std::move(opened->journal);
    figures_.cut_offs += opened->cut_off.has_value();
    const auto recovered = std::find(states_.begin() + committed_,
                                     states_.end(), journal_->state());
    ASSERT_NE(recovered, states_.end())
        << "none of the " << states_.size() - committed_
        << " states that are possible; cut off: "
        << figures_.cut_offs - cut_offs;
    figures_.lost_records += states_.end() - recovered - 1;
    states_.erase(recovered + 1, states_.end());
    committed_ = states_.size() - 1;
    if (journal_->healthy()) {
      on_disk_ = committed_;
      may_be_damaged_ = false;
    }
    disk_->StopFailing();
  }

  void Live(int turns) {
    int failing = 0;  // turns for which the disk still does
    for (; turns > 0 && !disk_->crashed(); --turns) {
      if (failing == 0 && Chance(12)) {
        failing = 1 + Below(8);
        if (Chance(2)) {
          uint64_t used = 0;
          for (const auto& name : disk_->names()) {
            used += disk_->contents(name).size();
          }
          disk_->set_capacity_bytes(used + Below(300));
        } else {
          disk_->FailFrom(disk_->calls() + Below(8),
                          absl::UnavailableError("simulated: broken"));
        }
      } else if (failing > 0 && --failing == 0) {
        disk_->StopFailing();
        disk_->set_capacity_bytes(uint64_t{1} << 40);
      }
      ASSERT_NO_FATAL_FAILURE(Turn());
    }
    disk_->StopFailing();
    disk_->set_capacity_bytes(uint64_t{1} << 40);
  }

  void Turn() {
    for (int n = 1 + Below(4); n > 0; --n) {
      ASSERT_THAT(journal_->Append(history_.Next(journal_->state())), IsOk());
      states_.push_back(journal_->state());
      ++figures_.records;
    }
    if (!journal_->healthy()) {
      ++figures_.unhealthy;
      ASSERT_FALSE(journal_->Commit().ok());
      ASSERT_FALSE(journal_->trouble().empty());
      if (Chance(3)) Heal();
      return;
    }
    if (Chance(10)) return;  // commits later
    const uint64_t segments = journal_->figures().segments;
    const bool compaction_failed = !journal_->trouble().empty();
    const bool ok = journal_->Commit().ok();
    ASSERT_EQ(ok, journal_->healthy());
    if (!ok) {
      ++figures_.failed_commits;
      return;
    }
    ++figures_.commits;
    figures_.failed_compactions +=
        !compaction_failed && !journal_->trouble().empty();
    const bool compacted = journal_->figures().segments > segments;
    figures_.compactions += compacted;
    committed_ = states_.size() - 1;
    if (compacted || fsync_ != FsyncPolicy::kNone) on_disk_ = committed_;
  }

  void Heal() {
    const bool ok = journal_->TryHeal().ok();
    ASSERT_EQ(ok, journal_->healthy());
    if (!ok) {
      ++figures_.failed_heals;
      return;
    }
    ++figures_.heals;
    committed_ = on_disk_ = states_.size() - 1;
  }

  std::mt19937 random_;
  RandomHistory history_;
  const FsyncPolicy fsync_;
  WalkFigures& figures_;
  std::unique_ptr<SimulatedDisk> disk_;
  std::unique_ptr<Journal> journal_;
  bool may_be_damaged_ = false;
  // What the state may be: the last one that is known for certain, and those
  // that were appended since.
  std::vector<JournalState> states_ = {JournalState()};
  size_t committed_ = 0;  // the journal opens to this one or a later one
  size_t on_disk_ = 0;    // even when power is lost
};

void RunWalks(FsyncPolicy fsync, int walks, WalkFigures& figures) {
  for (int seed = 1; seed <= walks; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Walk walk(seed, fsync, figures);
    walk.Run(12);
    if (testing::Test::HasFailure()) return;
  }
  // The walk has been everywhere.
  EXPECT_GT(figures.commits, 0);
  EXPECT_GT(figures.failed_commits, 0);
  EXPECT_GT(figures.heals, 0);
  EXPECT_GT(figures.failed_heals, 0);
  EXPECT_GT(figures.compactions, 0);
  EXPECT_GT(figures.failed_compactions, 0);
  EXPECT_GT(figures.crashes, 0);
  EXPECT_GT(figures.crashes_in_open, 0);
  EXPECT_GT(figures.power_losses, 0);
  EXPECT_GT(figures.unhealthy, 0);
  EXPECT_GT(figures.cut_offs, 0);
  EXPECT_GT(figures.lost_records, 0);
  printf(
      "%lu records, %lu commits (%lu failed), %lu heals (%lu failed), %lu "
      "compactions (%lu failed), %lu crashes and %lu while opening, %lu losses "
      "of power, %lu tails cut off, %lu uncommitted records lost, %lu "
      "damaged\n",
      figures.records, figures.commits, figures.failed_commits, figures.heals,
      figures.failed_heals, figures.compactions, figures.failed_compactions,
      figures.crashes, figures.crashes_in_open, figures.power_losses,
      figures.cut_offs, figures.lost_records, figures.damaged);
}

TEST(JournalWalk, SyncedCommitsSurviveEverything) {
  WalkFigures figures;
  RunWalks(FsyncPolicy::kStep, 60 / kSlowness, figures);
  EXPECT_EQ(figures.damaged, 0);
}

TEST(JournalWalk, SyncedRecordsSurviveEverything) {
  WalkFigures figures;
  RunWalks(FsyncPolicy::kAlways, 30 / kSlowness, figures);
  EXPECT_EQ(figures.damaged, 0);
}

TEST(JournalWalk, CommitsSurviveTheProcessWithoutSync) {
  WalkFigures figures;
  RunWalks(FsyncPolicy::kNone, 60 / kSlowness, figures);
  EXPECT_GT(figures.damaged, 0);
}

// A short term, the same for every disk.
struct ShortTerm {
  std::vector<JournalState> states = {JournalState()};
  size_t committed = 0;
  uint64_t segments = 0;

  static JournalOptions Options() {
    JournalOptions options;
    options.rotate_bytes = 1500;
    return options;
  }

  void Run(SimulatedDisk& disk) {
    auto opened = Journal::Open(Options(), disk);
    if (!opened.ok()) return;
    Journal& journal = *opened->journal;
    RandomHistory history(77);
    for (int turn = 0; turn < 40 && !disk.crashed(); ++turn) {
      for (int i = 0; i < 2; ++i) {
        ASSERT_THAT(journal.Append(history.Next(journal.state())), IsOk());
        states.push_back(journal.state());
      }
      if (journal.Commit().ok() || journal.TryHeal().ok()) {
        committed = states.size() - 1;
      }
    }
    for (int i = 0; i < 3 && !journal.healthy(); ++i) {
      if (journal.TryHeal().ok()) committed = states.size() - 1;
    }
    segments = journal.figures().segments;
  }

  void ExpectIn(SimulatedDisk& disk) const {
    auto opened = Journal::Open(Options(), disk);
    ASSERT_THAT(opened, IsOk());
    EXPECT_NE(std::find(states.begin() + committed, states.end(),
                        opened->journal->state()),
              states.end());
    EXPECT_EQ(disk.names().size(), 1);
  }
};

// Over and over, ended at each of its calls.
TEST(JournalWalk, EveryCallMayBeTheLast) {
  for (const bool power_lost : {false, true}) {
    bool crashed = true;
    for (uint64_t call = 0; crashed; ++call) {
      crashed = false;
      for (uint32_t seed = 1; seed <= 5 / kSlowness; ++seed) {
        SCOPED_TRACE(testing::Message() << "call " << call << ", seed " << seed
                                        << ", power lost: " << power_lost);
        SimulatedDisk disk(seed);
        disk.CrashAt(call);
        ShortTerm term;
        ASSERT_NO_FATAL_FAILURE(term.Run(disk));
        crashed |= disk.crashed();
        if (!disk.crashed()) {
          EXPECT_GT(term.segments, 3);
        }
        disk.Restart(power_lost);
        ASSERT_NO_FATAL_FAILURE(term.ExpectIn(disk));
      }
    }
  }
}

// Over and over, each of its calls failing, and the one after it too; to the
// end, or until it dies soon after.
TEST(JournalWalk, EveryCallMayFail) {
  for (const uint64_t num_calls : {1, 2}) {
    for (const uint64_t left : {2, 5, 1000}) {
      uint64_t calls = 1;
      for (uint64_t call = 0; call < calls; ++call) {
        for (uint32_t seed = 1; seed <= 8 / kSlowness; ++seed) {
          SCOPED_TRACE(testing::Message()
                       << num_calls << " calls from " << call << ", seed "
                       << seed << ", then " << left << " calls");
          SimulatedDisk disk(seed);
          disk.FailFrom(call, absl::UnavailableError("simulated"), num_calls);
          disk.CrashAt(call + num_calls + left);
          ShortTerm term;
          ASSERT_NO_FATAL_FAILURE(term.Run(disk));
          if (!disk.crashed()) {
            EXPECT_EQ(term.committed, term.states.size() - 1);
          }
          calls = std::max(calls, disk.calls());
          disk.Restart(/*power_lost=*/seed % 2 == 1);
          ASSERT_NO_FATAL_FAILURE(term.ExpectIn(disk));
        }
      }
    }
  }
}

}  // namespace
}  // namespace moebius
