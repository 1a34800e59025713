// The engine with a simulated group behind it.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/config/layout_config.h"
#include "coordinator/engine/engine_host.h"
#include "coordinator/engine/text_thread.h"
#include "coordinator/journal/journal.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/engine/fake_hub.h"
#include "tests/unit/coordinator/engine/test_tokenizer.h"
#include "tests/unit/coordinator/journal/simulated_disk.h"

namespace moebius {

// What the front has heard.
class Listener {
 public:
  struct Stream {
    std::vector<int32_t> tokens;
    std::string text;
    std::vector<PromptLogprob> prompt_logprobs;
    std::optional<FinishReason> finish;
    std::string stop_reason;
    int num_outputs = 0;
  };

  void Hear(const std::vector<Output>& outputs) {
    absl::MutexLock lock(&mutex_);
    for (const Output& output : outputs) {
      Stream& stream = streams_[output.request.value];
      EXPECT_FALSE(stream.finish.has_value()) << "output after the end";
      for (const SampledToken& token : output.tokens) {
        stream.tokens.push_back(token.token);
      }
      stream.text += output.text;
      for (const PromptLogprob& logprob : output.prompt_logprobs) {
        stream.prompt_logprobs.push_back(logprob);
      }
      stream.finish = output.finish;
      stream.stop_reason = output.stop_reason;
      ++stream.num_outputs;
    }
  }

  Stream AwaitEnd(RequestId request) {
    absl::MutexLock lock(&mutex_);
    const auto ended = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return streams_[request.value].finish.has_value();
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ended), kLong))
        << "request " << request.value << " never ended";
    return streams_[request.value];
  }

  void AwaitTokens(RequestId request, size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      const Stream& stream = streams_[request.value];
      return stream.tokens.size() >= count || stream.finish.has_value();
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kLong));
    EXPECT_GE(streams_[request.value].tokens.size(), count);
  }

  void AwaitOutputs(RequestId request, int count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return streams_[request.value].num_outputs >= count;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kLong));
  }

  Stream Get(RequestId request) {
    absl::MutexLock lock(&mutex_);
    return streams_[request.value];
  }

 private:
  absl::Mutex mutex_;
  std::map<uint64_t, Stream> streams_ ABSL_GUARDED_BY(mutex_);
};

class EngineHostTest : public testing::Test {
 protected:
  void SetUp() override {
    config_.workers.count = 2;
    config_.scheduler.max_running = 32;
    config_.scheduler.max_queue = 64;
    config_.scheduler.token_budget = 64;
    config_.layout.choice = LayoutChoice::kEp;
  }

  void Start(bool join = true) {
    SchedulerOptions workers;
    workers.attention = {config_.workers.count, 8, 4};
    workers.layout = InitialLayout(config_);
    workers.max_running = config_.scheduler.max_running;
    workers.token_budget = config_.scheduler.token_budget;
    workers.max_model_len = 1024;
    workers.pages_per_rank.assign(config_.workers.count, FakeHub::kPages);
    auto hub = std::make_unique<FakeHub>(workers);
    hub_ = hub.get();
    EngineOptions options;
    options.config = config_;
    options.model.num_q_heads = 8;
    options.model.num_kv_heads = 4;
    options.model.vocab_size = vocab_size_;
    options.model.is_moe_layer = {true, true};
    options.max_model_len = 1024;
    options.tokenizer = &TestTokenizer();
    options.journal = journal_.get();
    options.on_ready = [this] {
      healthy_when_ready_ = journal_ != nullptr && journal_->healthy();
      ready_.Notify();
    };
    options.replace_worker = [this](Rank rank, Incarnation incarnation) {
      absl::MutexLock lock(&replaced_mutex_);
      replaced_.emplace_back(rank, incarnation.value);
    };
    options.news_of = news_;
    options.alive = alive_;
    options.now = now_;
    options.on_failed = [this](absl::Status status) {
      failure_ = status;
      failed_.Notify();
    };
    engine_ = std::make_unique<EngineHost>(
        std::move(options), std::move(hub),
        make_text_([this](std::vector<Output> o) { listener_.Hear(o); }));
    engine_->Start();
    if (join) {
      hub_->Join();
      ASSERT_TRUE(ready_.WaitForNotificationWithTimeout(kLong));
    }
  }

