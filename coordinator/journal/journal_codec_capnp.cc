// Cap'n Proto codec of journal_record.h. Readers are flat arrays with a
// traversal limit proportional to the bytes and a small nesting limit;
// exceptions of the library end here.
#include <capnp/message.h>
#include <capnp/serialize.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/wire/wire_fields_capnp.h"
#include "coordinator/journal/journal.capnp.h"
#include "coordinator/journal/journal_codec.h"

namespace moebius::journal {
namespace {

namespace schema = journal_schema;

// Words that a message begins with; more are added as they are needed.
constexpr unsigned kUsualWords = 512;
constexpr unsigned kWordsOfToken = 4;

capnp::Data::Reader AsData(const std::string& text) {
  return {reinterpret_cast<const kj::byte*>(text.data()), text.size()};
}

std::string AsString(capnp::Data::Reader data) {
  return std::string(reinterpret_cast<const char*>(data.begin()), data.size());
}

// ---- values to bytes -------------------------------------------------------

void Build(schema::Stop::Builder out, const StopCriteria& in) {
  out.setMaxTokens(in.max_tokens);
  out.setMinTokens(in.min_tokens);
  out.setIgnoreEos(in.ignore_eos);
  out.setIncludeStop(in.include_stop_str_in_output);
  out.setShowSpecial(!in.skip_special_tokens);
  FillList(out.initEosIds(in.eos_ids.size()), in.eos_ids);
  FillList(out.initStopTokenIds(in.stop_token_ids.size()), in.stop_token_ids);
  auto stop = out.initStop(in.stop.size());
  for (unsigned i = 0; i < in.stop.size(); ++i) stop.set(i, AsData(in.stop[i]));
}

void Build(schema::Accepted::Builder out, const Accepted& in) {
  out.setContext(AsData(in.context));
  out.setUnixMs(in.unix_ms);
  auto generations = out.initGenerations(in.generations.size());
  for (unsigned i = 0; i < in.generations.size(); ++i) {
    const Generation& generation = in.generations[i].generation;
    auto one = generations[i];
    one.setRequest(in.generations[i].request.value);
    const bool same_prompt =
        i > 0 && generation.prompt == in.generations[i - 1].generation.prompt;
    one.setSamePrompt(same_prompt);
    if (!same_prompt) {
      FillList(one.initPrompt(generation.prompt.size()), generation.prompt);
    }
    moebius::Build(one.initSampling(), generation.sampling);
    Build(one.initStop(), generation.stop);
  }
}

// A prompt's log-probability and the entry that brings it.
struct PromptRow {
  unsigned entry = 0;
  const PromptLogprob* row = nullptr;
};

void BuildPromptRows(schema::StepTokens::Builder out,
                     const std::vector<AddedToken>& tokens) {
  std::vector<PromptRow> rows;
  for (unsigned i = 0; i < tokens.size(); ++i) {
    for (const PromptLogprob& row : tokens[i].prompt_logprobs) {
      rows.push_back({i, &row});
    }
  }
  if (rows.empty()) return;
  const unsigned n = rows.size();
  FillColumn(out.initPromptEntry(n), rows, [](auto& r) { return r.entry; });
  FillColumn(out.initPromptPosition(n), rows,
             [](auto& r) { return r.row->position; });
  FillColumn(out.initPromptToken(n), rows,
             [](auto& r) { return r.row->token; });
  FillColumn(out.initPromptLogprob(n), rows,
             [](auto& r) { return r.row->logprob; });
  FillColumn(out.initPromptRank(n), rows, [](auto& r) { return r.row->rank; });
  BuildRankings(
      rows, [](auto& r) -> auto& { return r.row->top; },
      [&](unsigned count) { return out.initPromptRankings(count); });
}

// Tokens [begin, end) of one generation, at consecutive positions.
struct Run {
  unsigned begin = 0, end = 0;
};

std::vector<Run> RunsOf(const std::vector<AddedToken>& tokens) {
  std::vector<Run> runs;
  runs.reserve(tokens.size());
  for (unsigned i = 0; i < tokens.size(); ++i) {
    const bool goes_on =
        i > 0 && tokens[i].request == tokens[i - 1].request &&
        tokens[i].token.position == tokens[i - 1].token.position + 1;
    if (!goes_on) runs.push_back({i, i});
    runs.back().end = i + 1;
  }
  return runs;
}

void Build(schema::StepTokens::Builder out, const StepTokens& in) {
  const std::vector<AddedToken>& tokens = in.tokens;
  const unsigned n = tokens.size();
  out.setStep(in.step.value);
  const std::vector<Run> runs = RunsOf(tokens);
  FillColumn(out.initRequest(runs.size()), runs,
             [&](auto& r) { return tokens[r.begin].request.value; });
  FillColumn(out.initPosition(runs.size()), runs,
             [&](auto& r) { return tokens[r.begin].token.position; });
  if (runs.size() < n) {
    FillColumn(out.initCount(runs.size()), runs,
               [](auto& r) { return r.end - r.begin; });
  }
  FillColumn(out.initToken(n), tokens, [](auto& t) { return t.token.token; });
  const bool scored = std::any_of(tokens.begin(), tokens.end(), [](auto& t) {
    return std::bit_cast<uint32_t>(t.token.logprob) != 0;
  });
  if (scored) {
    FillColumn(out.initLogprob(n), tokens,
               [](auto& t) { return t.token.logprob; });
  }
  BuildRankings(
      tokens, [](auto& t) -> auto& { return t.token.top; },
      [&](unsigned count) { return out.initRankings(count); });
  BuildPromptRows(out, tokens);
}

void Build(schema::SwitchDecided::Builder out, const SwitchDecided& in) {
  out.setFromTp(in.from.tp_size);
  out.setBoundary(in.boundary.value);
  moebius::Build(out.initPlan(), wire::Prepare{in.epoch, in.to, in.plan});
  const std::vector<RunningSequence>& running = in.running;
  const unsigned n = running.size();
  FillColumn(out.initRunningRequest(n), running,
             [](auto& r) { return r.request.value; });
  FillColumn(out.initRunningSlot(n), running, [](auto& r) { return r.slot; });
  FillColumn(out.initRunningComputed(n), running,
             [](auto& r) { return r.computed; });
}

// Numbers of choices: these three by their place, from 1 on; further ones by
// the ranks in a group, from kGroupsOf on.
constexpr LayoutChoice kChoices[] = {LayoutChoice::kEp, LayoutChoice::kTp,
                                     LayoutChoice::kAuto};
constexpr int kGroupsOf = 64;

uint8_t NumberOf(LayoutChoice choice) {
  for (size_t i = 0; i < std::size(kChoices); ++i) {
    if (choice == kChoices[i]) return static_cast<uint8_t>(1 + i);
  }
  return static_cast<uint8_t>(kGroupsOf + *choice.tp_size());
}

uint8_t NumberOf(FinishReason finish) {
  switch (finish) {
    case FinishReason::kStop:
      return 0;
    case FinishReason::kLength:
      return 1;
    case FinishReason::kAbort:
      return 2;
    case FinishReason::kError:
      return 3;
  }
  return 2;
}

void Build(schema::Summary::Builder out, const Summary& in) {
  out.setTerm(in.term.value);
  out.setDraining(in.draining);
  FillColumn(out.initIncarnations(in.incarnations.size()), in.incarnations,
             [](auto& i) { return i.value; });
  out.setProposed(in.proposed.value);
  out.setDecided(in.decided.value);
  out.setLastStep(in.last_step.value);
  out.setNextRequest(in.next_request.value);
  if (in.layout.has_value()) out.setLayoutTp(in.layout->tp_size);
  if (in.left.has_value()) out.setLeftTp(in.left->tp_size);
  if (in.choice.has_value()) out.setChoice(NumberOf(*in.choice));
}

struct RecordBuilder {
  schema::Record::Builder root;

