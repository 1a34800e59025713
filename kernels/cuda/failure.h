// What went wrong on a GPU, noted where nobody can be told at once.
#pragma once

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace moebius {

// CudaFailure
//
// Keeps the first error: those that follow are its consequences. Operators note
// what cannot be launched, buffers what cannot be allocated; whoever waits for
// the stream asks.
// Threading: thread-safe.
class CudaFailure {
 public:
  // Nothing if `status` is OK.
  void Note(const absl::Status& status);
  // The first error noted, which stays.
  absl::Status status() const;

 private:
  mutable absl::Mutex mutex_;
  absl::Status first_ ABSL_GUARDED_BY(mutex_);
};

// OK, or an error that says what was tried: kResourceExhausted for want of
// memory, kInternal else. `code` is a cudaError_t.
absl::Status CudaStatus(int code, const char* what);

}  // namespace moebius
