// A channel whose far end is a simulated group of workers in this process, with
// the production codec between, and faults on demand.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/channel.h"
#include "common/wire.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/decisions/simulated_group.h"

namespace moebius {

// Thread-safe. Workers answer inside Send, on the engine's thread, unless told
// to hold their reports.
class FakeHub final : public Hub {
 public:
  static constexpr uint32_t kPages = 4096;

  explicit FakeHub(const SchedulerOptions& options)
      : options_(options), group_(options), next_out_(ranks(), 1) {}

  // Every worker says Hello.
  void Join() {
    absl::MutexLock lock(&mutex_);
    for (Rank r = 0; r < ranks(); ++r) {
      Hello hello;
      hello.rank = r;
      hello.num_ranks = ranks();
      hello.num_pages = options_.pages_per_rank[r];
      hello.max_slots = options_.max_running;
      hello.weight_checksum = 100 + r;
      Report_(r, hello);
    }
  }

  // Until called with false, reports wait.
  void Hold(bool hold) {
    absl::MutexLock lock(&mutex_);
    hold_ = hold;
  }
  // Answers the next PREPARE of rank 1 with a refusal.
  void RefuseNextPrepare(std::string reason) {
    absl::MutexLock lock(&mutex_);
    refusal_ = std::move(reason);
  }
  // The next switch of rank 1 ends with other weights.
  void CorruptNextSwitch() {
    absl::MutexLock lock(&mutex_);
    corrupt_ = true;
  }
  void LoseNextReport() {
    absl::MutexLock lock(&mutex_);
    lose_ = true;
  }
  void RepeatReports() {
    absl::MutexLock lock(&mutex_);
    repeat_ = true;
  }
  // Rank 1 is gone: nothing can be sent to it.
  void Disconnect() {
    absl::MutexLock lock(&mutex_);
    disconnected_ = true;
  }
  void SendFault(std::string reason) {
    absl::MutexLock lock(&mutex_);
    Report_(1, Fault{StepId{1}, std::move(reason)});
  }
  bool shut_down() const {
    absl::MutexLock lock(&mutex_);
    return shut_down_;
  }
  // Sequences that workers hold.
  int live() const {
    absl::MutexLock lock(&mutex_);
    return group_.live();
  }

  absl::Status Send(Rank rank, Incarnation incarnation,
                    std::string_view bytes) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_EQ(incarnation, Incarnation{1});
    if (disconnected_ && rank == 1) {
      return absl::UnavailableError("worker 1 is not connected");
    }
    auto message =
        DecodeCommand(absl::MakeConstSpan(bytes.data(), bytes.size()));
    EXPECT_THAT(message, IsOk());
    // Rank 0's copy is carried out for all; the others must be the same.
    if (rank == 0) {
      last_ = std::string(bytes);
      Obey(message->command);
    } else {
      EXPECT_EQ(last_, bytes);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Message>> Receive(int timeout_ms) override {
    absl::MutexLock lock(&mutex_);
    const auto there = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return woken_ || (!hold_ && !reports_.empty());
    };
    const absl::Duration timeout = timeout_ms < 0
                                       ? absl::InfiniteDuration()
                                       : absl::Milliseconds(timeout_ms);
    mutex_.AwaitWithTimeout(absl::Condition(&there), timeout);
    woken_ = false;
    std::vector<Message> messages;
    if (hold_) return messages;
    std::swap(messages, reports_);
    return messages;
  }

  void Wake() override {
    absl::MutexLock lock(&mutex_);
    woken_ = true;
  }

 private:
  int ranks() const { return options_.attention.num_ranks; }

  void Report_(Rank rank, Report report) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ReportMessage message{{Term{1}, Incarnation{1}, next_out_[rank]++},
                          std::move(report)};
    if (std::exchange(lose_, false)) return;
    const std::string bytes = Encode(message);
    reports_.push_back({rank, Incarnation{1}, bytes});
    if (repeat_) reports_.push_back({rank, Incarnation{1}, bytes});
  }

  void Obey(const Command& command) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (const auto* plan = std::get_if<StepPlan>(&command)) {
      std::vector<StepResult> results = group_.Execute(*plan);
      // Rank 0 reports for the group.
      for (Rank r = 1; r < ranks(); ++r) {
        for (auto& token : results[r].sampled) {
          results[0].sampled.push_back(token);
        }
        for (auto& logprob : results[r].prompt_logprobs) {
          results[0].prompt_logprobs.push_back(logprob);
        }
      }
      std::sort(
          results[0].prompt_logprobs.begin(), results[0].prompt_logprobs.end(),
          [](const PromptLogprob& a, const PromptLogprob& b) {
            return std::tie(a.slot, a.position) < std::tie(b.slot, b.position);
          });
      Report_(0, std::move(results[0]));
    } else if (const auto* prepare = std::get_if<Prepare>(&command)) {
      prepared_ = *prepare;
      for (Rank r = 0; r < ranks(); ++r) {
        const bool refuse = r == 1 && refusal_.has_value();
        Report_(r, Prepared{prepare->epoch, !refuse,
                            refuse ? *refusal_ : std::string()});
      }
      refusal_.reset();
    } else if (const auto* commit = std::get_if<Commit>(&command)) {
      ASSERT_TRUE(prepared_.has_value());
      EXPECT_EQ(prepared_->epoch, commit->epoch);
      group_.Switch(prepared_->target, prepared_->kv);
      for (Rank r = 0; r < ranks(); ++r) {
        Switched switched;
        switched.epoch = commit->epoch;
        switched.checksum = 7;
        // The weights are dealt out anew, their sum stays.
        switched.weight_checksum = r == 0 ? WholeChecksum() : 0;
        switched.weight_bytes = 1000;
        if (r == 1 && std::exchange(corrupt_, false)) {
          switched.weight_checksum = 1;
        }
        Report_(r, switched);
      }
      prepared_.reset();
    } else if (std::holds_alternative<Abort>(command)) {
      prepared_.reset();
    } else if (std::holds_alternative<Shutdown>(command)) {
      shut_down_ = true;
    }
  }

  uint64_t WholeChecksum() const {
    uint64_t sum = 0;
    for (Rank r = 0; r < ranks(); ++r) sum += 100 + r;
    return sum;
  }

  const SchedulerOptions options_;
  mutable absl::Mutex mutex_;
  SimulatedGroup group_ ABSL_GUARDED_BY(mutex_);
  std::vector<Message> reports_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> next_out_ ABSL_GUARDED_BY(mutex_);
  std::optional<Prepare> prepared_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::string> refusal_ ABSL_GUARDED_BY(mutex_);
  std::string last_ ABSL_GUARDED_BY(mutex_);
  bool hold_ ABSL_GUARDED_BY(mutex_) = false;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool corrupt_ ABSL_GUARDED_BY(mutex_) = false;
  bool lose_ ABSL_GUARDED_BY(mutex_) = false;
  bool repeat_ ABSL_GUARDED_BY(mutex_) = false;
  bool disconnected_ ABSL_GUARDED_BY(mutex_) = false;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace moebius