  static Generation Request(int prompt, int max_tokens) {
    Generation generation;
    for (int i = 0; i < prompt; ++i) generation.prompt.push_back(i * 7 % 1000);
    generation.stop.max_tokens = max_tokens;
    return generation;
  }

  RequestId Submit(Generation generation) {
    std::vector<Generation> one;
    one.push_back(std::move(generation));
    auto ids = engine_->Submit(std::move(one), "");
    EXPECT_THAT(ids, IsOk());
    return ids.ok() ? ids->front() : RequestId{};
  }

  // Requests of 10, 11, ... tokens in one batch, each of which has made at
  // least `tokens` and is far from its end: the group stands still until
  // hub_->Hold(false).
  std::vector<RequestId> InMidStream(int num_requests, int max_tokens,
                                     size_t tokens) {
    hub_->HoldAfterResults(40);
    std::vector<Generation> requests;
    for (int i = 0; i < num_requests; ++i) {
      requests.push_back(Request(10 + i, max_tokens));
    }
    auto ids = engine_->Submit(std::move(requests), "");
    EXPECT_THAT(ids, IsOk());
    if (!ids.ok()) return std::vector<RequestId>(num_requests);
    hub_->AwaitHeld();
    for (const RequestId id : *ids) listener_.AwaitTokens(id, tokens);
    return *std::move(ids);
  }

  // A switch that was asked for.
  struct Asked {
    absl::Notification answered;
    absl::StatusOr<SwitchReport> answer = absl::UnknownError("no answer");

    absl::StatusOr<SwitchReport> Await() {
      EXPECT_TRUE(answered.WaitForNotificationWithTimeout(kLong));
      return answer;
    }
  };
  std::shared_ptr<Asked> Ask(LayoutChoice choice) {
    auto asked = std::make_shared<Asked>();
    engine_->SetLayout(choice, [asked](absl::StatusOr<SwitchReport> report) {
      asked->answer = std::move(report);
      asked->answered.Notify();
    });
    return asked;
  }
  absl::StatusOr<SwitchReport> SwitchTo(LayoutChoice choice) {
    return Ask(choice)->Await();
  }

  void AwaitReplaced(Rank rank, uint64_t incarnation) {
    absl::MutexLock lock(&replaced_mutex_);
    const auto asked = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(replaced_mutex_) {
      return std::count(replaced_.begin(), replaced_.end(),
                        std::pair(rank, incarnation)) > 0;
    };
    EXPECT_TRUE(
        replaced_mutex_.AwaitWithTimeout(absl::Condition(&asked), kLong));
  }
  void ExpectQuietTokens(RequestId id, int prompt, int count) {
    EXPECT_EQ(listener_.AwaitEnd(id).tokens,
              QuietRun(id.value, Request(prompt, count).prompt, count));
  }

  std::function<std::unique_ptr<TextStage>(OutputListener)> make_text_ =
      [](OutputListener listener) {
        return std::make_unique<TextThread>(&TestTokenizer(),
                                            std::move(listener));
      };
  int vocab_size_ = 0;  // 0: the coordinator lets every token pass
  // Null: nobody knows anything.
  std::function<std::optional<WorkerNews>(Rank)> news_;
  std::function<void()> alive_;
  std::function<std::chrono::steady_clock::time_point()> now_;
  Config config_;
  SimulatedDisk disk_{1};
  std::unique_ptr<Journal> journal_;  // on `disk_`; null: there is none
  bool healthy_when_ready_ = false;
  Listener listener_;
  absl::Mutex replaced_mutex_;
  std::vector<std::pair<Rank, uint64_t>> replaced_
      ABSL_GUARDED_BY(replaced_mutex_);
  absl::Notification ready_, failed_;
  absl::Status failure_;
  FakeHub* hub_ = nullptr;
  std::unique_ptr<EngineHost> engine_;
};

}  // namespace moebius
