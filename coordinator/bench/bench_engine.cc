#include "coordinator/bench/bench_engine.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "common/base/split_mix.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

absl::Status TimeIsOver() {
  return absl::DeadlineExceededError("the time is over, nothing was measured");
}

}  // namespace

void BenchEngine::Ready() {
  absl::MutexLock lock(&mutex_);
  ready_ = true;
}

void BenchEngine::Fail(absl::Status status) {
  absl::MutexLock lock(&mutex_);
  failed_ = std::move(status);
}

void BenchEngine::OnOutputs(const std::vector<Output>& outputs) {
  const auto now = Clock::now();
  absl::MutexLock lock(&mutex_);
  const bool all_run = waiting_for_first_ == 0 && !first_end_.has_value();
  for (const Output& output : outputs) {
    const int count = static_cast<int>(output.tokens.size());
    tokens_ += count;
    if (all_run) tokens_of_all_ += count;
    if (count > 0 && started_.insert(output.request).second) {
      --waiting_for_first_;
      if (waiting_for_first_ == 0) all_first_ = now;
    }
    if (output.finish.has_value()) {
      if (*output.finish != FinishReason::kLength) {
        failed_ = absl::InternalError("a stream ended early");
      }
      --unfinished_;
      if (!first_end_.has_value()) first_end_ = now;
    }
  }
  last_ = now;
}

absl::Status BenchEngine::WaitUntilReady(const Deadline& deadline) {
  absl::MutexLock lock(&mutex_);
  const auto up = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ready_ || !failed_.ok();
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&up), deadline.left())) {
    return TimeIsOver();
  }
  return failed_;
}

absl::StatusOr<bool> BenchEngine::SetLayout(EngineHost& engine,
                                            LayoutChoice choice,
                                            const Deadline& deadline) {
  // The answer may come when we have given up.
  struct Answer {
    absl::Mutex mutex;
    std::optional<absl::StatusOr<bool>> done ABSL_GUARDED_BY(mutex);
  };
  const auto answer = std::make_shared<Answer>();
  engine.SetLayout(choice, [answer](absl::StatusOr<SwitchReport> report) {
    absl::MutexLock lock(&answer->mutex);
    if (report.ok()) {
      answer->done = report->done;
    } else {
      answer->done = report.status();
    }
  });
  absl::MutexLock lock(&answer->mutex);
  const auto came = [&answer]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(answer->mutex) {
    return answer->done.has_value();
  };
  if (!answer->mutex.AwaitWithTimeout(absl::Condition(&came),
                                      deadline.left())) {
    return TimeIsOver();
  }
  return *answer->done;
}

absl::StatusOr<BenchEngine::Times> BenchEngine::RunAll(
    EngineHost& engine, std::vector<Generation> generations,
    const Deadline& deadline) {
  {
    absl::MutexLock lock(&mutex_);
    started_.clear();
    waiting_for_first_ = unfinished_ = static_cast<int>(generations.size());
    tokens_ = tokens_of_all_ = 0;
    first_end_.reset();
  }
  const auto begin = Clock::now();
  RETURN_IF_ERROR(engine.Submit(std::move(generations), "").status());
  absl::MutexLock lock(&mutex_);
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return unfinished_ == 0 || !failed_.ok();
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&over), deadline.left())) {
    return TimeIsOver();
  }
  RETURN_IF_ERROR(failed_);
  const auto seconds = [begin](Clock::time_point end) {
    return std::max(1e-9, std::chrono::duration<double>(end - begin).count());
  };
  Times times{seconds(all_first_), seconds(last_), tokens_};
  if (*first_end_ > all_first_) {
    times.all_running_s = seconds(*first_end_) - times.all_first_s;
    times.tokens_of_all = tokens_of_all_;
  }
  return times;
}

Generation MadeUpGeneration(uint64_t seed, int32_t vocab_size,
                            int prompt_tokens, int output_tokens) {
  Generation generation;
  for (int i = 0; i < prompt_tokens; ++i) {
    generation.prompt.push_back(
        static_cast<int32_t>(SplitMixAt(seed, static_cast<uint64_t>(i)) %
                             static_cast<uint64_t>(vocab_size)));
  }
  generation.sampling.temperature = 0;
  generation.stop.ignore_eos = true;
  generation.stop.max_tokens = output_tokens;
  return generation;
}

}  // namespace moebius
