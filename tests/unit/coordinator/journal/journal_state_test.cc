// What may follow what in a journal, and that a snapshot says the same as what
// it stands for.
#include "coordinator/journal/journal_state.h"

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/journal/journal_samples.h"

namespace moebius {
namespace {

using namespace journal;  // NOLINT: records by their own names
using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr auto kInvalid = StatusCode::kInvalidArgument;
constexpr auto kImpossible = StatusCode::kFailedPrecondition;

// After the sample history up to the record of type T (without it).
template <typename T>
JournalState Before() {
  JournalState state;
  for (const Record& record : SampleHistory()) {
    if (std::holds_alternative<T>(record)) return state;
    EXPECT_THAT(state.Apply(record), IsOk());
  }
  ADD_FAILURE() << "no such record";
  return state;
}

JournalState After(const std::vector<Record>& records) {
  JournalState state;
  for (const Record& record : records) {
    EXPECT_THAT(state.Apply(record), IsOk());
  }
  return state;
}

Accepted Request(uint64_t id, int choices = 1) {
  Accepted accepted;
  for (int i = 0; i < choices; ++i) {
    accepted.generations.push_back({RequestId{id + i}, SampleGeneration()});
  }
  return accepted;
}

StepTokens Token(uint64_t step, uint64_t id, uint32_t position) {
  return {StepId{step}, {{RequestId{id}, {0, position, 7, 0, {}}, {}}}};
}

// Changes a valid record.
template <typename T>
T With(T record, void (*change)(T&)) {
  change(record);
  return record;
}

struct Refusal {
  std::string name;
  JournalState state;
  Record record;
  StatusCode code;
  std::string message;
};

std::vector<Refusal> RefusedTermsAndIncarnations() {
  const JournalState empty;
  const JournalState begun = Before<Accepted>();  // term 4, workers 1 and 2
  return {
      {"term 0", empty, TermBegun{}, kInvalid, "term 0"},
      {"the same term", begun, TermBegun{Term{4}}, kImpossible,
       "term 4 after term 4"},
      {"an earlier term", begun, TermBegun{Term{3}}, kImpossible, "term 3"},
      {"a layout of nobody", begun, GroupBegun{Layout{0}}, kInvalid, "layout"},
      {"a layout too wide", begun, GroupBegun{Layout{kMaxRanks + 1}}, kInvalid,
       "layout"},
      {"a rank below", begun, WorkerJoined{-1, Incarnation{9}}, kInvalid,
       "rank -1"},
      {"a rank above", begun, WorkerJoined{kMaxRanks, Incarnation{9}}, kInvalid,
       "rank 16"},
      {"incarnation 0", begun, WorkerJoined{2, Incarnation{0}}, kInvalid,
       "incarnation 0"},
      {"the same incarnation", begun, WorkerJoined{1, Incarnation{2}},
       kImpossible, "incarnation 2 of worker 1 after 2"},
      {"a choice of nothing", begun,
       LayoutChosen{LayoutChoice::Of(Layout{kMaxRanks + 1})}, kInvalid,
       "no choice"},
  };
}

std::vector<Refusal> RefusedRequests() {
  const JournalState empty;
  const JournalState two = Before<Ended>();  // 1, 2 and 3 run
  return {
      {"no generation", empty, Accepted{}, kInvalid, "0 generations"},
      {"too many generations", empty,
       Request(1, static_cast<int>(kMaxGenerations) + 1), kInvalid,
       "4097 generations"},
      {"id 0", empty, Request(0), kInvalid, "request id 0"},
      {"an id at the end of numbers", empty, Request(~uint64_t{0}), kInvalid,
       "request id 18446744073709551615"},
      {"ids apart", empty,
       With<Accepted>(Request(1, 2),
                      [](auto& r) { r.generations[1].request.value = 3; }),
       kInvalid, "not consecutive"},
      {"no prompt", empty,
       With<Accepted>(
           Request(1),
           [](auto& r) { r.generations[0].generation.prompt.clear(); }),
       kInvalid, "a prompt of 0 tokens"},
      {"too large a context", empty,
       With<Accepted>(
           Request(1),
           [](auto& r) { r.context.assign(kMaxContextBytes + 1, 'c'); }),
       kInvalid, "a context of 5242881 bytes"},
      {"too many log-probabilities", empty,
       With<Accepted>(Request(1),
                      [](auto& r) {
                        r.generations[0].generation.sampling.num_logprobs =
                            kMaxLogprobs + 1;
                      }),
       kInvalid, "sampling"},
      {"too many biases", empty,
       With<Accepted>(Request(1),
                      [](auto& r) {
                        r.generations[0].generation.sampling.logit_bias.resize(
                            kMaxLogitBias + 1);
                      }),
       kInvalid, "sampling"},
      {"accepted twice", two, Request(3), StatusCode::kAlreadyExists,
       "request id 3"},
      {"the id of a choice", two, Request(2), StatusCode::kAlreadyExists,
       "ids below 4 are used"},
      {"the id of one that is forgotten", After(SampleHistory()), Request(1),
       StatusCode::kAlreadyExists, "request id 1"},
      {"the end of nobody", two, Ended{RequestId{9}}, StatusCode::kNotFound,
       "request 9"},
      {"a second end", Before<EpochProposed>(), Ended{RequestId{1}},
       kImpossible, "request 1 ends again"},
      {"a long reason", two,
       Ended{RequestId{1}, FinishReason::kStop,
             std::string(kMaxStopReasonBytes + 1, 'r')},
       kInvalid, "4097 bytes"},
      {"an end of no kind", two,
       Ended{RequestId{1}, static_cast<FinishReason>(4)}, kInvalid,
       "finish reason 4"},
      {"nobody is forgotten", two, Forgotten{RequestId{9}},
       StatusCode::kNotFound, "id 9"},
      {"forgotten by its second id", Before<Forgotten>(),
       Forgotten{RequestId{2}}, StatusCode::kNotFound, "id 2"},
      {"forgotten while it runs", two, Forgotten{RequestId{3}}, kImpossible,
       "before it has ended"},
      {"forgotten while a choice runs", Before<EpochProposed>(),
       Forgotten{RequestId{1}}, kImpossible, "before it has ended"},
  };
}

std::vector<Refusal> RefusedTokens() {
  // 1 and 3 have six and three tokens, 2 has five; step 8 was the last.
  const JournalState two = Before<Ended>();
  const JournalState fresh = After({TermBegun{Term{1}}, Request(1)});
  return {
      {"step 0", fresh, Token(0, 1, 4), kInvalid, "step 0"},
      {"an earlier step", two, Token(7, 1, 6), kImpossible,
       "step 7 after step 8"},
      {"nobody's token", two, Token(9, 9, 4), StatusCode::kNotFound,
       "request 9"},
      {"a gap", two, Token(9, 1, 7), kImpossible,
       "token 7 of request 1 in place of token 6"},
      {"a token again", two, Token(9, 1, 5), kImpossible, "token 5"},
      {"of the prompt", fresh, Token(1, 1, 3), kImpossible, "token 3"},
      {"position 0", fresh, Token(1, 1, 0), kInvalid, "request 1"},
      {"beyond all positions", fresh, Token(1, 1, (1u << 24) + 1), kInvalid,
       "request 1"},
      {"of one that has ended", Before<EpochProposed>(), Token(9, 1, 6),
       kImpossible, "request 1, which has ended"},
      {"good ones before a bad one", two,
       StepTokens{StepId{9},
                  {{RequestId{3}, {0, 3, 7, 0, {}}, {}},
                   {RequestId{3}, {0, 4, 7, -1, {{1, -1}}}, {}},
                   {RequestId{1}, {0, 9, 7, 0, {}}, {}}}},
       kImpossible, "token 9"},
      {"good ones with their prompt before a bad one", fresh,
       StepTokens{StepId{9},
                  {{RequestId{1}, {0, 4, 7, 0, {}}, {{0, 1, 5, -1, {{5, -1}}}}},
                   {RequestId{1}, {0, 5, 7, 0, {}}, {}},
                   {RequestId{1}, {0, 5, 7, 0, {}}, {}}}},
       kImpossible, "token 5"},
      {"too many likely tokens", fresh,
       With<StepTokens>(
           Token(1, 1, 4),
           [](auto& r) { r.tokens[0].token.top.resize(kMaxLogprobs + 1); }),
       kInvalid, "request 1"},
      {"the prompt late", two,
       With<StepTokens>(Token(9, 1, 6),
                        [](auto& r) {
                          r.tokens[0].prompt_logprobs = {{0, 1, 5, -1, {}}};
                        }),
       kImpossible, "after its first token"},
      {"beyond the prompt", fresh,
       With<StepTokens>(Token(1, 1, 4),
                        [](auto& r) {
                          r.tokens[0].prompt_logprobs = {{0, 4, 5, -1, {}}};
                        }),
       kImpossible, "token 4 of the prompt"},
      {"the prompt's first token", fresh,
       With<StepTokens>(Token(1, 1, 4),
                        [](auto& r) {
                          r.tokens[0].prompt_logprobs = {{0, 0, 5, -1, {}}};
                        }),
       kInvalid, "request 1"},
      {"the prompt backwards", fresh,
       With<StepTokens>(Token(1, 1, 4),
                        [](auto& r) {
                          r.tokens[0].prompt_logprobs = {{0, 2, 5, -1, {}},
                                                         {0, 1, 5, -1, {}}};
                        }),
       kImpossible, "token 1 of the prompt of request 1, after token 2"},
  };
}

std::vector<Refusal> RefusedSwitches() {
  const JournalState proposed = Before<SwitchDecided>();  // epoch 3
  const JournalState undone = Before<SwitchDone>();
  const JournalState done = Before<Forgotten>();
  const auto decision = [](void (*change)(SwitchDecided&)) {
    return With<SwitchDecided>(SampleDecision(), change);
  };
  return {
      {"epoch 0 is proposed", JournalState(), EpochProposed{}, kImpossible,
       "epoch 0"},
      {"proposed twice", proposed, EpochProposed{Epoch{3}}, kImpossible,
       "epoch 3 is proposed after epoch 3"},
      {"proposed in a switch", undone, EpochProposed{Epoch{4}}, kImpossible,
       "while switch 3 is not done"},
      {"decided below what was proposed", proposed,
       decision([](auto& r) { r.epoch.value = 2; }), kImpossible,
       "switch 2 is decided after epoch 3"},
      {"decided again", done, SampleDecision(), kImpossible,
       "switch 3 is decided after epoch 3"},
      {"decided in a switch", undone,
       decision([](auto& r) { r.epoch.value = 4; }), kImpossible,
       "while switch 3 is not done"},
      {"epoch 0 is decided", proposed,
       decision([](auto& r) { r.epoch.value = 0; }), kInvalid, "epoch 0"},
      {"from where the group is not", proposed,
       decision([](auto& r) { std::swap(r.from, r.to); }), kImpossible,
       "begins at tp_size 2; the layout is 1"},
      {"to where it is", proposed, decision([](auto& r) { r.to = r.from; }),
       kInvalid, "from tp_size 1 to 1"},
      {"without a boundary", proposed,
       decision([](auto& r) { r.boundary.value = 0; }), kInvalid, "boundary"},
      {"with nobody", proposed,
       decision([](auto& r) { r.running[0].request.value = 9; }),
       StatusCode::kNotFound, "request 9"},
      {"with one that has ended", proposed,
       decision([](auto& r) { r.running[0].request.value = 1; }), kImpossible,
       "request 1"},
      {"one request in two slots", proposed, decision([](auto& r) {
         r.running.push_back({RequestId{2}, 5, 1});
       }),
       kImpossible, "request 2 in slot 5"},
      {"two requests in one slot", proposed, decision([](auto& r) {
         r.running.push_back({RequestId{3}, 4, 1});
       }),
       kImpossible, "request 3 in slot 4"},
      {"a slot that cannot be", proposed,
       decision([](auto& r) { r.running[0].slot = 1u << 20; }), kInvalid,
       "running request 2"},
      {"too many waves", proposed,
       decision([](auto& r) { r.plan.waves.resize(kMaxKvWaves + 1); }),
       kInvalid, "65 waves"},
      {"a move from no rank", proposed,
       decision([](auto& r) { r.plan.waves[0][0].src_rank = kMaxRanks; }),
       kInvalid, "from rank 16"},
      {"a move to no rank", proposed,
       decision([](auto& r) { r.plan.waves[0][0].dst_rank = -1; }), kInvalid,
       "to -1"},
      {"a table of another size", proposed,
       decision([](auto& r) { r.plan.tables[0].num_blocks = 3; }), kInvalid,
       "slot 4"},
      {"a table of no rank", proposed,
       decision([](auto& r) { r.plan.tables[0].tables[0].rank = -1; }),
       kInvalid, "slot 4"},
      {"a table of more heads than can be said", proposed,
       decision([](auto& r) { r.plan.tables[0].tables[0].kv_begin = 1 << 16; }),
       kInvalid, "slot 4"},
      {"done without a decision", proposed, SwitchDone{Epoch{3}}, kImpossible,
       "done without having been decided"},
      {"another is done", undone, SwitchDone{Epoch{2}}, kImpossible,
       "switch 2"},
      {"done twice", done, SwitchDone{Epoch{3}}, kImpossible, "switch 3"},
      {"done in a group that is no more",
       [&] {
         JournalState state = undone;
         EXPECT_THAT(state.Apply(GroupBegun{ExpertParallel()}), IsOk());
         return state;
       }(),
       SwitchDone{Epoch{3}}, kImpossible, "switch 3"},
  };
}

std::vector<Refusal> RefusedOperations() {
  const JournalState ended = Before<journal::DrainSet>();  // op-1; op-2 runs
  const journal::OperationBegun begun{{"op-3"}, 1, Epoch{0}};
  JournalState full;
  for (size_t i = 0; i < kMaxOperations; ++i) {
    EXPECT_THAT(full.Apply(journal::OperationBegun{{std::to_string(i)}}),
                IsOk());
  }
  return {
      {"an id of nothing", ended, journal::OperationBegun{}, kInvalid,
       "operation"},
      {"a long id", ended,
       With<journal::OperationBegun>(
           begun, [](auto& r) { r.operation.id.assign(129, 'a'); }),
       kInvalid, "operation"},
      {"a kind of nothing", ended,
       With<journal::OperationBegun>(
           begun,
           [](auto& r) { r.operation.kind = static_cast<OperationKind>(9); }),
       kInvalid, "operation"},
      {"begun twice", ended,
       With<journal::OperationBegun>(begun,
                                     [](auto& r) { r.operation.id = "op-1"; }),
       kImpossible, "begins again"},
      {"too many that run", full, begun, kImpossible, "too many operations"},
      {"an end of nothing", ended, journal::OperationEnded{"op-3"},
       StatusCode::kNotFound, "operation"},
      {"ended twice", ended, journal::OperationEnded{"op-1"}, kImpossible,
       "ends again"},
      {"a status of nothing", ended, journal::OperationEnded{"op-2", {99}},
       kInvalid, "operation"},
  };
}

std::vector<Refusal> RefusedSummaries() {
  return {
      {"a summary in a term", Before<Accepted>(), SampleSummary(), kImpossible,
       "summary"},
      {"ids that are used", After({Request(5)}), SampleSummary(), kImpossible,
       "summary"},
      {"an earlier step", After({Request(1), Token(9, 1, 4)}), SampleSummary(),
       kImpossible, "summary"},
      {"a second summary", After({SampleSummary()}), SampleSummary(),
       kImpossible, "summary"},
      {"decided, not proposed", JournalState(),
       With<Summary>(SampleSummary(), [](auto& r) { r.decided.value = 4; }),
       kInvalid, "summary"},
      {"no layout", JournalState(),
       With<Summary>(SampleSummary(), [](auto& r) { r.layout = Layout{17}; }),
       kInvalid, "summary"},
      {"request 0 is next", JournalState(),
       With<Summary>(SampleSummary(), [](auto& r) { r.next_request = {}; }),
       kInvalid, "summary"},
  };
}

void ExpectRefused(std::vector<Refusal> table) {
  std::set<std::string> names;
  for (Refusal& row : table) {
    SCOPED_TRACE(row.name);
    EXPECT_TRUE(names.insert(row.name).second);
    JournalState state = row.state;
    EXPECT_THAT(state.Apply(row.record),
                StatusIs(row.code, HasSubstr(row.message)));
    EXPECT_EQ(state, row.state);
  }
}

TEST(JournalState, BadTermsAndIncarnationsAreRefused) {
  ExpectRefused(RefusedTermsAndIncarnations());
}
TEST(JournalState, BadRequestsAreRefused) { ExpectRefused(RefusedRequests()); }
TEST(JournalState, BadTokensAreRefused) { ExpectRefused(RefusedTokens()); }
TEST(JournalState, BadSwitchesAreRefused) { ExpectRefused(RefusedSwitches()); }
TEST(JournalState, BadSummariesAreRefused) {
  ExpectRefused(RefusedSummaries());
}

TEST(JournalState, RefusesOperationsThatCannotBe) {
  ExpectRefused(RefusedOperations());
}

TEST(JournalState, TheOldestEndedOperationIsForgottenForANewOne) {
  JournalState state;
  for (size_t i = 0; i < kMaxOperations + 2; ++i) {
    const std::string id = std::to_string(i);
    EXPECT_THAT(state.Apply(journal::OperationBegun{{id}}), IsOk());
    if (i == 0) continue;  // runs on
    EXPECT_THAT(state.Apply(journal::OperationEnded{id}), IsOk());
  }
  EXPECT_EQ(state.operations().size(), kMaxOperations);
  EXPECT_EQ(state.operations()[0].operation.id, "0");
  EXPECT_EQ(state.operations()[1].operation.id, "3");
}

TEST(JournalState, ANewGroupKnowsNoOperationsAndIsNotDrained) {
  JournalState state = After(SampleHistory());
  EXPECT_TRUE(state.draining());
  EXPECT_EQ(state.operations().size(), 2u);
  EXPECT_THAT(state.Apply(GroupBegun{ExpertParallel()}), IsOk());
  EXPECT_FALSE(state.draining());
  EXPECT_TRUE(state.operations().empty());
}

TEST(JournalState, HoldsWhatTheHistorySays) {
  JournalState state = Before<SwitchDone>();
  EXPECT_EQ(state.term(), Term{4});
  EXPECT_EQ(state.incarnation(1), Incarnation{2});
  EXPECT_EQ(state.incarnation(7), Incarnation{0});
  EXPECT_EQ(state.proposed(), Epoch{3});
  EXPECT_EQ(state.decided(), Epoch{3});
  EXPECT_EQ(state.layout(), ExpertParallel());
  EXPECT_EQ(state.choice(), LayoutChoice::kAuto);
  EXPECT_EQ(state.last_step(), StepId{8});
  EXPECT_EQ(state.next_request(), RequestId{4});
  ASSERT_TRUE(state.undone().has_value());
  EXPECT_EQ(state.undone()->plan, SampleDecision().plan);
  // Request 2 has ended since.
  EXPECT_THAT(state.undone()->running, IsEmpty());

  EXPECT_EQ(state.Find(RequestId{0}), nullptr);
  EXPECT_EQ(state.Find(RequestId{4}), nullptr);
  const JournalChoice* first = state.Find(RequestId{1});
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->generation, SampleGeneration());
  ASSERT_EQ(first->tokens.size(), 2);
  EXPECT_EQ(first->TokenAt(0),
            (SampledToken{0, 4, 17, -0.5f, {{17, -0.5f}, {3, -1.25f}}}));
  EXPECT_EQ(first->TokenAt(1), (SampledToken{0, 5, 19, 0.0f, {}}));
  // Nobody has asked for those.
  EXPECT_THAT(state.Find(RequestId{3})->logprobs, IsEmpty());
  EXPECT_THAT(state.Find(RequestId{3})->top, IsEmpty());
  EXPECT_EQ(first->prompt_logprobs.size(), 2);
  ASSERT_TRUE(first->finish.has_value());
  EXPECT_EQ(first->finish->stop_reason, "\n\n");
  const JournalRequest& request = state.requests().at(RequestId{1});
  EXPECT_EQ(request.context.size(), 7);
  EXPECT_EQ(request.num_unfinished, 0);
  EXPECT_EQ(request.ended_unix_ms(), 1700000000300);
  EXPECT_EQ(state.requests().at(RequestId{3}).num_unfinished, 1);

