#include "coordinator/journal/journal_state.h"

#include <algorithm>
#include <bit>
#include <tuple>
#include <utility>
#include <variant>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using journal::AcceptedGeneration;
using journal::AddedToken;
using journal::RunningSequence;

// A record of a snapshot holds tokens of about this size.
constexpr size_t kSnapshotStepBytes = size_t{4} << 20;

template <typename... Args>
absl::Status Unknown(const Args&... args) {
  return absl::NotFoundError(absl::StrCat(args...));
}
template <typename... Args>
absl::Status Impossible(const Args&... args) {
  return absl::FailedPreconditionError(absl::StrCat(args...));
}

uint64_t SizeOf(const std::vector<TokenLogprob>& top) {
  return sizeof(top) + top.size() * sizeof(TokenLogprob);
}

uint64_t SizeOf(const std::vector<PromptLogprob>& rows) {
  uint64_t size_bytes = 0;
  for (const PromptLogprob& row : rows) {
    size_bytes += sizeof(row) + row.top.size() * sizeof(TokenLogprob);
  }
  return size_bytes;
}

uint64_t SizeOf(const JournalChoice& choice) {
  uint64_t size_bytes = sizeof(choice) + choice.finish->stop_reason.size();
  size_bytes += (choice.generation.prompt.size() +
                 ListedNumbers(choice.generation.sampling)) *
                sizeof(int32_t);
  size_bytes += choice.tokens.size() * sizeof(int32_t);
  size_bytes += choice.logprobs.size() * sizeof(float);
  for (const auto& top : choice.top) size_bytes += SizeOf(top);
  return size_bytes + SizeOf(choice.prompt_logprobs);
}

uint64_t SizeOf(const JournalRequest& request) {
  uint64_t size_bytes = sizeof(request) + request.context.size();
  for (const JournalChoice& choice : request.choices) {
    size_bytes += SizeOf(choice);
  }
  return size_bytes;
}

bool IsZero(float value) { return std::bit_cast<uint32_t>(value) == 0; }

// Whether the token may be added to the choice, or null.
absl::Status CanAdd(const JournalChoice* choice, const AddedToken& added) {
  const uint64_t id = added.request.value;
  if (choice == nullptr) return Unknown("a token of request ", id);
  if (choice->finish.has_value()) {
    return Impossible("a token of request ", id, ", which has ended");
  }
  const size_t num_prompt = choice->generation.prompt.size();
  const size_t next = num_prompt + choice->tokens.size();
  if (added.token.position != next) {
    return Impossible("token ", added.token.position, " of request ", id,
                      " in place of token ", next);
  }
  if (!added.prompt_logprobs.empty() && !choice->tokens.empty()) {
    return Impossible("log-probabilities of the prompt of request ", id,
                      " after its first token");
  }
  uint32_t last = 0;
  for (const PromptLogprob& row : added.prompt_logprobs) {
    if (row.position <= last || row.position >= num_prompt) {
      return Impossible("a log-probability of token ", row.position,
                        " of the prompt of request ", id, ", after token ",
                        last);
    }
    last = row.position;
  }
  return absl::OkStatus();
}

void Add(JournalChoice& choice, AddedToken& added) {
  SampledToken& token = added.token;
  if (!choice.logprobs.empty() || !IsZero(token.logprob)) {
    choice.logprobs.resize(choice.tokens.size());
    choice.logprobs.push_back(token.logprob);
  }
  if (!choice.top.empty() || !token.top.empty()) {
    choice.top.resize(choice.tokens.size());
    choice.top.push_back(std::move(token.top));
  }
  choice.tokens.push_back(token.token);
  if (added.prompt_logprobs.empty()) return;
  choice.prompt_logprobs = std::move(added.prompt_logprobs);
  for (PromptLogprob& row : choice.prompt_logprobs) row.slot = 0;
}

// Undoes the last Add.
void TakeBack(JournalChoice& choice) {
  choice.tokens.pop_back();
  choice.logprobs.resize(
      std::min(choice.logprobs.size(), choice.tokens.size()));
  choice.top.resize(std::min(choice.top.size(), choice.tokens.size()));
  if (std::all_of(choice.logprobs.begin(), choice.logprobs.end(), IsZero)) {
    choice.logprobs.clear();
  }
  if (std::all_of(choice.top.begin(), choice.top.end(),
                  [](const auto& top) { return top.empty(); })) {
    choice.top.clear();
  }
  // They come with the first token.
  if (choice.tokens.empty()) choice.prompt_logprobs.clear();
}

}  // namespace

