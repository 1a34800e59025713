#include "coordinator/journal/journal_record.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/wire/wire_limits.h"

namespace moebius::journal {
namespace {

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

bool IsRank(Rank rank) { return rank >= 0 && rank < kMaxRanks; }

bool IsLayout(Layout layout) {
  return layout.tp_size >= 1 && layout.tp_size <= kMaxRanks;
}

absl::Status Check(const TermBegun& record) {
  return record.term.value == 0 ? Invalid("term 0") : absl::OkStatus();
}

absl::Status Check(const GroupBegun& record) {
  return IsLayout(record.layout) ? absl::OkStatus() : Invalid("no layout");
}

absl::Status Check(const WorkerJoined& record) {
  if (!IsRank(record.rank)) return Invalid("rank ", record.rank);
  if (record.incarnation.value == 0) return Invalid("incarnation 0");
  return absl::OkStatus();
}

bool IsBounded(const std::vector<std::vector<int32_t>>& bad_words) {
  size_t ids = 0;
  for (const auto& word : bad_words) {
    if (word.empty()) return false;
    ids += word.size();
  }
  return bad_words.size() <= size_t{kMaxBadWords} &&
         ids <= size_t{kMaxBadWordIds};
}

absl::Status Check(const Generation& generation) {
  const SamplingParams& sampling = generation.sampling;
  if (generation.prompt.empty() || generation.prompt.size() > kMaxPosition) {
    return Invalid("a prompt of ", generation.prompt.size(), " tokens");
  }
  if (std::max(sampling.num_logprobs, sampling.num_prompt_logprobs) >
          kMaxLogprobs ||
      sampling.logit_bias.size() > size_t{kMaxLogitBias} ||
      sampling.allowed_ids.size() > size_t{kMaxAllowedIds} ||
      !IsBounded(sampling.bad_words)) {
    return Invalid("sampling parameters over their bounds");
  }
  return absl::OkStatus();
}

absl::Status Check(const Accepted& record) {
  const size_t count = record.generations.size();
  if (count < 1 || count > size_t{kMaxGenerations}) {
    return Invalid("a request of ", count, " generations");
  }
  if (record.context.size() > kMaxContextBytes) {
    return Invalid("a context of ", record.context.size(), " bytes; at most ",
                   kMaxContextBytes, " are kept");
  }
  const uint64_t first = record.generations[0].request.value;
  if (first == 0 || first > std::numeric_limits<uint64_t>::max() - count) {
    return Invalid("request id ", first);
  }
  size_t num_tokens = 0;
  for (size_t i = 0; i < count; ++i) {
    const AcceptedGeneration& one = record.generations[i];
    if (one.request.value != first + i) {
      return Invalid("the ids of a request's choices are not consecutive");
    }
    RETURN_IF_ERROR(Check(one.generation));
    num_tokens += one.generation.prompt.size();
  }
  if (num_tokens > kMaxPromptTokens) {
    return Invalid("a request of ", num_tokens, " prompt tokens");
  }
  return absl::OkStatus();
}

template <typename Entry>
bool IsScored(const Entry& entry) {
  return entry.position >= 1 && entry.position <= kMaxPosition &&
         entry.top.size() <= size_t{kMaxLogprobs};
}

absl::Status Check(const StepTokens& record) {
  if (record.step.value == 0) return Invalid("step 0");
  for (const AddedToken& added : record.tokens) {
    bool ok = IsScored(added.token);
    for (const PromptLogprob& one : added.prompt_logprobs) {
      ok = ok && IsScored(one);
    }
    if (!ok) return Invalid("a token of request ", added.request.value);
  }
  return absl::OkStatus();
}

absl::Status Check(const Ended& record) {
  if (record.stop_reason.size() > kMaxStopReasonBytes) {
    return Invalid("a stop reason of ", record.stop_reason.size(), " bytes");
  }
  switch (record.finish) {
    case FinishReason::kStop:
    case FinishReason::kLength:
    case FinishReason::kAbort:
    case FinishReason::kError:
      return absl::OkStatus();
  }
  return Invalid("finish reason ", static_cast<int>(record.finish));
}

absl::Status Check(const Forgotten&) { return absl::OkStatus(); }
absl::Status Check(const EpochProposed&) { return absl::OkStatus(); }
absl::Status Check(const SwitchDone&) { return absl::OkStatus(); }

absl::Status Check(const KvTable& table) {
  const int blocks = table.num_blocks;
  bool ok = table.slot < kMaxSlotNumber && blocks >= 0 &&
            static_cast<uint32_t>(blocks) <= kMaxPosition &&
            table.tables.size() <= size_t{kMaxRanks};
  for (const RankTable& of_rank : table.tables) {
    constexpr int kMaxHeads = std::numeric_limits<uint16_t>::max();
    ok = ok && IsRank(of_rank.rank) && of_rank.kv_begin >= 0 &&
         of_rank.kv_begin <= kMaxHeads && of_rank.num_kv >= 0 &&
         of_rank.num_kv <= kMaxHeads &&
         of_rank.pages.size() == static_cast<size_t>(blocks) * of_rank.num_kv;
  }
  return ok ? absl::OkStatus() : Invalid("the KV table of slot ", table.slot);
}

absl::Status Check(const KvPlan& plan) {
  if (plan.waves.size() > size_t{kMaxKvWaves}) {
    return Invalid(plan.waves.size(), " waves");
  }
  for (const std::vector<PageMove>& wave : plan.waves) {
    for (const PageMove& move : wave) {
      if (!IsRank(move.src_rank) || !IsRank(move.dst_rank)) {
        return Invalid("a page move from rank ", move.src_rank, " to ",
                       move.dst_rank);
      }
    }
  }
  for (const KvTable& table : plan.tables) RETURN_IF_ERROR(Check(table));
  return absl::OkStatus();
}

absl::Status Check(const SwitchDecided& record) {
  if (record.epoch.value == 0) return Invalid("epoch 0");
  if (!IsLayout(record.from) || !IsLayout(record.to) ||
      record.from == record.to) {
    return Invalid("a switch from tp_size ", record.from.tp_size, " to ",
                   record.to.tp_size);
  }
  if (record.boundary.value == 0) return Invalid("boundary 0");
  for (const RunningSequence& one : record.running) {
    if (one.slot >= kMaxSlotNumber || one.computed > kMaxPosition) {
      return Invalid("running request ", one.request.value);
    }
  }
  return Check(record.plan);
}

bool IsChoice(LayoutChoice choice) {
  const std::optional<int> tp_size = choice.tp_size();
  return !tp_size.has_value() || IsLayout(Layout{*tp_size});
}

absl::Status Check(const LayoutChosen& record) {
  return IsChoice(record.choice) ? absl::OkStatus() : Invalid("no choice");
}

absl::Status Check(const DrainSet&) { return absl::OkStatus(); }

absl::Status Check(const OperationBegun& record) {
  const Operation& operation = record.operation;
  const bool known_kind = operation.kind == OperationKind::kLayout ||
                          operation.kind == OperationKind::kDrain ||
                          operation.kind == OperationKind::kUndrain;
  if (operation.id.empty() || operation.id.size() > kMaxOperationIdBytes ||
      !known_kind || !IsChoice(operation.choice)) {
    return Invalid("an operation that cannot be");
  }
  return absl::OkStatus();
}

absl::Status Check(const OperationEnded& record) {
  constexpr int kLowestStatus = 200, kHighestStatus = 599;
  const OperationEnd& end = record.end;
  const bool ok = end.http_status >= kLowestStatus &&
                  end.http_status <= kHighestStatus &&
                  end.answer.size() <= kMaxOperationAnswerBytes;
  return ok ? absl::OkStatus() : Invalid("the end of an operation");
}

absl::Status Check(const Summary& record) {
  const bool ok = (!record.layout.has_value() || IsLayout(*record.layout)) &&
                  (!record.left.has_value() || IsLayout(*record.left)) &&
                  (!record.choice.has_value() || IsChoice(*record.choice)) &&
                  record.decided <= record.proposed &&
                  record.next_request.value >= 1;
  return ok ? absl::OkStatus() : Invalid("a summary that cannot be");
}

}  // namespace

absl::Status Validate(const Record& record) {
  return std::visit([](const auto& one) { return Check(one); }, record);
}

}  // namespace moebius::journal