  ASSERT_THAT(state.Apply(SwitchDone{Epoch{3}}), IsOk());
  EXPECT_FALSE(state.undone().has_value());
  EXPECT_EQ(state.layout(), TensorParallel(2));
}

TEST(JournalState, ANewGroupHasNoWorkersAndNoSwitch) {
  JournalState state = Before<SwitchDone>();
  ASSERT_THAT(state.Apply(GroupBegun{TensorParallel(4)}), IsOk());
  EXPECT_FALSE(state.undone().has_value());
  EXPECT_EQ(state.layout(), TensorParallel(4));
  EXPECT_THAT(state.Apply(WorkerJoined{1, Incarnation{1}}), IsOk());
  // Epochs are used up all the same.
  EXPECT_THAT(state.Apply(EpochProposed{Epoch{3}}), StatusIs(kImpossible));
  EXPECT_THAT(state.Apply(EpochProposed{Epoch{4}}), IsOk());
}

TEST(JournalState, StepsMayComeInPieces) {
  const std::vector<AddedToken> tokens = {
      {RequestId{1}, {0, 4, 7, 0, {}}, {{0, 1, 5, -1, {}}}},
      {RequestId{2}, {0, 4, 8, 0, {}}, {}}};
  JournalState whole = After({Request(1, 2)}), parts = whole;
  EXPECT_THAT(whole.Apply(StepTokens{StepId{3}, tokens}), IsOk());
  EXPECT_THAT(parts.Apply(StepTokens{StepId{3}, {tokens[0]}}), IsOk());
  EXPECT_THAT(parts.Apply(StepTokens{StepId{3}, {tokens[1]}}), IsOk());
  EXPECT_EQ(whole, parts);
}

JournalState Replay(const std::vector<Record>& records) {
  return After(records);
}

TEST(JournalState, SnapshotSaysTheSameAtEveryPoint) {
  JournalState state;
  EXPECT_EQ(Replay(state.Snapshot()), state);
  for (const Record& record : SampleHistory()) {
    ASSERT_THAT(state.Apply(record), IsOk());
    EXPECT_EQ(Replay(state.Snapshot()), state) << record.index();
  }
}

TEST(JournalState, SnapshotOfRandomHistoriesSaysTheSame) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    RandomHistory history(seed);
    JournalState state;
    for (int i = 0; i < 200; ++i) {
      ASSERT_THAT(state.Apply(history.Next(state)), IsOk());
      if (i % 7 == 0) {
        ASSERT_EQ(Replay(state.Snapshot()), state) << "seed " << seed;
      }
    }
  }
}

