#include "kernels/cuda/buffer.h"
#include "kernels/cuda/workspace.h"

namespace moebius {

Workspace::~Workspace() { FreeOnGpu(data_); }

void* Workspace::Reserve(int64_t size_bytes, CudaFailure* failure) {
  if (size_bytes > size_bytes_) {
    FreeOnGpu(data_);
    data_ = AllocateOnGpu("rows on their way to products", size_bytes, failure);
    size_bytes_ = data_ == nullptr ? 0 : size_bytes;
  }
  return data_;
}

}  // namespace moebius
