// Memory that the operators of one stream use in turn.
#pragma once

#include <cstdint>

#include "kernels/cuda/failure.h"

namespace moebius {

// Workspace
//
// What an operator puts there is nobody's when its last kernel has ended, so
// that all operators of a stream share it. It grows outside of captures only:
// the first passes are of the most rows.
// Threading: thread-compatible; of one stream.
class Workspace {
 public:
  Workspace() = default;
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // At least so many bytes, aligned to 256. Null, and noted, when they are not
  // there.
  void* Reserve(int64_t size_bytes, CudaFailure* failure);
  // Another address than before: what was captured with it is void.
  const void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

}  // namespace moebius
