// Cap'n Proto codec of wire.h: bytes to values. Readers are flat arrays with a
// traversal limit proportional to the message and a small nesting limit;
// exceptions of the library end here.
#include <capnp/message.h>
#include <capnp/serialize.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/wire/wire.capnp.h"
#include "common/wire/wire.h"
#include "common/wire/wire_fields_capnp.h"
#include "common/wire/wire_limits.h"

namespace moebius::wire {
namespace {

using moebius::Read;

absl::Status Read(wire_schema::Envelope::Reader in, Envelope& out) {
  if (in.getVersion() != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("message of wire version ", in.getVersion(),
                     "; this program speaks ", kVersion));
  }
  out.term = Term{in.getTerm()};
  out.incarnation = Incarnation{in.getIncarnation()};
  out.sequence = in.getSequence();
  return absl::OkStatus();
}

absl::Status Read(wire_schema::Admission::Reader in, Admission& out) {
  out.slot = in.getSlot();
  out.request = RequestId{in.getRequest()};
  out.num_prompt_tokens = in.getNumPromptTokens();
  out.tokens = ReadList<int32_t>(in.getTokens());
  if (out.slot >= kMaxSlotNumber || out.tokens.empty() ||
      out.tokens.size() > kMaxPosition || out.num_prompt_tokens == 0 ||
      out.num_prompt_tokens > out.tokens.size()) {
    return Malformed("admission");
  }
  return Read(in.getSampling(), out.sampling);
}

absl::Status ReadRows(wire_schema::StepPlan::Reader in,
                      std::vector<PageRow>& out) {
  const auto slots = in.getRowSlot();
  const auto blocks = in.getRowBlock();
  const auto ranks = in.getRowRank();
  const auto counts = in.getRowNumPages();
  const auto pages = in.getRowPages();
  const unsigned n = slots.size();
  if (blocks.size() != n || ranks.size() != n || counts.size() != n) {
    return Malformed("columns of page rows differ in length");
  }
  out.resize(n);
  uint64_t next = 0;
  for (unsigned i = 0; i < n; ++i) {
    if (slots[i] >= kMaxSlotNumber || blocks[i] >= kMaxPosition ||
        ranks[i] >= kMaxRanks || next + counts[i] > pages.size()) {
      return Malformed("page row");
    }
    out[i].slot = slots[i];
    out[i].block = blocks[i];
    out[i].rank = ranks[i];
    out[i].pages.reserve(counts[i]);
    for (unsigned k = 0; k < counts[i]; ++k) {
      out[i].pages.push_back(pages[next++]);
    }
  }
  if (next != pages.size()) return Malformed("page rows: pages left over");
  return absl::OkStatus();
}

absl::Status Read(wire_schema::ExpertsState::Reader in, ExpertsState& out) {
  ASSIGN_OR_RETURN(out.from, ReadLayout(in.getFromTp()));
  ASSIGN_OR_RETURN(out.to, ReadLayout(in.getToTp()));
  out.side = in.getHigh() ? Side::kHigh : Side::kLow;
  out.layers_done = in.getLayersDone();
  if (out.steady() && out.layers_done != 0) return Malformed("experts");
  return absl::OkStatus();
}

absl::Status Read(wire_schema::StepPlan::Reader in, StepPlan& out) {
  out.step = StepId{in.getStep()};
  ASSIGN_OR_RETURN(out.layout.attention, ReadLayout(in.getAttentionTp()));
  RETURN_IF_ERROR(Read(in.getExperts(), out.layout.experts));
  out.released = ReadList<uint32_t>(in.getReleased());
  for (uint32_t slot : out.released) {
    if (slot >= kMaxSlotNumber) return Malformed("released slot");
  }
  // Not sized beforehand: a list of structures without size costs its sender
  // nothing, and each of them fails.
  for (auto admission : in.getAdmissions()) {
    RETURN_IF_ERROR(Read(admission, out.admissions.emplace_back()));
  }
  RETURN_IF_ERROR(ReadRows(in, out.page_rows));
  const auto slots = in.getItemSlot();
  const auto positions = in.getItemPosition();
  const auto tokens = in.getItemNumTokens();
  const auto groups = in.getItemGroup();
  const auto samples = in.getItemSample();
  const unsigned n = slots.size();
  if (positions.size() != n || tokens.size() != n || groups.size() != n ||
      samples.size() != n) {
    return Malformed("columns of work items differ in length");
  }
  out.items.resize(n);
  for (unsigned i = 0; i < n; ++i) {
    if (slots[i] >= kMaxSlotNumber || positions[i] >= kMaxPosition ||
        tokens[i] < 1 || tokens[i] > kMaxPosition || groups[i] >= kMaxRanks) {
      return Malformed("work item");
    }
    out.items[i] =
        WorkItem{slots[i], positions[i], tokens[i], groups[i], samples[i]};
  }
  return absl::OkStatus();
}

absl::Status Read(wire_schema::Restore::Reader in, Restore& out) {
  out.round = in.getRound();
  const auto admissions = in.getAdmissions();
  const auto tables = in.getTables();
  const auto computed = in.getComputed();
  if (admissions.size() != tables.size() ||
      admissions.size() != computed.size()) {
    return Malformed("restored sequences and tables differ in number");
  }
  for (unsigned i = 0; i < admissions.size(); ++i) {
    RestoredSequence& sequence = out.sequences.emplace_back();
    RETURN_IF_ERROR(Read(admissions[i], sequence.admission));
    RETURN_IF_ERROR(Read(tables[i], sequence.table));
    if (sequence.table.slot != sequence.admission.slot) {
      return Malformed("the table of a restored sequence is another's");
    }
    sequence.computed = computed[i];
  }
  return absl::OkStatus();
}

absl::Status Read(wire_schema::Load::Reader in, Load& out) {
  out.round = in.getRound();
  RETURN_IF_ERROR(Read(in.getExperts(), out.experts));
  out.epoch = Epoch{in.getEpoch()};
  return absl::OkStatus();
}

absl::Status Read(wire_schema::Resume::Reader in, Resume& out) {
  out.round = in.getRound();
  RETURN_IF_ERROR(Read(in.getExperts(), out.experts));
  out.next_step = StepId{in.getNextStep()};
  out.next_barrier = in.getNextBarrier();
  out.last_epoch = Epoch{in.getLastEpoch()};
  out.weight_checksum = in.getWeightChecksum();
  out.check_weights = in.getCheckWeights();
  for (uint64_t memory : in.getMemories()) {
    out.memories.push_back(Incarnation{memory});
  }
  if (out.memories.size() > kMaxRanks) return Malformed("memories");
  if (in.hasTail() == out.experts.steady()) return Malformed("tail");
  if (!in.hasTail()) return absl::OkStatus();
  const auto tail = in.getTail();
  Prepare plan;
  RETURN_IF_ERROR(Read(tail.getPlan(), plan));
  if (plan.target != out.experts.to) {
    return Malformed("layout of a switch's tail");
  }
  SwitchTail& value = out.tail.emplace();
  value.epoch = plan.epoch;
  value.waves_done = tail.getWavesDone();
  value.kv = std::move(plan.kv);
  return absl::OkStatus();
}

// Reads the columns slot, position, token, log-probability.
template <typename Entry, typename U, typename I, typename F>
absl::Status ReadEntries(U slots, U positions, I tokens, F logprobs,
                         std::vector<Entry>& out) {
  const unsigned n = slots.size();
  if (positions.size() != n || tokens.size() != n || logprobs.size() != n) {
    return Malformed("columns of tokens differ in length");
  }
  out.reserve(n);
  for (unsigned i = 0; i < n; ++i) {
    if (slots[i] >= kMaxSlotNumber || positions[i] > kMaxPosition) {
      return Malformed("token");
    }
    out.push_back(Entry{slots[i], positions[i], tokens[i], logprobs[i], {}});
  }
  return absl::OkStatus();
}

template <typename Entry>
std::vector<TokenLogprob>& TopOf(Entry& entry) {
  return entry.top;
}

absl::StatusOr<std::string> ReadReason(capnp::Text::Reader text) {
  if (text.size() > kMaxReasonBytes) return Malformed("reason too long");
  return std::string(text.begin(), text.size());
}

absl::Status ReadRefused(wire_schema::StepResult::Reader in,
                         std::vector<RefusedSequence>& out) {
  const auto slots = in.getRefusedSlot();
  const auto reasons = in.getRefusedReason();
  if (reasons.size() != slots.size()) {
    return Malformed("columns of refused sequences differ in length");
  }
  for (unsigned i = 0; i < slots.size(); ++i) {
    if (slots[i] >= kMaxSlotNumber) return Malformed("refused sequence");
    RefusedSequence& refused = out.emplace_back();
    refused.slot = slots[i];
    ASSIGN_OR_RETURN(refused.reason, ReadReason(reasons[i]));
  }
  return absl::OkStatus();
}

absl::Status Read(wire_schema::StepResult::Reader in, StepResult& out) {
  out.step = StepId{in.getStep()};
  out.duration_us = in.getDurationUs();
  RETURN_IF_ERROR(ReadEntries(in.getSlot(), in.getPosition(), in.getToken(),
                              in.getLogprob(), out.sampled));
  RETURN_IF_ERROR(
      ReadRankings(in.getRankings(), out.sampled, TopOf<SampledToken>));
  RETURN_IF_ERROR(ReadEntries(in.getPromptSlot(), in.getPromptPosition(),
                              in.getPromptToken(), in.getPromptLogprob(),
                              out.prompt_logprobs));
  const auto ranks = in.getPromptRank();
  if (ranks.size() != out.prompt_logprobs.size()) {
    return Malformed("ranks of prompt tokens");
  }
  for (unsigned i = 0; i < ranks.size(); ++i) {
    out.prompt_logprobs[i].rank = ranks[i];
  }
  RETURN_IF_ERROR(ReadRankings(in.getPromptRankings(), out.prompt_logprobs,
                               TopOf<PromptLogprob>));
  out.nonfinite_rows = in.getNonfiniteRows();
  out.nonfinite_slot = in.getNonfiniteSlot();
  if (out.nonfinite_slot >= kMaxSlotNumber) return Malformed("slot");
  return ReadRefused(in, out.refused);
}

absl::Status Read(wire_schema::Hello::Reader in, Hello& out) {
  out.rank = in.getRank();
  out.num_ranks = in.getNumRanks();
  out.pid = in.getPid();
  out.num_pages = in.getNumPages();
  out.max_slots = in.getMaxSlots();
  out.model_digest = in.getModelDigest();
  out.memory = Incarnation{in.getMemory()};
  out.padding_bytes = in.getPaddingBytes();
  if (out.num_ranks < 1 || out.num_ranks > kMaxRanks ||
      out.rank >= out.num_ranks || out.max_slots > kMaxSlotNumber) {
    return Malformed("hello");
  }
  return absl::OkStatus();
}

absl::Status Read(wire_schema::Halted::Reader in, Halted& out) {
  out.round = in.getRound();
  out.stand = {StepId{in.getLastExecuted()},
               in.getBarriers(),
               Epoch{in.getSwitchEpoch()},
               in.getHigh() ? Side::kHigh : Side::kLow,
               in.getLayersDone(),
               in.getWavesDone(),
               in.getLoaded(),
               in.getWeightChecksum(),
               Epoch{in.getEpochsOver()}};
  const auto slots = in.getSlot();
  const auto requests = in.getRequest();
  const auto computed = in.getComputed();
  const auto heads = in.getNumKv();
  const auto counts = in.getNumPages();
  const auto pages = in.getPages();
  const unsigned n = slots.size();
  if (requests.size() != n || computed.size() != n || heads.size() != n ||
      counts.size() != n) {
    return Malformed("columns of held sequences differ in length");
  }
  out.sequences.resize(n);
  uint64_t next = 0;
  for (unsigned i = 0; i < n; ++i) {
    if (slots[i] >= kMaxSlotNumber || computed[i] > kMaxPosition ||
        next + counts[i] > pages.size()) {
      return Malformed("held sequence");
    }
    out.sequences[i] = {
        slots[i], RequestId{requests[i]}, computed[i], heads[i], {}};
    out.sequences[i].pages.reserve(counts[i]);
    for (unsigned k = 0; k < counts[i]; ++k) {
      out.sequences[i].pages.push_back(pages[next++]);
    }
  }
  if (next != pages.size()) return Malformed("held sequences: pages left over");
  return absl::OkStatus();
}

// Fault and Interrupted.
template <typename Trouble>
absl::Status Read(wire_schema::Trouble::Reader in, Trouble& out) {
  out.step = StepId{in.getStep()};
  ASSIGN_OR_RETURN(out.reason, ReadReason(in.getReason()));
  return absl::OkStatus();
}

absl::Status ReadBody(wire_schema::Command::Reader in, Command& out) {
  switch (in.which()) {
    case wire_schema::Command::HALT:
      out = Halt{in.getHalt().getRound(), in.getHalt().getTellSequences()};
      return absl::OkStatus();
    case wire_schema::Command::GREET:
      out = Greet{};
      return absl::OkStatus();
    case wire_schema::Command::LOAD:
      return Read(in.getLoad(), out.emplace<Load>());
    case wire_schema::Command::RESTORE:
      return Read(in.getRestore(), out.emplace<Restore>());
    case wire_schema::Command::RESUME:
      return Read(in.getResume(), out.emplace<Resume>());
    case wire_schema::Command::STEP:
      return Read(in.getStep(), out.emplace<StepPlan>());
    case wire_schema::Command::PREPARE:
      return Read(in.getPrepare(), out.emplace<Prepare>());
    case wire_schema::Command::COMMIT:
      out = Commit{Epoch{in.getCommit().getEpoch()},
                   StepId{in.getCommit().getBoundary()}};
      return absl::OkStatus();
    case wire_schema::Command::ABORT:
      out = Abort{Epoch{in.getAbort()}};
      return absl::OkStatus();
    case wire_schema::Command::SHUTDOWN:
      out = Shutdown{};
      return absl::OkStatus();
  }
  return Malformed("unknown command");
}

absl::Status ReadBody(wire_schema::Report::Reader in, Report& out) {
  switch (in.which()) {
    case wire_schema::Report::HELLO:
      return Read(in.getHello(), out.emplace<Hello>());
    case wire_schema::Report::HALTED:
      return Read(in.getHalted(), out.emplace<Halted>());
    case wire_schema::Report::LOADED:
      out = Loaded{in.getLoaded().getRound(), in.getLoaded().getWeightBytes(),
                   in.getLoaded().getWeightChecksum()};
      return absl::OkStatus();
    case wire_schema::Report::INTERRUPTED:
      return Read(in.getInterrupted(), out.emplace<Interrupted>());
    case wire_schema::Report::RESULT:
      return Read(in.getResult(), out.emplace<StepResult>());
    case wire_schema::Report::PREPARED: {
      Prepared& prepared = out.emplace<Prepared>();
      prepared.epoch = Epoch{in.getPrepared().getEpoch()};
      prepared.ok = in.getPrepared().getOk();
      ASSIGN_OR_RETURN(prepared.reason,
                       ReadReason(in.getPrepared().getReason()));
      return absl::OkStatus();
    }
    case wire_schema::Report::WEIGHTS_CHECKED: {
      const auto body = in.getWeightsChecked();
      out = WeightsChecked{Epoch{body.getEpoch()}, body.getWeightChecksum()};
      return absl::OkStatus();
    }
    case wire_schema::Report::SWITCHED: {
      const auto body = in.getSwitched();
      out = Switched{Epoch{body.getEpoch()}, body.getChecksum(),
                     body.getWeightBytes(),  body.getKvBytes(),
                     body.getWeightUs(),     body.getKvUs(),
                     body.getTotalUs()};
      return absl::OkStatus();
    }
    case wire_schema::Report::FAULT:
      return Read(in.getFault(), out.emplace<Fault>());
  }
  return Malformed("unknown report");
}

// Reads `bytes` as a message whose root is `Root` into (envelope, body).
template <typename Root, typename Body>
absl::Status Decode(absl::Span<const char> bytes, Envelope& envelope,
                    Body& body) {
  if (bytes.empty() || bytes.size() % sizeof(capnp::word) != 0 ||
      bytes.size() > kMaxMessageBytes) {
    return Malformed(absl::StrCat("size ", bytes.size()));
  }
  const size_t num_words = bytes.size() / sizeof(capnp::word);
  kj::Array<capnp::word> aligned;
  kj::ArrayPtr<const capnp::word> words(
      reinterpret_cast<const capnp::word*>(bytes.data()), num_words);
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(capnp::word) != 0) {
    aligned = kj::heapArray<capnp::word>(num_words);
    std::memcpy(aligned.begin(), bytes.data(), bytes.size());
    words = aligned;
  }
  capnp::ReaderOptions options;
  // Each byte is read once or twice (a list's size, then its elements); a
  // message that points at the same bytes again and again is hostile.
  options.traversalLimitInWords = 4 * num_words + 64;
  options.nestingLimit = kWireNestingLimit;
  try {
    capnp::FlatArrayMessageReader reader(words, options);
    const auto root = reader.getRoot<Root>();
    RETURN_IF_ERROR(Read(root.getEnvelope(), envelope));
    return ReadBody(root, body);
  } catch (const kj::Exception& e) {
    return Malformed(e.getDescription().cStr());
  } catch (const std::exception& e) {
    return Malformed(e.what());
  }
}

}  // namespace

absl::StatusOr<CommandMessage> DecodeCommand(absl::Span<const char> bytes) {
  CommandMessage message;
  RETURN_IF_ERROR(
      (Decode<wire_schema::Command>(bytes, message.envelope, message.command)));
  return message;
}

absl::StatusOr<ReportMessage> DecodeReport(absl::Span<const char> bytes) {
  ReportMessage message;
  RETURN_IF_ERROR(
      (Decode<wire_schema::Report>(bytes, message.envelope, message.report)));
  return message;
}

}  // namespace moebius::wire
