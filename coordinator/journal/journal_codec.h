// Records of the journal as bytes: one Cap'n Proto flat array each, so a whole
// number of 8-byte words, and records that follow one another need nothing
// between them.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/journal/journal_record.h"

namespace moebius::journal {

// Appends the bytes of `record` to `out`. Equal records give equal bytes.
// What does not pass Validate() may be read as something else.
// kInvalidArgument, `out` being as it was, when they are more than
// kMaxRecordBytes.
absl::Status Encode(const Record& record, std::string& out);

// The records that `bytes` are, at least one. kInvalidArgument on anything
// malformed: truncated, over the traversal limit, a number out of its range,
// columns that do not belong together.
absl::StatusOr<std::vector<Record>> DecodeRecords(absl::Span<const char> bytes);

}  // namespace moebius::journal
