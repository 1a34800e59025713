// A text made of the engine's snapshot, kept while it is good.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "coordinator/engine/engine.h"

namespace moebius {

// TextKeeper
//
// Those who ask how a group is may ask much more often than there is anything
// new, and to write it all takes as long as some tokens do.
//
// Threading: thread-safe; one makes the text while others wait for it.
class TextKeeper {
 public:
  // What is not of the engine (connections, counters of the front) may be this
  // old in a text.
  static constexpr std::chrono::milliseconds kFreshFor{10};

  // `make()`, or what it gave last if that was of the same snapshot and is
  // fresh.
  std::string Get(const EngineStatus& status,
                  const std::function<std::string()>& make);

 private:
  std::mutex mutex_;
  bool made_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  std::chrono::steady_clock::time_point made_at_ ABSL_GUARDED_BY(mutex_);
  std::string text_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moebius
