#include "coordinator/engine/engine_host.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
#include "common/step/sequence_check.h"

namespace moebius {
namespace {

// A loop that waits without end still looks around this often when the policy
// has to see time pass,
constexpr int kPolicyTickMs = 100;
// while the group is halted,
constexpr int kLookAroundMs = 50;
// and while a result is due, or the journal cannot be written.
constexpr int kStallTickMs = 1000;

}  // namespace

EngineHost::EngineHost(EngineOptions options, std::unique_ptr<Hub> hub,
                       std::unique_ptr<TextStage> text)
    : options_(std::move(options)),
      hub_(std::move(hub)),
      text_(std::move(text)),
      group_(hub_.get(), options_.config.workers.count, options_.term),
      membership_(Gathering{RankSet::All(options_.config.workers.count), 0}),
      stands_(options_.config.workers.count),
      loaded_checksums_(options_.config.workers.count),
      held_(options_.config.workers.count) {
  status_.choice = options_.config.layout.choice;
  status_.layout = InitialLayout(options_.config);
  status_.not_ready_reason = "waiting for workers";
  status_.switch_state = "steady";
  status_.workers.resize(options_.config.workers.count);
  for (Rank r = 0; r < options_.config.workers.count; ++r) {
    status_.workers[r].rank = r;
  }
  text_->Begin([this] { hub_->Wake(); });
  absl::MutexLock lock(&mutex_);
  published_ = status_;
  if (options_.journal != nullptr) {
    next_request_ = options_.journal->state().next_request().value;
  }
}

EngineHost::~EngineHost() { Stop(); }

void EngineHost::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void EngineHost::Stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  hub_->Wake();
  thread_.join();
}

// ---- calls of other threads ------------------------------------------------

absl::StatusOr<std::vector<RequestId>> EngineHost::Submit(
    std::vector<Generation> generations, std::string context) {
  const int count = static_cast<int>(generations.size());
  const int most =
      options_.journal == nullptr
          ? options_.config.scheduler.max_queue
          : std::min(options_.config.scheduler.max_queue, kMaxGenerations);
  if (count < 1 || count > most) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a request of ", count, " generations; 1 to ", most, " may wait"));
  }
  std::vector<RequestId> ids;
  {
    absl::MutexLock lock(&mutex_);
    if (!published_.ready) {
      return absl::UnavailableError(
          absl::StrCat("not ready: ", published_.not_ready_reason));
    }
    if (draining_) return absl::UnavailableError("shutting down");
    for (const Generation& generation : generations) {
      RETURN_IF_ERROR(CheckSequence(generation.prompt, generation.sampling,
                                    options_.model.vocab_size));
      const size_t length = generation.prompt.size();
      const size_t context = static_cast<size_t>(options_.max_model_len);
      const bool scored = length == context && generation.stop.max_tokens == 1;
      if (length < 1 || (length >= context && !scored)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "a prompt of ", length, " tokens; the context holds 1 to ",
            options_.max_model_len - 1, " and at least one token of answer"));
      }
    }
    if (queued_ + count > options_.config.scheduler.max_queue) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the queue is full: ", queued_, " requests are waiting of at most ",
          options_.config.scheduler.max_queue));
    }
    queued_ += count;
    for (int i = 0; i < count; ++i) ids.push_back(RequestId{next_request_++});
    inbox_.submissions.push_back(
        Submission{ids.front(), std::move(generations), std::move(context)});
  }
  hub_->Wake();
  return ids;
}

void EngineHost::Attach(std::vector<RequestId> requests,
                        AttachCallback callback) {
  {
    absl::MutexLock lock(&mutex_);
    inbox_.attachments.push_back(
        Attachment{std::move(requests), std::move(callback)});
  }
  hub_->Wake();
}

void EngineHost::Abort(RequestId request) {
  {
    absl::MutexLock lock(&mutex_);
    inbox_.aborts.push_back(request);
  }
  hub_->Wake();
}

