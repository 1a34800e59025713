// The engine: one thread that owns scheduler, switches and the channel to the
// workers, and turns submissions into steps and steps into outputs.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "common/channel/channel.h"
#include "common/config/config.h"
#include "common/config/model_config.h"
#include "common/vault/worker_news.h"
#include "coordinator/decisions/membership.h"
#include "coordinator/decisions/recovery_plan.h"
#include "coordinator/decisions/scheduler.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/policy_host.h"
#include "coordinator/engine/recent_count.h"
#include "coordinator/engine/switch_control.h"
#include "coordinator/engine/text_stage.h"
#include "coordinator/engine/token_ends.h"
#include "coordinator/engine/worker_group.h"
#include "coordinator/journal/journal.h"
#include "coordinator/text/tokenizer.h"

namespace moebius {

struct EngineOptions {
  Config config;
  ModelConfig model;
  int max_model_len = 0;
  Term term{1};
  // An earlier coordinator has served with these workers: what its journal has
  // unfinished is in flight, though we may not serve yet.
  bool served_before = false;
  const Tokenizer* tokenizer = nullptr;  // outlives the engine
  // Where what must not be forgotten goes; null: nowhere. Outlives the engine,
  // whose thread alone uses it from Start() on. What it says already is taken
  // up.
  Journal* journal = nullptr;
  // Milliseconds since 1970, for results that are kept for a time.
  std::function<int64_t()> unix_ms;
  // Requests, by the first of their ids, whose results are kept no longer.
  std::function<void(std::vector<RequestId>)> on_forgotten;
  // Has that incarnation of a worker ended, if it is not yet, and replaced.
  std::function<void(Rank, Incarnation)> replace_worker;
  // What is known of a worker; nothing: nobody answers. An incarnation that is
  // not the one in the news has ended. May wait a moment.
  std::function<std::optional<WorkerNews>(Rank)> news_of;
  // Called once a second while the engine gets on (SayAlive). Must not wait.
  std::function<void()> alive;
  // The time; null: the steady clock's.
  std::function<std::chrono::steady_clock::time_point()> now;
  // What is answered to who asked for an operation, and to who asks again.
  std::function<OperationEnd(OperationKind, const OperationResult&)>
      answer_operation;
  // Once, when every worker has joined.
  std::function<void()> on_ready;
  // Once, when the group cannot go on; every request has been ended with
  // kAbort before.
  std::function<void(absl::Status)> on_failed;
};

// EngineHost
//
// A worker that dies, hangs or loses a message costs its streams a pause: all
// workers are halted, the scheduler goes back to the last result, and they
// resume with its tokens and page tables (membership.h). Requests are accepted
// meanwhile.
//
// It deals in tokens: `text` makes text of them beside it (text_stage.h), tells
// clients, and says which generations a stop string has ended. Tokens drawn
// since then are dropped.
//
// Callbacks run on its thread or the text stage's and must not block. Stop()
// ends the workers and joins the thread; outputs stop first.
class EngineHost final : public Engine {
 public:
  EngineHost(EngineOptions options, std::unique_ptr<Hub> hub,
             std::unique_ptr<TextStage> text);
  ~EngineHost() override;

  void Start();
  void Stop();

  // In place of Start and Stop, for a caller with a loop of its own (and a hub
  // that does not block): takes what has come within timeout_ms, does what is
  // to be done and returns. False: the group cannot go on; no further call.
  bool Turn(int timeout_ms);
  // Until Turn has something to do though nothing comes; -1: never.
  int TimeoutMs() const;

  absl::StatusOr<std::vector<RequestId>> Submit(
      std::vector<Generation> generations, std::string context) override;
  void Attach(std::vector<RequestId> requests,
              AttachCallback callback) override;
  void Abort(RequestId request) override;
  void SetLayout(LayoutChoice choice, SwitchCallback callback) override;
  void Operate(Operation operation, bool wait,
               OperationCallback callback) override;
  EngineStatus GetStatus() const override;
  void Drain(DrainCallback ended) override;
  absl::Status Undrain() override;
  // Drains for the last time: there is no Undrain() any more.
  void DrainForGood(DrainCallback ended);
  // After Stop(): requests in flight that it has cut.
  int num_cut() const { return num_cut_.load(); }

 private:
  using Clock = std::chrono::steady_clock;