SampledToken JournalChoice::TokenAt(size_t index) const {
  SampledToken token;
  token.position = static_cast<uint32_t>(generation.prompt.size() + index);
  token.token = tokens[index];
  if (!logprobs.empty()) token.logprob = logprobs[index];
  if (!top.empty()) token.top = top[index];
  return token;
}

int64_t JournalRequest::ended_unix_ms() const {
  int64_t last = choices[0].finish->unix_ms;
  for (const JournalChoice& choice : choices) {
    last = std::max(last, choice.finish->unix_ms);
  }
  return last;
}

const JournalChoice* JournalState::Find(RequestId id) const {
  return const_cast<JournalState*>(this)->PlaceOf(id).choice;
}

JournalState::Place JournalState::PlaceOf(RequestId id) {
  auto found = requests_.upper_bound(id);
  if (found == requests_.begin()) return {};
  --found;
  JournalRequest& request = found->second;
  const uint64_t index = id.value - found->first.value;
  if (index >= request.choices.size()) return {};
  return {&request, &request.choices[index]};
}

// Steps name requests in the order of their ids, nearly: from one to the next
// is one move in the map.
std::vector<JournalChoice*> JournalState::ChoicesOf(
    const std::vector<AddedToken>& tokens) {
  std::vector<JournalChoice*> choices;
  choices.reserve(tokens.size());
  const auto covers = [&](Requests::iterator at, RequestId id) {
    return at != requests_.end() && at->first <= id &&
           id.value - at->first.value < at->second.choices.size();
  };
  auto at = requests_.begin();
  for (const AddedToken& added : tokens) {
    const RequestId id = added.request;
    if (!covers(at, id) && at != requests_.end()) ++at;
    if (!covers(at, id)) {
      at = requests_.upper_bound(id);
      if (at != requests_.begin()) --at;
    }
    JournalChoice* choice =
        covers(at, id) ? &at->second.choices[id.value - at->first.value]
                       : nullptr;
    if (choice != nullptr) __builtin_prefetch(&choice->tokens, 1);
    choices.push_back(choice);
  }
  return choices;
}

absl::Status JournalState::Apply(journal::Record record) {
  RETURN_IF_ERROR(Validate(record));
  return std::visit([this](auto&& one) { return Take(std::move(one)); },
                    std::move(record));
}

// ---- terms and incarnations ------------------------------------------------

absl::Status JournalState::Take(journal::TermBegun record) {
  if (record.term <= numbers_.term) {
    return Impossible("term ", record.term.value, " after term ",
                      numbers_.term.value);
  }
  numbers_.term = record.term;
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::GroupBegun record) {
  numbers_.incarnations = {};
  numbers_.draining = false;
  operations_.clear();
  numbers_.layout = record.layout;
  numbers_.left.reset();
  undone_.reset();
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::WorkerJoined record) {
  Incarnation& last = numbers_.incarnations[record.rank];
  if (record.incarnation <= last) {
    return Impossible("incarnation ", record.incarnation.value, " of worker ",
                      record.rank, " after ", last.value);
  }
  last = record.incarnation;
  return absl::OkStatus();
}

// ---- requests --------------------------------------------------------------

absl::Status JournalState::Take(journal::Accepted record) {
  const RequestId first = record.generations.front().request;
  if (first < numbers_.next_request) {
    return absl::AlreadyExistsError(absl::StrCat(
        "request id ", first.value, " was given before; ids below ",
        numbers_.next_request.value, " are used"));
  }
  numbers_.next_request = record.generations.back().request.next();
  JournalRequest& request = requests_[first];
  request.context = std::move(record.context);
  request.unix_ms = record.unix_ms;
  request.num_unfinished = record.generations.size();
  request.choices.reserve(record.generations.size());
  for (AcceptedGeneration& one : record.generations) {
    request.choices.emplace_back().generation = std::move(one.generation);
  }
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::StepTokens record) {
  if (record.step < numbers_.last_step) {
    return Impossible("step ", record.step.value, " after step ",
                      numbers_.last_step.value);
  }
  const std::vector<JournalChoice*> choices = ChoicesOf(record.tokens);
  // The ends of all those token lists are cold: ask for them a little ahead.
  constexpr size_t kAhead = 8;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i + kAhead < choices.size() && choices[i + kAhead] != nullptr) {
      const std::vector<int32_t>& later = choices[i + kAhead]->tokens;
      __builtin_prefetch(later.data() + later.size(), 1);
    }
    AddedToken& added = record.tokens[i];
    absl::Status status = CanAdd(choices[i], added);
    if (!status.ok()) {
      while (i-- > 0) TakeBack(*choices[i]);
      return status;
    }
    Add(*choices[i], added);
  }
  numbers_.last_step = record.step;
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::Ended record) {
  const Place place = PlaceOf(record.request);
  if (place.choice == nullptr) {
    return Unknown("the end of request ", record.request.value);
  }
  if (place.choice->finish.has_value()) {
    return Impossible("request ", record.request.value, " ends again");
  }
  place.choice->finish.emplace(JournalChoice::Finish{
      record.finish, std::move(record.stop_reason), record.unix_ms});
  if (--place.request->num_unfinished == 0) {
    place.request->size_bytes = SizeOf(*place.request);
  }
  if (undone_.has_value()) {
    std::erase_if(undone_->running, [&](const RunningSequence& one) {
      return one.request == record.request;
    });
  }
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::Forgotten record) {
  const auto found = requests_.find(record.request);
  if (found == requests_.end()) {
    return Unknown("no request begins with id ", record.request.value);
  }
  if (found->second.num_unfinished > 0) {
    return Impossible("request ", record.request.value,
                      " is forgotten before it has ended");
  }
  requests_.erase(found);
  return absl::OkStatus();
}

