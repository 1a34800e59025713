#include "deploy/bench/shared_copy.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "common/base/check.h"
#include "common/base/core_binding.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

// A memfd, mapped shared and touched.
class SharedMapping {
 public:
  static absl::StatusOr<SharedMapping> Create(size_t size_bytes) {
    UniqueFd fd(memfd_create("moebius-bench", MFD_CLOEXEC));
    if (!fd || ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
      return ErrnoStatus("memfd_create");
    }
    void* base = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                      fd.get(), 0);
    if (base == MAP_FAILED) return ErrnoStatus("mmap");
    std::memset(base, 1, size_bytes);
    return SharedMapping(static_cast<std::byte*>(base), size_bytes);
  }
  SharedMapping(SharedMapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), size_(other.size_) {}
  ~SharedMapping() {
    if (base_ != nullptr) munmap(base_, size_);
  }
  std::byte* base() const { return base_; }

 private:
  SharedMapping(std::byte* base, size_t size) : base_(base), size_(size) {}
  std::byte* base_;
  size_t size_;
};

}  // namespace

uint64_t SharedCopySample(uint64_t size_bytes, int num_threads) {
  CHECK(num_threads >= 1);
  return std::clamp<uint64_t>(
      size_bytes, 1,
      kSharedCopySampleBytes * static_cast<uint64_t>(num_threads));
}

absl::StatusOr<double> SharedCopyBytesPerSecond(uint64_t size_bytes,
                                                int num_threads) {
  CHECK(size_bytes > 0 && num_threads >= 1);
  ASSIGN_OR_RETURN(const SharedMapping from, SharedMapping::Create(size_bytes));
  ASSIGN_OR_RETURN(const SharedMapping to, SharedMapping::Create(size_bytes));
  // When all threads have arrived: at the start and at the end.
  std::vector<Clock::time_point> met;
  met.reserve(2);
  std::barrier barrier(num_threads,
                       [&]() noexcept { met.push_back(Clock::now()); });
  const auto copy = [&](int thread) {
    const uint64_t share_begin = size_bytes * static_cast<uint64_t>(thread) /
                                 static_cast<uint64_t>(num_threads);
    const uint64_t share_end = size_bytes * static_cast<uint64_t>(thread + 1) /
                               static_cast<uint64_t>(num_threads);
    // As the workers in a switch.
    const CoreBinding binding({pthread_self()}, thread, num_threads);
    barrier.arrive_and_wait();
    std::memcpy(to.base() + share_begin, from.base() + share_begin,
                share_end - share_begin);
    barrier.arrive_and_wait();
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < num_threads; ++i) threads.emplace_back(copy, i);
  copy(0);
  for (std::thread& thread : threads) thread.join();
  return static_cast<double>(size_bytes) /
         std::chrono::duration<double>(met[1] - met[0]).count();
}

}  // namespace moebius
