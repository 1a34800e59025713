// Cap'n Proto codec of wire.h: values to bytes.
#include <capnp/message.h>
#include <capnp/serialize.h>

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/wire/wire.capnp.h"
#include "common/wire/wire.h"
#include "common/wire/wire_fields_capnp.h"
#include "common/wire/wire_limits.h"

namespace moebius::wire {
namespace {

using moebius::Build;

void Build(wire_schema::Envelope::Builder out, const Envelope& in) {
  out.setVersion(kVersion);
  out.setTerm(in.term.value);
  out.setIncarnation(in.incarnation.value);
  out.setSequence(in.sequence);
}

void Build(wire_schema::Admission::Builder out, const Admission& in) {
  out.setSlot(in.slot);
  out.setRequest(in.request.value);
  out.setNumPromptTokens(in.num_prompt_tokens);
  FillList(out.initTokens(in.tokens.size()), in.tokens);
  Build(out.initSampling(), in.sampling);
}

void BuildRows(wire_schema::StepPlan::Builder out,
               const std::vector<PageRow>& rows) {
  const unsigned n = rows.size();
  FillColumn(out.initRowSlot(n), rows, [](auto& r) { return r.slot; });
  FillColumn(out.initRowBlock(n), rows, [](auto& r) { return r.block; });
  FillColumn(out.initRowRank(n), rows, [](auto& r) { return r.rank; });
  FillColumn(out.initRowNumPages(n), rows,
             [](auto& r) { return r.pages.size(); });
  unsigned total = 0;
  for (const PageRow& row : rows) total += row.pages.size();
  auto pages = out.initRowPages(total);
  unsigned i = 0;
  for (const PageRow& row : rows) {
    for (PageId page : row.pages) pages.set(i++, page);
  }
}

void Build(wire_schema::ExpertsState::Builder out, const ExpertsState& in) {
  out.setFromTp(in.from.tp_size);
  out.setToTp(in.to.tp_size);
  out.setHigh(in.side == Side::kHigh);
  out.setLayersDone(in.layers_done);
}

void Build(wire_schema::StepPlan::Builder out, const StepPlan& in) {
  out.setStep(in.step.value);
  out.setAttentionTp(in.layout.attention.tp_size);
  Build(out.initExperts(), in.layout.experts);
  FillList(out.initReleased(in.released.size()), in.released);
  auto admissions = out.initAdmissions(in.admissions.size());
  for (unsigned i = 0; i < in.admissions.size(); ++i) {
    Build(admissions[i], in.admissions[i]);
  }
  BuildRows(out, in.page_rows);
  const auto& items = in.items;
  const unsigned n = items.size();
  FillColumn(out.initItemSlot(n), items, [](auto& w) { return w.slot; });
  FillColumn(out.initItemPosition(n), items,
             [](auto& w) { return w.position; });
  FillColumn(out.initItemNumTokens(n), items,
             [](auto& w) { return w.num_tokens; });
  FillColumn(out.initItemGroup(n), items, [](auto& w) { return w.group; });
  FillColumn(out.initItemSample(n), items, [](auto& w) { return w.sample; });
}

void Build(wire_schema::Restore::Builder out, const Restore& in) {
  out.setRound(in.round);
  const unsigned n = in.sequences.size();
  auto admissions = out.initAdmissions(n);
  auto tables = out.initTables(n);
  for (unsigned i = 0; i < n; ++i) {
    Build(admissions[i], in.sequences[i].admission);
    Build(tables[i], in.sequences[i].table);
  }
  FillColumn(out.initComputed(n), in.sequences,
             [](auto& s) { return s.computed; });
}

void Build(wire_schema::Resume::Builder out, const Resume& in) {
  out.setRound(in.round);
  Build(out.initExperts(), in.experts);
  out.setNextStep(in.next_step.value);
  out.setNextBarrier(in.next_barrier);
  out.setLastEpoch(in.last_epoch.value);
  out.setWeightChecksum(in.weight_checksum);
  out.setCheckWeights(in.check_weights);
  FillColumn(out.initMemories(in.memories.size()), in.memories,
             [](auto& m) { return m.value; });
  if (!in.tail.has_value()) return;
  auto tail = out.initTail();
  tail.setWavesDone(in.tail->waves_done);
  Build(tail.initPlan(), Prepare{in.tail->epoch, in.experts.to, in.tail->kv});
}

void Build(wire_schema::Halted::Builder out, const Halted& in) {
  out.setRound(in.round);
  out.setLastExecuted(in.stand.last_executed.value);
  out.setBarriers(in.stand.barriers);
  out.setSwitchEpoch(in.stand.switch_epoch.value);
  out.setHigh(in.stand.side == Side::kHigh);
  out.setLayersDone(in.stand.layers_done);
  out.setWavesDone(in.stand.waves_done);
  out.setLoaded(in.stand.loaded);
  out.setWeightChecksum(in.stand.weight_checksum);
  out.setEpochsOver(in.stand.epochs_over.value);
  const auto& held = in.sequences;
  const unsigned n = held.size();
  FillColumn(out.initSlot(n), held, [](auto& s) { return s.slot; });
  FillColumn(out.initRequest(n), held, [](auto& s) { return s.request.value; });
  FillColumn(out.initComputed(n), held, [](auto& s) { return s.computed; });
  FillColumn(out.initNumKv(n), held, [](auto& s) { return s.num_kv; });
  FillColumn(out.initNumPages(n), held, [](auto& s) { return s.pages.size(); });
  unsigned num_pages = 0;
  for (const HeldSequence& sequence : held) num_pages += sequence.pages.size();
  auto pages = out.initPages(num_pages);
  unsigned next = 0;
  for (const HeldSequence& sequence : held) {
    for (PageId page : sequence.pages) pages.set(next++, page);
  }
}

// Fault and Interrupted.
template <typename Trouble>
void Build(wire_schema::Trouble::Builder out, const Trouble& in) {
  out.setStep(in.step.value);
  out.setReason(in.reason.substr(0, kMaxReasonBytes));
}

template <typename Entry>
const std::vector<TokenLogprob>& TopOf(const Entry& entry) {
  return entry.top;
}

void Build(wire_schema::StepResult::Builder out, const StepResult& in) {
  out.setStep(in.step.value);
  out.setDurationUs(in.duration_us);
  const unsigned n = in.sampled.size();
  FillColumn(out.initSlot(n), in.sampled, [](auto& s) { return s.slot; });
  FillColumn(out.initPosition(n), in.sampled,
             [](auto& s) { return s.position; });
  FillColumn(out.initToken(n), in.sampled, [](auto& s) { return s.token; });
  FillColumn(out.initLogprob(n), in.sampled, [](auto& s) { return s.logprob; });
  BuildRankings(in.sampled, TopOf<SampledToken>,
                [&](unsigned count) { return out.initRankings(count); });
  const auto& prompt = in.prompt_logprobs;
  const unsigned p = prompt.size();
  FillColumn(out.initPromptSlot(p), prompt, [](auto& s) { return s.slot; });
  FillColumn(out.initPromptPosition(p), prompt,
             [](auto& s) { return s.position; });
  FillColumn(out.initPromptToken(p), prompt, [](auto& s) { return s.token; });
  FillColumn(out.initPromptLogprob(p), prompt,
             [](auto& s) { return s.logprob; });
  FillColumn(out.initPromptRank(p), prompt, [](auto& s) { return s.rank; });
  BuildRankings(prompt, TopOf<PromptLogprob>,
                [&](unsigned count) { return out.initPromptRankings(count); });
  const unsigned r = in.refused.size();
  FillColumn(out.initRefusedSlot(r), in.refused,
             [](auto& s) { return s.slot; });
  auto reasons = out.initRefusedReason(r);
  for (unsigned i = 0; i < r; ++i) {
    reasons.set(i, in.refused[i].reason.substr(0, kMaxReasonBytes));
  }
  out.setNonfiniteRows(in.nonfinite_rows);
  out.setNonfiniteSlot(in.nonfinite_slot);
}

std::string Finish(capnp::MallocMessageBuilder& builder) {
  kj::Array<capnp::word> words = capnp::messageToFlatArray(builder);
  const auto bytes = words.asBytes();
  return std::string(reinterpret_cast<const char*>(bytes.begin()),
                     bytes.size());
}

}  // namespace

std::string Encode(const CommandMessage& message) {
  capnp::MallocMessageBuilder builder(4096);
  auto root = builder.initRoot<wire_schema::Command>();
  Build(root.initEnvelope(), message.envelope);
  struct Visitor {
    wire_schema::Command::Builder root;
    void operator()(const Greet&) { root.setGreet(); }
    void operator()(const Halt& in) {
      auto out = root.initHalt();
      out.setRound(in.round);
      out.setTellSequences(in.tell_sequences);
    }
    void operator()(const Load& in) {
      auto out = root.initLoad();
      out.setRound(in.round);
      Build(out.initExperts(), in.experts);
      out.setEpoch(in.epoch.value);
    }
    void operator()(const Restore& in) { Build(root.initRestore(), in); }
    void operator()(const Resume& in) { Build(root.initResume(), in); }
    void operator()(const StepPlan& in) { Build(root.initStep(), in); }
    void operator()(const Prepare& in) { Build(root.initPrepare(), in); }
    void operator()(const Commit& in) {
      auto out = root.initCommit();
      out.setEpoch(in.epoch.value);
      out.setBoundary(in.boundary.value);
    }
    void operator()(const Abort& in) { root.setAbort(in.epoch.value); }
    void operator()(const Shutdown&) { root.setShutdown(); }
  };
  std::visit(Visitor{root}, message.command);
  return Finish(builder);
}

std::string Encode(const ReportMessage& message) {
  capnp::MallocMessageBuilder builder(4096);
  auto root = builder.initRoot<wire_schema::Report>();
  Build(root.initEnvelope(), message.envelope);
  struct Visitor {
    wire_schema::Report::Builder root;
    void operator()(const Hello& in) {
      auto out = root.initHello();
      out.setRank(in.rank);
      out.setNumRanks(in.num_ranks);
      out.setPid(in.pid);
      out.setNumPages(in.num_pages);
      out.setMaxSlots(in.max_slots);
      out.setModelDigest(in.model_digest);
      out.setMemory(in.memory.value);
      out.setPaddingBytes(in.padding_bytes);
    }
    void operator()(const Halted& in) { Build(root.initHalted(), in); }
    void operator()(const Loaded& in) {
      auto out = root.initLoaded();
      out.setRound(in.round);
      out.setWeightBytes(in.weight_bytes);
      out.setWeightChecksum(in.weight_checksum);
    }
    void operator()(const Interrupted& in) {
      Build(root.initInterrupted(), in);
    }
    void operator()(const StepResult& in) { Build(root.initResult(), in); }
    void operator()(const Prepared& in) {
      auto out = root.initPrepared();
      out.setEpoch(in.epoch.value);
      out.setOk(in.ok);
      out.setReason(in.reason.substr(0, kMaxReasonBytes));
    }
    void operator()(const Switched& in) {
      auto out = root.initSwitched();
      out.setEpoch(in.epoch.value);
      out.setChecksum(in.checksum);
      out.setWeightBytes(in.weight_bytes);
      out.setKvBytes(in.kv_bytes);
      out.setWeightUs(in.weight_us);
      out.setKvUs(in.kv_us);
      out.setTotalUs(in.total_us);
    }
    void operator()(const WeightsChecked& in) {
      auto out = root.initWeightsChecked();
      out.setEpoch(in.epoch.value);
      out.setWeightChecksum(in.weight_checksum);
    }
    void operator()(const Fault& in) { Build(root.initFault(), in); }
  };
  std::visit(Visitor{root}, message.report);
  return Finish(builder);
}

}  // namespace moebius::wire