  struct Submission {
    RequestId first;  // the others follow
    std::vector<Generation> generations;
    std::string context;
  };
  struct Attachment {
    std::vector<RequestId> requests;
    AttachCallback callback;
  };
  // A generation that has not ended, as far as its tokens tell.
  struct Answering {
    TokenEnds ends;
    // It has stop strings: where it ends is for the text stage to say.
    bool by_text = false;
    // Its last token is drawn.
    bool drawn = false;
    GenerationTimes times;
  };
  struct EndOfTokens {
    size_t index = 0;
    FinishReason finish = FinishReason::kStop;
    std::string stop_reason;
  };
  struct LayoutRequest {
    LayoutChoice choice;
    SwitchCallback callback;
  };
  struct OperationCall {
    Operation operation;
    bool wait = false;
    OperationCallback callback;
  };
  // What other threads have asked for since the loop last looked.
  struct Inbox {
    std::vector<Submission> submissions;
    std::vector<RequestId> aborts;
    std::vector<Attachment> attachments;
    std::vector<LayoutRequest> layouts;
    std::vector<OperationCall> operations;
    std::vector<DrainCallback> drains;
    std::vector<DrainCallback> undrained;  // that came before an Undrain()
    bool undrain = false;
  };

  void Loop();
  Clock::time_point Now() const {
    return options_.now ? options_.now() : Clock::now();
  }
  absl::Status RunOnce(int timeout_ms);
  absl::Status TakeReports(int timeout_ms);
  absl::Status TakeReport(Rank rank, wire::Report report);
  absl::Status OnHello(Rank rank);
  absl::Status CreateScheduler(uint64_t weight_checksum, Layout layout,
                               StepId first_step);
  void TakeInbox();
  void TakeAborts(const std::vector<RequestId>& aborts);
  void TakeLayout(LayoutRequest request);
  std::optional<Layout> Choose(const LayoutRequest& request);
  void Queue(RequestId request, Generation generation);
  // It was not accepted after all.
  void Refuse(RequestId request, const absl::Status& why);
  void TakeDrains(Inbox& inbox);
  void EndAll(bool failed);

  // engine_operations.cc
  void TakeOperation(OperationCall call);
  void Perform(const Operation& operation);
  void Repeat(const Operation& operation);
  void TakeUndrainOperation(const std::string& id);
  SwitchCallback EndsOperation(const std::string& id);
  void EndOperation(const std::string& id, OperationKind kind,
                    const OperationResult& result);
  void EndDrainOperations(bool drained);
  void EndDrainsIfDrained();
  void NoteDrain();
  void ResumeOperations();
  void AnswerOperations();
  void ForsakeOperationWaiters();
  const KnownOperation* FindOperation(const std::string& id) const;
  std::optional<Layout> TargetOf(LayoutChoice choice) const;
  // kInvalidArgument with the layouts that there are, if it is none of them.
  absl::Status CheckChoice(LayoutChoice choice) const;
  AttentionShape Attention() const {
    return {options_.config.workers.count, options_.model.num_q_heads,
            options_.model.num_kv_heads};
  }

  // engine_publish.cc
  void PublishKv();
  void PublishSwitches(Clock::time_point now);
  void Publish();

  // engine_steps.cc
  absl::Status IssueSteps();
  absl::Status OnStepResult(StepResult result);
  void EndRefused(std::vector<RefusedRequest> refused);
  void NoteNonfinite(const StepResult& result);
  void NoteAdmissions(const StepPlan& plan, Clock::time_point now);
  void Deliver(StepId step, std::vector<NewToken> tokens);
  void TakeTextEnds();
  void TakeBackAccepted(const absl::Status& why);
  absl::Status CommitAndDeliver();

  // engine_journal.cc
  bool journal_ok() const {
    return options_.journal == nullptr || options_.journal->healthy();
  }
  absl::Status Note(journal::Record record);
  // Requests that have not ended.
  int NumUnfinished() const;
  void NoteEnd(RequestId request, FinishReason finish,
               const std::string& stop_reason);
  void Accept(Submission submission);
  absl::Status TickJournal(Clock::time_point now);
  // Until the journal wants to be looked after; -1: never.
  int JournalTickMs() const;
  TextItem Replay(Attachment attachment) const;
  // kDataLoss when the journal is not of the memory that the workers have.
  absl::StatusOr<RecoveryPlan> PlanFromJournal() const;
  // Writes how the group begins. False: it has to wait for its journal.
  absl::StatusOr<bool> WriteBeginning(const RecoveryPlan& plan);
  absl::Status Recover(const RecoveryPlan& plan);
  void RecoverRequests();
  void RecoverRequest(RequestId request, const JournalChoice& choice);
  void RecoverEnd(RequestId request, const JournalChoice& choice,
                  const EndOfTokens& end);
  std::unique_ptr<GenerationOutput> TextOf(const JournalChoice& choice,
                                           size_t count) const;
  // The first of the choice's tokens that ends it.
  std::optional<EndOfTokens> EndAmong(const JournalChoice& choice) const;

