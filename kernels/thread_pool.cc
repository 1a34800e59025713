#include "kernels/thread_pool.h"

#include "common/base/check.h"

namespace moebius {
namespace {

// About 2 us of spinning on a core of today before a thread sleeps.
constexpr int kSpins = 100;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr uint32_t Remaining(uint64_t state) {
  return static_cast<uint32_t>(state);
}
constexpr uint32_t Generation(uint64_t state) {
  return static_cast<uint32_t>(state >> 32);
}

}  // namespace

ThreadPool::ThreadPool(int num_extra_threads) {
  CHECK(0 <= num_extra_threads && num_extra_threads <= kMaxThreads);
  threads_.reserve(num_extra_threads);
  for (int i = 0; i < num_extra_threads; ++i) {
    threads_.emplace_back([this] { ThreadMain(); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  posted_.fetch_add(1, std::memory_order_seq_cst);
  posted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

std::vector<pthread_t> ThreadPool::extra_threads() {
  std::vector<pthread_t> handles;
  handles.reserve(threads_.size());
  for (std::thread& thread : threads_)
    handles.push_back(thread.native_handle());
  return handles;
}

void ThreadPool::ParallelFor(int num_tasks, absl::FunctionRef<void(int)> fn) {
  if (threads_.empty() || num_tasks <= 1) {
    for (int i = 0; i < num_tasks; ++i) fn(i);
    return;
  }
  const uint32_t generation =
      Generation(state_.load(std::memory_order_relaxed)) + 1;
  num_tasks_ = num_tasks;
  fn_ = &fn;
  unfinished_.store(num_tasks, std::memory_order_relaxed);
  state_.store(uint64_t{generation} << 32 | static_cast<uint32_t>(num_tasks),
               std::memory_order_release);
  // Ordered before the look at sleepers_: either we see a sleeper and wake it,
  // or it sees the new number and does not sleep.
  posted_.store(generation, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) posted_.notify_all();

  RunTasks(generation);
  // The tasks that are left run already; each is a bounded loop.
  for (int spins = 0;; ++spins) {
    const int unfinished = unfinished_.load(std::memory_order_acquire);
    if (unfinished == 0) break;
    if (spins < kSpins) {
      Pause();
    } else {
      unfinished_.wait(unfinished, std::memory_order_acquire);
    }
  }
}

void ThreadPool::RunTasks(uint32_t generation) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while (Generation(state) == generation && Remaining(state) > 0) {
    if (!state_.compare_exchange_weak(state, state - 1,
                                      std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      continue;
    }
    // The job cannot end before this task does, so its fields are stable.
    (*fn_)(num_tasks_ - static_cast<int>(Remaining(state)));
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      unfinished_.notify_one();
    }
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::ThreadMain() {
  uint32_t seen = 0;
  while (true) {
    uint32_t posted = posted_.load(std::memory_order_acquire);
    for (int spins = 0; posted == seen && spins < kSpins; ++spins) {
      Pause();
      posted = posted_.load(std::memory_order_acquire);
    }
    if (posted == seen) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      posted_.wait(seen, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      posted = posted_.load(std::memory_order_acquire);
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    if (posted == seen) continue;
    seen = posted;
    RunTasks(posted);
  }
}

}  // namespace moebius