void EngineHost::SetLayout(LayoutChoice choice, SwitchCallback callback) {
  {
    absl::MutexLock lock(&mutex_);
    inbox_.layouts.push_back(LayoutRequest{choice, std::move(callback)});
  }
  hub_->Wake();
}

EngineStatus EngineHost::GetStatus() const {
  absl::MutexLock lock(&mutex_);
  EngineStatus status = published_;
  status.draining = draining_;
  if (draining_ && status.ready) {
    status.ready = false;
    status.not_ready_reason = "draining";
  }
  return status;
}

void EngineHost::Drain(DrainCallback ended) {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    inbox_.drains.push_back(std::move(ended));
  }
  hub_->Wake();
}

void EngineHost::DrainForGood(DrainCallback ended) {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  Drain(std::move(ended));
}

absl::Status EngineHost::Undrain() {
  {
    absl::MutexLock lock(&mutex_);
    if (ending_) {
      return absl::FailedPreconditionError("the group is being stopped");
    }
    draining_ = false;
    inbox_.undrain = true;
    for (DrainCallback& drain : std::exchange(inbox_.drains, {})) {
      inbox_.undrained.push_back(std::move(drain));
    }
  }
  hub_->Wake();
  return absl::OkStatus();
}

// ---- the engine's thread ---------------------------------------------------

void EngineHost::Loop() {
  while (!stopping_.load()) {
    if (!Turn(TimeoutMs())) return;
  }
  EndAll(/*failed=*/false);
  Publish();
  group_.Broadcast(wire::Shutdown{});
}

bool EngineHost::Turn(int timeout_ms) {
  const absl::Status status = RunOnce(timeout_ms);
  if (status.ok()) return true;
  LogError("the group cannot go on: ", status.ToString());
  status_.ready = false;
  status_.not_ready_reason = std::string(status.message());
  EndAll(/*failed=*/true);
  Publish();
  if (options_.on_failed) options_.on_failed(status);
  return false;
}

absl::Status EngineHost::RunOnce(int timeout_ms) {
  RETURN_IF_ERROR(TakeReports(timeout_ms));
  TakeInbox();
  TakeTextEnds();
  const auto now = Now();
  RETURN_IF_ERROR(TickJournal(now));
  RETURN_IF_ERROR(TickMembership(now));
  RETURN_IF_ERROR(BeginIfItWaits());
  if (running()) {
    RETURN_IF_ERROR(switches_->Tick(now));
    if (auto target = policy_->Decide(
            now,
            scheduler_->counters().running + scheduler_->counters().waiting,
            scheduler_->layout(), switches_->busy())) {
      RETURN_IF_ERROR(
          switches_->Request(*target, SwitchCause::kPolicy, nullptr, now));
    }
    RETURN_IF_ERROR(IssueSteps());
    // A rank that a plan did not reach is lost.
    RETURN_IF_ERROR(TickMembership(now));
  }
  EndDrainsIfDrained();
  RETURN_IF_ERROR(CommitAndDeliver());
  AnswerOperations();
  if (scheduler_.has_value() && !drained_.empty() && answering_.empty()) {
    // Behind the last outputs.
    for (auto& drained : std::exchange(drained_, {})) {
      batch_.emplace_back([drained = std::move(drained)] { drained(true); });
    }
    text_->Push(batch_);
  }
  Publish();
  return absl::OkStatus();
}

