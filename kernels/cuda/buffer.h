// Memory of a GPU's own: Buffer and Upload (view.h) for Cuda.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/types/span.h"
#include "kernels/cuda/failure.h"
#include "kernels/view.h"

namespace moebius {

// Null, and noted, when the memory is not there; 0 bytes are null.
void* AllocateOnGpu(const char* name, int64_t size_bytes, CudaFailure* failure);
void FreeOnGpu(void* memory);
// Of all that this process has allocated so, on whatever GPU.
int64_t BytesOnGpu();
// Waits until the copy has been made.
void UploadToGpu(const void* from, int64_t size_bytes, void* to,
                 CUstream_st* stream, CudaFailure* failure);

// Aligned to 256 bytes. Without memory (cuda/failure.h says so) data() is null,
// and no operator may be given it.
template <class T, Numerics N>
class Buffer<T, Cuda<N>> {
 public:
  Buffer() = default;
  Buffer(const Cuda<N>& device, const char* name, int64_t elements)
      : data_(static_cast<T*>(AllocateOnGpu(name, elements * int64_t{sizeof(T)},
                                            device.failure))) {}
  ~Buffer() { FreeOnGpu(data_); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

template <Numerics N>
void Upload(const Cuda<N>& device, absl::Span<const float> from, float* to) {
  UploadToGpu(from.data(), static_cast<int64_t>(from.size() * sizeof(float)),
              to, device.stream, device.failure);
}

}  // namespace moebius
