// The messages between the coordinator and its workers, as plain values.
// wire_*_capnp.cc turn them into bytes and back; nothing else knows Cap'n
// Proto.
//
// Steps and switch commands share one ordered channel to each worker. Every
// message carries (term, incarnation, sequence): a worker ignores what is not
// of its coordinator's term or its own incarnation; `sequence` counts up by one
// in each direction, so a loss or a repetition is seen. Greet, Halt and Halted
// are the exceptions: whoever takes one in counts on from it, whatever was lost
// before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/kv_plan.h"
#include "common/layout/layout.h"
#include "common/step/sampling_params.h"

namespace moebius {

inline constexpr uint32_t kWireVersion = 4;
inline constexpr size_t kMaxMessageBytes = size_t{64} << 20;

struct Envelope {
  Term term;
  Incarnation incarnation;  // of the worker at either end
  uint64_t sequence = 0;
};

// ---- coordinator -> worker -------------------------------------------------

// The first word of a coordinator to a life of a worker. That of a new term
// halts the worker, who obeys no earlier one from then on. The answer is Hello.
struct Greet {};

// Stop where you are, take no command but Load, Restore and Resume of this
// round, and answer Halted. Begins every round of recovery, and the service
// itself. Rounds count up within a term; a Halt of an earlier one is late and
// means nothing.
struct Halt {
  uint64_t round = 0;
  bool tell_sequences = false;  // Halted.sequences are wanted
};

// Your memory is new: fill it from the checkpoint with the weights of `layout`
// or, of a switch that is under way, those of `to` in the first layers_done
// layers of its order. The answer is Loaded.
struct Load {
  uint64_t round = 0;
  Layout layout;
  Epoch epoch;  // of the switch
  Layout to;    // == layout: no switch
  int layers_done = 0;
};

// A sequence enters (or enters again after preemption) slot `slot`.
struct Admission {
  uint32_t slot = 0;
  RequestId request;
  uint32_t num_prompt_tokens = 0;  // tokens beyond it were generated
  std::vector<int32_t> tokens;     // all known tokens
  SamplingParams sampling;
  friend bool operator==(const Admission&, const Admission&) = default;
};

// New pages of a sequence on one rank: block `block` of every head held there.
// A step under tensor parallelism may hold a thousand, so as many pages as a
// rank's share of heads usually is need no memory of their own.
struct PageRow {
  uint32_t slot = 0;
  uint32_t block = 0;
  Rank rank = 0;
  absl::InlinedVector<PageId, 8> pages;  // [KV heads held on rank]
  friend bool operator==(const PageRow&, const PageRow&) = default;
};

// Work of one sequence in a step: tokens [position, position + num_tokens).
struct WorkItem {
  uint32_t slot = 0;
  uint32_t position = 0;
  uint32_t num_tokens = 0;
  uint8_t owner = 0;    // EP: rank that holds it. TP: 0.
  bool sample = false;  // draw the token at position + num_tokens
  friend bool operator==(const WorkItem&, const WorkItem&) = default;
};

// One forward pass of the group. The same plan goes to every worker. Applied
// in this order: released slots, admissions, page rows, work. The plan of a
// step may be executed again with the same result.
// A decode item whose token is not in `tokens` yet takes the one that the
// worker sampled in an earlier step.
struct StepPlan {
  StepId step;
  StepLayout layout;
  std::vector<uint32_t> released;
  std::vector<Admission> admissions;
  std::vector<PageRow> page_rows;
  std::vector<WorkItem> items;
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

// Asks whether a switch can be done; changes nothing that steps can see.
struct Prepare {
  Epoch epoch;
  Layout target;
  KvPlan kv;
};

// Sequences as the coordinator knows them, in place of what the worker holds:
// the first Restore of a round empties its table. Between Halt and Resume.
struct Restore {
  struct Sequence {
    Admission admission;
    KvTable table;          // of admission.slot; may have no block yet
    uint32_t computed = 0;  // positions whose KV is there
    friend bool operator==(const Sequence&, const Sequence&) = default;
  };
  uint64_t round = 0;
  std::vector<Sequence> sequences;
};

// What is left of a committed switch: layers and waves from these on, in the
// order of the switch. The one in flight is done again.
struct SwitchTail {
  Epoch epoch;
  Layout from;
  int layers_done = 0;
  int waves_done = 0;
  KvPlan kv;
};

// Every worker has halted: finish the switch, if one is to be finished (its
// answer is Switched), and go on.
struct Resume {
  uint64_t round = 0;
  Layout layout;  // of steps from now on, after the tail
  StepId next_step;
  uint64_t next_barrier = 0;  // above every number that any rank has used
  Epoch last_epoch;           // highest ever proposed
  // [rank] The life that made its memory, so that an old mapping is noticed.
  std::vector<Incarnation> memories;
  // Of the whole model, see worker/switch/weight_checksum.h; workers keep it.
  uint64_t weight_checksum = 0;
  std::optional<SwitchTail> tail;
};

// Do the prepared switch before step `boundary`.
struct Commit {
  Epoch epoch;
  StepId boundary;
};

struct Abort {
  Epoch epoch;
};

struct Shutdown {};

using Command = std::variant<Greet, Halt, Load, Restore, Resume, StepPlan,
                             Prepare, Commit, Abort, Shutdown>;

// ---- worker -> coordinator -------------------------------------------------

// Where a worker's memory stands.
struct Stand {
  StepId last_executed;
  uint64_t barriers = 0;  // it waits for none up to this number any more
  // Its record of the last switch that it began.
  Epoch switch_epoch;
  int layers_done = 0;
  int waves_done = 0;
  // Weights are in its memory. False: the memory is new.
  bool loaded = false;
  uint64_t weight_checksum = 0;  // Resume.weight_checksum, if loaded
  // When it was last told to go on with no switch to finish, every one up to
  // this was over. So memory that is new since is not of a switch before.
  Epoch epochs_over;
  friend bool operator==(const Stand&, const Stand&) = default;
};

// A life of a worker: it has memory, new or its predecessor's, and its peers
// are mapped.
struct Hello {
  Rank rank = 0;
  int num_ranks = 1;
  uint32_t pid = 0;
  uint32_t num_pages = 0;     // head pages of its pool
  uint32_t max_slots = 0;     // sequence slots
  uint64_t model_digest = 0;  // of config.json: all ranks must agree
  Incarnation memory;         // the life that made the memory
};

// A sequence as a worker holds it, with the pages of its own rank.
struct HeldSequence {
  uint32_t slot = 0;
  RequestId request;
  uint32_t computed = 0;      // positions whose KV is there
  int num_kv = 0;             // KV heads held here
  std::vector<PageId> pages;  // [block][num_kv]
  friend bool operator==(const HeldSequence&, const HeldSequence&) = default;
};

// The answer to Halt.
struct Halted {
  uint64_t round = 0;
  Stand stand;
  std::vector<HeldSequence> sequences;  // when asked for
};

struct Loaded {
  uint64_t round = 0;
  uint64_t weight_bytes = 0;
  uint64_t weight_checksum = 0;  // of this rank's part
};

// The worker could not go on in step or switch (a peer did not come, a command
// was lost) and has halted by itself.
struct Interrupted {
  StepId step;
  std::string reason;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

struct SampledToken {
  uint32_t slot = 0;
  uint32_t position = 0;  // of the token in the sequence
  int32_t token = 0;
  float logprob = 0.0f;           // when asked for
  std::vector<TokenLogprob> top;  // descending
  friend bool operator==(const SampledToken&, const SampledToken&) = default;
};

struct PromptLogprob {
  uint32_t slot = 0;
  uint32_t position = 0;  // of the token whose probability it is, from 1
  int32_t token = 0;
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;
  uint32_t rank = 0;  // 1 + number of tokens that are likelier; 0: unknown
  friend bool operator==(const PromptLogprob&, const PromptLogprob&) = default;
};

// The sequence in that slot is one that no worker computes (sequence_check.h).
struct RefusedSequence {
  uint32_t slot = 0;
  std::string reason;
  friend bool operator==(const RefusedSequence&,
                         const RefusedSequence&) = default;
};

// A step is done, on every rank: rank 0 reports for the group. `sampled` holds
// one token for each item with `sample`, in any order; prompt_logprobs are
// ascending by slot, then position. Items of a refused sequence were passed
// over: it has an entry in `refused` instead.
struct StepResult {
  StepId step;
  uint32_t duration_us = 0;
  std::vector<SampledToken> sampled;
  std::vector<PromptLogprob> prompt_logprobs;
  std::vector<RefusedSequence> refused;
  // Rows of logits with a NaN or an infinity among them, and the slot of one.
  uint32_t nonfinite_rows = 0;
  uint32_t nonfinite_slot = 0;
};

struct Prepared {
  Epoch epoch;
  bool ok = false;
  std::string reason;  // when refused
};

struct Switched {
  Epoch epoch;
  uint64_t checksum = 0;         // of tables and layout: equal on every rank
  uint64_t weight_checksum = 0;  // summed over ranks it is the same in every
                                 // layout: see worker/switch/weight_checksum.h
  uint64_t weight_bytes = 0;     // written on this rank
  uint64_t kv_bytes = 0;
  uint32_t weight_us = 0;
  uint32_t kv_us = 0;
  uint32_t total_us = 0;
};

// Something that the worker cannot mend; it ends after sending this, and its
// successor starts anew.
struct Fault {
  StepId step;
  std::string reason;
};

using Report = std::variant<Hello, Halted, Loaded, Interrupted, StepResult,
                            Prepared, Switched, Fault>;

// ---- codec -----------------------------------------------------------------

struct CommandMessage {
  Envelope envelope;
  Command command;
};
struct ReportMessage {
  Envelope envelope;
  Report report;
};

// The bytes of one message, a Cap'n Proto flat array.
std::string Encode(const CommandMessage& message);
std::string Encode(const ReportMessage& message);

// kInvalidArgument on anything malformed: wrong version, truncated, over the
// traversal limit, a number out of its range, a list over its bound.
absl::StatusOr<CommandMessage> DecodeCommand(absl::Span<const char> bytes);
absl::StatusOr<ReportMessage> DecodeReport(absl::Span<const char> bytes);

}  // namespace moebius
