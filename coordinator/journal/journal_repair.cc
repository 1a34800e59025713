#include "coordinator/journal/journal_repair.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/journal/journal.h"
#include "coordinator/journal/journal_codec.h"
#include "coordinator/journal/journal_names.h"
#include "coordinator/journal/journal_state.h"

namespace moebius {
namespace {

constexpr int kMaxAside = 1000;  // damaged copies of one segment

// Adds what a frame says. An error changes nothing that `state` is needed for.
absl::Status AddFrame(const Frame& frame, JournalState& state,
                      SegmentReport& report) {
  ASSIGN_OR_RETURN(auto records, journal::DecodeRecords(frame.payload));
  for (journal::Record& record : records) {
    RETURN_IF_ERROR(state.Apply(std::move(record)));
    ++report.records;
  }
  ++report.frames;
  return absl::OkStatus();
}

void Count(const JournalState& state, SegmentReport& report) {
  for (const auto& [first, request] : state.requests()) {
    ++report.requests;
    report.unfinished += request.num_unfinished > 0;
    for (const JournalChoice& choice : request.choices) {
      report.tokens += choice.tokens.size();
    }
  }
}

SegmentReport Look(const std::string& name, absl::Span<const char> bytes) {
  SegmentReport report;
  report.name = name;
  report.size_bytes = bytes.size();
  auto part = ReadWhatIsWhole(bytes);
  if (!part.ok()) {
    report.damage = part.status();
    return report;
  }
  report.header = part->contents.header;
  report.damage = part->damage;
  report.whole_bytes = kSegmentHeaderBytes;
  if (report.header.segment != SegmentOf(name)) {
    report.damage = absl::DataLossError(
        absl::StrCat("at offset 16: this is segment ", report.header.segment));
    report.whole_bytes = 0;
    return report;
  }
  JournalState state;
  for (const Frame& frame : part->contents.frames) {
    if (absl::Status said = AddFrame(frame, state, report); !said.ok()) {
      report.damage = absl::DataLossError(
          absl::StrCat("at offset ", frame.offset, ": ", said.message()));
      break;
    }
    report.whole_bytes =
        frame.offset + kFrameHeaderBytes + frame.payload.size();
  }
  if (report.damage.ok()) report.torn = part->contents.torn;
  Count(state, report);
  return report;
}

// Newest first.
absl::StatusOr<std::vector<std::string>> SegmentNames(Disk& disk) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, disk.List());
  std::vector<uint64_t> numbers;
  for (const std::string& name : names) {
    if (const auto number = SegmentOf(name)) numbers.push_back(*number);
  }
  std::sort(numbers.rbegin(), numbers.rend());
  std::vector<std::string> sorted;
  for (uint64_t number : numbers) sorted.push_back(SegmentName(number));
  return sorted;
}

absl::StatusOr<std::string> FreeNameAside(Disk& disk, const std::string& name) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, disk.List());
  for (int i = 1; i <= kMaxAside; ++i) {
    std::string aside = absl::StrCat(name, ".damaged");
    if (i > 1) absl::StrAppend(&aside, i);
    if (std::find(names.begin(), names.end(), aside) == names.end()) {
      return aside;
    }
  }
  return absl::ResourceExhaustedError(
      absl::StrCat(disk.Describe(name), ": ", kMaxAside,
                   " damaged copies of it are there already"));
}

absl::Status WriteWhole(Disk& disk, const std::string& name,
                        absl::Span<const char> bytes) {
  ASSIGN_OR_RETURN(const std::unique_ptr<DiskFile> file, disk.Create(name));
  RETURN_IF_ERROR(file->Append(bytes));
  return file->Sync();
}

// The bytes of a segment up to where it is whole. A snapshot ends there at the
// latest.
std::string CutOff(const SegmentReport& report, const std::string& bytes) {
  SegmentHeader header = report.header;
  header.snapshot_end = std::min(header.snapshot_end, report.whole_bytes);
  std::string kept = bytes.substr(0, report.whole_bytes);
  kept.replace(0, kSegmentHeaderBytes, EncodeHeader(header));
  return kept;
}

// The copy comes first: at no moment are the bytes in one place only, and the
// name has something whole behind it at each of them.
absl::StatusOr<Repair> RepairSegment(Disk& disk, SegmentReport report,
                                     const std::string& bytes) {
  Repair repair;
  repair.name = report.name;
  repair.kept_bytes = report.whole_bytes;
  ASSIGN_OR_RETURN(repair.aside, FreeNameAside(disk, report.name));
  if (report.whole_bytes == 0) {
    RETURN_IF_ERROR(disk.Rename(report.name, repair.aside));
  } else {
    const std::string temporary = TemporarySegmentName(report.header.segment);
    RETURN_IF_ERROR(WriteWhole(disk, repair.aside, bytes));
    RETURN_IF_ERROR(WriteWhole(disk, temporary, CutOff(report, bytes)));
    RETURN_IF_ERROR(disk.SyncNames());
    RETURN_IF_ERROR(disk.Rename(temporary, report.name));
  }
  RETURN_IF_ERROR(disk.SyncNames());
  repair.before = std::move(report);
  return repair;
}

}  // namespace

absl::StatusOr<std::vector<SegmentReport>> CheckJournal(Disk& disk) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, SegmentNames(disk));
  std::vector<SegmentReport> reports;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const std::string bytes,
                     disk.Read(name, Journal::kMaxSegmentBytes));
    reports.push_back(Look(name, bytes));
  }
  return reports;
}

absl::StatusOr<std::vector<Repair>> RepairJournal(Disk& disk) {
  RETURN_IF_ERROR(disk.Lock());
  ASSIGN_OR_RETURN(const std::vector<std::string> names, SegmentNames(disk));
  std::vector<Repair> repairs;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const std::string bytes,
                     disk.Read(name, Journal::kMaxSegmentBytes));
    SegmentReport report = Look(name, bytes);
    if (report.damage.ok()) break;
    if (absl::IsFailedPrecondition(report.damage)) return report.damage;
    ASSIGN_OR_RETURN(Repair repair,
                     RepairSegment(disk, std::move(report), bytes));
    repairs.push_back(std::move(repair));
    if (repairs.back().kept_bytes > 0) break;
  }
  return repairs;
}

}  // namespace moebius
