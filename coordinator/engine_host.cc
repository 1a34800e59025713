#include "coordinator/engine_host.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace moebius {
namespace {

// Weight of the newest value in the averages that status shows.
constexpr double kAverageWeight = 0.05;
// A loop that waits without end still looks around this often when the policy
// has to see time pass,
constexpr int kPolicyTickMs = 100;
// while the group is halted,
constexpr int kLookAroundMs = 50;
// and while a result is due.
constexpr int kStallTickMs = 1000;

double MicrosOf(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

void Average(double& average, double value) {
  average = average == 0 ? value : average + kAverageWeight * (value - average);
}

}  // namespace

EngineHost::EngineHost(EngineOptions options, std::unique_ptr<Hub> hub)
    : options_(std::move(options)),
      hub_(std::move(hub)),
      group_(hub_.get(), options_.config.num_workers, options_.term),
      membership_(Gathering{RankSet::All(options_.config.num_workers), 0}),
      stands_(options_.config.num_workers),
      loaded_checksums_(options_.config.num_workers) {
  status_.choice = options_.config.layout;
  status_.layout = InitialLayout(options_.config);
  status_.not_ready_reason = "waiting for workers";
  status_.switch_state = "steady";
  status_.workers.resize(options_.config.num_workers);
  for (Rank r = 0; r < options_.config.num_workers; ++r) {
    status_.workers[r].rank = r;
  }
  absl::MutexLock lock(&mutex_);
  published_ = status_;
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
    std::vector<Generation> generations) {
  const int count = static_cast<int>(generations.size());
  std::vector<RequestId> ids;
  {
    absl::MutexLock lock(&mutex_);
    if (!published_.ready) {
      return absl::UnavailableError(
          absl::StrCat("not ready: ", published_.not_ready_reason));
    }
    if (draining_) return absl::UnavailableError("shutting down");
    for (const Generation& generation : generations) {
      const size_t length = generation.prompt.size();
      if (length < 1 || length >= static_cast<size_t>(options_.max_model_len)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "a prompt of ", length, " tokens; the context holds 1 to ",
            options_.max_model_len - 1, " and at least one token of answer"));
      }
    }
    if (queued_ + count > options_.config.max_queue) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the queue is full: ", queued_, " requests are waiting of at most ",
          options_.config.max_queue));
    }
    queued_ += count;
    for (Generation& generation : generations) {
      ids.push_back(RequestId{next_request_++});
      inbox_.submissions.push_back(
          Submission{ids.back(), std::move(generation)});
    }
  }
  hub_->Wake();
  return ids;
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
  return status;
}

void EngineHost::Drain(std::function<void()> drained) {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    inbox_.drains.push_back(std::move(drained));
  }
  hub_->Wake();
}

// ---- the engine's thread ---------------------------------------------------

void EngineHost::Loop() {
  while (!stopping_.load()) {
    if (!Turn(TimeoutMs())) return;
  }
  EndAll();
  Publish();
  group_.Broadcast(Shutdown{});
}

bool EngineHost::Turn(int timeout_ms) {
  const absl::Status status = RunOnce(timeout_ms);
  if (status.ok()) return true;
  spdlog::error("the group cannot go on: {}", status.ToString());
  status_.ready = false;
  status_.not_ready_reason = std::string(status.message());
  EndAll();
  Publish();
  if (options_.on_failed) options_.on_failed(status);
  return false;
}

absl::Status EngineHost::RunOnce(int timeout_ms) {
  RETURN_IF_ERROR(TakeReports(timeout_ms));
  TakeInbox();
  const auto now = Now();
  RETURN_IF_ERROR(TickMembership(now));
  if (running()) {
    RETURN_IF_ERROR(switches_->Tick(now));
    if (auto target = policy_->Decide(
            now,
            scheduler_->counters().running + scheduler_->counters().waiting,
            scheduler_->layout(), switches_->busy())) {
      RETURN_IF_ERROR(switches_->Request(*target, nullptr, now));
    }
    RETURN_IF_ERROR(IssueSteps());
    // Whom a plan did not reach is lost.
    RETURN_IF_ERROR(TickMembership(now));
  }
  if (scheduler_.has_value() && !drained_.empty() && scheduler_->idle()) {
    for (auto& drained : std::exchange(drained_, {})) drained();
  }
  Publish();
  return absl::OkStatus();
}