int EngineHost::TimeoutMs() const {
  if (!running()) {
    // Before there is a group there is nothing to lose.
    return together() || scheduler_.has_value() ||
                   round_deadline_.has_value() || group_.greeting()
               ? kLookAroundMs
               : -1;
  }
  int timeout_ms = switches_->TimeoutMs(Now());
  if (!flying_.empty() && (timeout_ms < 0 || timeout_ms > kStallTickMs)) {
    timeout_ms = kStallTickMs;
  }
  if (const int journal_ms = JournalTickMs();
      journal_ms >= 0 && (timeout_ms < 0 || timeout_ms > journal_ms)) {
    timeout_ms = journal_ms;
  }
  if ((options_.news_of || options_.alive) &&
      (timeout_ms < 0 || timeout_ms > kStallTickMs)) {
    timeout_ms = kStallTickMs;
  }
  if (policy_->NeedsTicks() && (timeout_ms < 0 || timeout_ms > kPolicyTickMs)) {
    timeout_ms = kPolicyTickMs;
  }
  // A journal in trouble is tried again though nobody asks for anything: a
  // request would be refused.
  if (!journal_ok() && (timeout_ms < 0 || timeout_ms > kStallTickMs)) {
    timeout_ms = kStallTickMs;
  }
  return timeout_ms;
}

absl::Status EngineHost::TakeReports(int timeout_ms) {
  ASSIGN_OR_RETURN(auto received, group_.Receive(timeout_ms));
  for (auto& one : received) {
    RETURN_IF_ERROR(TakeReport(one.rank, std::move(one.report)));
  }
  return absl::OkStatus();
}

absl::Status EngineHost::TakeReport(Rank rank, wire::Report report) {
  struct Visitor {
    EngineHost* host;
    Rank rank;
    absl::Status operator()(const wire::Hello&) { return host->OnHello(rank); }
    absl::Status operator()(const wire::Halted& halted) {
      host->stands_[rank] = halted.stand;
      host->held_[rank] = halted.sequences;
      return host->Apply(
          WorkerHalted{rank, halted.round, !halted.stand.loaded});
    }
    absl::Status operator()(const wire::Loaded& loaded) {
      // A rank that was told to load several times answers as often.
      const auto* loading = std::get_if<Loading>(&host->membership_);
      if (loading != nullptr && loading->round == loaded.round &&
          loading->unloaded.contains(rank)) {
        LogInfo("worker ", rank, " has ", loaded.weight_bytes,
                " bytes of weights");
      }
      host->loaded_checksums_[rank] = loaded.weight_checksum;
      host->status_.workers[rank].weight_bytes = loaded.weight_bytes;
      return host->Apply(WorkerLoaded{rank, loaded.round});
    }
    absl::Status operator()(const wire::Interrupted& interrupted) {
      LogWarn("worker ", rank, " halted before step ", interrupted.step.value,
              ": ", interrupted.reason);
      return host->Apply(GroupInterrupted{});
    }
    absl::Status operator()(StepResult& result) {
      return host->OnStepResult(std::move(result));
    }
    // Halted workers forget what they were about to do of a switch, so until
    // they resume such an answer is worth nothing.
    absl::Status operator()(const wire::Prepared& prepared) {
      if (!host->running()) return absl::OkStatus();
      return host->switches_->OnPrepared(rank, prepared, host->Now());
    }
    absl::Status operator()(const wire::Switched& switched) {
      if (!host->running()) return absl::OkStatus();
      return host->switches_->OnSwitched(rank, switched, host->Now());
    }
    absl::Status operator()(const wire::WeightsChecked& checked) {
      if (!host->running()) return absl::OkStatus();
      return host->switches_->OnWeightsChecked(rank, checked);
    }
    absl::Status operator()(const wire::Fault& fault) {
      LogError("worker ", rank, " failed in step ", fault.step.value, ": ",
               fault.reason);
      return host->Apply(WorkerLost{rank});
    }
  };
  return std::visit(Visitor{this, rank}, report);
}

