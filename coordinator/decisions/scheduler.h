// What runs in the next step, and where its KV pages are. Pure: no clock, lock,
// log or I/O; equal calls give equal plans.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "common/step/sampling_params.h"
#include "common/step/stand.h"
#include "common/step/step_plan.h"
#include "common/step/step_result.h"
#include "coordinator/decisions/page_tables.h"
#include "coordinator/decisions/rank_set.h"
#include "coordinator/journal/journal_record.h"

namespace moebius {

// Plans that may be out without their results.
inline constexpr int kMaxStepsInFlight = 16;
// Bounds of what a configuration may ask for.
inline constexpr int kMaxRunning = 65536;
inline constexpr int kMaxQueue = 1 << 20;
inline constexpr int kMaxTokenBudget = 1 << 20;
inline constexpr int kMaxModelLen = 1 << 24;
// Admissions of one plan hold hardly more numbers in their sampling lists: it
// must fit a message.
inline constexpr size_t kMaxListedNumbers = size_t{1} << 21;

struct SchedulerOptions {
  AttentionShape attention;
  Layout layout;            // at the start
  int max_running = 256;    // sequence slots; no more than any worker's
  int max_queue = 1024;     // requests that wait for their first admission
  int token_budget = 2048;  // of a step, decode and prefill
  int max_model_len = 0;    // prompt and answer
  std::vector<uint32_t> pages_per_rank;
  StepId first_step{1};
};

// What one step added to one request. A step draws at most one token of a
// request.
struct NewToken {
  RequestId request;
  SampledToken token;
  // With the first token of a request that asked for them: of the prompt's
  // positions 1 .. n-1, ascending. Never twice.
  std::vector<PromptLogprob> prompt_logprobs;
  // This is the last token that max_tokens or the context allows: the request
  // does nothing more and waits for Finish.
  bool reached_limit = false;
};

// A request that the workers do not compute.
struct RefusedRequest {
  RequestId request;
  std::string reason;
  friend bool operator==(const RefusedRequest&,
                         const RefusedRequest&) = default;
};

// A sequence whose KV outlived the coordinator that had computed it.
struct AdoptedSequence {
  RequestId request;
  KvTable table;          // its slot is the sequence's
  uint32_t computed = 0;  // positions whose KV is in the pages
  friend bool operator==(const AdoptedSequence&,
                         const AdoptedSequence&) = default;
};

struct SchedulerCounters {
  int running = 0;
  int waiting = 0;  // preempted requests included
  uint64_t preemptions = 0;
  // Positions whose KV was given up, by preemption or with a rank's memory.
  uint64_t dropped_tokens = 0;
  uint64_t prompt_tokens = 0;     // of requests admitted so far
  uint64_t generated_tokens = 0;  // handed out by OnResult
};

// Scheduler
//
// Continuous batching: a step holds one token of every running sequence, then
// prompt chunks up to the token budget, first come first served. A sequence
// lives in one group of the layout (in EP on one rank), chosen at admission:
// least KV tokens, then fewest sequences, then lowest group, among those with
// room. A step's chunks are spread over the groups where several prompts are at
// hand.
//
// Plans are made ahead of results: a decode item may name a token that only the
// workers know yet. Workers execute plans in order, therefore pages and slots
// are free for the next plan as soon as Finish or Abort returns.
//
// When pages run out the latest arrival (of the group) is preempted: it
// loses its pages, waits until its outstanding samples are in, and enters again
// before every later arrival, with prompt and generated tokens as its prompt.
// The oldest is never preempted for a younger one, and a request is only
// accepted when the pool can hold it alone, so every request finishes.
//
// Switch: PlanSwitch, then PREPARE with its plan, then ApplySwitch once the
// commit is logged, or nothing at all after an abort. No NextStep may come
// between the two; OnResult, Add, Finish and Abort may.
//
// Recovery: RollBack, then Snapshot for the workers. What was planned and has
// no result is planned again, under new step numbers. That is safe whatever the
// workers did of it: KV is written again to the same places, and a sequence
// that a discarded plan took pages from is computed anew.
//
// Cost: NextStep and OnResult take time in proportion to running sequences,
// without allocating for those that merely go on.
// Threading: thread-compatible.
class Scheduler {
 public:
  // kInvalidArgument with the reason when the options make no scheduler.
  static absl::StatusOr<Scheduler> Create(const SchedulerOptions& options);

  Scheduler(Scheduler&&) = default;
  Scheduler& operator=(Scheduler&&) = default;

  // Queues a request. `max_tokens` is cut to what the context leaves. A prompt
  // that fills the context may have one token, behind it.
  // Errors, changing nothing:
  //   kResourceExhausted  the queue is full
  //   kInvalidArgument    an empty prompt, max_tokens below 1, a prompt longer
  //                       than the context, more KV than a rank's pool
  //   kAlreadyExists      the id is in use
  absl::Status Add(RequestId request, std::vector<int32_t> prompt,
                   SamplingParams sampling, int max_tokens);