int EngineHost::TimeoutMs() const {
  if (!running()) {
    // Before there is a group there is nothing to lose.
    return scheduler_.has_value() || round_deadline_.has_value() ||
                   group_.greeting()
               ? kLookAroundMs
               : -1;
  }
  int timeout_ms = switches_->TimeoutMs(Now());
  if (!flying_.empty() && (timeout_ms < 0 || timeout_ms > kStallTickMs)) {
    timeout_ms = kStallTickMs;
  }
  if (policy_->NeedsTicks() && (timeout_ms < 0 || timeout_ms > kPolicyTickMs)) {
    timeout_ms = kPolicyTickMs;
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

absl::Status EngineHost::TakeReport(Rank rank, Report report) {
  struct Visitor {
    EngineHost* host;
    Rank rank;
    absl::Status operator()(const Hello&) { return host->OnHello(rank); }
    absl::Status operator()(const Halted& halted) {
      host->stands_[rank] = halted.stand;
      return host->Apply(
          WorkerHalted{rank, halted.round, !halted.stand.loaded});
    }
    absl::Status operator()(const Loaded& loaded) {
      spdlog::info("worker {} has {} bytes of weights", rank,
                   loaded.weight_bytes);
      host->loaded_checksums_[rank] = loaded.weight_checksum;
      host->status_.workers[rank].weight_bytes = loaded.weight_bytes;
      return host->Apply(WorkerLoaded{rank, loaded.round});
    }
    absl::Status operator()(const Interrupted& interrupted) {
      spdlog::warn("worker {} halted before step {}: {}", rank,
                   interrupted.step.value, interrupted.reason);
      return host->Apply(GroupInterrupted{});
    }
    absl::Status operator()(StepResult& result) {
      return host->OnStepResult(std::move(result));
    }
    // Halted workers forget what they were about to do of a switch, so until
    // they resume such an answer is worth nothing.
    absl::Status operator()(const Prepared& prepared) {
      if (!host->running()) return absl::OkStatus();
      return host->switches_->OnPrepared(rank, prepared, host->Now());
    }
    absl::Status operator()(const Switched& switched) {
      if (!host->running()) return absl::OkStatus();
      return host->switches_->OnSwitched(rank, switched, host->Now());
    }
    absl::Status operator()(const Fault& fault) {
      spdlog::error("worker {} failed in step {}: {}", rank, fault.step.value,
                    fault.reason);
      if (!host->scheduler_.has_value()) {
        return absl::InternalError(
            absl::StrCat("worker ", rank, ": ", fault.reason));
      }
      return host->Apply(WorkerLost{rank});
    }
  };
  return std::visit(Visitor{this, rank}, report);
}

absl::Status EngineHost::OnHello(Rank rank) {
  const WorkerGroup::Member& member = group_.member(rank);
  WorkerStatus& worker = status_.workers[rank];
  spdlog::info("worker {} has joined, incarnation {}, pid {}", rank,
               member.incarnation.value, member.hello.pid);
  worker.pid = member.hello.pid;
  worker.incarnation = member.incarnation.value;
  worker.pages_total = member.hello.num_pages;
  return Apply(WorkerJoined{rank});
}

absl::Status EngineHost::CreateScheduler(uint64_t weight_checksum) {
  const Config& config = options_.config;
  SchedulerOptions scheduler;
  scheduler.attention = {config.num_workers, options_.model.num_q_heads,
                         options_.model.num_kv_heads};
  scheduler.layout = InitialLayout(config);
  scheduler.max_running = config.max_running;
  scheduler.max_queue = config.max_queue;
  scheduler.token_budget = config.token_budget;
  scheduler.max_model_len = options_.max_model_len;
  for (Rank r = 0; r < group_.num_ranks(); ++r) {
    const Hello& hello = group_.member(r).hello;
    scheduler.pages_per_rank.push_back(hello.num_pages);
    scheduler.max_running =
        std::min<int>(scheduler.max_running, hello.max_slots);
  }
  ASSIGN_OR_RETURN(auto created, Scheduler::Create(scheduler));
  scheduler_.emplace(std::move(created));
  switches_.emplace(SwitchOptions{config, weight_checksum}, &group_,
                    &*scheduler_);
  policy_.emplace(config);
  return absl::OkStatus();
}

absl::Status EngineHost::OnStepResult(StepResult result) {
  const auto begin = Now();
  if (flying_.empty() || flying_.front() != result.step) {
    spdlog::warn("a result of step {}, which is not the next",
                 result.step.value);
    return Apply(GroupInterrupted{});
  }
  flying_.pop_front();
  last_progress_ = begin;
  Average(status_.step_ms, result.duration_us / 1000.0);
  RETURN_IF_ERROR(switches_->OnStepDone(result.step, begin));
  status_.last_step = result.step.value;
  ASSIGN_OR_RETURN(auto tokens, scheduler_->OnResult(
                                    result.step, absl::MakeSpan(&result, 1)));
  Deliver(std::move(tokens));
  unaccounted_us_ += MicrosOf(Now() - begin);
  return absl::OkStatus();
}

void EngineHost::Deliver(std::vector<NewToken> tokens) {
  std::vector<Output> batch;
  batch.reserve(tokens.size());
  for (NewToken& token : tokens) {
    auto found = outputs_.find(token.request);
    if (found == outputs_.end()) continue;
    Output& output = batch.emplace_back();
    output.request = token.request;
    output.prompt_logprobs = std::move(token.prompt_logprobs);
    found->second.Add(absl::MakeConstSpan(&token.token, 1), output);
    ++status_.generated_tokens_total;
    if (token.reached_limit && !output.finish.has_value()) {
      output.finish = FinishReason::kLength;
    }
    if (!output.finish.has_value()) continue;
    scheduler_->Finish(token.request);
    outputs_.erase(found);
    ++status_.requests_finished;
  }
  if (!batch.empty()) options_.listener(std::move(batch));
}

void EngineHost::TakeInbox() {
  Inbox inbox;
  {
    absl::MutexLock lock(&mutex_);
    // Before the group is whole nothing is accepted, so only drains can wait.
    std::swap(inbox, inbox_);
  }
  for (Submission& submission : inbox.submissions) {
    Queue(std::move(submission));
  }
  for (RequestId request : inbox.aborts) {
    if (outputs_.erase(request) == 0) continue;
    scheduler_->Abort(request);
    ++status_.requests_aborted;
  }
  for (LayoutRequest& request : inbox.layouts) {
    if (!switches_.has_value()) {
      request.callback(absl::UnavailableError("not ready"));
      continue;
    }
    status_.choice = request.choice;
    policy_->SetChoice(request.choice);
    if (request.choice == LayoutChoice::kAuto) {
      SwitchReport report;
      report.from = report.to = scheduler_->layout();
      request.callback(report);
      continue;
    }
    const Layout target = request.choice == LayoutChoice::kEp
                              ? ExpertParallel()
                              : TensorParallel(options_.config.num_workers);
    const absl::Status status =
        switches_->Request(target, std::move(request.callback), Now());
    if (!status.ok()) spdlog::warn("switch: {}", status.ToString());
  }
  for (auto& drained : inbox.drains) {
    if (scheduler_.has_value()) {
      drained_.push_back(std::move(drained));
    } else {
      drained();
    }
  }
}

void EngineHost::Queue(Submission submission) {
  Generation& generation = submission.generation;
  const int max_tokens = generation.stop.max_tokens;
  const absl::Status status =
      scheduler_->Add(submission.request, std::move(generation.prompt),
                      std::move(generation.sampling), max_tokens);
  ++status_.requests_total;
  if (status.ok()) {
    outputs_.try_emplace(submission.request, options_.tokenizer,
                         std::move(generation.stop));
    return;
  }
  spdlog::warn("request {} was refused: {}", submission.request.value,
               status.ToString());
  Output output;
  output.request = submission.request;
  output.finish = FinishReason::kAbort;
  output.stop_reason = std::string(status.message());
  ++status_.requests_aborted;
  options_.listener({std::move(output)});
}

absl::Status EngineHost::IssueSteps() {
  while (switches_->steps_allowed() &&
         static_cast<int>(flying_.size()) < options_.config.steps_ahead) {
    const auto begin = Now();
    std::optional<StepPlan> plan = scheduler_->NextStep();
    if (!plan.has_value()) break;
    const StepId step = plan->step;
    if (flying_.empty()) last_progress_ = begin;
    group_.Broadcast(*std::move(plan));
    flying_.push_back(step);
    Average(status_.decision_us,
            std::exchange(unaccounted_us_, 0.0) + MicrosOf(Now() - begin));
  }
  return absl::OkStatus();
}

void EngineHost::EndAll() {
  // What was accepted while we were ending belongs to it too.
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }
  if (scheduler_.has_value()) {
    TakeInbox();
    switches_->Fail("the group ended");
  }
  std::vector<Output> batch;
  for (const auto& [request, output] : outputs_) {
    Output& last = batch.emplace_back();
    last.request = request;
    last.finish = FinishReason::kAbort;
  }
  outputs_.clear();
  if (!batch.empty()) options_.listener(std::move(batch));
  for (auto& drained : std::exchange(drained_, {})) drained();
}

void EngineHost::Publish() {
  if (scheduler_.has_value()) {
    const SchedulerCounters counters = scheduler_->counters();
    status_.layout = scheduler_->layout();
    status_.running = counters.running;
    status_.waiting = counters.waiting;
    status_.prompt_tokens_total = counters.prompt_tokens;
    status_.preemptions_total = counters.preemptions;
    status_.dropped_tokens_total = counters.dropped_tokens;
    status_.switch_state = switches_->state_name();
    status_.switches_total = switches_->num_done();
    status_.switches_refused_total = switches_->num_refused();
    status_.last_switch = switches_->last();
    status_.load = policy_->smoothed_load();
    for (Rank r = 0; r < group_.num_ranks(); ++r) {
      status_.workers[r].connected = group_.member(r).joined;
      status_.workers[r].pages_free = scheduler_->free_pages(r);
    }
  }
  absl::MutexLock lock(&mutex_);
  published_ = status_;
  queued_ = static_cast<int>(status_.waiting + inbox_.submissions.size());
}

}  // namespace moebius
