// EngineHost's part in rounds of recovery: it carries out what membership.h
// decides.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {
namespace {

// A HALT or a greeting without an answer is sent again after this.
constexpr int kHaltRetryMs = 500;
// No rank loads weights for longer. One that has not answered is told again
// after kHaltRetryMs, then after twice as long each time: it may be loading,
// and then hears all of it at the end.
constexpr std::chrono::minutes kLoadTimeout(30);
// A group that has halted for longer says that it is not ready.
constexpr std::chrono::seconds kReadyGrace(5);
// How often the launcher is asked why a worker is missing, and, while nothing
// is asked of the workers, whether all of them are still there.
constexpr std::chrono::milliseconds kTroublePeriod(1000);
// Tokens and pages of the sequences in one message, far below its limit.
constexpr size_t kMaxRestoredNumbers = 1 << 20;

size_t NumbersOf(const RestoredSequence& sequence) {
  size_t count = sequence.admission.tokens.size() +
                 ListedNumbers(sequence.admission.sampling);
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
  const int max_asked =
      2 + options_.config.workers.step_timeout_ms / kHaltRetryMs;
  ASSIGN_OR_RETURN(MembershipTransition transition,
                   Next(membership_, event, group_.num_ranks(), max_asked));
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
  if (std::holds_alternative<Running>(before) && !together()) {
    halted_since_ = now;
  }
}

absl::Status EngineHost::Carry(const MembershipEffect& effect) {
  if (const auto* halt = std::get_if<SendHalt>(&effect)) {
    Halt(*halt);
    return absl::OkStatus();
  }
  if (const auto* replace = std::get_if<ReplaceWorkers>(&effect)) {
    round_deadline_.reset();
    for (Rank r = 0; r < group_.num_ranks(); ++r) {
      if (!replace->ranks.contains(r)) continue;
      group_.Leave(r);
      if (options_.replace_worker) {
        options_.replace_worker(r, group_.member(r).incarnation);
      }
    }
    return absl::OkStatus();
  }
  if (const auto* load = std::get_if<SendLoad>(&effect)) {
    return Load(*load);
  }
  return Resume(std::get<ResumeGroup>(effect).round);
}

void EngineHost::Halt(const SendHalt& halt) {
  round_deadline_ = Now() + std::chrono::milliseconds(kHaltRetryMs);
  SendHaltTo(halt.ranks, halt.round);
  emptied_ = RankSet();
}

void EngineHost::SendHaltTo(RankSet ranks, uint64_t round) {
  // What they hold matters to a new coordinator alone.
  const bool tell = !scheduler_.has_value() && options_.journal != nullptr;
  group_.SendTo(ranks, wire::Halt{round, tell});
}

absl::Status EngineHost::Load(const SendLoad& load) {
  round_deadline_ = Now() + kLoadTimeout;
  load_pause_ = std::chrono::milliseconds(kHaltRetryMs);
  load_again_ = Now() + load_pause_;
  emptied_ = load.ranks;
  last_look_ = Clock::time_point();  // at once: it is said how far they are
  return SendLoadTo(load.ranks, load.round);
}

// What the memories hold: the layout we are in, or a committed switch as far as
// the group has come with it.
absl::StatusOr<ExpertsState> EngineHost::ExpertsNow() {
  const int num_layers = options_.model.num_moe_layers();
  if (switches_.has_value()) {
    return ExpertsOfGroup(stands_, num_layers, scheduler_->layout(),
                          switches_->Unfinished());
  }
  ASSIGN_OR_RETURN(const RecoveryPlan plan, PlanFromJournal());
  std::optional<UnfinishedSwitch> unfinished;
  if (plan.unfinished) {
    const journal::SwitchDecided& decided = *options_.journal->state().undone();
    unfinished = {decided.epoch, decided.from, decided.to};
  }
  return ExpertsOfGroup(stands_, num_layers, plan.layout, unfinished);
}

// The weights that these ranks are to have.
absl::Status EngineHost::SendLoadTo(RankSet ranks, uint64_t round) {
  wire::Load order;
  order.round = round;
  ASSIGN_OR_RETURN(order.experts, ExpertsNow());
  if (switches_.has_value()) {
    if (const auto unfinished = switches_->Unfinished()) {
      order.epoch = unfinished->epoch;
    }
  } else if (!order.experts.steady()) {
    order.epoch = options_.journal->state().undone()->epoch;
  }
  group_.SendTo(ranks, order);
  return absl::OkStatus();
}

// Of the whole model: what the ranks with weights were told, or the sum of what
// all have just loaded.
uint64_t EngineHost::WeightChecksum() const {
  uint64_t sum = 0;
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    if (!emptied_.contains(r)) return stands_[r].weight_checksum;
    sum += loaded_checksums_[r];
  }
  return sum;
}