TEST(JournalState, LargeSnapshotsAreSeveralRecords) {
  JournalState state = After({Request(1)});
  for (uint32_t i = 0; i < 200; ++i) {
    StepTokens step{StepId{i + 1}, {}};
    for (uint32_t k = 0; k < 1000; ++k) {
      step.tokens.push_back(
          {RequestId{1}, {0, 4 + i * 1000 + k, 7, 0, {}}, {}});
    }
    ASSERT_THAT(state.Apply(step), IsOk());
  }
  const std::vector<Record> snapshot = state.Snapshot();
  EXPECT_GT(snapshot.size(), 3);
  EXPECT_LT(snapshot.size(), 8);
  EXPECT_EQ(Replay(snapshot), state);
}

TEST(JournalState, SizeFollowsWhatIsKept) {
  JournalState state = After({Request(1), Request(2)});
  for (uint32_t i = 0; i < 1000; ++i) {
    StepTokens step = Token(i + 1, 1, 4 + i);
    step.tokens.push_back(Token(i + 1, 2, 4 + i).tokens[0]);
    step.tokens[1].token.top.resize(10, {5, -1.0f});
    ASSERT_THAT(state.Apply(step), IsOk());
  }
  const auto& requests = state.requests();
  EXPECT_EQ(requests.at(RequestId{1}).size_bytes, 0);
  ASSERT_THAT(state.Apply(Ended{RequestId{1}}), IsOk());
  ASSERT_THAT(state.Apply(Ended{RequestId{2}}), IsOk());
  EXPECT_GT(requests.at(RequestId{1}).size_bytes, 4000);
  EXPECT_LT(requests.at(RequestId{1}).size_bytes, 6000);
  EXPECT_GT(requests.at(RequestId{2}).size_bytes, 80000);
}

