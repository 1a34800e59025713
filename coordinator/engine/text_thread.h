// The text stage on a thread of its own.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/engine/text_stage.h"
#include "coordinator/engine/text_table.h"

namespace moebius {

// TextThread
//
// The listener and the callbacks run on its thread and must not block. The
// destructor drops what is not done.
class TextThread final : public TextStage {
 public:
  // `tokenizer` outlives it.
  TextThread(const Tokenizer* tokenizer, OutputListener listener)
      : table_(tokenizer, std::move(listener)) {}
  ~TextThread() override;

  void Begin(std::function<void()> wake) override;
  void Push(TextBatch& batch) override;
  std::vector<TextEnd> TakeEnds() override;
  size_t backlog() const override { return backlog_.load(); }
  void Flush() override;

 private:
  void Loop();

  std::function<void()> wake_;
  std::thread thread_;
  std::atomic<size_t> backlog_{0};

  TextTable table_;  // the thread's own

  absl::Mutex mutex_;
  TextBatch queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<TextEnd> ends_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace moebius
