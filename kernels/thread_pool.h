// A fixed set of threads that share out the tasks of one loop at a time.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace moebius {

// ThreadPool
//
// ParallelFor(n, fn) calls fn(0) ... fn(n-1), each once, on the caller and the
// pool's threads, and returns when all have returned. Which thread runs which
// task is not fixed; operators give the same result whatever it is.
//
// Cost: no allocation; an idle pool's threads spin for a few microseconds, then
// sleep in the kernel. With no threads, or one task, it is a plain loop.
// Threading: one ParallelFor at a time; fn must not call ParallelFor of the
// same pool.
// Memory order: what the caller wrote before is seen by every task; what tasks
// wrote is seen by the caller afterwards.
class ThreadPool {
 public:
  // `num_extra_threads` threads besides the caller's, 0 to kMaxThreads.
  explicit ThreadPool(int num_extra_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = 256;

  // Threads that work in a ParallelFor, the caller's included.
  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Those besides the caller's.
  std::vector<pthread_t> extra_threads();

  void ParallelFor(int num_tasks, absl::FunctionRef<void(int)> fn);

 private:
  void ThreadMain();
  // Takes and runs tasks of job `generation` until none is left to take.
  void RunTasks(uint32_t generation);

  // Tasks not yet taken (lower half) of job number (upper half). A task is
  // taken by counting down; a thread that wakes late can never take a task of a
  // later job under the number of an earlier one.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> unfinished_{0};
  alignas(64) std::atomic<uint32_t> posted_{0};  // job number; futex word
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  // Of the current job; read only after a task of it was taken.
  int num_tasks_ = 0;
  const absl::FunctionRef<void(int)>* fn_ = nullptr;
  std::vector<std::thread> threads_;
};

// For operators, whose pool may be null: a loop on the calling thread.
inline int NumThreads(const ThreadPool* pool) {
  return pool == nullptr ? 1 : pool->size();
}
inline void ParallelFor(ThreadPool* pool, int num_tasks,
                        absl::FunctionRef<void(int)> fn) {
  if (pool != nullptr && num_tasks > 1) return pool->ParallelFor(num_tasks, fn);
  for (int i = 0; i < num_tasks; ++i) fn(i);
}

}  // namespace moebius
