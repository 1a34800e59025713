// Records for tests, and as seeds of the fuzzer: a short history in which every
// kind of record occurs, and random ones.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/journal/journal_record.h"
#include "coordinator/journal/journal_state.h"

namespace moebius {

inline Generation SampleGeneration() {
  Generation generation;
  generation.prompt = {11, 12, 13, 14};
  generation.sampling.temperature = 0.7f;
  generation.sampling.top_k = 20;
  generation.sampling.seed = 0x123456789abcdef0;
  generation.sampling.num_logprobs = 2;
  generation.sampling.num_prompt_logprobs = 1;
  generation.sampling.suppressed_ids = {4095};
  generation.sampling.logit_bias = {{7, 1.5f}};
  generation.sampling.allowed_ids = {6, 7};
  generation.sampling.bad_words = {{1}, {2, 3}};
  generation.stop.max_tokens = 40;
  generation.stop.min_tokens = 2;
  generation.stop.ignore_eos = true;
  generation.stop.eos_ids = {0, 1};
  generation.stop.stop_token_ids = {99};
  generation.stop.stop = {"\n\n", std::string("nul\0 inside", 11)};
  generation.stop.include_stop_str_in_output = true;
  generation.stop.skip_special_tokens = false;
  return generation;
}

inline journal::SwitchDecided SampleDecision() {
  journal::SwitchDecided decision;
  decision.epoch = Epoch{3};
  decision.from = ExpertParallel();
  decision.to = TensorParallel(2);
  decision.boundary = StepId{9};
  decision.plan.waves = {{{0, 1, 1, 2}, {1, 5, 0, 6}}, {{0, 7, 1, 1}}};
  decision.plan.tables = {{4, 2, {{0, 0, 1, {1, 2}}, {1, 1, 1, {3, 4}}}}};
  decision.running = {{RequestId{2}, 4, 5}};
  return decision;
}

inline journal::AddedToken SampleToken(uint64_t id, uint32_t position,
                                       int32_t token) {
  journal::AddedToken added;
  added.request = RequestId{id};
  added.token.position = position;
  added.token.token = token;
  return added;
}

// Every kind of record but the summary, each of which may follow the one
// before. Request 1 has two choices and is forgotten; request 3 goes on.
inline std::vector<journal::Record> SampleHistory() {
  using namespace journal;
  Generation second = SampleGeneration();
  second.sampling.seed += 1;
  Generation other = SampleGeneration();
  other.prompt = {21, 22};
  StepTokens first_step{StepId{7}, {}};
  first_step.tokens = {SampleToken(1, 4, 17), SampleToken(2, 4, 18)};
  first_step.tokens[0].token.logprob = -0.5f;
  first_step.tokens[0].token.top = {{17, -0.5f}, {3, -1.25f}};
  first_step.tokens[0].prompt_logprobs = {{0, 1, 12, -2.0f, {{8, -0.1f}}, 5},
                                          {0, 2, 13, -3.0f, {}, 1}};
  StepTokens second_step{StepId{8}, {}};
  second_step.tokens = {SampleToken(1, 5, 19), SampleToken(3, 2, 20)};
  return {
      TermBegun{Term{4}},
      GroupBegun{ExpertParallel()},
      WorkerJoined{0, Incarnation{1}},
      WorkerJoined{1, Incarnation{2}},
      LayoutChosen{LayoutChoice::kAuto},
      Accepted{{{RequestId{1}, SampleGeneration()}, {RequestId{2}, second}},
               std::string("{\"a\":\0}", 7),
               1700000000000},
      first_step,
      Accepted{{{RequestId{3}, other}}, "", 1700000000100},
      second_step,
      Ended{RequestId{1}, FinishReason::kStop, "\n\n", 1700000000200},
      EpochProposed{Epoch{2}},
      EpochProposed{Epoch{3}},
      SampleDecision(),
      Ended{RequestId{2}, FinishReason::kLength, "", 1700000000300},
      SwitchDone{Epoch{3}},
      OperationBegun{{"op-1", OperationKind::kLayout, LayoutChoice::kTp},
                     1700000000400,
                     Epoch{3}},
      OperationEnded{"op-1", {409, "{\"error\":{}}", 1700000000500}},
      OperationBegun{{"op-2", OperationKind::kDrain}, 1700000000600, Epoch{3}},
      DrainSet{true},
      Forgotten{RequestId{1}},
  };
}

inline journal::Summary SampleSummary() {
  journal::Summary summary;
  summary.term = Term{4};
  summary.incarnations[1] = Incarnation{2};
  summary.proposed = Epoch{3};
  summary.decided = Epoch{2};
  summary.last_step = StepId{8};
  summary.next_request = RequestId{4};
  summary.layout = TensorParallel(2);
  summary.left = Layout{kMaxRanks};
  summary.choice = LayoutChoice::Of(Layout{4});
  summary.draining = true;
  return summary;
}

// Random records, each of which may follow the state it is made for.
class RandomHistory {
 public:
  explicit RandomHistory(uint32_t seed) : random_(seed) {}

  int Below(int n) { return static_cast<int>(random_() % n); }
  bool Chance(int one_in) { return Below(one_in) == 0; }