// Ended requests 1, 3, 5 at 100, 90 and 120; 7 runs on.
JournalState SomeEnded() {
  JournalState state =
      After({Request(1, 2), Request(3), Request(5), Request(7)});
  const std::vector<std::pair<uint64_t, int64_t>> ends = {
      {1, 80}, {2, 100}, {3, 90}, {5, 120}};
  for (const auto& [id, unix_ms] : ends) {
    EXPECT_THAT(
        state.Apply(Ended{RequestId{id}, FinishReason::kStop, "", unix_ms}),
        IsOk());
  }
  return state;
}

TEST(JournalState, NothingIsForgottenWithinTheBounds) {
  EXPECT_THAT(SomeEnded().ForgetEndedBefore(90, 3, 1 << 20), IsEmpty());
  EXPECT_THAT(JournalState().ForgetEndedBefore(0, 0, 0), IsEmpty());
}

TEST(JournalState, OldResultsAreForgottenByTheirLastChoice) {
  EXPECT_THAT(SomeEnded().ForgetEndedBefore(100, 9, 1 << 20),
              ElementsAre(RequestId{3}));
  EXPECT_THAT(SomeEnded().ForgetEndedBefore(101, 9, 1 << 20),
              ElementsAre(RequestId{3}, RequestId{1}));
}

