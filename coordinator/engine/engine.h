// What the front may ask of the engine, and what it hears back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/config/config.h"
#include "common/layout/layout.h"
#include "common/step/step_result.h"
#include "coordinator/decisions/operations.h"
#include "coordinator/engine/engine_totals.h"
#include "coordinator/generation.h"
#include "coordinator/journal/operation.h"

namespace moebius {

// Over how long EngineStatus.ended_recently counts.
inline constexpr int kRecentSeconds = 16;
// How many switches are remembered one by one.
inline constexpr size_t kMaxRecentSwitches = 16;

// What a step added to one generation.
struct Output {
  RequestId request;
  // It is in the journal: whatever happens, it will be answered. Comes first.
  bool accepted = false;
  // With finish == kAbort: it was not accepted after all.
  absl::Status refused;
  std::vector<SampledToken> tokens;  // in order; `position` is absolute
  // Text that may be shown now: whole characters, nothing that could still
  // become part of a stop string.
  std::string text;
  std::vector<PromptLogprob> prompt_logprobs;  // once, before the first token
  std::optional<FinishReason> finish;          // last output of the generation
  std::string stop_reason;  // the stop string or token id, or error, that
                            // ended it
};

// Hears every step's outputs, on the text stage's thread. Must not block.
using OutputListener = std::function<void(std::vector<Output>)>;

// Who wanted a switch: somebody at the admin listener, the policy, or an
// earlier coordinator, whose decision is carried out.
enum class SwitchCause { kOperator, kPolicy, kEarlierCoordinator };

struct SwitchReport {
  Epoch epoch;
  Layout from, to;
  int num_ranks = 1;  // whose layouts they are
  SwitchCause cause = SwitchCause::kOperator;
  int64_t began_unix_ms = 0, ended_unix_ms = 0;
  bool done = false;          // false: refused, or nothing to do
  std::string reason;         // of a refusal; empty when nothing was to do
  uint64_t weight_bytes = 0;  // over all ranks
  uint64_t kv_bytes = 0;
  double prepare_ms = 0;  // PREPARE sent to last answer
  double pause_ms = 0;    // last result before to first result after: the
                          // longest that a running stream waits
  double switch_ms = 0;   // the slowest worker's copies
  double weight_ms = 0, kv_ms = 0;
  StepId boundary;
};
using SwitchCallback = std::function<void(absl::StatusOr<SwitchReport>)>;

struct SwitchUnderWay {
  Epoch epoch;
  Layout from, to;
  SwitchCause cause = SwitchCause::kOperator;
  int64_t began_unix_ms = 0;
  // As long after it as the last one in this direction took.
  std::optional<int64_t> expected_end_unix_ms;
};

// What the automatic choice looks at, and what it would do if it were asked
// (whether or not it is).
struct PolicyEdge {
  Layout wide, narrow;  // neighbours among the candidates
  // Requests in flight at and above which `wide` is left for `narrow`, and at
  // and below which it goes back.
  double leave_wide_at = 0, leave_narrow_at = 0;
};
struct PolicyStatus {
  bool automatic = false;
  std::vector<PolicyEdge> edges;  // ascending
  std::optional<Layout> wants;
  int64_t dwell_left_ms = 0;
};

// KV of the group in one layout.
struct KvStatus {
  Layout layout;
  uint64_t tokens = 0;
  // In a layout that is not the present one: with what is in use now.
  uint64_t tokens_free = 0;
  int copies = 1;  // of each head, on as many ranks
};

struct WorkerStatus {
  Rank rank = 0;
  uint32_t pid = 0;
  uint64_t incarnation = 0;
  bool connected = false;
  uint64_t weight_bytes = 0;
  uint32_t pages_total = 0, pages_free = 0;
};

// A snapshot for status and metrics.
struct EngineStatus {
  uint64_t version = 0;  // of the snapshot; another one has another
  bool ready = false;
  bool draining = false;
  std::string not_ready_reason;
  std::optional<double> loaded_share;  // of the weights, while they load
  Layout layout;
  LayoutChoice choice = LayoutChoice::kEp;
  std::string switch_state;  // "steady", "preparing", "committing"
  uint64_t last_step = 0;    // executed
  uint64_t running = 0, waiting = 0;
  uint64_t requests_total = 0, requests_finished = 0, requests_aborted = 0;
  uint64_t ended_recently = 0;  // generations, in the last kRecentSeconds
  uint64_t prompt_tokens_total = 0, generated_tokens_total = 0;
  uint64_t preemptions_total = 0;
  uint64_t dropped_tokens_total = 0;  // positions to be computed again
  uint64_t recoveries_total = 0;      // rounds after the first
  double last_recovery_ms = 0;        // of the last one, from halt to resume
  uint64_t switches_total = 0, switches_refused_total = 0;
  // Switches whose weights were found right, beside the steps after them.
  uint64_t switches_checked_total = 0;
  std::optional<SwitchReport> last_switch;
  // Rows of logits that held a NaN or an infinity, and where the last ones
  // were.
  uint64_t nonfinite_rows_total = 0;
  uint64_t nonfinite_step = 0;
  uint32_t nonfinite_slot = 0;
  double step_ms = 0;      // recent average
  double decision_us = 0;  // recent average: coordinator's time for a step
  double load = 0;         // smoothed requests in flight, what auto looks at
  std::string journal_trouble;  // nothing new is accepted as long as there is
  uint64_t journal_bytes = 0;
  uint64_t padding_bytes = 0;  // of the experts, in all workers' memory
  EngineTotals totals;
  // Of the present layout, and then of the candidates.
  std::vector<KvStatus> kv;
  double steps_per_s = 0, tokens_per_s = 0;  // over the last kRecentSeconds
  int max_running = 0;  // scheduler.max_running, or what workers have slots for
  std::optional<SwitchUnderWay> switch_under_way;
  // The last kMaxRecentSwitches, latest first; null: none.
  std::shared_ptr<const std::vector<SwitchReport>> recent_switches;
  PolicyStatus policy;
  // By their beginning; null: none.
  std::shared_ptr<const std::vector<KnownOperation>> operations;
  std::vector<WorkerStatus> workers;
};

// What becomes of an operation that is asked for (coordinator/decisions/
// operations.h): `operation` is the one that was begun, is known, or is in the
// way.
struct OperationAnswer {
  OperationVerdict verdict = OperationVerdict::kBegins;
  KnownOperation operation;
};
using OperationCallback = std::function<void(absl::StatusOr<OperationAnswer>)>;

// How an operation ended.
struct OperationResult {
  absl::Status status;   // of kLayout, and of kUndrain
  SwitchReport report;   // of kLayout
  bool drained = false;  // of kDrain
};

// Thread-safe. Calls return at once; answers come through the callbacks, on
// the engine's thread or, behind the outputs that come first, the text stage's.
class Engine {
 public:
  virtual ~Engine() = default;