// Which ranks messages did not reach, what did not come in time.
absl::Status EngineHost::TickMembership(Clock::time_point now) {
  if (round_deadline_.has_value() && now >= *round_deadline_) {
    round_deadline_.reset();
    const uint64_t round =
        std::visit([](const auto& state) { return state.round; }, membership_);
    RETURN_IF_ERROR(Apply(RoundExpired{round}));
  }
  const auto* loading = std::get_if<Loading>(&membership_);
  if (loading != nullptr && now >= load_again_) {
    load_pause_ *= 2;
    load_again_ = now + load_pause_;
    // A command that was lost stands between: only HALT mends that.
    SendHaltTo(loading->unloaded, loading->round);
    RETURN_IF_ERROR(SendLoadTo(loading->unloaded, loading->round));
  }
  if (now - last_greeting_ > std::chrono::milliseconds(kHaltRetryMs)) {
    last_greeting_ = now;
    group_.GreetAgain();
  }
  if (running()) {
    const bool stalled =
        !flying_.empty() && !switches_->committing() &&
        now - last_progress_ >
            std::chrono::milliseconds(options_.config.workers.stall_timeout_ms);
    if (stalled) LogWarn("no result of step ", flying_.front().value);
    if (stalled || switches_->TakeStalled()) {
      RETURN_IF_ERROR(Apply(GroupInterrupted{}));
    }
  }
  if (group_.TakeGap()) RETURN_IF_ERROR(Apply(GroupInterrupted{}));
  // In a round messages are sent again anyway.
  if (group_.TakeReconnected() && together()) {
    RETURN_IF_ERROR(Apply(GroupInterrupted{}));
  }
  // A HALT may find further ones gone; each goes once.
  for (RankSet lost = group_.TakeLost(); !lost.empty();
       lost = group_.TakeLost()) {
    for (Rank r = 0; r < group_.num_ranks(); ++r) {
      if (lost.contains(r)) RETURN_IF_ERROR(Apply(WorkerLost{r}));
    }
  }
  SayAlive(now);
  LookAfterSocket(now);
  RETURN_IF_ERROR(LookAfterIdleWorkers(now));
  if (!together() && now - last_look_ > kTroublePeriod) {
    last_look_ = now;
    LookAtMissing(now);
  }
  return absl::OkStatus();
}

// Turns of the loop alone are no progress: with steps under way one must have
// come back since the last time.
void EngineHost::SayAlive(Clock::time_point now) {
  if (!options_.alive || now - last_alive_ <= kTroublePeriod) return;
  if (running() && !flying_.empty() && last_progress_ <= last_alive_) return;
  last_alive_ = now;
  options_.alive();
}

void EngineHost::LookAfterSocket(Clock::time_point now) {
  if (now - last_socket_look_ <= kTroublePeriod) return;
  last_socket_look_ = now;
  const absl::StatusOr<bool> restored = hub_->Restore();
  if (!restored.ok() && socket_was_ok_) {
    LogError("the control socket was removed by somebody: ",
             restored.status().ToString());
  } else if (restored.ok() && *restored) {
    LogWarn("the control socket was removed by somebody: it is made anew");
  }
  socket_was_ok_ = restored.ok();
}

// Nothing is sent to workers that have nothing to do, so nothing is missed when
// they die; and whose successors do not come up never says a word.
absl::Status EngineHost::LookAfterIdleWorkers(Clock::time_point now) {
  if (!running() || !flying_.empty() || !options_.news_of ||
      now - last_look_ <= kTroublePeriod) {
    return absl::OkStatus();
  }
  last_look_ = now;
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    if (!group_.member(r).joined) continue;
    const std::optional<WorkerNews> news = options_.news_of(r);
    if (!news || news->incarnation == group_.member(r).incarnation) continue;
    LogWarn("worker ", r, " has ended");
    RETURN_IF_ERROR(Apply(WorkerLost{r}));
  }
  return absl::OkStatus();
}

void EngineHost::LookAtMissing(Clock::time_point now) {
  LookAtLoading();
  const std::string trouble = TroubleOfMissing();
  const bool grace = status_.ready && now - *halted_since_ <= kReadyGrace;
  if (trouble.empty() && grace) return;
  status_.ready = false;
  status_.not_ready_reason = trouble.empty() ? WhoIsMissing() : trouble;
}

// Which ranks we wait for.
RankSet EngineHost::Missing() const {
  if (const auto* gathering = std::get_if<Gathering>(&membership_)) {
    return gathering->missing;
  }
  if (const auto* halting = std::get_if<Halting>(&membership_)) {
    return halting->unhalted;
  }
  const auto* loading = std::get_if<Loading>(&membership_);
  return loading == nullptr ? RankSet() : loading->unloaded;
}

std::string EngineHost::WhoIsMissing() const {
  if (status_.loaded_share.has_value()) {
    return absl::StrCat("loading weights: ",
                        static_cast<int>(*status_.loaded_share * 100), " %");
  }
  const RankSet missing = Missing();
  const bool never = !scheduler_.has_value();
  std::string text =
      std::holds_alternative<Gathering>(membership_)
          ? (never ? "waiting for worker" : "waiting for a successor of worker")
      : std::holds_alternative<Halting>(membership_)
          ? "waiting for an answer of worker"
          : "waiting for the weights of worker";
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    if (missing.contains(r)) absl::StrAppend(&text, " ", r);
  }
  return text;
}

