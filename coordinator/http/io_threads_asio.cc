#include <pthread.h>

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <exception>
#include <memory>
#include <utility>

#include "common/base/check.h"
#include "common/base/logging.h"
#include "coordinator/http/io_thread_asio.h"
#include "coordinator/http/io_threads.h"

namespace moebius {
namespace {

constexpr size_t kMaxThreadName = 15;  // of pthread_setname_np

// A handler that throws must not end the loop: it is logged and the loop goes
// on with the next one.
void RunLoop(boost::asio::io_context& context) {
  for (;;) {
    try {
      context.run();
      return;
    } catch (const std::exception& e) {
      LogError("http: a handler threw: ", e.what());
    }
  }
}

}  // namespace

IoThread::IoThread(const std::string& name)
    : context_(std::make_unique<boost::asio::io_context>(1)) {
  work_.emplace(context_->get_executor());
  thread_ = std::thread([context = context_.get()] { RunLoop(*context); });
  pthread_setname_np(thread_.native_handle(),
                     name.substr(0, kMaxThreadName).c_str());
}

IoThread::~IoThread() { Stop(); }

bool IoThread::Post(std::function<void()> task) {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  boost::asio::post(*context_, std::move(task));
  return true;
}

bool IoThread::PostAfter(std::chrono::microseconds delay,
                         std::function<void()> task) {
  std::lock_guard lock(mutex_);
  if (stopped_) return false;
  auto timer = std::make_unique<boost::asio::steady_timer>(*context_, delay);
  auto& waiting = *timer;
  waiting.async_wait([timer = std::move(timer), task = std::move(task)](
                         const boost::system::error_code& error) {
    if (!error) task();
  });
  return true;
}

void IoThread::Stop() {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
  }
  work_.reset();
  context_->stop();
  thread_.join();
  context_.reset();
}

IoThreads::IoThreads(int count, const std::string& name) {
  CHECK(count >= 1);
  for (int i = 0; i < count; ++i) {
    threads_.push_back(std::make_shared<IoThread>(name));
  }
}

IoThreads::~IoThreads() { Stop(); }

bool IoThreads::Post(int thread, std::function<void()> task) {
  return threads_[thread]->Post(std::move(task));
}

bool IoThreads::PostAfter(int thread, std::chrono::microseconds delay,
                          std::function<void()> task) {
  return threads_[thread]->PostAfter(delay, std::move(task));
}

void IoThreads::Stop() {
  for (const auto& thread : threads_) thread->Stop();
}

}  // namespace moebius