  void operator()(const TermBegun& in) { root.setTermBegun(in.term.value); }
  void operator()(const GroupBegun& in) {
    root.setGroupBegun(in.layout.tp_size);
  }
  void operator()(const WorkerJoined& in) {
    auto out = root.initWorkerJoined();
    out.setRank(in.rank);
    out.setIncarnation(in.incarnation.value);
  }
  void operator()(const Accepted& in) { Build(root.initAccepted(), in); }
  void operator()(const StepTokens& in) { Build(root.initStepTokens(), in); }
  void operator()(const Ended& in) {
    auto out = root.initEnded();
    out.setRequest(in.request.value);
    out.setFinish(NumberOf(in.finish));
    out.setStopReason(AsData(in.stop_reason));
    out.setUnixMs(in.unix_ms);
  }
  void operator()(const Forgotten& in) { root.setForgotten(in.request.value); }
  void operator()(const EpochProposed& in) {
    root.setEpochProposed(in.epoch.value);
  }
  void operator()(const SwitchDecided& in) {
    Build(root.initSwitchDecided(), in);
  }
  void operator()(const SwitchDone& in) { root.setSwitchDone(in.epoch.value); }
  void operator()(const LayoutChosen& in) {
    root.setLayoutChosen(NumberOf(in.choice));
  }
  void operator()(const Summary& in) { Build(root.initSummary(), in); }
  void operator()(const DrainSet& in) { root.setDrainSet(in.draining); }
  void operator()(const OperationBegun& in) {
    auto out = root.initOperationBegun();
    out.setId(AsData(in.operation.id));
    out.setKind(static_cast<uint8_t>(in.operation.kind));
    out.setChoice(NumberOf(in.operation.choice));
    out.setUnixMs(in.unix_ms);
    out.setDecided(in.decided.value);
  }
  void operator()(const OperationEnded& in) {
    auto out = root.initOperationEnded();
    out.setId(AsData(in.id));
    out.setHttpStatus(static_cast<uint16_t>(in.end.http_status));
    out.setAnswer(AsData(in.end.answer));
    out.setUnixMs(in.end.unix_ms);
  }
};

unsigned FirstWords(const Record& record) {
  const auto* step = std::get_if<StepTokens>(&record);
  if (step == nullptr) return kUsualWords;
  const size_t words = 64 + kWordsOfToken * step->tokens.size();
  return std::min(words, kMaxRecordBytes / sizeof(capnp::word));
}

// ---- bytes to values -------------------------------------------------------

absl::StatusOr<Record> Read(schema::WorkerJoined::Reader in) {
  return WorkerJoined{in.getRank(), Incarnation{in.getIncarnation()}};
}

absl::Status Read(schema::Stop::Reader in, StopCriteria& out) {
  out.max_tokens = in.getMaxTokens();
  out.min_tokens = in.getMinTokens();
  out.ignore_eos = in.getIgnoreEos();
  out.include_stop_str_in_output = in.getIncludeStop();
  out.skip_special_tokens = !in.getShowSpecial();
  out.eos_ids = ReadList<int32_t>(in.getEosIds());
  out.stop_token_ids = ReadList<int32_t>(in.getStopTokenIds());
  for (auto stop : in.getStop()) out.stop.push_back(AsString(stop));
  return absl::OkStatus();
}

absl::StatusOr<Record> Read(schema::Accepted::Reader in) {
  Accepted out;
  if (in.getContext().size() > kMaxContextBytes) return Malformed("context");
  out.context = AsString(in.getContext());
  out.unix_ms = in.getUnixMs();
  const auto generations = in.getGenerations();
  if (generations.size() > unsigned{kMaxGenerations}) {
    return Malformed("number of generations");
  }
  size_t num_tokens = 0;
  out.generations.resize(generations.size());
  for (unsigned i = 0; i < generations.size(); ++i) {
    const auto one = generations[i];
    Generation& generation = out.generations[i].generation;
    out.generations[i].request = RequestId{one.getRequest()};
    if (one.getSamePrompt()) {
      if (i == 0 || one.getPrompt().size() != 0) return Malformed("prompt");
      generation.prompt = out.generations[i - 1].generation.prompt;
    } else {
      generation.prompt = ReadList<int32_t>(one.getPrompt());
    }
    num_tokens += generation.prompt.size();
    if (num_tokens > kMaxPromptTokens) return Malformed("prompt tokens");
    RETURN_IF_ERROR(moebius::Read(one.getSampling(), generation.sampling));
    RETURN_IF_ERROR(Read(one.getStop(), generation.stop));
  }
  return out;
}

absl::Status ReadPromptRows(schema::StepTokens::Reader in,
                            std::vector<AddedToken>& out) {
  const auto entries = in.getPromptEntry();
  const auto positions = in.getPromptPosition();
  const auto tokens = in.getPromptToken();
  const auto logprobs = in.getPromptLogprob();
  const auto ranks = in.getPromptRank();
  const unsigned n = entries.size();
  if (positions.size() != n || tokens.size() != n || logprobs.size() != n ||
      (ranks.size() != n && ranks.size() != 0)) {
    return Malformed("columns of prompt tokens differ in length");
  }
  std::vector<PromptLogprob> rows;
  rows.reserve(n);
  for (unsigned i = 0; i < n; ++i) {
    if (entries[i] >= out.size() || (i > 0 && entries[i] < entries[i - 1])) {
      return Malformed("prompt tokens of no entry");
    }
    rows.push_back(PromptLogprob{0,
                                 positions[i],
                                 tokens[i],
                                 logprobs[i],
                                 {},
                                 ranks.size() == 0 ? 0 : ranks[i]});
  }
  RETURN_IF_ERROR(ReadRankings(
      in.getPromptRankings(), rows, [](auto& r) -> auto& { return r.top; }));
  for (unsigned i = 0; i < n; ++i) {
    out[entries[i]].prompt_logprobs.push_back(std::move(rows[i]));
  }
  return absl::OkStatus();
}

absl::StatusOr<Record> Read(schema::StepTokens::Reader in) {
  StepTokens out;
  out.step = StepId{in.getStep()};
  const auto requests = in.getRequest();
  const auto positions = in.getPosition();
  const auto counts = in.getCount();
  const auto tokens = in.getToken();
  const auto logprobs = in.getLogprob();
  const unsigned num_runs = requests.size();
  const unsigned n = tokens.size();
  if (positions.size() != num_runs ||
      (counts.size() != num_runs && counts.size() != 0) ||
      (logprobs.size() != n && logprobs.size() != 0)) {
    return Malformed("columns of tokens differ in length");
  }
  out.tokens.reserve(n);
  for (unsigned run = 0; run < num_runs; ++run) {
    const uint32_t count = counts.size() == 0 ? 1 : counts[run];
    if (count < 1 || count > n - out.tokens.size() ||
        count > ~uint32_t{0} - positions[run]) {
      return Malformed("run of tokens");
    }
    for (uint32_t k = 0; k < count; ++k) {
      const unsigned i = out.tokens.size();
      AddedToken& added = out.tokens.emplace_back();
      added.request = RequestId{requests[run]};
      added.token.position = positions[run] + k;
      added.token.token = tokens[i];
      if (logprobs.size() != 0) added.token.logprob = logprobs[i];
    }
  }
  if (out.tokens.size() != n) return Malformed("tokens of no run");
  RETURN_IF_ERROR(ReadRankings(
      in.getRankings(), out.tokens,
      [](auto& t) -> auto& { return t.token.top; }));
  RETURN_IF_ERROR(ReadPromptRows(in, out.tokens));
  return out;
}

absl::StatusOr<Record> Read(schema::Ended::Reader in) {
  static constexpr FinishReason kReasons[] = {
      FinishReason::kStop, FinishReason::kLength, FinishReason::kAbort,
      FinishReason::kError};
  if (in.getFinish() >= std::size(kReasons) ||
      in.getStopReason().size() > kMaxStopReasonBytes) {
    return Malformed("end of a generation");
  }
  return Ended{RequestId{in.getRequest()}, kReasons[in.getFinish()],
               AsString(in.getStopReason()), in.getUnixMs()};
}

absl::StatusOr<Record> Read(schema::SwitchDecided::Reader in) {
  SwitchDecided out;
  wire::Prepare plan;
  RETURN_IF_ERROR(moebius::Read(in.getPlan(), plan));
  out.epoch = plan.epoch;
  ASSIGN_OR_RETURN(out.from, ReadLayout(in.getFromTp()));
  out.to = plan.target;
  out.boundary = StepId{in.getBoundary()};
  out.plan = std::move(plan.kv);
  const auto requests = in.getRunningRequest();
  const auto slots = in.getRunningSlot();
  const auto computed = in.getRunningComputed();
  const unsigned n = requests.size();
  if (slots.size() != n || computed.size() != n) {
    return Malformed("columns of running sequences differ in length");
  }
  out.running.reserve(n);
  for (unsigned i = 0; i < n; ++i) {
    out.running.push_back(
        RunningSequence{RequestId{requests[i]}, slots[i], computed[i]});
  }
  return out;
}

absl::StatusOr<LayoutChoice> ReadChoice(unsigned number) {
  if (number >= 1 && number <= std::size(kChoices)) return kChoices[number - 1];
  if (number < kGroupsOf + 2 || number > kGroupsOf + kMaxRanks) {
    return Malformed("choice");
  }
  return LayoutChoice::Of(Layout{static_cast<int>(number) - kGroupsOf});
}

absl::StatusOr<Record> Read(schema::Summary::Reader in) {
  Summary out;
  out.term = Term{in.getTerm()};
  const auto incarnations = in.getIncarnations();
  if (incarnations.size() > out.incarnations.size()) return Malformed("ranks");
  for (unsigned i = 0; i < incarnations.size(); ++i) {
    out.incarnations[i] = Incarnation{incarnations[i]};
  }
  out.proposed = Epoch{in.getProposed()};
  out.decided = Epoch{in.getDecided()};
  out.last_step = StepId{in.getLastStep()};
  out.next_request = RequestId{in.getNextRequest()};
  if (in.getLayoutTp() != 0) {
    ASSIGN_OR_RETURN(out.layout, ReadLayout(in.getLayoutTp()));
  }
  if (in.getLeftTp() != 0) {
    ASSIGN_OR_RETURN(out.left, ReadLayout(in.getLeftTp()));
  }
  if (in.getChoice() != 0) {
    ASSIGN_OR_RETURN(out.choice, ReadChoice(in.getChoice()));
  }
  out.draining = in.getDraining();
  return out;
}

absl::StatusOr<Record> Read(schema::OperationBegun::Reader in) {
  constexpr OperationKind kKinds[] = {
      OperationKind::kLayout, OperationKind::kDrain, OperationKind::kUndrain};
  if (in.getKind() >= std::size(kKinds)) return Malformed("operation");
  OperationBegun out;
  out.operation.id = AsString(in.getId());
  out.operation.kind = kKinds[in.getKind()];
  ASSIGN_OR_RETURN(out.operation.choice, ReadChoice(in.getChoice()));
  out.unix_ms = in.getUnixMs();
  out.decided = Epoch{in.getDecided()};
  return out;
}

absl::StatusOr<Record> Read(schema::Record::Reader in) {
  switch (in.which()) {
    case schema::Record::TERM_BEGUN:
      return TermBegun{Term{in.getTermBegun()}};
    case schema::Record::GROUP_BEGUN: {
      ASSIGN_OR_RETURN(const Layout layout, ReadLayout(in.getGroupBegun()));
      return GroupBegun{layout};
    }
    case schema::Record::WORKER_JOINED:
      return Read(in.getWorkerJoined());
    case schema::Record::ACCEPTED:
      return Read(in.getAccepted());
    case schema::Record::STEP_TOKENS:
      return Read(in.getStepTokens());
    case schema::Record::ENDED:
      return Read(in.getEnded());
    case schema::Record::FORGOTTEN:
      return Forgotten{RequestId{in.getForgotten()}};
    case schema::Record::EPOCH_PROPOSED:
      return EpochProposed{Epoch{in.getEpochProposed()}};
    case schema::Record::SWITCH_DECIDED:
      return Read(in.getSwitchDecided());
    case schema::Record::SWITCH_DONE:
      return SwitchDone{Epoch{in.getSwitchDone()}};
    case schema::Record::LAYOUT_CHOSEN: {
      ASSIGN_OR_RETURN(const LayoutChoice choice,
                       ReadChoice(in.getLayoutChosen()));
      return LayoutChosen{choice};
    }
    case schema::Record::SUMMARY:
      return Read(in.getSummary());
    case schema::Record::DRAIN_SET:
      return DrainSet{in.getDrainSet()};
    case schema::Record::OPERATION_BEGUN:
      return Read(in.getOperationBegun());
    case schema::Record::OPERATION_ENDED: {
      const auto ended = in.getOperationEnded();
      if (ended.getAnswer().size() > kMaxOperationAnswerBytes) {
        return Malformed("answer");
      }
      return OperationEnded{AsString(ended.getId()),
                            {ended.getHttpStatus(), AsString(ended.getAnswer()),
                             ended.getUnixMs()}};
    }
  }
  return Malformed("unknown record");
}

}  // namespace

absl::Status Encode(const Record& record, std::string& out) {
  try {
    capnp::MallocMessageBuilder builder(FirstWords(record));
    std::visit(RecordBuilder{builder.initRoot<schema::Record>()}, record);
    const size_t size_bytes =
        capnp::computeSerializedSizeInWords(builder) * sizeof(capnp::word);
    if (size_bytes > kMaxRecordBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a record of ", size_bytes, " bytes; at most ",
                       kMaxRecordBytes, " are written"));
    }
    const kj::Array<capnp::word> words = capnp::messageToFlatArray(builder);
    const auto bytes = words.asBytes();
    out.append(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
    return absl::OkStatus();
  } catch (const kj::Exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a record that cannot be written: ", e.getDescription().cStr()));
  }
}

