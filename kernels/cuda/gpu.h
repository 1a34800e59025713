// The GPUs of this machine, and streams on them.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/failure.h"

struct CUstream_st;

namespace moebius {

// How many there are that the driver lets this process use; 0 without a driver.
int NumGpus();

// From now on the calling thread works with this one. Threads begin with number
// 0. kNotFound when there are not as many.
absl::Status UseGpu(int gpu);

// Bytes of the calling thread's GPU.
struct GpuMemory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};
absl::StatusOr<GpuMemory> MemoryOfGpu();

// Whether kernels of several processes run on this one together, by NVIDIA's
// multi-process service. Without it processes take turns of about 2 ms.
bool ProcessesShareGpu(int gpu);

// GpuStream
//
// Work of one GPU in its order. The destructor waits for it.
// Threading: thread-compatible; every thread that uses it has called UseGpu.
class GpuStream {
 public:
  enum class Priority { kNormal, kLow };  // kLow: when nothing else is to do
  // Errors are noted, and then the stream is the device's own.
  static std::unique_ptr<GpuStream> Create(
      int gpu, CudaFailure* failure, Priority priority = Priority::kNormal);
  ~GpuStream();

  CUstream_st* get() const { return stream_; }
  int num_multiprocessors() const { return num_multiprocessors_; }

  // Waits until all of it is done. The first error, also one noted before.
  absl::Status Wait() const;

 private:
  explicit GpuStream(CudaFailure* failure) : failure_(failure) {}

  CudaFailure* const failure_;
  CUstream_st* stream_ = nullptr;
  int num_multiprocessors_ = 0;
};

// HostMapping
//
// Memory of the host that GPUs reach, at the address that it has here, as long
// as this exists. It has pages of its own.
class HostMapping {
 public:
  static absl::StatusOr<std::unique_ptr<HostMapping>> Create(
      void* memory, int64_t size_bytes);
  ~HostMapping();

 private:
  explicit HostMapping(void* memory) : memory_(memory) {}
  void* const memory_;
};

}  // namespace moebius
