#include "coordinator/engine/switch_control.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
#include "common/faults/fault_point.h"

namespace moebius {
namespace {

double Millis(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

}  // namespace

SwitchControl::SwitchControl(const SwitchOptions& options, WorkerGroup* group,
                             Scheduler* scheduler)
    : options_(options),
      group_(group),
      scheduler_(scheduler),
      state_(Steady{scheduler->layout(), Epoch{0}}) {
  const std::vector<Layout> candidates = CandidateLayouts(options.config);
  for (const Layout from : candidates) {
    for (const Layout to : candidates) {
      if (from != to) TotalsOf(from, to, totals_);
    }
  }
}

absl::Status SwitchControl::Apply(const LayoutEvent& event,
                                  Clock::time_point now) {
  ASSIGN_OR_RETURN(
      Transition transition,
      Next(state_, event, scheduler_->next_step(), group_->num_ranks()));
  state_ = transition.next;
  for (const LayoutEffect& effect : transition.effects) {
    RETURN_IF_ERROR(Carry(effect, now));
  }
  return absl::OkStatus();
}

absl::Status SwitchControl::Carry(const LayoutEffect& effect,
                                  Clock::time_point now) {
  struct Visitor {
    SwitchControl* control;
    Clock::time_point now;
    absl::Status operator()(const SendPrepare& e) {
      return control->OnSendPrepare(e, now);
    }
    absl::Status operator()(const LogDecision& e) {
      return control->OnLogDecision(e);
    }
    absl::Status operator()(const SendCommit& e) {
      return control->OnSendCommit(e, now);
    }
    absl::Status operator()(const SendAbort& e) {
      control->group_->Broadcast(wire::Abort{e.epoch});
      return absl::OkStatus();
    }
    absl::Status operator()(const Done&) { return control->OnDone(now); }
    absl::Status operator()(const Refused& e) {
      ++control->num_refused_;
      control->deadline_.reset();
      control->Answer(false, e.reason);
      return absl::OkStatus();
    }
    absl::Status operator()(const NothingToDo&) {
      control->Answer(false, "");
      return absl::OkStatus();
    }
    absl::Status operator()(const Busy& e) {
      control->Answer(false, Cat("switch ", e.epoch.value, " is under way"));
      return absl::OkStatus();
    }
    absl::Status operator()(const ReportStalled& e) {
      std::string ranks;
      for (Rank r = 0; r < control->group_->num_ranks(); ++r) {
        if (e.unswitched.contains(r)) ranks += Cat(" ", r);
      }
      LogWarn("switch ", e.epoch.value,
              " is committed, but there is no answer of workers", ranks);
      control->stalled_ = true;
      return absl::OkStatus();
    }
  };
  return std::visit(Visitor{this, now}, effect);
}

void SwitchControl::Enqueue(Layout target, SwitchCause cause,
                            SwitchCallback callback) {
  if (waiting_.size() < kMaxWaiting) {
    waiting_.push_back(Waiting{target, cause, std::move(callback)});
  } else if (callback) {
    callback(absl::ResourceExhaustedError(
        Cat(kMaxWaiting, " switches are waiting already")));
  }
}

absl::Status SwitchControl::Request(Layout target, SwitchCause cause,
                                    SwitchCallback callback,
                                    Clock::time_point now) {
  Enqueue(target, cause, std::move(callback));
  return Tick(now);
}

absl::Status SwitchControl::OnSendPrepare(const SendPrepare& effect,
                                          Clock::time_point now) {
  current_->report.epoch = effect.epoch;
  if (absl::Status logged = Log(journal::EpochProposed{effect.epoch});
      !logged.ok()) {
    return Apply(
        PlanRefused{effect.epoch,
                    Cat("the journal cannot be written: ", logged.message())},
        now);
  }
  auto plan = scheduler_->PlanSwitch(effect.target);
  if (!plan.ok()) {
    return Apply(
        PlanRefused{effect.epoch, std::string(plan.status().message())}, now);
  }
  current_->plan = *std::move(plan);
  current_->begin = now;
  deadline_ = now + std::chrono::milliseconds(
                        options_.config.layout.prepare_timeout_ms);
  group_->Broadcast(wire::Prepare{effect.epoch, effect.target, current_->plan});
  return FaultPoint(FaultId::kCoordinatorPrepared);
}

// Whether it is written or not is known to nobody once writing has failed. A
// new coordinator, which reads what is there, is the way out.
absl::Status SwitchControl::OnLogDecision(const LogDecision& effect) {
  journal::SwitchDecided decided;
  decided.epoch = effect.epoch;
  decided.from = current_->report.from;
  decided.to = effect.target;
  decided.boundary = effect.boundary;
  decided.plan = current_->plan;
  decided.running = scheduler_->Running();
  return Log(std::move(decided));
}

absl::Status SwitchControl::OnSendCommit(const SendCommit& effect,
                                         Clock::time_point now) {
  current_->report.prepare_ms = Millis(now - current_->begin);
  current_->report.boundary = effect.boundary;
  current_->result_before = last_result_;
  current_->committed_at = now;
  RETURN_IF_ERROR(scheduler_->ApplySwitch(current_->report.to, current_->plan));
  deadline_ =
      now + std::chrono::milliseconds(options_.config.layout.switch_timeout_ms);
  OpenCheck();
  RETURN_IF_ERROR(FaultPoint(FaultId::kCoordinatorDecided));
  const wire::Commit commit{effect.epoch, effect.boundary};
  const RankSet first = RankSet::All(group_->num_ranks() / 2);
  group_->SendTo(first, commit);
  RETURN_IF_ERROR(FaultPoint(FaultId::kCoordinatorCommitting));
  group_->SendTo(RankSet::All(group_->num_ranks()).without(first), commit);
  return absl::OkStatus();
}

absl::Status SwitchControl::OnHalted(Clock::time_point now) {
  RETURN_IF_ERROR(Apply(GroupHalts{}, now));
  if (std::holds_alternative<Committing>(state_)) {
    deadline_ = now + std::chrono::milliseconds(
                          options_.config.layout.switch_timeout_ms);
  }
  return absl::OkStatus();
}

std::optional<UnfinishedSwitch> SwitchControl::Unfinished() const {
  const auto* committing = std::get_if<Committing>(&state_);
  if (committing == nullptr) return std::nullopt;
  return UnfinishedSwitch{committing->epoch, committing->from,
                          committing->target};
}

// As with layers, so with waves: the highest record counts, since nobody has
// gone beyond the next one.
std::optional<SwitchTail> SwitchControl::Tail(
    absl::Span<const Stand> stands) const {
  const auto* committing = std::get_if<Committing>(&state_);
  if (committing == nullptr) return std::nullopt;
  SwitchTail tail{committing->epoch, 0, current_->plan};
  for (const Stand& stand : stands) {
    if (stand.switch_epoch != committing->epoch) continue;
    tail.waves_done = std::max(tail.waves_done, stand.waves_done);
  }
  // Fewer if the pages were dropped.
  tail.waves_done = std::min<int>(tail.waves_done, tail.kv.waves.size());
  return tail;
}

void SwitchControl::Recover(Epoch proposed,
                            const journal::SwitchDecided* unfinished) {
  if (unfinished == nullptr) {
    state_ = Steady{scheduler_->layout(), proposed};
    return;
  }
  state_ = Committing{unfinished->from, unfinished->to, unfinished->epoch,
                      unfinished->boundary, RankSet::All(group_->num_ranks())};
  Current& current = current_.emplace(Current{});
  current.report.epoch = unfinished->epoch;
  current.report.from = unfinished->from;
  current.report.to = unfinished->to;
  current.report.num_ranks = group_->num_ranks();
  current.report.cause = SwitchCause::kEarlierCoordinator;
  current.report.began_unix_ms = UnixMs();
  current.report.boundary = unfinished->boundary;
  current.plan = unfinished->plan;
  current.switched.resize(group_->num_ranks());
  OpenCheck();
}

void SwitchControl::DropPages() {
  if (committing()) current_->plan = {};
}

Epoch SwitchControl::last_epoch() const {
  if (const auto* steady = std::get_if<Steady>(&state_)) {
    return steady->proposed;
  }
  if (const auto* preparing = std::get_if<Preparing>(&state_)) {
    return preparing->epoch;
  }
  return std::get<Committing>(state_).epoch;
}

absl::Status SwitchControl::OnPrepared(Rank rank,
                                       const wire::Prepared& prepared,
                                       Clock::time_point now) {
  if (prepared.ok) return Apply(PreparedBy{rank, prepared.epoch}, now);
  return Apply(RefusedBy{rank, prepared.epoch, prepared.reason}, now);
}

absl::Status SwitchControl::OnSwitched(Rank rank,
                                       const wire::Switched& switched,
                                       Clock::time_point now) {
  if (current_.has_value() && current_->report.epoch == switched.epoch) {
    current_->switched[rank] = switched;
  }
  return Apply(SwitchedBy{rank, switched.epoch}, now);
}

absl::Status SwitchControl::CheckTables() const {
  const std::optional<wire::Switched>& first = current_->switched[0];
  for (Rank r = 0; r < group_->num_ranks(); ++r) {
    const std::optional<wire::Switched>& one = current_->switched[r];
    if (one->checksum != first->checksum) {
      return absl::DataLossError(Cat("after switch ", one->epoch.value,
                                     " workers 0 and ", r,
                                     " do not hold the same page tables"));
    }
  }
  return absl::OkStatus();
}

void SwitchControl::OpenCheck() {
  Check& check = check_.emplace(Check{});
  check.epoch = last_epoch();
  check.sums.resize(group_->num_ranks());
}

absl::Status SwitchControl::OnWeightsChecked(
    Rank rank, const wire::WeightsChecked& checked) {
  if (!check_.has_value() || check_->epoch != checked.epoch) {
    return absl::OkStatus();
  }
  check_->sums[rank] = checked.weight_checksum;
  uint64_t weights = 0;
  for (const std::optional<uint64_t>& sum : check_->sums) {
    if (!sum.has_value()) return absl::OkStatus();
    weights += *sum;
  }
  const Epoch epoch = check_->epoch;
  check_.reset();
  if (weights != options_.weight_checksum) {
    return absl::DataLossError(Cat("after switch ", epoch.value,
                                   " the expert weights are not what was "
                                   "loaded"));
  }
  ++num_checked_;
  return absl::OkStatus();
}

absl::Status SwitchControl::OnDone(Clock::time_point now) {
  current_->switched_at = now;
  deadline_.reset();
  RETURN_IF_ERROR(CheckTables());
  // If this is lost, a new coordinator sees it from where the workers stand.
  Log(journal::SwitchDone{current_->report.epoch}).IgnoreError();
  ++num_done_;
  SwitchReport& report = current_->report;
  for (const std::optional<wire::Switched>& one : current_->switched) {
    report.weight_bytes += one->weight_bytes;
    report.kv_bytes += one->kv_bytes;
    report.weight_ms = std::max(report.weight_ms, one->weight_us / 1000.0);
    report.kv_ms = std::max(report.kv_ms, one->kv_us / 1000.0);
    report.switch_ms = std::max(report.switch_ms, one->total_us / 1000.0);
  }
  current_->done = true;
  // With steps under way the report waits for the first result, which tells
  // how long the streams paused.
  const bool steps_follow = scheduler_->next_step() > report.boundary;
  if (!steps_follow || !current_->result_before.has_value()) {
    Answer(true, "");
  }
  return absl::OkStatus();
}

absl::Status SwitchControl::OnStepDone(StepId step, Clock::time_point now) {
  if (current_.has_value()) {
    if (step < current_->report.boundary) {
      current_->result_before = now;
    } else if (current_->report.boundary.value != 0 &&
               current_->report.pause_ms == 0 &&
               current_->result_before.has_value()) {
      current_->report.pause_ms = Millis(now - *current_->result_before);
    }
    if (current_->done && step >= current_->report.boundary) {
      Answer(true, "");
    }
  }
  last_result_ = now;
  return absl::OkStatus();
}

absl::Status SwitchControl::Tick(Clock::time_point now) {
  if (deadline_.has_value() && now >= *deadline_) {
    deadline_.reset();
    if (const auto* preparing = std::get_if<Preparing>(&state_)) {
      // A rank may have missed more than this, and hears nothing until it is
      // halted and resumed.
      stalled_ = true;
      RETURN_IF_ERROR(Apply(PrepareExpired{preparing->epoch}, now));
    } else if (const auto* committing = std::get_if<Committing>(&state_)) {
      RETURN_IF_ERROR(Apply(SwitchExpired{committing->epoch}, now));
    }
  }
  // Nobody is left whose next step would tell the pause.
  if (busy() && current_->done && scheduler_->idle()) Answer(true, "");
  while (!busy() && !waiting_.empty()) {
    Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    Current& current = current_.emplace(Current{});
    current.callback = std::move(next.callback);
    current.report.from = scheduler_->layout();
    current.report.to = next.target;
    current.report.num_ranks = group_->num_ranks();
    current.report.cause = next.cause;
    current.report.began_unix_ms = UnixMs();
    current.switched.resize(group_->num_ranks());
    RETURN_IF_ERROR(Apply(Requested{next.target}, now));
  }
  return absl::OkStatus();
}

int SwitchControl::TimeoutMs(Clock::time_point now) const {
  if (!deadline_.has_value()) return -1;
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(*deadline_ - now);
  return static_cast<int>(std::max<int64_t>(0, left.count()));
}

// Of the pause, if there was one.
std::string SwitchControl::PartsOf(const Current& current) {
  const double pause_ms = current.report.pause_ms;
  if (pause_ms == 0 || !current.result_before.has_value()) return "";
  const double decided = Millis(current.committed_at - *current.result_before);
  const double switched = Millis(current.switched_at - current.committed_at);
  return absl::StrFormat(
      " (%.2f to the decision, %.2f until all had switched, %.2f to the first "
      "result)",
      decided, switched, pause_ms - decided - switched);
}

void SwitchControl::Answer(bool done, std::string reason) {
  Current current = *std::move(current_);
  current_.reset();
  current.report.done = done;
  current.report.reason = std::move(reason);
  if (done) {
    const SwitchReport& r = current.report;
    const int n = group_->num_ranks();
    LogInfo("switch ", r.epoch.value, " ", LayoutName(r.from, n), " -> ",
            LayoutName(r.to, n), " at step ", r.boundary.value, ": ",
            r.weight_bytes, " + ", r.kv_bytes, " bytes, ",
            absl::StrFormat("%.2f", r.switch_ms), " ms copies, ",
            absl::StrFormat("%.2f", r.pause_ms), " ms pause", PartsOf(current));
  } else if (current.report.epoch.value != 0) {
    LogWarn("switch ", current.report.epoch.value,
            " was refused: ", current.report.reason);
  }
  if (current.report.epoch.value != 0) {
    current.report.ended_unix_ms = UnixMs();
    Remember(current.report);
  }
  if (current.callback) current.callback(std::move(current.report));
}

std::optional<SwitchUnderWay> SwitchControl::under_way() const {
  if (!current_.has_value()) return std::nullopt;
  const SwitchReport& report = current_->report;
  SwitchUnderWay out{report.epoch, report.from, report.to, report.cause,
                     report.began_unix_ms};
  for (const SwitchTotals& one : totals_) {
    if (one.from == report.from && one.to == report.to && one.last_took_ms) {
      out.expected_end_unix_ms = report.began_unix_ms + *one.last_took_ms;
    }
  }
  return out;
}

void SwitchControl::Remember(const SwitchReport& report) {
  last_ = report;
  std::vector<SwitchReport> recent = {report};
  if (recent_ != nullptr) {
    const size_t kept = std::min(recent_->size(), kMaxRecentSwitches - 1);
    recent.insert(recent.end(), recent_->begin(), recent_->begin() + kept);
  }
  recent_ =
      std::make_shared<const std::vector<SwitchReport>>(std::move(recent));
  SwitchTotals& totals = TotalsOf(report.from, report.to, totals_);
  if (!report.done) {
    ++totals.refused;
    return;
  }
  ++totals.done;
  totals.last_took_ms = report.ended_unix_ms - report.began_unix_ms;
  totals.weight_bytes += report.weight_bytes;
  totals.kv_bytes += report.kv_bytes;
  totals.prepare_seconds += report.prepare_ms / 1e3;
  totals.copy_seconds += report.switch_ms / 1e3;
  // With nothing running nobody waited.
  totals.pause.Add(report.pause_ms / 1e3);
}

void SwitchControl::Fail(const std::string& reason) {
  if (current_.has_value()) Answer(false, reason);
  for (Waiting& waiting : std::exchange(waiting_, {})) {
    if (waiting.callback) waiting.callback(absl::UnavailableError(reason));
  }
}

const char* SwitchControl::state_name() const {
  if (std::holds_alternative<Preparing>(state_)) return "preparing";
  return std::holds_alternative<Committing>(state_) ? "committing" : "steady";
}

}  // namespace moebius