// What the launcher says of those that we wait for; "": nothing.
std::string EngineHost::TroubleOfMissing() const {
  if (!options_.news_of || !std::holds_alternative<Gathering>(membership_)) {
    return "";
  }
  std::vector<std::string> troubles;
  const RankSet missing = Missing();
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    if (!missing.contains(r)) continue;
    const std::optional<WorkerNews> news = options_.news_of(r);
    if (news && !news->trouble.empty()) troubles.push_back(news->trouble);
  }
  return absl::StrJoin(troubles, "; ");
}

// How much of the weights is there, of those that load. A rank that has
// not told yet how much it has to load counts as much as the one with the most.
void EngineHost::LookAtLoading() {
  status_.loaded_share.reset();
  if (!options_.news_of || !std::holds_alternative<Loading>(membership_)) {
    return;
  }
  double done = 0, most = 0, total = 0;
  int untold = 0;
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    if (!emptied_.contains(r)) continue;
    const WorkerNews news = options_.news_of(r).value_or(WorkerNews{});
    done += static_cast<double>(news.done_bytes);
    total += static_cast<double>(news.total_bytes);
    most = std::max(most, static_cast<double>(news.total_bytes));
    untold += news.total_bytes == 0;
  }
  total += untold * most;
  status_.loaded_share = total > 0 ? done / total : 0;
}

// All sequences in as many messages as they need.
void EngineHost::SendSequences(uint64_t round) {
  wire::Restore restore{round, {}};
  size_t numbers = 0;
  for (RestoredSequence& sequence : scheduler_->Snapshot()) {
    const size_t more = NumbersOf(sequence);
    if (numbers > 0 && numbers + more > kMaxRestoredNumbers) {
      group_.Broadcast(std::exchange(restore, wire::Restore{round, {}}));
      numbers = 0;
    }
    numbers += more;
    restore.sequences.push_back(std::move(sequence));
  }
  if (!restore.sequences.empty()) group_.Broadcast(std::move(restore));
}

absl::Status EngineHost::BeginIfItWaits() {
  if (!together() || running() || !journal_ok()) return absl::OkStatus();
  return Resume(std::get<Running>(membership_).round);
}

// What all are to go on from. `first`: this coordinator has not had a group
// yet.
absl::StatusOr<wire::Resume> EngineHost::MakeResume(uint64_t round,
                                                    bool first) {
  wire::Resume resume;
  resume.round = round;
  ASSIGN_OR_RETURN(resume.experts, ExpertsNow());
  scheduler_->SetExperts(resume.experts.steady() ? resume.experts
                                                 : resume.experts.Finished());
  resume.next_step = scheduler_->next_step();
  for (const Stand& stand : stands_) {
    resume.next_barrier = std::max(resume.next_barrier, stand.barriers + 1);
  }
  resume.last_epoch = switches_->last_epoch();
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    resume.memories.push_back(group_.member(r).hello.memory);
  }
  resume.tail = switches_->Tail(stands_);
  // What was heard of it may be of memory that is gone, and a successor cannot
  // know what its predecessor had heard.
  const bool untold =
      first && options_.served_before && resume.last_epoch.value > 0;
  const bool check = untold || switches_->check_is_open();
  if (check) switches_->OpenCheck();
  resume.check_weights = check && !resume.tail.has_value();
  return resume;
}

absl::Status EngineHost::Resume(uint64_t round) {
  const auto now = Now();
  round_deadline_.reset();
  const bool first = !scheduler_.has_value();
  const uint64_t weight_checksum =
      switches_.has_value() ? switches_->weight_checksum() : WeightChecksum();
  if (first) {
    ASSIGN_OR_RETURN(const RecoveryPlan plan, PlanFromJournal());
    ASSIGN_OR_RETURN(const bool written, WriteBeginning(plan));
    if (!written) return absl::OkStatus();
    RETURN_IF_ERROR(
        CreateScheduler(weight_checksum, plan.layout, plan.next_step));
    RETURN_IF_ERROR(Recover(plan));
  }
  RETURN_IF_ERROR(FaultPoint(FaultId::kCoordinatorHalted));
  scheduler_->RollBack();
  flying_.clear();
  RETURN_IF_ERROR(switches_->OnHalted(now));
  if (!emptied_.empty()) {
    // In the midst of a switch nobody can say whose pages came from where.
    if (!first) scheduler_->LoseKv(emptied_, switches_->committing());
    switches_->DropPages();
  }
  SendSequences(round);

  ASSIGN_OR_RETURN(wire::Resume resume, MakeResume(round, first));
  resume.weight_checksum = weight_checksum;
  const bool tail = resume.tail.has_value();
  group_.Broadcast(std::move(resume));
  RETURN_IF_ERROR(FaultPoint(FaultId::kCoordinatorResumed));
  last_progress_ = now;
  status_.ready = true;
  status_.not_ready_reason.clear();
  status_.loaded_share.reset();
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
  LogInfo("recovered in round ", round, ": ", scheduler_->counters().running,
          " sequences go on at step ", scheduler_->next_step().value,
          tail ? ", after the rest of the switch" : "");
  return absl::OkStatus();
}

}  // namespace moebius