std::vector<RequestId> JournalState::ForgetEndedBefore(
    int64_t unix_ms, size_t max_kept, uint64_t max_bytes) const {
  // When it ended, which one, its size.
  std::vector<std::tuple<int64_t, RequestId, uint64_t>> ended;
  uint64_t bytes = 0;
  for (const auto& [id, request] : requests_) {
    if (request.num_unfinished > 0) continue;
    ended.emplace_back(request.ended_unix_ms(), id, request.size_bytes);
    bytes += request.size_bytes;
  }
  std::sort(ended.begin(), ended.end());
  std::vector<RequestId> ids;
  for (const auto& [ended_unix_ms, id, size_bytes] : ended) {
    if (ended_unix_ms >= unix_ms && ended.size() - ids.size() <= max_kept &&
        bytes <= max_bytes) {
      break;
    }
    ids.push_back(id);
    bytes -= size_bytes;
  }
  return ids;
}

// ---- layouts ---------------------------------------------------------------

absl::Status JournalState::Take(journal::EpochProposed record) {
  if (record.epoch <= numbers_.proposed) {
    return Impossible("epoch ", record.epoch.value, " is proposed after epoch ",
                      numbers_.proposed.value);
  }
  if (undone_.has_value()) {
    return Impossible("epoch ", record.epoch.value,
                      " is proposed while switch ", undone_->epoch.value,
                      " is not done");
  }
  numbers_.proposed = record.epoch;
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::SwitchDecided record) {
  const uint64_t epoch = record.epoch.value;
  if (record.epoch <= numbers_.decided || record.epoch < numbers_.proposed) {
    return Impossible("switch ", epoch, " is decided after epoch ",
                      std::max(numbers_.decided, numbers_.proposed).value);
  }
  if (undone_.has_value()) {
    return Impossible("switch ", epoch, " is decided while switch ",
                      undone_->epoch.value, " is not done");
  }
  if (numbers_.layout.has_value() && record.from != *numbers_.layout) {
    return Impossible("switch ", epoch, " begins at tp_size ",
                      record.from.tp_size, "; the layout is ",
                      numbers_.layout->tp_size);
  }
  absl::flat_hash_set<uint32_t> slots;
  absl::flat_hash_set<uint64_t> requests;
  for (const RunningSequence& one : record.running) {
    const JournalChoice* choice = Find(one.request);
    if (choice == nullptr) {
      return Unknown("switch ", epoch, " names request ", one.request.value);
    }
    if (choice->finish.has_value() || !slots.insert(one.slot).second ||
        !requests.insert(one.request.value).second) {
      return Impossible("switch ", epoch, " names request ", one.request.value,
                        " in slot ", one.slot,
                        ": ended, or named before, or the slot was");
    }
  }
  numbers_.proposed = numbers_.decided = record.epoch;
  numbers_.layout = record.from;
  undone_ = std::move(record);
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::SwitchDone record) {
  if (!undone_.has_value() || undone_->epoch != record.epoch) {
    return Impossible("switch ", record.epoch.value,
                      " is done without having been decided");
  }
  numbers_.layout = undone_->to;
  numbers_.left = undone_->from;
  undone_.reset();
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::LayoutChosen record) {
  numbers_.choice = record.choice;
  return absl::OkStatus();
}

// ---- what operators ask for ------------------------------------------------

