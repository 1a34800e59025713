#include "coordinator/journal/journal_command.h"

#include <sys/stat.h>

#include <cstdio>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "coordinator/journal/disk_posix.h"
#include "coordinator/journal/journal_repair.h"

namespace moebius {
namespace {

void Say(const std::string& line) {
  std::fputs(absl::StrCat(line, "\n").c_str(), stdout);
}

// PosixDisk would make the directory.
absl::StatusOr<std::unique_ptr<PosixDisk>> OpenExisting(
    const std::string& dir) {
  struct stat info;
  if (stat(dir.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::NotFoundError(absl::StrCat(dir, ": no such directory"));
  }
  return PosixDisk::Open(dir);
}

void SayContents(const SegmentReport& report) {
  Say(absl::StrCat("  ", report.frames, " commits, ", report.records,
                   " records: ", report.requests, " requests, ",
                   report.unfinished, " of them unfinished, ", report.tokens,
                   " tokens; checkpoint ",
                   absl::StrFormat("%016x", report.header.checkpoint)));
}

void SayDamage(const SegmentReport& report) {
  Say(absl::StrCat("  DAMAGED ", report.damage.message()));
  Say(absl::StrCat("  whole are its first ", report.whole_bytes, " bytes of ",
                   report.size_bytes));
}

}  // namespace

absl::StatusOr<int> CheckJournalCommand(const std::string& dir) {
  ASSIGN_OR_RETURN(const auto disk, OpenExisting(dir));
  ASSIGN_OR_RETURN(const std::vector<SegmentReport> reports,
                   CheckJournal(*disk));
  if (reports.empty()) {
    Say(absl::StrCat(dir, ": no journal"));
    return 0;
  }
  for (const SegmentReport& report : reports) {
    Say(absl::StrCat(disk->Describe(report.name), ": ", report.size_bytes,
                     " bytes",
                     &report == &reports[0] ? "" : ", older: not read"));
    if (report.whole_bytes > 0) SayContents(report);
    if (!report.damage.ok()) SayDamage(report);
    if (report.torn.has_value()) {
      Say(absl::StrCat("  its last ", report.torn->size_bytes,
                       " bytes, from byte ", report.torn->offset,
                       ", are a commit that was cut short: it is dropped at "
                       "the next start, and nobody was told of it"));
    }
  }
  if (reports[0].damage.ok()) {
    Say("The journal is sound.");
    return 0;
  }
  Say(
      absl::StrCat("The journal is damaged; no coordinator takes it. `moebius "
                   "journal repair ",
                   dir, "` keeps what is whole."));
  return 1;
}

absl::StatusOr<int> RepairJournalCommand(const std::string& dir) {
  ASSIGN_OR_RETURN(const auto disk, OpenExisting(dir));
  ASSIGN_OR_RETURN(const std::vector<Repair> repairs, RepairJournal(*disk));
  if (repairs.empty()) {
    Say("The journal is sound: nothing was changed.");
    return 0;
  }
  for (const Repair& repair : repairs) {
    Say(absl::StrCat(disk->Describe(repair.name), ": ",
                     repair.before.damage.message()));
    Say(absl::StrCat("  all of it is kept as ", disk->Describe(repair.aside)));
    if (repair.kept_bytes == 0) {
      Say("  nothing in it can be read: the next older segment counts, or "
          "none");
      continue;
    }
    Say(absl::StrCat("  its first ", repair.kept_bytes, " bytes of ",
                     repair.before.size_bytes, " go on:"));
    SayContents(repair.before);
  }
  Say("The journal opens again. What was behind the damage is forgotten.");
  return 0;
}

}  // namespace moebius