  // Queues a request that an earlier coordinator had accepted, with the tokens
  // that it had generated. Whether the queue has room is not asked.
  absl::Status AddKnown(RequestId request, std::vector<int32_t> prompt,
                        SamplingParams sampling, int max_tokens,
                        absl::Span<const int32_t> generated);

  // Puts requests that wait into slots, with pages that hold their KV, as an
  // earlier coordinator had left them. kInvalidArgument, changing nothing, when
  // that is no state of this layout. REQUIRES: nothing runs.
  absl::Status Adopt(absl::Span<const AdoptedSequence> sequences);

  // Requests that Add would queue now.
  int queue_room() const;

  // Plans the next step, or none when there is nothing to run: nothing waits
  // or runs, everything has been issued, or results must come in first
  // (kMaxStepsInFlight, preempted samples).
  std::optional<StepPlan> NextStep();

  // Takes in the results of `step`, whole or in parts, and hands out the tokens
  // in the order of the plan's items; they are moved out of `results`. Samples
  // of requests that have ended since are dropped. A sequence that the workers
  // refuse has none: TakeRefused() tells of its request, which then waits for
  // Abort.
  // Results come in the order of the steps. Errors, changing nothing:
  // kInvalidArgument for another step than the oldest outstanding, a missing,
  // double or unasked-for sample, or a gap in the prompt's logprobs.
  absl::StatusOr<std::vector<NewToken>> OnResult(
      StepId step, absl::Span<StepResult> results);

  // The requests that results named as refused since the last call.
  std::vector<RefusedRequest> TakeRefused() {
    return std::exchange(refused_, {});
  }

  // Ends a request that has all it wants (end of text, stop string, length),
  // or that nobody wants any more. Its pages and slot are free for the next
  // plan. False when the id is unknown.
  bool Finish(RequestId request) { return End(request); }
  bool Abort(RequestId request) { return End(request); }

  // Plans the pages of a switch over all running sequences, half-prefilled ones
  // too. Changes nothing. kResourceExhausted with the numbers when they do not
  // fit, kInvalidArgument when `target` is no other layout of this group.
  absl::StatusOr<KvPlan> PlanSwitch(Layout target) const;

  // Makes the plan's tables ours. Sequences that have ended since PlanSwitch
  // are skipped. kFailedPrecondition, changing nothing, when the plan is not
  // one of the present state.
  absl::Status ApplySwitch(Layout target, const KvPlan& plan);

  // Forgets every plan without a result. Pages and slots stay as they are.
  void RollBack();

  // The KV on these ranks is gone, or that of all ranks if `everything`: the
  // sequences that have pages there wait again, and are computed from their
  // beginning, as the token budget lets them. After RollBack.
  void LoseKv(RankSet ranks, bool everything);

  // All running sequences with their tokens and pages, as after RollBack, by
  // arrival. REQUIRES: no step is in flight.
  std::vector<RestoredSequence> Snapshot() const;

  // The same, but without tokens and pages.
  std::vector<journal::RunningSequence> Running() const;

  Layout layout() const { return pages_.layout(); }
  // Where the experts lie, as plans say it. Every switch turns the side.
  const ExpertsState& experts() const { return experts_; }
  // What the workers' memory holds. REQUIRES: steady, in layout().
  void SetExperts(const ExpertsState& experts);
  // The first step that no worker has been told to run.
  StepId next_step() const { return next_step_; }
  int steps_in_flight() const { return num_in_flight_; }
  // Whether any request is known: running, waiting, or waiting for Finish.
  bool idle() const { return by_id_.empty(); }
  SchedulerCounters counters() const;
  uint32_t free_pages(Rank rank) const { return pages_.free_pages(rank); }
  uint32_t num_pages(Rank rank) const { return pages_.num_pages(rank); }

 private:
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

  enum class Stage : uint8_t {
    kWaiting,  // in waiting_
    kRunning,  // has a slot
    kIssued,   // preempted with nothing left to issue: waits for its samples
               // and for Finish
  };

  // A request from Add to Finish. `life` tells it from the one that had the
  // same index before. What every result touches is in its first cache line.
  struct alignas(64) Sequence {
    uint32_t life = 0;
    uint32_t slot = kNone;
    uint32_t num_prompt = 0;
    uint32_t limit = 0;      // tokens it has at its end
    uint32_t in_flight = 0;  // without a slot: samples issued and not in yet
    Stage stage = Stage::kWaiting;
    bool prompt_logprobs_pending = false;
    bool admitted_before = false;
    RequestId request;
    std::vector<int32_t> tokens;  // prompt and received
    uint64_t arrival = 0;
    SamplingParams sampling;
    std::vector<PromptLogprob> prompt_logprobs;
  };

  // A slot's sequence, dense for the loop over all of them.
  // Invariant of a running one: computed < length <= limit, room >= computed.
  struct Slot {
    uint32_t sequence = kNone;
    uint32_t computed = 0;  // positions whose work is issued
    uint32_t length = 0;    // tokens known or drawn by work issued
    uint32_t limit = 0;
    uint32_t room = 0;  // positions that have pages
    uint32_t life = 0;  // of the sequence
    uint8_t group = 0;
    bool prompt_logprobs = false;
    uint64_t planned = 0;  // last step with an item of it
  };

