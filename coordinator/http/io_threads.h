// The threads that sockets live on. Each runs one event loop of its own, so
// what belongs to a connection is only ever touched by one thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace moebius {

class IoThread;  // io_thread_asio.h

// IoThreads
//
// Threading: thread-safe, except Stop() and destruction, which are called once
// and not from one of the threads.
class IoThreads {
 public:
  // Starts `count` (at least 1) threads, named `name` for debuggers.
  IoThreads(int count, const std::string& name);
  ~IoThreads();
  IoThreads(const IoThreads&) = delete;
  IoThreads& operator=(const IoThreads&) = delete;

  int size() const { return static_cast<int>(threads_.size()); }

  // Queues `task`; tasks of one poster run in order. False, and `task` is
  // dropped, once stopped. Exceptions of a task are caught and logged.
  bool Post(int thread, std::function<void()> task);

  // The same after `delay`.
  bool PostAfter(int thread, std::chrono::microseconds delay,
                 std::function<void()> task);

  // Ends the loops and joins; queued tasks and open operations are destroyed.
  void Stop();

  const std::shared_ptr<IoThread>& at(int thread) const {
    return threads_[thread];
  }

 private:
  std::vector<std::shared_ptr<IoThread>> threads_;
};

}  // namespace moebius
