// An engine that does what a test says, when it says it.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/engine.h"

namespace moebius {

class FakeEngine final : public Engine {
 public:
  struct Submitted {
    RequestId id;
    Generation generation;
  };

  void set_listener(OutputListener listener) {
    listener_ = std::move(listener);
  }

  // ---- Engine ----
  absl::StatusOr<std::vector<RequestId>> Submit(
      std::vector<Generation> generations, std::string context) override {
    std::vector<RequestId> ids;
    {
      std::lock_guard lock(mutex_);
      if (!submit_error_.ok()) return submit_error_;
      contexts_.push_back(std::move(context));
      for (Generation& generation : generations) {
        ids.push_back(RequestId{next_id_++});
        submitted_.push_back({ids.back(), std::move(generation)});
      }
    }
    changed_.notify_all();
    if (listener_ && accepting_) {
      std::vector<Output> accepted(ids.size());
      for (size_t i = 0; i < ids.size(); ++i) {
        accepted[i].request = ids[i];
        accepted[i].accepted = true;
      }
      listener_(std::move(accepted));
    }
    if (on_submit_) on_submit_(ids);
    return ids;
  }

  void Attach(std::vector<RequestId> requests,
              AttachCallback callback) override {
    {
      std::lock_guard lock(mutex_);
      attached_.emplace_back(std::move(requests), std::move(callback));
    }
    changed_.notify_all();
  }

  void Abort(RequestId request) override {
    {
      std::lock_guard lock(mutex_);
      aborted_.insert(request.value);
    }
    changed_.notify_all();
  }

  void SetLayout(LayoutChoice choice, SwitchCallback callback) override {
    {
      std::lock_guard lock(mutex_);
      layouts_.emplace_back(choice, std::move(callback));
    }
    changed_.notify_all();
  }

  void Operate(Operation operation, bool wait,
               OperationCallback callback) override {
    {
      std::lock_guard lock(mutex_);
      operations_.push_back({std::move(operation), wait, std::move(callback)});
    }
    changed_.notify_all();
  }

  EngineStatus GetStatus() const override {
    std::lock_guard lock(mutex_);
    EngineStatus status = status_;
    status.version = ++num_asked_;  // as if there were something new each time
    return status;
  }

  void Drain(DrainCallback ended) override {
    {
      std::lock_guard lock(mutex_);
      drains_.push_back(std::move(ended));
    }
    changed_.notify_all();
  }

  absl::Status Undrain() override {
    std::lock_guard lock(mutex_);
    ++num_undrained_;
    return undrain_error_;
  }

  // ---- the test's side ----
  // Whether requests are accepted at once, or as the test says.
  void set_accepting(bool accepting) { accepting_ = accepting; }
  void set_submit_error(absl::Status error) {
    std::lock_guard lock(mutex_);
    submit_error_ = std::move(error);
  }
  void set_undrain_error(absl::Status error) {
    std::lock_guard lock(mutex_);
    undrain_error_ = std::move(error);
  }
  int num_undrained() const {
    std::lock_guard lock(mutex_);
    return num_undrained_;
  }
  void set_status(EngineStatus status) {
    std::lock_guard lock(mutex_);
    status_ = std::move(status);
  }
  // Runs inside Submit, before it returns. Set before the first request.
  void set_on_submit(std::function<void(std::vector<RequestId>)> hook) {
    on_submit_ = std::move(hook);
  }

  // The next request to attach, with its callback.
  std::pair<std::vector<RequestId>, AttachCallback> TakeAttached() {
    std::unique_lock lock(mutex_);
    WaitLocked(lock, [&] { return !attached_.empty(); });
    auto first = std::move(attached_.front());
    attached_.erase(attached_.begin());
    return first;
  }
  std::string LastContext() {
    std::lock_guard lock(mutex_);
    return contexts_.empty() ? "" : contexts_.back();
  }

  // The first `count` generations submitted since the last call; fewer if
  // they do not come.
  std::vector<Submitted> TakeSubmitted(size_t count) {
    std::unique_lock lock(mutex_);
    WaitLocked(lock, [&] { return submitted_.size() >= count; });
    const size_t n = std::min(count, submitted_.size());
    std::vector<Submitted> out(std::make_move_iterator(submitted_.begin()),
                               std::make_move_iterator(submitted_.begin() + n));
    submitted_.erase(submitted_.begin(), submitted_.begin() + n);
    return out;
  }
  size_t num_submitted() const {
    std::lock_guard lock(mutex_);
    return submitted_.size();
  }

  bool WaitForAbort(RequestId id) {
    std::unique_lock lock(mutex_);
    return WaitLocked(lock, [&] { return aborted_.contains(id.value); });
  }
  size_t num_aborted() const {
    std::lock_guard lock(mutex_);
    return aborted_.size();
  }

  std::pair<LayoutChoice, SwitchCallback> TakeLayout() {
    std::unique_lock lock(mutex_);
    if (!WaitLocked(lock, [&] { return !layouts_.empty(); })) return {};
    auto out = std::move(layouts_.front());
    layouts_.erase(layouts_.begin());
    return out;
  }
  struct Operated {
    Operation operation;
    bool wait = false;
    OperationCallback callback;
  };
  Operated TakeOperation() {
    std::unique_lock lock(mutex_);
    if (!WaitLocked(lock, [&] { return !operations_.empty(); })) return {};
    Operated out = std::move(operations_.front());
    operations_.erase(operations_.begin());
    return out;
  }
  DrainCallback TakeDrain() {
    std::unique_lock lock(mutex_);
    if (!WaitLocked(lock, [&] { return !drains_.empty(); })) return {};
    auto out = std::move(drains_.front());
    drains_.erase(drains_.begin());
    return out;
  }

  size_t num_drains() const {
    std::lock_guard lock(mutex_);
    return drains_.size();
  }

  void Emit(std::vector<Output> outputs) { listener_(std::move(outputs)); }
  void Emit(Output output) {
    std::vector<Output> outputs;
    outputs.push_back(std::move(output));
    listener_(std::move(outputs));
  }

 private:
  template <typename Condition>
  bool WaitLocked(std::unique_lock<std::mutex>& lock, Condition condition) {
    return changed_.wait_for(lock, std::chrono::seconds(30), condition);
  }

  OutputListener listener_;
  bool accepting_ = true;
  std::function<void(std::vector<RequestId>)> on_submit_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::Status submit_error_;
  EngineStatus status_;
  mutable uint64_t num_asked_ = 0;
  uint64_t next_id_ = 1;
  std::vector<Submitted> submitted_;
  std::vector<std::string> contexts_;
  std::vector<std::pair<std::vector<RequestId>, AttachCallback>> attached_;
  std::set<uint64_t> aborted_;
  std::vector<std::pair<LayoutChoice, SwitchCallback>> layouts_;
  std::vector<DrainCallback> drains_;
  std::vector<Operated> operations_;
  absl::Status undrain_error_;
  int num_undrained_ = 0;
};

// One token with its text.
inline Output TextOutput(RequestId request, std::string text,
                         int32_t token = 'x', uint32_t position = 0) {
  Output output;
  output.request = request;
  output.text = std::move(text);
  SampledToken sampled;
  sampled.token = token;
  sampled.position = position;
  output.tokens.push_back(std::move(sampled));
  return output;
}

// The same, and the end.
inline Output LastOutput(RequestId request, std::string text,
                         FinishReason reason = FinishReason::kLength,
                         std::string stop_reason = "") {
  Output output = TextOutput(request, std::move(text));
  output.finish = reason;
  output.stop_reason = std::move(stop_reason);
  return output;
}

}  // namespace moebius