TEST(JournalState, TheOldestAreForgottenWhenThereAreTooMany) {
  EXPECT_THAT(SomeEnded().ForgetEndedBefore(0, 2, 1 << 20),
              ElementsAre(RequestId{3}));
  EXPECT_THAT(SomeEnded().ForgetEndedBefore(0, 0, 1 << 20),
              ElementsAre(RequestId{3}, RequestId{1}, RequestId{5}));
}

TEST(JournalState, TheOldestAreForgottenWhenTheyAreTooLarge) {
  const JournalState state = SomeEnded();
  const uint64_t last = state.requests().at(RequestId{5}).size_bytes;
  EXPECT_THAT(state.ForgetEndedBefore(0, 9, last),
              ElementsAre(RequestId{3}, RequestId{1}));
  EXPECT_THAT(state.ForgetEndedBefore(0, 9, last - 1),
              ElementsAre(RequestId{3}, RequestId{1}, RequestId{5}));
}

TEST(JournalState, WhatIsToBeForgottenCanBe) {
  JournalState state = SomeEnded();
  for (RequestId id : state.ForgetEndedBefore(1000, 0, 0)) {
    EXPECT_THAT(state.Apply(Forgotten{id}), IsOk());
  }
  EXPECT_EQ(state.requests().size(), 1);
  EXPECT_EQ(state.next_request(), RequestId{8});
}

}  // namespace
}  // namespace moebius
