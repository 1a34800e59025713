// The messages between the coordinator and its workers, as plain values.
// wire_*_capnp.cc turn them into bytes and back; nothing else knows Cap'n
// Proto. Plans, results and where a worker stands are values of common/step/.
//
// Messages are in a namespace of their own: some have the names of events and
// effects.
//
// Steps and switch commands share one ordered channel to each worker. Every
// message carries (term, incarnation, sequence): a worker ignores what is not
// of its coordinator's term or its own incarnation; `sequence` counts up by one
// in each direction, so a loss or a repetition is seen. Greet, Halt and Halted
// are the exceptions: an end that takes one in counts on from it, whatever was
// lost before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "common/step/stand.h"
#include "common/step/step_plan.h"
#include "common/step/step_result.h"

namespace moebius::wire {

inline constexpr uint32_t kVersion = 5;
inline constexpr size_t kMaxMessageBytes = size_t{64} << 20;

struct Envelope {
  Term term;
  Incarnation incarnation;  // of the worker at either end
  uint64_t sequence = 0;
};

// ---- coordinator -> worker -------------------------------------------------

// The first word of a coordinator to an incarnation of a worker. That of a new
// term halts the worker, which obeys no earlier one from then on. The answer is
// Hello.
struct Greet {};

// Stop where you are, take no command but Load, Restore and Resume of this
// round, and answer Halted. Begins every round of recovery, and the service
// itself. Rounds count up within a term; a Halt of an earlier one is late and
// means nothing.
struct Halt {
  uint64_t round = 0;
  bool tell_sequences = false;  // Halted.sequences are wanted
};

// Your memory is new: fill it from the checkpoint, the layers in the slots and
// layouts that `experts` says, be it in the midst of a switch. The answer is
// Loaded.
struct Load {
  uint64_t round = 0;
  ExpertsState experts;
  Epoch epoch;  // of the switch
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
  uint64_t round = 0;
  std::vector<RestoredSequence> sequences;
};

// Every worker has halted: finish the switch, if one is to be finished (its
// answer is Switched), and go on.
struct Resume {
  uint64_t round = 0;
  // What all memories hold now: steady, or a switch as far as all are with it.
  ExpertsState experts;
  StepId next_step;
  uint64_t next_barrier = 0;  // above every number that any rank has used
  Epoch last_epoch;           // highest ever proposed
  // [rank] The incarnation that made its memory, so that an old mapping is
  // noticed.
  std::vector<Incarnation> memories;
  // Of the whole model, see worker/switch/weight_checksum.h; workers keep it.
  uint64_t weight_checksum = 0;
  std::optional<SwitchTail> tail;  // there is one unless experts.steady()
  // Without a tail: report WeightsChecked for last_epoch.
  bool check_weights = false;
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

// From an incarnation of a worker: it has memory, new or its predecessor's, and
// its peers are mapped.
struct Hello {
  Rank rank = 0;
  int num_ranks = 1;
  uint32_t pid = 0;
  uint32_t num_pages = 0;      // head pages of its pool
  uint32_t max_slots = 0;      // sequence slots
  uint64_t model_digest = 0;   // of config.json: all ranks must agree
  Incarnation memory;          // the one that made the memory
  uint64_t padding_bytes = 0;  // of the whole group's experts (blocks.h)
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

struct Prepared {
  Epoch epoch;
  bool ok = false;
  std::string reason;  // when refused
};

struct Switched {
  Epoch epoch;
  uint64_t checksum = 0;      // of tables and layout: equal on every rank
  uint64_t weight_bytes = 0;  // written on this rank
  uint64_t kv_bytes = 0;
  uint32_t weight_us = 0;
  uint32_t kv_us = 0;
  uint32_t total_us = 0;
};

// What this rank's slots hold since the switch of that epoch, taken beside the
// steps after it: summed over ranks it is the same in every layout, see
// worker/switch/weight_checksum.h. Does not come when another switch, a new
// load or the end of the worker was earlier.
struct WeightsChecked {
  Epoch epoch;
  uint64_t weight_checksum = 0;
};

// Something that the worker cannot mend; it ends after sending this, and its
// successor starts anew.
struct Fault {
  StepId step;
  std::string reason;
};

using Report = std::variant<Hello, Halted, Loaded, Interrupted, StepResult,
                            Prepared, Switched, Fault, WeightsChecked>;

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

}  // namespace moebius::wire
