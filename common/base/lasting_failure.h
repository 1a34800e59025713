// Failures that a successor of the process would meet again: a file that is
// missing, cut off or not what it should be. A supervisor need not wait to
// know. A failure without the mark may pass.
#pragma once

#include "absl/status/status.h"

namespace moebius {

// `status`, marked as lasting. OK stays OK.
absl::Status Lasting(absl::Status status);

// The same where its code says that the input is at fault: kInvalidArgument,
// kNotFound, kDataLoss, kOutOfRange, kUnimplemented. Others come back as they
// are.
absl::Status LastingIfOfInput(absl::Status status);

bool IsLasting(const absl::Status& status);

}  // namespace moebius
