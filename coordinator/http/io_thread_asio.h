// One event loop and its thread. Only for the files that know Asio.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"

namespace moebius {

// May outlive its loop: Post() then drops. The context goes with Stop(), and
// with it every handler and all that the handlers own.
class IoThread {
 public:
  explicit IoThread(const std::string& name);
  ~IoThread();

  bool Post(std::function<void()> task);
  bool PostAfter(std::chrono::microseconds delay, std::function<void()> task);
  void Stop();

  // REQUIRES: called on the thread itself, or before Stop().
  boost::asio::io_context& context() { return *context_; }

 private:
  std::mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<boost::asio::io_context> context_;
  std::optional<
      boost::asio::executor_work_guard<boost::asio::io_context::executor_type>>
      work_;
  std::thread thread_;
};

}  // namespace moebius
