// EngineHost's part in rounds of recovery: it carries out what membership.h
// decides.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/fault_point.h"
#include "common/status_macros.h"
#include "coordinator/engine_host.h"

namespace moebius {
namespace {

// A HALT without an answer is sent again after this.
constexpr int kHaltRetryMs = 500;
// A group that has halted for longer says that it is not ready.
constexpr std::chrono::seconds kReadyGrace(5);
// Tokens and pages of the sequences in one message, far below its limit.
constexpr size_t kMaxRestoredNumbers = 1 << 20;

size_t NumbersOf(const Restore::Sequence& sequence) {
  size_t count = sequence.admission.tokens.size();
  for (const RankTable& table : sequence.table.tables) {
    count += table.pages.size();
  }
  return count;
}

}  // namespace

absl::Status EngineHost::Apply(const MembershipEvent& event) {
  const MembershipState before = membership_;
  // Within a step or a layer a worker hears nothing; beyond the timeout of
  // that it is no use.
  const int max_asked = 2 + options_.config.step_timeout_ms / kHaltRetryMs;
  ASSIGN_OR_RETURN(MembershipTransition transition,
                   Step(membership_, event, group_.num_ranks(), max_asked));
  membership_ = transition.next;
  NoteMembership(before, Now());
  for (const MembershipEffect& effect : transition.effects) {
    RETURN_IF_ERROR(Carry(effect));
  }
  return absl::OkStatus();
}

// How long the group does not run, and what status says of it.
void EngineHost::NoteMembership(const MembershipState& before,
                                Clock::time_point now) {
  if (std::holds_alternative<Running>(before) && !running()) {
    halted_since_ = now;
  }
}

absl::Status EngineHost::Carry(const MembershipEffect& effect) {
  if (const auto* halt = std::get_if<SendHalt>(&effect)) {
    Halt(*halt);
    return absl::OkStatus();
  }
  if (const auto* replace = std::get_if<ReplaceWorkers>(&effect)) {
    halt_deadline_.reset();
    for (Rank r = 0; r < group_.num_ranks(); ++r) {
      if (!replace->ranks.contains(r)) continue;
      group_.Leave(r);
      if (options_.replace_worker) {
        options_.replace_worker(r, group_.member(r).incarnation);
      }
    }
    return absl::OkStatus();
  }
  return Resume(std::get<ResumeGroup>(effect).round);
}

void EngineHost::Halt(const SendHalt& halt) {
  halt_deadline_ = Now() + std::chrono::milliseconds(kHaltRetryMs);
  group_.SendTo(halt.ranks, moebius::Halt{halt.round});
}

// Whom messages did not reach, what did not come in time.
absl::Status EngineHost::TickMembership(Clock::time_point now) {
  if (halt_deadline_.has_value() && now >= *halt_deadline_) {
    halt_deadline_.reset();
    if (const auto* halting = std::get_if<Halting>(&membership_)) {
      RETURN_IF_ERROR(Apply(HaltExpired{halting->round}));
    }
  }
  if (running()) {
    const bool stalled =
        !flying_.empty() && !switches_->busy() &&
        now - last_progress_ >
            std::chrono::milliseconds(options_.config.stall_timeout_ms);
    if (stalled) spdlog::warn("no result of step {}", flying_.front().value);
    if (stalled || switches_->TakeStalled()) {
      RETURN_IF_ERROR(Apply(GroupInterrupted{}));
    }
  }
  if (group_.TakeGap()) RETURN_IF_ERROR(Apply(GroupInterrupted{}));
  // A HALT may find further ones gone; each goes once.
  for (RankSet lost = group_.TakeLost(); !lost.empty();
       lost = group_.TakeLost()) {
    for (Rank r = 0; r < group_.num_ranks(); ++r) {
      if (lost.contains(r)) RETURN_IF_ERROR(Apply(WorkerLost{r}));
    }
  }
  if (halted_since_.has_value() && now - *halted_since_ > kReadyGrace) {
    status_.ready = false;
    status_.not_ready_reason = WhoIsMissing();
  }
  return absl::OkStatus();
}

std::string EngineHost::WhoIsMissing() const {
  const auto* gathering = std::get_if<Gathering>(&membership_);
  const auto* halting = std::get_if<Halting>(&membership_);
  if (gathering == nullptr && halting == nullptr) return "";
  std::string text = gathering != nullptr ? "waiting for a new life of worker"
                                          : "waiting for an answer of worker";
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    const bool missing = gathering != nullptr ? gathering->missing.contains(r)
                                              : halting->unhalted.contains(r);
    if (missing) absl::StrAppend(&text, " ", r);
  }
  return text;
}

// All sequences in as many messages as they need.
void EngineHost::SendSequences(uint64_t round) {
  Restore restore{round, {}};
  size_t numbers = 0;
  for (Restore::Sequence& sequence : scheduler_->Snapshot()) {
    const size_t more = NumbersOf(sequence);
    if (numbers > 0 && numbers + more > kMaxRestoredNumbers) {
      group_.Broadcast(std::exchange(restore, Restore{round, {}}));
      numbers = 0;
    }
    numbers += more;
    restore.sequences.push_back(std::move(sequence));
  }
  if (!restore.sequences.empty()) group_.Broadcast(std::move(restore));
}

absl::Status EngineHost::Resume(uint64_t round) {
  const auto now = Now();
  halt_deadline_.reset();
  const bool first = !scheduler_.has_value();
  if (first) RETURN_IF_ERROR(CreateScheduler());
  RETURN_IF_ERROR(FaultPoint(FaultId::kCoordinatorHalted));
  scheduler_->RollBack();
  flying_.clear();
  RETURN_IF_ERROR(switches_->OnHalted(now));
  SendSequences(round);

  moebius::Resume resume;
  resume.round = round;
  resume.layout = scheduler_->layout();
  resume.next_step = scheduler_->next_step();
  for (const Stand& stand : stands_) {
    resume.next_barrier = std::max(resume.next_barrier, stand.barriers + 1);
  }
  resume.last_epoch = switches_->last_epoch();
  resume.tail = switches_->Tail(stands_);
  const bool tail = resume.tail.has_value();
  group_.Broadcast(std::move(resume));
  RETURN_IF_ERROR(FaultPoint(FaultId::kCoordinatorResumed));
  last_progress_ = now;
  status_.ready = true;
  status_.not_ready_reason.clear();
  if (first) {
    Publish();
    if (options_.on_ready) options_.on_ready();
    return absl::OkStatus();
  }
  ++status_.recoveries_total;
  if (halted_since_.has_value()) {
    status_.last_recovery_ms =
        std::chrono::duration<double, std::milli>(now - *halted_since_).count();
    halted_since_.reset();
  }
  spdlog::info("recovered in round {}: {} sequences go on at step {}{}", round,
               scheduler_->counters().running, scheduler_->next_step().value,
               tail ? ", after the rest of the switch" : "");
  return absl::OkStatus();
}

}  // namespace moebius