absl::StatusOr<std::vector<Record>> DecodeRecords(
    absl::Span<const char> bytes) {
  if (bytes.empty() || bytes.size() % sizeof(capnp::word) != 0) {
    return Malformed(absl::StrCat("size ", bytes.size()));
  }
  const size_t num_words = bytes.size() / sizeof(capnp::word);
  kj::Array<capnp::word> aligned;
  kj::ArrayPtr<const capnp::word> left(
      reinterpret_cast<const capnp::word*>(bytes.data()), num_words);
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(capnp::word) != 0) {
    aligned = kj::heapArray<capnp::word>(num_words);
    std::memcpy(aligned.begin(), bytes.data(), bytes.size());
    left = aligned;
  }
  std::vector<Record> records;
  try {
    while (left.size() > 0) {
      capnp::ReaderOptions options;
      // Each byte is read once or twice; bytes that point at the same ones
      // again and again are hostile.
      options.traversalLimitInWords = 4 * left.size() + 64;
      options.nestingLimit = kWireNestingLimit;
      capnp::FlatArrayMessageReader reader(left, options);
      ASSIGN_OR_RETURN(Record record, Read(reader.getRoot<schema::Record>()));
      records.push_back(std::move(record));
      left = kj::arrayPtr(reader.getEnd(), left.end());
    }
  } catch (const kj::Exception& e) {
    return Malformed(e.getDescription().cStr());
  } catch (const std::exception& e) {
    return Malformed(e.what());
  }
  return records;
}

}  // namespace moebius::journal