absl::Status EngineHost::OnHello(Rank rank) {
  const WorkerGroup::Member& member = group_.member(rank);
  WorkerStatus& worker = status_.workers[rank];
  if (options_.journal != nullptr &&
      member.incarnation > options_.journal->state().incarnation(rank)) {
    RETURN_IF_ERROR(Note(journal::WorkerJoined{rank, member.incarnation}));
  }
  LogInfo("worker ", rank, " has joined, incarnation ",
          member.incarnation.value, ", pid ", member.hello.pid);
  worker.pid = member.hello.pid;
  worker.incarnation = member.incarnation.value;
  worker.pages_total = member.hello.num_pages;
  if (status_.padding_bytes != member.hello.padding_bytes) {
    status_.padding_bytes = member.hello.padding_bytes;
    LogInfo("the experts do not divide evenly over the group: padding takes ",
            status_.padding_bytes, " bytes");
  }
  if (!scheduler_.has_value()) worker.pages_free = worker.pages_total;
  return Apply(WorkerJoined{rank});
}

absl::Status EngineHost::CreateScheduler(uint64_t weight_checksum,
                                         Layout layout, StepId first_step) {
  const Config& config = options_.config;
  SchedulerOptions scheduler;
  scheduler.attention = Attention();
  scheduler.layout = layout;
  scheduler.first_step = first_step;
  scheduler.max_running = config.scheduler.max_running;
  scheduler.max_queue = config.scheduler.max_queue;
  scheduler.token_budget = config.scheduler.token_budget;
  scheduler.max_model_len = options_.max_model_len;
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    const wire::Hello& hello = group_.member(r).hello;
    scheduler.pages_per_rank.push_back(hello.num_pages);
    scheduler.max_running =
        std::min<int>(scheduler.max_running, hello.max_slots);
  }
  status_.max_running = scheduler.max_running;
  ASSIGN_OR_RETURN(auto created, Scheduler::Create(scheduler));
  scheduler_.emplace(std::move(created));
  switches_.emplace(
      SwitchOptions{config, weight_checksum,
                    options_.journal == nullptr
                        ? nullptr
                        : std::function([this](journal::Record record) {
                            RETURN_IF_ERROR(Note(std::move(record)));
                            return options_.journal->Commit();
                          }),
                    options_.unix_ms},
      &group_, &*scheduler_);
  policy_.emplace(config);
  for (const Layout candidate : policy_->config().candidates) {
    TotalsOf(candidate, status_.totals.steps);
  }
  return absl::OkStatus();
}

void EngineHost::TakeInbox() {
  Inbox inbox;
  {
    absl::MutexLock lock(&mutex_);
    // Before the group is whole nothing is accepted, so only drains can wait.
    std::swap(inbox, inbox_);
  }
  for (Submission& submission : inbox.submissions) {
    Accept(std::move(submission));
  }
  TakeAborts(inbox.aborts);
  for (Attachment& attachment : inbox.attachments) {
    attachments_.push_back(std::move(attachment));
  }
  for (LayoutRequest& request : inbox.layouts) {
    TakeLayout(std::move(request));
  }
  for (OperationCall& call : inbox.operations) TakeOperation(std::move(call));
  TakeDrains(inbox);
}

void EngineHost::TakeAborts(const std::vector<RequestId>& aborts) {
  for (RequestId request : aborts) {
    const auto found = answering_.find(request);
    if (found == answering_.end()) continue;
    CountEnd(found->second.times, FinishReason::kAbort,
             status_.totals.generations);
    answering_.erase(found);
    scheduler_->Abort(request);
    ++status_.requests_aborted;
    ended_.Add(Now(), 1);
    NoteEnd(request, FinishReason::kAbort, "");
    GenerationEnded ended;
    ended.request = request;
    ended.silent = true;
    batch_.emplace_back(std::move(ended));
  }
}

void EngineHost::TakeLayout(LayoutRequest request) {
  if (!switches_.has_value()) {
    request.callback(absl::UnavailableError("not ready"));
    return;
  }
  if (absl::Status there = CheckChoice(request.choice); !there.ok()) {
    return request.callback(there);
  }
  const std::optional<Layout> target = Choose(request);
  if (!target.has_value()) return;
  const absl::Status status = switches_->Request(
      *target, SwitchCause::kOperator, std::move(request.callback), Now());
  if (!status.ok()) LogWarn("switch: ", status.ToString());
}

