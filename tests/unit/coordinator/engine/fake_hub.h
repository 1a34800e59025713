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
#include "absl/time/time.h"
#include "common/channel/channel.h"
#include "common/wire/wire.h"
#include "coordinator/decisions/rank_set.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/decisions/simulated_group.h"

namespace moebius {

// More than anything that happens takes.
inline constexpr absl::Duration kLong = absl::Seconds(60);

// Thread-safe. Workers answer inside Send, on the engine's thread, unless told
// to hold their reports.
class FakeHub final : public Hub {
 public:
  static constexpr uint32_t kPages = 4096;

  explicit FakeHub(const SchedulerOptions& options)
      : options_(options),
        group_(options),
        incarnations_(ranks(), 1),
        memories_(ranks(), 1),
        next_out_(ranks(), 1),
        connected_(RankSet::All(ranks())) {}

  // Every worker connects.
  void Join() {
    absl::MutexLock lock(&mutex_);
    for (Rank r = 0; r < ranks(); ++r) Connect(r);
  }

  // A worker dies: nothing reaches it, and no step ends without it.
  void Kill(Rank rank) {
    absl::MutexLock lock(&mutex_);
    Lose(rank);
  }
  // The same, in the middle of requests: once the group has done so many steps
  // more.
  void KillAfterSteps(Rank rank, int count) {
    absl::MutexLock lock(&mutex_);
    kill_after_ = {rank, count};
  }
  // Its successor has its memory and connects.
  void Revive(Rank rank) {
    absl::MutexLock lock(&mutex_);
    connected_ = connected_.with(rank);
    ++incarnations_[rank];
    next_out_[rank] = 1;
    Connect(rank);
  }
  // The same, but its memory is new.
  void ReviveEmpty(Rank rank) {
    absl::MutexLock lock(&mutex_);
    memories_[rank] = incarnations_[rank] + 1;
    loaded_ = loaded_.without(rank);
    connected_ = connected_.with(rank);
    ++incarnations_[rank];
    next_out_[rank] = 1;
    Connect(rank);
  }
  // The next PREPARE or COMMIT kills rank 1 before it is obeyed.
  void KillAtNextPrepare() {
    absl::MutexLock lock(&mutex_);
    kill_at_prepare_ = true;
  }
  void KillAtNextCommit() {
    absl::MutexLock lock(&mutex_);
    kill_at_commit_ = true;
  }
  // The worker hears nothing, but is there.
  void Deafen(Rank rank) {
    absl::MutexLock lock(&mutex_);
    deaf_ = deaf_.with(rank);
  }
  void AwaitLost(Rank rank) {
    absl::MutexLock lock(&mutex_);
    const auto lost = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !connected_.contains(rank);
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&lost), kLong));
  }
  int num_loads() const {
    absl::MutexLock lock(&mutex_);
    return num_loads_;
  }
  int num_tails() const {
    absl::MutexLock lock(&mutex_);
    return num_tails_;
  }

  // Until called with false, reports wait.
  void Hold(bool hold) {
    absl::MutexLock lock(&mutex_);
    hold_ = hold;
  }
  // The same, once the engine has been sent so many results more: what a test
  // does next happens in the middle of its requests, however late it comes.
  void HoldAfterResults(int count) {
    absl::MutexLock lock(&mutex_);
    hold_after_ = count;
  }
  void AwaitHeld() {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&hold_), kLong));
  }
  // Answers the next PREPARE of rank 1 with a refusal.
  void RefuseNextPrepare(std::string reason) {
    absl::MutexLock lock(&mutex_);
    refusal_ = std::move(reason);
  }
  // The next switch of rank 1 ends with other weights.
  // Weights are not checked after switches, until they are asked for again.
  void WithholdChecks() {
    absl::MutexLock lock(&mutex_);
    withhold_checks_ = true;
  }
  // A late one.
  void Check(Epoch epoch) {
    absl::MutexLock lock(&mutex_);
    ReportChecked(epoch);
  }
  void CorruptNextSwitch() {
    absl::MutexLock lock(&mutex_);
    corrupt_ = true;
  }
  // The next LOAD does not arrive.
  void LoseNextLoad() {
    absl::MutexLock lock(&mutex_);
    lose_load_ = true;
  }
  // Loading takes so long that a second LOAD comes before its end; then each is
  // answered.
  void LoadSlowly() {
    absl::MutexLock lock(&mutex_);
    load_slowly_ = true;
  }
  // LOADs have no answer.
  void HoldLoads(bool hold) {
    absl::MutexLock lock(&mutex_);
    hold_loads_ = hold;
  }
  void LoseNextReport() {
    absl::MutexLock lock(&mutex_);
    lose_ = true;
  }
  // The next results that follow a switch.
  void LoseResultsAfterSwitch(int count) {
    absl::MutexLock lock(&mutex_);
    lose_after_switch_ = count;
  }
  // The connection breaks: the next results are lost with it, and then the
  // worker connects again.
  void BreakConnection(int results) {
    absl::MutexLock lock(&mutex_);
    lose_results_ = results;
    connect_again_ = true;
  }
  void RepeatReports() {
    absl::MutexLock lock(&mutex_);
    repeat_ = true;
  }
  void FailLoads(std::string reason) {
    absl::MutexLock lock(&mutex_);
    fail_load_ = std::move(reason);
  }
  // So many rows of the next step hold a NaN.
  void SpoilLogits(uint32_t rows) {
    absl::MutexLock lock(&mutex_);
    nonfinite_rows_ = rows;
  }
  void SendFault(std::string reason) {
    absl::MutexLock lock(&mutex_);
    Report_(1, wire::Fault{StepId{1}, std::move(reason)});
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
    if (!connected_.contains(rank) ||
        incarnation.value != incarnations_[rank]) {
      if (rank == 0) last_.clear();
      return absl::UnavailableError("it is not connected");
    }
    auto message =
        wire::DecodeCommand(absl::MakeConstSpan(bytes.data(), bytes.size()));
    EXPECT_THAT(message, IsOk());
    if (deaf_.contains(rank)) {
      if (rank == 0) last_.clear();
      return absl::OkStatus();
    }
    if (std::holds_alternative<wire::Greet>(message->command)) {
      SayHello(rank);
      return absl::OkStatus();
    }
    if (const auto* load = std::get_if<wire::Load>(&message->command)) {
      if (hold_loads_ || std::exchange(lose_load_, false)) {
        return absl::OkStatus();
      }
      if (fail_load_.has_value()) {
        Report_(rank, wire::Fault{StepId{0}, *fail_load_});
        return absl::OkStatus();
      }
      const bool was_loading = loading_.contains(rank);
      loading_ = loading_.with(rank);
      if (load_slowly_ && !was_loading) return absl::OkStatus();
      loaded_ = loaded_.with(rank);
      ++num_loads_;
      const wire::Loaded answer{load->round, 1000,
                                100 + static_cast<uint64_t>(rank)};
      Report_(rank, answer);
      if (load_slowly_) Report_(rank, answer);
      return absl::OkStatus();
    }
    if (const auto* halt = std::get_if<wire::Halt>(&message->command)) {
      ObeyHalt(rank, *halt);
      return absl::OkStatus();
    }
    // Rank 0's copy is carried out for all; the others must be the same.
    message->envelope = {};
    if (rank == 0) {
      last_ = Encode(*message);
      Obey(message->command);
    } else if (halted_.empty() && !last_.empty()) {
      EXPECT_EQ(last_, Encode(*message));
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

  void Report_(Rank rank, wire::Report report)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Incarnation incarnation{incarnations_[rank]};
    wire::ReportMessage message{{Term{1}, incarnation, next_out_[rank]++},
                                std::move(report)};
    if (std::holds_alternative<StepResult>(message.report) &&
        lose_results_ > 0) {
      if (--lose_results_ == 0 && std::exchange(connect_again_, false)) {
        Connect(rank);
      }
      return;
    }
    if (std::exchange(lose_, false) || !connected_.contains(rank)) return;
    if (std::holds_alternative<StepResult>(message.report) && hold_after_ > 0 &&
        --hold_after_ == 0) {
      hold_ = true;
    }
    const std::string bytes = Encode(message);
    reports_.push_back({rank, incarnation, bytes});
    if (repeat_) reports_.push_back({rank, incarnation, bytes});
  }

  void Lose(Rank r) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    connected_ = connected_.without(r);
    resumed_ = resumed_.without(r);
  }
  void Connect(Rank r) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    reports_.push_back({r, Incarnation{incarnations_[r]}, ""});
  }
  void SayHello(Rank r) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    wire::Hello hello;
    hello.rank = r;
    hello.num_ranks = ranks();
    hello.num_pages = options_.pages_per_rank[r];
    hello.max_slots = options_.max_running;
    hello.memory = Incarnation{memories_[r]};
    Report_(r, hello);
  }
  bool all_there() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const RankSet all = RankSet::All(ranks());
    return connected_ == all && resumed_ == all;
  }

  void ObeyHalt(Rank rank, const wire::Halt& halt)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    halted_ = halted_.with(rank);
    restored_.clear();
    Stand stand;
    stand.barriers = 100 * halt.round + rank;
    stand.switch_epoch = begun_;
    stand.side = group_.experts().side;
    stand.layers_done = layers_begun_;
    stand.loaded = loaded_.contains(rank);
    stand.weight_checksum = WholeChecksum();
    Report_(rank, wire::Halted{halt.round, stand, {}});
  }

  void ObeyResume(const wire::Resume& resume)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    // Above every rank's.
    EXPECT_EQ(resume.next_barrier,
              100 * resume.round + static_cast<uint64_t>(ranks()));
    halted_ = RankSet();
    resumed_ = RankSet::All(ranks());
    prepared_.reset();
    if (resume.tail.has_value() && group_.layout() != resume.experts.to) {
      EXPECT_EQ(resume.experts.from, group_.layout());
      EXPECT_EQ(resume.experts.side, group_.experts().side);
      EXPECT_EQ(resume.experts.layers_done,
                begun_ == resume.tail->epoch ? 1 : 0);
      group_.Switch(resume.experts.to, resume.tail->kv);
    }
    EXPECT_EQ(group_.layout(), resume.experts.to);
    layers_begun_ = 0;
    EXPECT_EQ(resume.weight_checksum, WholeChecksum());
    EXPECT_EQ(loaded_, RankSet::All(ranks()));
    group_.TakeOver(std::exchange(restored_, {}));
    group_.GoOn(resume.next_step);
    if (resume.check_weights) ReportChecked(resume.last_epoch);
    if (!resume.tail.has_value()) return;
    ++num_tails_;
    ReportSwitched(resume.tail->epoch);
  }

  void ReportSwitched(Epoch epoch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    lose_results_ = std::exchange(lose_after_switch_, 0);
    for (Rank r = 0; r < ranks(); ++r) {
      wire::Switched switched;
      switched.epoch = epoch;
      switched.checksum = 7;
      switched.weight_bytes = 1000;
      Report_(r, switched);
    }
    if (!withhold_checks_) ReportChecked(epoch);
  }

  // The weights are dealt out anew, their sum stays.
  void ReportChecked(Epoch epoch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (Rank r = 0; r < ranks(); ++r) {
      const bool wrong = r == 1 && std::exchange(corrupt_, false);
      Report_(r, wire::WeightsChecked{epoch, wrong    ? 1
                                             : r == 0 ? WholeChecksum()
                                                      : 0});
    }
  }

  void ObeyPlan(const StepPlan& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (kill_after_.steps > 0 && --kill_after_.steps == 0) {
      Lose(kill_after_.rank);
      return;
    }
    std::vector<StepResult> results = group_.Execute(plan);
    // Rank 0 reports for the group.
    for (Rank r = 1; r < ranks(); ++r) {
      for (auto& token : results[r].sampled) {
        results[0].sampled.push_back(token);
      }
      for (auto& logprob : results[r].prompt_logprobs) {
        results[0].prompt_logprobs.push_back(logprob);
      }
      for (auto& refused : results[r].refused) {
        results[0].refused.push_back(refused);
      }
    }
    std::sort(
        results[0].prompt_logprobs.begin(), results[0].prompt_logprobs.end(),
        [](const PromptLogprob& a, const PromptLogprob& b) {
          return std::tie(a.slot, a.position) < std::tie(b.slot, b.position);
        });
    results[0].nonfinite_rows = std::exchange(nonfinite_rows_, 0);
    Report_(0, std::move(results[0]));
  }

  void Obey(const wire::Command& command)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (const auto* restore = std::get_if<wire::Restore>(&command)) {
      restored_.insert(restored_.end(), restore->sequences.begin(),
                       restore->sequences.end());
      return;
    }
    if (const auto* resume = std::get_if<wire::Resume>(&command)) {
      return ObeyResume(*resume);
    }
    if (std::holds_alternative<wire::Shutdown>(command)) {
      shut_down_ = true;
      return;
    }
    if (std::holds_alternative<wire::Prepare>(command) &&
        std::exchange(kill_at_prepare_, false)) {
      Lose(1);
    }
    if (const auto* commit = std::get_if<wire::Commit>(&command);
        commit != nullptr && std::exchange(kill_at_commit_, false)) {
      Lose(1);
      begun_ = commit->epoch;
      layers_begun_ = 1;
    }
    // A worker that is halted obeys nothing, and nothing ends without all.
    if (!halted_.empty()) return;
    if (!all_there() && !std::holds_alternative<wire::Prepare>(command)) return;
    if (const auto* plan = std::get_if<StepPlan>(&command)) {
      ObeyPlan(*plan);
    } else if (const auto* prepare = std::get_if<wire::Prepare>(&command)) {
      prepared_ = *prepare;
      for (Rank r = 0; r < ranks(); ++r) {
        const bool refuse = r == 1 && refusal_.has_value();
        Report_(r, wire::Prepared{prepare->epoch, !refuse,
                                  refuse ? *refusal_ : std::string()});
      }
      refusal_.reset();
    } else if (const auto* commit = std::get_if<wire::Commit>(&command)) {
      ASSERT_TRUE(prepared_.has_value());
      EXPECT_EQ(prepared_->epoch, commit->epoch);
      group_.Switch(prepared_->target, prepared_->kv);
      ReportSwitched(commit->epoch);
      prepared_.reset();
    } else if (std::holds_alternative<wire::Abort>(command)) {
      prepared_.reset();
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
  std::vector<uint64_t> incarnations_ ABSL_GUARDED_BY(mutex_);  // [rank]
  std::vector<uint64_t> memories_ ABSL_GUARDED_BY(mutex_);      // [rank]
  RankSet loaded_ ABSL_GUARDED_BY(mutex_);
  int num_loads_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint64_t> next_out_ ABSL_GUARDED_BY(mutex_);
  RankSet connected_ ABSL_GUARDED_BY(mutex_);
  RankSet resumed_ ABSL_GUARDED_BY(mutex_);  // those that take part
  RankSet halted_ ABSL_GUARDED_BY(mutex_);
  RankSet deaf_ ABSL_GUARDED_BY(mutex_);
  std::vector<moebius::RestoredSequence> restored_ ABSL_GUARDED_BY(mutex_);
  int layers_begun_ ABSL_GUARDED_BY(mutex_) = 0;
  Epoch begun_ ABSL_GUARDED_BY(mutex_);  // a switch that a death interrupted
  int num_tails_ ABSL_GUARDED_BY(mutex_) = 0;
  struct {
    Rank rank = 0;
    int steps = 0;
  } kill_after_ ABSL_GUARDED_BY(mutex_);
  bool kill_at_prepare_ ABSL_GUARDED_BY(mutex_) = false;
  bool kill_at_commit_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<wire::Prepare> prepared_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::string> fail_load_ ABSL_GUARDED_BY(mutex_);
  std::optional<std::string> refusal_ ABSL_GUARDED_BY(mutex_);
  // What rank 0 was sent last; empty: it did not reach it.
  std::string last_ ABSL_GUARDED_BY(mutex_);
  bool hold_ ABSL_GUARDED_BY(mutex_) = false;
  int hold_after_ ABSL_GUARDED_BY(mutex_) = 0;
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool corrupt_ ABSL_GUARDED_BY(mutex_) = false;
  bool withhold_checks_ ABSL_GUARDED_BY(mutex_) = false;
  bool lose_ ABSL_GUARDED_BY(mutex_) = false;
  int lose_results_ ABSL_GUARDED_BY(mutex_) = 0;
  bool connect_again_ ABSL_GUARDED_BY(mutex_) = false;
  int lose_after_switch_ ABSL_GUARDED_BY(mutex_) = 0;
  bool lose_load_ ABSL_GUARDED_BY(mutex_) = false;
  uint32_t nonfinite_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  bool load_slowly_ ABSL_GUARDED_BY(mutex_) = false;
  RankSet loading_ ABSL_GUARDED_BY(mutex_);
  bool hold_loads_ ABSL_GUARDED_BY(mutex_) = false;
  bool repeat_ ABSL_GUARDED_BY(mutex_) = false;
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace moebius