  // Queues the generations of one request, all or none, and returns their ids.
  // Outputs may arrive at the listener before this returns. `context` is
  // whatever the caller needs to answer the request again; the journal keeps it
  // with the request.
  // Errors: kResourceExhausted when the queue is full (the front answers 429),
  // kUnavailable when draining or not ready (503), kInvalidArgument for what
  // can never be taken: more generations than may wait, a prompt longer than
  // the context.
  virtual absl::StatusOr<std::vector<RequestId>> Submit(
      std::vector<Generation> generations, std::string context) = 0;

  // Calls back once, on the text stage's thread, with all outputs of these
  // generations up to now, in order, those of each ending with its finish if it
  // has ended; the listener gets exactly what follows. kNotFound when their
  // results are kept no longer.
  using AttachCallback =
      std::function<void(absl::StatusOr<std::vector<Output>>)>;
  virtual void Attach(std::vector<RequestId> requests,
                      AttachCallback callback) = 0;

  // Ends a generation and frees its pages at once. No output follows.
  // Unknown ids are ignored.
  virtual void Abort(RequestId request) = 0;

  // Switches by hand, or hands the choice to the policy.
  virtual void SetLayout(LayoutChoice choice, SwitchCallback callback) = 0;

  // Does what SetLayout, Drain or Undrain do, once for an id: asked again, also
  // of a later coordinator, it tells what became of the first time. Calls back
  // once, behind the journal: if `wait` and it begins or is known, when it has
  // ended, else at once. kUnavailable, with nothing begun, before the group
  // serves, when too many wait, and when the journal cannot be written.
  virtual void Operate(Operation operation, bool wait,
                       OperationCallback callback) = 0;

  virtual EngineStatus GetStatus() const = 0;

  // Takes no new requests; `ended` runs when the last one has ended, with true,
  // or when the drain has, by Undrain() or by the group's end, with false.
  using DrainCallback = std::function<void(bool drained)>;
  virtual void Drain(DrainCallback ended) = 0;

  // Takes requests again. kFailedPrecondition when the group is being stopped.
  virtual absl::Status Undrain() = 0;
};

}  // namespace moebius
