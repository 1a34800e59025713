#include <cuda_runtime_api.h>

#include "common/base/check.h"
#include "tests/backends/gpu_copies.h"

namespace moebius {

void DownloadFromGpu(const GpuStream& stream, const void* from,
                     int64_t size_bytes, void* to) {
  if (size_bytes == 0) return;
  CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes),
                        cudaMemcpyDeviceToHost, stream.get()) == cudaSuccess);
  CHECK(cudaStreamSynchronize(stream.get()) == cudaSuccess);
}

}  // namespace moebius
