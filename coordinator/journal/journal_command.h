// What `moebius journal` does: a journal looked at and mended by hand.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moebius {

// Says on standard output what is in the journal of a directory. Exit code: 0
// if it is sound, 1 if it is damaged. Errors: there is none, or it cannot be
// read.
absl::StatusOr<int> CheckJournalCommand(const std::string& dir);

// Keeps what is whole of a damaged one (journal_repair.h), and says what it
// did. Exit code 0. Errors: nothing was done, or not all of it.
absl::StatusOr<int> RepairJournalCommand(const std::string& dir);

}  // namespace moebius