absl::Status JournalState::Take(journal::DrainSet record) {
  numbers_.draining = record.draining;
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::OperationBegun record) {
  const auto ended = std::find_if(
      operations_.begin(), operations_.end(),
      [](const KnownOperation& one) { return one.end.has_value(); });
  if (std::any_of(operations_.begin(), operations_.end(),
                  [&](const KnownOperation& one) {
                    return one.operation.id == record.operation.id;
                  })) {
    return Impossible("an operation begins again");
  }
  if (operations_.size() >= kMaxOperations) {
    if (ended == operations_.end()) return Impossible("too many operations");
    operations_.erase(ended);
  }
  operations_.push_back({std::move(record.operation), record.unix_ms,
                         record.decided, std::nullopt});
  return absl::OkStatus();
}

absl::Status JournalState::Take(journal::OperationEnded record) {
  for (KnownOperation& one : operations_) {
    if (one.operation.id != record.id) continue;
    if (one.end.has_value()) return Impossible("an operation ends again");
    one.end = std::move(record.end);
    return absl::OkStatus();
  }
  return Unknown("the end of an operation");
}

// ---- snapshots -------------------------------------------------------------

absl::Status JournalState::Take(journal::Summary record) {
  journal::Summary untouched;
  untouched.last_step = numbers_.last_step;
  untouched.next_request = numbers_.next_request;
  if (numbers_ != untouched || record.last_step < numbers_.last_step ||
      record.next_request < numbers_.next_request) {
    return Impossible("a summary that does not follow a snapshot's requests");
  }
  numbers_ = std::move(record);
  return absl::OkStatus();
}

absl::Status JournalState::SnapshotAccepted(SnapshotSink take) const {
  for (const auto& [first, request] : requests_) {
    journal::Accepted accepted{{}, request.context, request.unix_ms};
    RequestId id = first;
    for (const JournalChoice& choice : request.choices) {
      accepted.generations.push_back({id, choice.generation});
      id = id.next();
    }
    RETURN_IF_ERROR(take(std::move(accepted)));
  }
  return absl::OkStatus();
}

absl::Status JournalState::SnapshotTokens(SnapshotSink take) const {
  journal::StepTokens step{numbers_.last_step, {}};
  uint64_t size_bytes = 0;
  const auto flush = [&]() -> absl::Status {
    if (step.tokens.empty()) return absl::OkStatus();
    size_bytes = 0;
    return take(std::exchange(step, {numbers_.last_step, {}}));
  };
  for (const auto& [first, request] : requests_) {
    RequestId id = first;
    for (const JournalChoice& choice : request.choices) {
      for (size_t i = 0; i < choice.tokens.size(); ++i) {
        AddedToken added{id, choice.TokenAt(i), {}};
        if (i == 0) added.prompt_logprobs = choice.prompt_logprobs;
        const uint64_t more = sizeof(added) + SizeOf(added.token.top) +
                              SizeOf(added.prompt_logprobs);
        if (size_bytes + more > kSnapshotStepBytes) RETURN_IF_ERROR(flush());
        size_bytes += more;
        step.tokens.push_back(std::move(added));
      }
      id = id.next();
    }
  }
  return flush();
}

absl::Status JournalState::SnapshotEnds(SnapshotSink take) const {
  for (const auto& [first, request] : requests_) {
    RequestId id = first;
    for (const JournalChoice& choice : request.choices) {
      if (const auto& finish = choice.finish; finish.has_value()) {
        RETURN_IF_ERROR(take(journal::Ended{
            id, finish->reason, finish->stop_reason, finish->unix_ms}));
      }
      id = id.next();
    }
  }
  return absl::OkStatus();
}

absl::Status JournalState::SnapshotOperations(SnapshotSink take) const {
  for (const KnownOperation& one : operations_) {
    RETURN_IF_ERROR(take(journal::OperationBegun{
        one.operation, one.began_unix_ms, one.decided}));
    if (!one.end.has_value()) continue;
    RETURN_IF_ERROR(take(journal::OperationEnded{one.operation.id, *one.end}));
  }
  return absl::OkStatus();
}

absl::Status JournalState::WriteSnapshot(SnapshotSink take) const {
  RETURN_IF_ERROR(SnapshotAccepted(take));
  RETURN_IF_ERROR(SnapshotTokens(take));
  RETURN_IF_ERROR(SnapshotEnds(take));
  journal::Summary summary = numbers_;
  // The decision, which follows, tells them.
  if (undone_.has_value()) summary.decided = summary.proposed = Epoch{0};
  RETURN_IF_ERROR(take(summary));
  RETURN_IF_ERROR(SnapshotOperations(take));
  return undone_.has_value() ? take(*undone_) : absl::OkStatus();
}

std::vector<journal::Record> JournalState::Snapshot() const {
  std::vector<journal::Record> records;
  WriteSnapshot([&](const journal::Record& record) {
    records.push_back(record);
    return absl::OkStatus();
  }).IgnoreError();
  return records;
}

}  // namespace moebius