// The choice holds from now on; the layout to go to for it, unless it is the
// policy's, of which the caller hears at once.
std::optional<Layout> EngineHost::Choose(const LayoutRequest& request) {
  status_.choice = request.choice;
  policy_->SetChoice(request.choice);
  if (options_.journal != nullptr) {
    Note(journal::LayoutChosen{request.choice}).IgnoreError();
  }
  const std::optional<Layout> target = TargetOf(request.choice);
  if (!target.has_value()) {
    SwitchReport report;
    report.from = report.to = scheduler_->layout();
    report.num_ranks = group_.num_ranks();
    request.callback(report);
  }
  return target;
}

void EngineHost::TakeDrains(Inbox& inbox) {
  NoteDrain();
  if (inbox.undrain) {
    EndDrainOperations(/*drained=*/false);
    for (auto& drained : std::exchange(drained_, {})) drained(false);
    for (auto& drained : inbox.undrained) drained(false);
  }
  // What an earlier coordinator has accepted is in flight before we serve.
  const bool none = !scheduler_.has_value() && NumUnfinished() == 0;
  for (auto& drained : inbox.drains) {
    if (none) {
      drained(true);
    } else {
      drained_.push_back(std::move(drained));
    }
  }
}

void EngineHost::Queue(RequestId request, Generation generation) {
  const int max_tokens = generation.stop.max_tokens;
  GenerationTimes times{.num_prompt = generation.prompt.size(),
                        .accepted = Now()};
  const absl::Status status =
      scheduler_->Add(request, std::move(generation.prompt),
                      std::move(generation.sampling), max_tokens);
  ++status_.requests_total;
  if (status.ok()) {
    answering_.try_emplace(
        request, Answering{TokenEnds(generation.stop),
                           !generation.stop.stop.empty(), false, times});
    batch_.emplace_back(
        GenerationBegun{request,
                        std::make_unique<GenerationOutput>(
                            options_.tokenizer, std::move(generation.stop)),
                        /*accepted=*/true});
    return;
  }
  LogWarn("request ", request.value, " was refused: ", status.ToString());
  Refuse(request, status);
  NoteEnd(request, FinishReason::kAbort, "");
}

void EngineHost::Refuse(RequestId request, const absl::Status& why) {
  GenerationEnded ended;
  ended.request = request;
  ended.finish = FinishReason::kAbort;
  ended.refused = why;
  batch_.emplace_back(std::move(ended));
  ++status_.requests_aborted;
}

void EngineHost::EndAll(bool failed) {
  failed_ = failed;
  // What was accepted while we were ending belongs to it too.
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    ending_ = true;
  }
  if (scheduler_.has_value()) {
    TakeInbox();
    switches_->Fail("the group ended");
  }
  if (failed && options_.journal != nullptr) {
    // What is in the journal goes on in the next coordinator, and what is not
    // may not be said: to be hung up on is all that a client may see of this.
    batch_.clear();
    answering_.clear();
  }
  text_->Push(batch_);
  text_->Flush();
  if (!failed) {
    TakeTextEnds();
    if (journal_ok() && options_.journal != nullptr) {
      options_.journal->Commit().IgnoreError();
    }
    if (scheduler_.has_value() || options_.served_before) {
      num_cut_.store(options_.journal != nullptr
                         ? NumUnfinished()
                         : static_cast<int>(answering_.size()));
    }
  }
  for (const auto& [request, answering] : answering_) {
    GenerationEnded last;
    last.request = request;
    last.finish = FinishReason::kAbort;
    batch_.emplace_back(std::move(last));
  }
  answering_.clear();
  text_->Push(batch_);
  text_->Flush();
  for (auto& drained : std::exchange(drained_, {})) drained(false);
  AnswerOperations();
  ForsakeOperationWaiters();
}

}  // namespace moebius