  // engine_recovery.cc
  // All workers are in one round; and the group has begun.
  bool together() const { return std::holds_alternative<Running>(membership_); }
  bool running() const { return together() && scheduler_.has_value(); }
  // Event in, effects out, and what follows from those.
  absl::Status Apply(const MembershipEvent& event);
  absl::Status Carry(const MembershipEffect& effect);
  absl::Status TickMembership(Clock::time_point now);
  absl::Status LookAfterIdleWorkers(Clock::time_point now);
  void SayAlive(Clock::time_point now);
  void LookAfterSocket(Clock::time_point now);
  void Halt(const SendHalt& halt);
  absl::Status Load(const SendLoad& load);
  void SendHaltTo(RankSet ranks, uint64_t round);
  absl::StatusOr<ExpertsState> ExpertsNow();
  absl::Status SendLoadTo(RankSet ranks, uint64_t round);
  uint64_t WeightChecksum() const;
  // The first time: begins, unless it has to wait for the journal.
  absl::StatusOr<wire::Resume> MakeResume(uint64_t round, bool first);
  absl::Status Resume(uint64_t round);
  absl::Status BeginIfItWaits();
  void SendSequences(uint64_t round);
  void NoteMembership(const MembershipState& before, Clock::time_point now);
  // Why the group does not run, for those that ask.
  void LookAtMissing(Clock::time_point now);
  RankSet Missing() const;
  std::string WhoIsMissing() const;
  std::string TroubleOfMissing() const;
  void LookAtLoading();

  const EngineOptions options_;
  std::unique_ptr<Hub> hub_;
  std::unique_ptr<TextStage> text_;  // wakes hub_
  std::thread thread_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> num_cut_{0};

  // The engine thread's own.
  WorkerGroup group_;
  MembershipState membership_;
  std::vector<Stand> stands_;               // [rank] of this round
  RankSet emptied_;                         // whose memory is new in this round
  std::vector<uint64_t> loaded_checksums_;  // [rank] of Loaded
  std::optional<Clock::time_point> round_deadline_;
  std::chrono::milliseconds load_pause_{0};  // until LOAD is sent again
  Clock::time_point load_again_;
  Clock::time_point last_greeting_;
  Clock::time_point last_look_;  // for what keeps the missing ones away
  Clock::time_point last_socket_look_;
  Clock::time_point last_alive_;
  bool socket_was_ok_ = true;
  std::optional<Clock::time_point> halted_since_;  // running no more since
  Clock::time_point last_progress_;                // resumed, or a result came
  std::optional<Scheduler> scheduler_;  // once every worker has joined
  std::optional<SwitchControl> switches_;
  std::optional<PolicyHost> policy_;
  absl::flat_hash_map<RequestId, Answering> answering_;
  std::deque<StepId> flying_;  // steps whose results are not in
  std::vector<DrainCallback> drained_;
  std::vector<std::vector<HeldSequence>> held_;  // [rank] as Halted told
  TextBatch batch_;  // for the text stage once it is in the journal
  std::vector<Attachment> attachments_;
  // Who waits for the end of an operation, and answers for when the journal has
  // what they say.
  std::vector<std::pair<std::string, OperationCallback>> operation_waiters_;
  std::vector<std::function<void()>> operation_answers_;
  bool operations_changed_ = false;  // since they were published
  bool drain_operation_runs_ = false;
  bool failed_ = false;  // nothing more may be said to have ended
  bool journal_was_ok_ = true;
  Clock::time_point last_journal_tick_;
  RecentCount ended_;           // generations
  RecentCount steps_, tokens_;  // done, and drawn
  double unaccounted_us_ = 0;   // decision time since the last step issued
  EngineStatus status_;

  mutable absl::Mutex mutex_;
  Inbox inbox_ ABSL_GUARDED_BY(mutex_);
  EngineStatus published_ ABSL_GUARDED_BY(mutex_);
  // Accepted and not yet running; what max_queue bounds.
  int queued_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_request_ ABSL_GUARDED_BY(mutex_) = 1;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;  // draining for good
};

}  // namespace moebius
