// Carries out what the layout machine decides: orders to workers, timers,
// checks of what came back, and the figures of each switch.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/config/config.h"
#include "common/wire/wire.h"
#include "coordinator/decisions/experts_of_group.h"
#include "coordinator/decisions/layout_machine.h"
#include "coordinator/decisions/scheduler.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/worker_group.h"
#include "coordinator/journal/journal_record.h"

namespace moebius {

struct SwitchOptions {
  Config config;
  // Sum over ranks of Loaded.weight_checksum; every switch must keep it.
  uint64_t weight_checksum = 0;
  // Writes a record down for good, before anything that follows from it; null:
  // there is no journal.
  std::function<absl::Status(journal::Record)> log;
  // Milliseconds since 1970, for who reads when a switch was; null: 0.
  std::function<int64_t()> unix_ms;
};

// SwitchControl
//
// One switch at a time; requests by hand wait for their turn (at most
// kMaxWaiting). Errors of its methods mean that the group cannot go on: a
// channel failed, or a worker's memory is not what it must be.
// Threading: the engine's thread.
class SwitchControl {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMaxWaiting = 16;

  // Both must outlive this.
  SwitchControl(const SwitchOptions& options, WorkerGroup* group,
                Scheduler* scheduler);

  // False between PREPARE and its outcome.
  bool steps_allowed() const {
    return !std::holds_alternative<Preparing>(state_);
  }
  bool busy() const { return current_.has_value(); }

  // `callback` (may be null) hears the outcome, maybe before this returns.
  absl::Status Request(Layout target, SwitchCause cause,
                       SwitchCallback callback, Clock::time_point now);
  // The same, but begins no sooner than with the next Tick().
  void Enqueue(Layout target, SwitchCause cause, SwitchCallback callback);
  absl::Status OnPrepared(Rank rank, const wire::Prepared& prepared,
                          Clock::time_point now);
  absl::Status OnSwitched(Rank rank, const wire::Switched& switched,
                          Clock::time_point now);
  // Every step's results, as they become complete: for the pause.
  absl::Status OnStepDone(StepId step, Clock::time_point now);

  // A new coordinator: the highest epoch ever proposed, and a switch that its
  // predecessor had decided and that is not complete, or null.
  void Recover(Epoch proposed, const journal::SwitchDecided* unfinished);

  // `callback` hears of the switch under way. REQUIRES: Recover() took one up.
  void WaitForCurrent(SwitchCallback callback) {
    current_->callback = std::move(callback);
  }

  // Recovery. Every worker has halted: a switch that is only being prepared is
  // refused, a committed one is to be finished by all of them.
  absl::Status OnHalted(Clock::time_point now);
  // It, and what is left of its pages, given where they stand.
  std::optional<UnfinishedSwitch> Unfinished() const;
  std::optional<SwitchTail> Tail(absl::Span<const Stand> stands) const;
  Epoch last_epoch() const;
  bool committing() const { return std::holds_alternative<Committing>(state_); }
  // The KV pages of a committed switch need not be moved any more: there are
  // no sequences left.
  void DropPages();
  uint64_t weight_checksum() const { return options_.weight_checksum; }
  // The weights of the last switch have not been checked on every rank: a
  // rank that resumes is to do it again, since what was under way may have
  // ended.
  bool check_is_open() const { return check_.has_value(); }
  // Opens it for the last epoch, of which no rank has told yet.
  void OpenCheck();
  // A rank's share; kDataLoss when all are there and they are not what was
  // loaded. One of another epoch than the last is late and means nothing.
  absl::Status OnWeightsChecked(Rank rank, const wire::WeightsChecked& checked);
  uint64_t num_checked() const { return num_checked_; }
  // A PREPARE without an answer, or a committed switch that makes no progress,
  // since the last call: the group must be halted and resumed.
  bool TakeStalled() { return std::exchange(stalled_, false); }

  // Time passes; waiting requests get their turn.
  absl::Status Tick(Clock::time_point now);
  // Until the next timer, -1 when there is none.
  int TimeoutMs(Clock::time_point now) const;

  // The group ends: everybody who waits hears `reason`.
  void Fail(const std::string& reason);

  const char* state_name() const;
  uint64_t num_done() const { return num_done_; }
  uint64_t num_refused() const { return num_refused_; }
  const std::vector<SwitchTotals>& totals() const { return totals_; }
  const std::optional<SwitchReport>& last() const { return last_; }
  std::optional<SwitchUnderWay> under_way() const;
  // The last kMaxRecentSwitches, latest first; null: none.
  std::shared_ptr<const std::vector<SwitchReport>> recent() const {
    return recent_;
  }

 private:
  struct Waiting {
    Layout target;
    SwitchCause cause = SwitchCause::kOperator;
    SwitchCallback callback;
  };
  // Of the weights, after a switch and beside the steps.
  struct Check {
    Epoch epoch;
    std::vector<std::optional<uint64_t>> sums;  // [rank]
  };
  // The attempt under way.
  struct Current {
    SwitchReport report;
    SwitchCallback callback;
    KvPlan plan;
    Clock::time_point begin;
    std::optional<Clock::time_point> result_before;       // the boundary
    std::vector<std::optional<wire::Switched>> switched;  // [rank]
    Clock::time_point committed_at, switched_at;
    bool done = false;  // on every rank; waits for the first result after it
  };

  absl::Status Apply(const LayoutEvent& event, Clock::time_point now);
  absl::Status Carry(const LayoutEffect& effect, Clock::time_point now);
  absl::Status Log(journal::Record record) {
    return options_.log ? options_.log(std::move(record)) : absl::OkStatus();
  }
  absl::Status OnLogDecision(const LogDecision& effect);
  absl::Status OnSendPrepare(const SendPrepare& effect, Clock::time_point now);
  absl::Status OnSendCommit(const SendCommit& effect, Clock::time_point now);
  absl::Status OnDone(Clock::time_point now);
  absl::Status CheckTables() const;
  static std::string PartsOf(const Current& current);
  void Answer(bool done, std::string reason);
  void Remember(const SwitchReport& report);
  int64_t UnixMs() const { return options_.unix_ms ? options_.unix_ms() : 0; }

  const SwitchOptions options_;
  WorkerGroup* group_;
  Scheduler* scheduler_;
  LayoutState state_;
  std::optional<Current> current_;
  std::deque<Waiting> waiting_;
  std::optional<Clock::time_point> deadline_;
  std::optional<Clock::time_point> last_result_;
  std::optional<SwitchReport> last_;
  std::shared_ptr<const std::vector<SwitchReport>> recent_;
  std::optional<Check> check_;
  uint64_t num_done_ = 0;
  uint64_t num_checked_ = 0;
  uint64_t num_refused_ = 0;
  std::vector<SwitchTotals> totals_;
  bool stalled_ = false;
};

}  // namespace moebius
