// Any bytes as records and as a segment of the journal. What decodes must
// encode again to something that decodes to the same, and whatever a state
// takes in, its snapshot must say the same.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "coordinator/journal/journal_codec.h"
#include "coordinator/journal/journal_frame.h"
#include "coordinator/journal/journal_state.h"

namespace {

using namespace moebius;

std::string Bytes(const std::vector<journal::Record>& records) {
  std::string bytes;
  for (const journal::Record& record : records) {
    if (!journal::Encode(record, bytes).ok()) abort();
  }
  return bytes;
}

void TryRecords(absl::Span<const char> bytes) {
  const auto records = journal::DecodeRecords(bytes);
  if (!records.ok()) return;
  const std::string again = Bytes(*records);
  const auto back = journal::DecodeRecords(again);
  if (!back.ok() || Bytes(*back) != again) abort();

  JournalState state, copy;
  for (const journal::Record& record : *records) {
    state.Apply(record).IgnoreError();
  }
  const std::vector<journal::Record> snapshot = state.Snapshot();
  for (const journal::Record& record : snapshot) {
    if (!copy.Apply(record).ok()) abort();
  }
  if (Bytes(copy.Snapshot()) != Bytes(snapshot)) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::Span<const char> bytes(reinterpret_cast<const char*>(data), size);
  TryRecords(bytes);
  if (const auto contents = ReadSegment(bytes); contents.ok()) {
    for (const Frame& frame : contents->frames) TryRecords(frame.payload);
  }
  return 0;
}
