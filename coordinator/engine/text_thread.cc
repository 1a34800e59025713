#include "coordinator/engine/text_thread.h"

#include <iterator>
#include <utility>

namespace moebius {

TextThread::~TextThread() {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void TextThread::Begin(std::function<void()> wake) {
  wake_ = std::move(wake);
  thread_ = std::thread([this] { Loop(); });
}

void TextThread::Push(TextBatch& batch) {
  absl::MutexLock lock(&mutex_);
  backlog_.fetch_add(batch.size());
  if (queue_.empty()) {
    queue_.swap(batch);
    return;
  }
  queue_.insert(queue_.end(), std::make_move_iterator(batch.begin()),
                std::make_move_iterator(batch.end()));
  batch.clear();
}

std::vector<TextEnd> TextThread::TakeEnds() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(ends_, {});
}

void TextThread::Flush() {
  const auto done = [this] { return backlog_.load() == 0; };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&done));
}

void TextThread::Loop() {
  const auto due = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  };
  TextBatch batch;
  std::vector<TextEnd> ends;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&due));
      if (stopping_) return;
      queue_.swap(batch);
    }
    const size_t done = batch.size();
    table_.Take(batch, ends);
    bool wake = false;
    {
      absl::MutexLock lock(&mutex_);
      const size_t before = backlog_.fetch_sub(done);
      wake = !ends.empty() ||
             (before > kMaxTextBacklog && before - done <= kMaxTextBacklog);
      ends_.insert(ends_.end(), std::make_move_iterator(ends.begin()),
                   std::make_move_iterator(ends.end()));
    }
    ends.clear();
    if (wake) wake_();
  }
}

}  // namespace moebius