  journal::Record Next(const JournalState& state) {
    if (state.term().value == 0) return journal::TermBegun{Term{1}};
    if (state.requests().size() > kMaxRequests) {
      return Chance(2) ? End(state) : Forget(state);
    }
    switch (Below(12)) {
      case 0:
        return Accept(state);
      case 1:
        return End(state);
      case 2:
        return Forget(state);
      case 3:
      case 4:
        return Switch(state);
      case 5:
        return Process(state);
      default:
        return Tokens(state);
    }
  }

 private:
  static constexpr size_t kMaxRequests = 8;

  journal::Record Accept(const JournalState& state) {
    journal::Accepted accepted;
    accepted.context = std::string(Chance(8) ? Below(2000) : Below(40), 'c');
    accepted.unix_ms = ++now_;
    Generation generation = SampleGeneration();
    RequestId id{state.next_request().value + Below(3)};
    for (int n = 1 + Below(3); n > 0; --n, id = id.next()) {
      if (Chance(3)) generation.prompt.resize(1 + Below(20), Below(100));
      generation.sampling.seed = random_();
      accepted.generations.push_back({id, generation});
    }
    return accepted;
  }

  // Ids of choices that have not ended.
  std::vector<RequestId> Open(const JournalState& state) {
    std::vector<RequestId> open;
    for (const auto& [first, request] : state.requests()) {
      for (size_t i = 0; i < request.choices.size(); ++i) {
        if (request.choices[i].finish.has_value()) continue;
        open.push_back(RequestId{first.value + i});
      }
    }
    return open;
  }

  journal::Record Tokens(const JournalState& state) {
    journal::StepTokens step{StepId{state.last_step().value + 1 + Below(2)},
                             {}};
    std::vector<RequestId> open = Open(state);
    std::shuffle(open.begin(), open.end(), random_);
    if (open.size() > 8) open.resize(8);
    for (RequestId id : open) {
      const JournalChoice& choice = *state.Find(id);
      const uint32_t prompt = choice.generation.prompt.size();
      journal::AddedToken& added = step.tokens.emplace_back();
      added.request = id;
      added.token.slot = Below(100);
      added.token.position = prompt + choice.tokens.size();
      added.token.token = Below(4096);
      if (Chance(3)) added.token.logprob = -1.0f * Below(9);
      if (Chance(5)) added.token.top.resize(1 + Below(kMaxLogprobs), {5, -2});
      if (!choice.tokens.empty() || !Chance(3)) continue;
      for (uint32_t at = 1; at < prompt; ++at) {
        added.prompt_logprobs.push_back({3, at, Below(99), -4, {}});
      }
    }
    return step;
  }

  journal::Record End(const JournalState& state) {
    const std::vector<RequestId> open = Open(state);
    if (open.empty()) return Accept(state);
    return journal::Ended{open[Below(open.size())],
                          static_cast<FinishReason>(Below(4)),
                          std::string(Below(5), 's'), ++now_};
  }

  journal::Record Forget(const JournalState& state) {
    const auto ids = state.ForgetEndedBefore(0, Below(3), 1 << 20);
    if (ids.empty()) return Tokens(state);
    return journal::Forgotten{ids.front()};
  }

  journal::Record Switch(const JournalState& state) {
    if (state.undone().has_value()) {
      return journal::SwitchDone{state.undone()->epoch};
    }
    if (Chance(2) || state.proposed() == state.decided()) {
      return journal::EpochProposed{state.proposed().next()};
    }
    journal::SwitchDecided decision = SampleDecision();
    decision.epoch = state.proposed();
    decision.from = state.layout().value_or(ExpertParallel());
    decision.to = Layout{1 + (decision.from.tp_size + Below(3)) % 4};
    decision.boundary = state.last_step().next();
    decision.running.clear();
    for (RequestId id : Open(state)) {
      decision.running.push_back(
          {id, static_cast<uint32_t>(decision.running.size()), 7});
    }
    return decision;
  }

  journal::Record Process(const JournalState& state) {
    switch (Below(7)) {
      case 0:
        return journal::TermBegun{state.term().next()};
      case 3:
        return journal::DrainSet{Chance(2)};
      case 4:
      case 5:
        return Operate(state);
      case 1:
        return journal::GroupBegun{Layout{1 + Below(4)}};
      case 2: {
        const Rank rank = Below(kMaxRanks);
        return journal::WorkerJoined{rank, state.incarnation(rank).next()};
      }
      default:
        return journal::LayoutChosen{AnyChoice()};
    }
  }

  LayoutChoice AnyChoice() {
    const LayoutChoice choices[] = {
        LayoutChoice::kEp, LayoutChoice::kTp, LayoutChoice::kAuto,
        LayoutChoice::Of(Layout{2 + Below(kMaxRanks - 1)})};
    return choices[Below(4)];
  }

  // At most one runs.
  journal::Record Operate(const JournalState& state) {
    const auto& known = state.operations();
    if (!known.empty() && !known.back().end.has_value()) {
      return journal::OperationEnded{known.back().operation.id,
                                     {200 + Below(300), "{}", ++now_}};
    }
    journal::OperationBegun begun;
    begun.unix_ms = ++now_;
    begun.operation = {std::to_string(now_),
                       static_cast<OperationKind>(Below(3)), AnyChoice()};
    begun.decided = state.decided();
    return begun;
  }

  std::mt19937 random_;
  int64_t now_ = 1700000000000;
};

}  // namespace moebius
