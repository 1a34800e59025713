// That the thread sanitizer sees what Abseil's locks order, and still finds a
// race where nothing orders. Part of builds with the thread sanitizer only.
#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(TsanAbsl, MutexOrdersWhatItGuards) {
  absl::Mutex mutex;
  std::vector<int> numbers;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 1000; ++j) {
        absl::MutexLock lock(&mutex);
        numbers.push_back(j);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(numbers.size(), 4000u);
}

TEST(TsanAbsl, ConditionsOrderToo) {
  absl::Mutex mutex;
  std::string turn = "a";
  int rounds = 0;
  const auto play = [&](const char* mine, const char* theirs) {
    for (int i = 0; i < 500; ++i) {
      absl::MutexLock lock(&mutex);
      const auto is_mine = [&] { return turn == mine; };
      mutex.Await(absl::Condition(&is_mine));
      turn = theirs;
      ++rounds;
    }
  };
  std::thread other([&] { play("b", "a"); });
  play("a", "b");
  other.join();
  EXPECT_EQ(rounds, 1000);
}

TEST(TsanAbsl, TimedWaitsOrderToo) {
  absl::Mutex mutex;
  int value = 0;
  std::thread other([&] {
    absl::MutexLock lock(&mutex);
    value = 7;
  });
  {
    absl::MutexLock lock(&mutex);
    const auto is_set = [&] { return value == 7; };
    const auto never = [] { return false; };
    EXPECT_TRUE(
        mutex.AwaitWithTimeout(absl::Condition(&is_set), absl::Seconds(60)));
    EXPECT_FALSE(
        mutex.AwaitWithTimeout(absl::Condition(&never), absl::Milliseconds(1)));
  }
  other.join();
}

TEST(TsanAbsl, NotificationsAndCountersOrderToo) {
  for (int i = 0; i < 100; ++i) {
    absl::Notification done;
    absl::BlockingCounter counter(2);
    int value = 0, first = 0, second = 0;
    std::thread a([&] {
      value = 1;
      done.Notify();
      first = 1;
      counter.DecrementCount();
    });
    std::thread b([&] {
      second = 2;
      counter.DecrementCount();
    });
    if (i % 2 == 0) {
      done.WaitForNotification();
    } else {
      while (!done.HasBeenNotified()) std::this_thread::yield();
    }
    EXPECT_EQ(value, 1);
    counter.Wait();
    EXPECT_EQ(first + second, 3);
    a.join();
    b.join();
  }
}

// What two copies share is freed by whichever ends last, and nothing but their
// count orders that after the other's reads.
TEST(TsanAbsl, CopiesOfAStatusOrderTheirEnds) {
  absl::Status status = absl::InternalError("longer than what fits in place");
  absl::Status copy = status;
  std::atomic<bool> has_read = false;
  std::thread other([&] {
    while (!has_read.load(std::memory_order_relaxed)) {
      std::this_thread::yield();
    }
    copy = absl::OkStatus();
  });
  EXPECT_EQ(std::string(status.message()), "longer than what fits in place");
  status = absl::OkStatus();
  has_read.store(true, std::memory_order_relaxed);
  other.join();
}

// Two locks for one number: nothing orders the threads.
[[noreturn]] void Race() {
  int value = 0;
  absl::Mutex one;
  absl::Mutex two;
  std::thread other([&] {
    absl::MutexLock lock(&one);
    ++value;
  });
  {
    absl::MutexLock lock(&two);
    ++value;
  }
  other.join();
  // Without a report the exit code is 0.
  std::exit(value == 2 ? 0 : 1);
}

// The negative control.
TEST(TsanAbslDeathTest, RaceIsStillFound) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      Race(), [](int status) { return status != 0; }, "data race");
}

}  // namespace
}  // namespace moebius