  // A sample, or a prompt chunk with logprobs, that a step will report.
  struct Expected {
    uint32_t sequence = 0;
    uint32_t life = 0;
    uint32_t slot = 0;
    uint32_t position = 0;  // of the sample
  };
  struct StepRecord {
    StepId step;
    std::vector<Expected> samples;
    std::vector<Expected> prompts;
    std::vector<Expected> chunks;  // prompt chunks; position: their first
  };

  // Prefill work of one sequence in the plan being made.
  struct Chunk {
    uint32_t slot = 0;
    uint32_t start = 0;
    uint32_t num_tokens = 0;
  };
  // The plan being made, and what is left for it.
  struct Draft {
    StepPlan plan;
    StepRecord* record = nullptr;
    uint32_t budget = 0;
    std::array<uint32_t, kMaxRanks> cap{};  // prefill tokens left, by group
    // Blocks that admitted prompts still need, by group.
    std::array<uint32_t, kMaxRanks> promised{};
    size_t listed = 0;  // numbers in the lists of admissions
  };

  explicit Scheduler(const SchedulerOptions& options);

  // scheduler_switch.cc
  std::string RoomIn(Layout layout) const;

  // scheduler.cc
  int64_t LimitOf(int64_t num_prompt, int max_tokens) const;
  absl::Status CheckRequest(RequestId request, int64_t num_prompt,
                            int max_tokens) const;
  void AddWaiting(RequestId request, std::vector<int32_t> tokens,
                  size_t num_prompt, SamplingParams sampling, int max_tokens);
  bool End(RequestId request);
  void LeaveSlot(uint32_t slot);
  void Preempt(uint32_t slot);
  void Enqueue(uint32_t sequence);
  void Forget(uint32_t sequence);

  // scheduler_plan.cc
  void DropEnded();
  void PlanDecodes(Draft& draft);
  void PlanPrefill(Draft& draft);
  bool PrefillRunning(Draft& draft);
  bool MakePrefillRoom(Draft& draft, uint32_t slot);
  void AdmitWaiting(Draft& draft);
  void Extend(Draft& draft, Chunk& chunk);
  bool AdmitFront(Draft& draft);
  int ChooseGroup(const Draft& draft, uint32_t blocks) const;
  uint32_t AddRunning(uint32_t sequence, int group);
  void Occupy(uint32_t slot, uint32_t sequence, int group);
  uint32_t LatestUnplanned(int group) const;
  bool MakeRoom(uint32_t slot);
  void AddItem(Draft& draft, uint32_t slot, uint32_t start, uint32_t count);

  // scheduler_recovery.cc
  void RollBackSlot(Slot& slot);

  // scheduler_results.cc
  absl::Status MatchRefused(const StepRecord& record,
                            absl::Span<const StepResult> results);
  // Of the step whose results MatchRefused saw last.
  bool IsRefused(uint32_t slot) const;
  void TakeRefusals(const StepRecord& record,
                    absl::Span<const StepResult> results);
  absl::Status MatchSamples(const StepRecord& record,
                            absl::Span<StepResult> results);
  absl::Status CheckPromptLogprobs(const StepRecord& record,
                                   absl::Span<const StepResult> results);
  void TakePromptLogprobs(const StepRecord& record,
                          absl::Span<StepResult> results);

  SchedulerOptions options_;
  PageTables pages_;
  StepId next_step_;
  ExpertsState experts_;

  std::vector<Sequence> sequences_;
  std::vector<uint32_t> unused_sequences_;
  absl::flat_hash_map<uint64_t, uint32_t> by_id_;  // by RequestId
  std::deque<uint32_t> waiting_;                   // by arrival
  uint64_t next_arrival_ = 0;

  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;  // a stack
  std::vector<uint32_t> running_;     // slots by arrival; may hold ended ones
  int num_running_ = 0;
  std::vector<uint32_t> released_;                // since the last plan
  std::array<int64_t, kMaxRanks> load_tokens_{};  // by group
  std::array<int32_t, kMaxRanks> load_sequences_{};

  std::vector<StepRecord> records_;  // ring of kMaxStepsInFlight
  int first_record_ = 0;
  int num_in_flight_ = 0;

  size_t last_rows_ = 0;  // page rows of the last plan
  // Scratch, kept to keep its memory.
  std::vector<uint32_t> prefills_;
  std::vector<Chunk> chunks_;
  std::vector<uint32_t> expected_of_;    // [slot] 1 + index in samples
  std::vector<SampledToken*> found_;     // [index in samples]
  std::vector<uint32_t> prompt_of_;      // [slot] 1 + index in prompts
  std::vector<uint32_t> prompt_have_;    // [index in prompts]
  std::vector<uint32_t> refused_slots_;  // of one step, ascending
  std::vector<RefusedRequest> refused_;

  uint64_t preemptions_ = 0;
  uint64_t dropped_tokens_ = 0;
  uint64_t prompt_tokens_ = 0;
  uint64_t generated_tokens_ = 0;
};

}  // namespace moebius
