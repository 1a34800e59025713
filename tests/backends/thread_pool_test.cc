#include "kernels/thread_pool.h"

#include <atomic>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(ThreadPool, WithoutThreadsRunsInOrderOnTheCaller) {
  ThreadPool pool(0);
  const auto caller = std::this_thread::get_id();
  std::vector<int> order;
  pool.ParallelFor(5, [&](int i) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(i);
  });
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
  pool.ParallelFor(0, [&](int) { FAIL(); });
}

TEST(ThreadPool, EveryTaskRunsExactlyOnce) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads + 1);
    for (const int tasks : {1, 2, 3, 17, 1000}) {
      std::vector<std::atomic<int>> runs(tasks);
      pool.ParallelFor(tasks, [&](int i) { runs[i].fetch_add(1); });
      for (int i = 0; i < tasks; ++i) ASSERT_EQ(runs[i].load(), 1) << i;
    }
  }
}

// Late wakers of one job must never take tasks of the next.
TEST(ThreadPool, ManyShortJobsInARow) {
  ThreadPool pool(3);
  std::vector<int> values(7);
  for (int job = 0; job < 20000; ++job) {
    const int tasks = 2 + job % 6;
    pool.ParallelFor(tasks, [&](int i) { values[i] = job; });
    for (int i = 0; i < tasks; ++i) ASSERT_EQ(values[i], job);
  }
}

TEST(ThreadPool, ThreadsTakePartAndWakeAfterSleeping) {
  ThreadPool pool(1);
  for (int job = 0; job < 20; ++job) {
    // Both tasks wait for one another, so two threads must run them.
    std::atomic<int> arrived{0};
    pool.ParallelFor(2, [&](int) {
      arrived.fetch_add(1);
      arrived.notify_all();
      for (int seen = arrived.load(); seen < 2; seen = arrived.load()) {
        arrived.wait(seen);
      }
    });
    ASSERT_EQ(arrived.load(), 2);
  }
}

TEST(ThreadPool, NullPoolIsALoop) {
  int sum = 0;
  ParallelFor(nullptr, 4, [&](int i) { sum += i; });
  EXPECT_EQ(sum, 6);
  EXPECT_EQ(NumThreads(nullptr), 1);
}

}  // namespace
}  // namespace moebius
