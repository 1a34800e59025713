// From a plan to a result on rank 0 of two: a real table and real boards, a
// forward pass and a barrier that do as they are told.
#include "worker/steps/step_executor.h"

#include <limits>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kRanks = 2;
constexpr uint32_t kSlots = 4, kPages = 100;
constexpr int32_t kVocabulary = 10;
constexpr TokenBoard::Capacity kCapacity{kSlots, 16};
const AttentionShape kAttention{kRanks, 4, 2};

// The token behind another is likeliest to be the next number.
int32_t After(int32_t token) { return (token + 1) % kVocabulary; }
std::vector<float> LogitsAfter(int32_t token) {
  std::vector<float> logits(kVocabulary);
  for (int32_t v = 0; v < kVocabulary; ++v) logits[v] = 0.1f * v;
  logits[After(token)] = 3.0f;
  return logits;
}

// Keeps what it was given last; fails when told to. Shares the rows of logits
// out as the real one does.
class FakeForward final : public Forward {
 public:
  absl::Status Run(const ForwardBatch& batch, LogitsSink& sink) override {
    ++runs;
    layout = batch.layout;
    tokens.assign(batch.tokens.begin(), batch.tokens.end());
    positions.assign(batch.positions.begin(), batch.positions.end());
    row_sequence.assign(batch.row_sequence.begin(), batch.row_sequence.end());
    rows_of_rank.assign(batch.rows_of_rank.begin(), batch.rows_of_rank.end());
    logit_rows.assign(batch.logit_rows.begin(), batch.logit_rows.end());
    pages.clear();
    for (const SequencePages& sequence : batch.sequences) {
      const int heads = batch.layout.attention.is_ep() ? 2 : 1;
      pages.emplace_back(sequence.pages,
                         sequence.pages + sequence.num_blocks * heads);
    }
    const size_t step = batch.layout.attention.is_ep() ? 1 : kRanks;
    for (size_t j = 0; j < logit_rows.size(); j += step) {
      std::vector<float> logits = LogitsAfter(tokens[logit_rows[j]]);
      if (j < first_logit.size()) logits[0] = first_logit[j];
      sink.OnLogits(j, absl::MakeSpan(logits));
    }
    return status;  // it may fail behind some rows, too
  }

  absl::Status status;
  std::vector<float> first_logit;  // [j] in place of logit 0
  int runs = 0;
  StepLayout layout;
  std::vector<int32_t> tokens;
  std::vector<uint32_t> positions, row_sequence, logit_rows;
  std::vector<int> rows_of_rank;
  std::vector<std::vector<PageId>> pages;
};

class FakeBarrier final : public Barrier {
 public:
  absl::Status Wait() override {
    ++waits;
    return status;
  }
  absl::Status status;
  int waits = 0;
};

StepLayout Ep() {
  return {ExpertParallel(), ExpertsState::At(ExpertParallel(), Side::kLow)};
}
StepLayout Tp() {
  return {TensorParallel(kRanks),
          ExpertsState::At(TensorParallel(kRanks), Side::kLow)};
}

Admission Greedy(uint32_t slot, std::vector<int32_t> tokens) {
  Admission admission;
  admission.slot = slot;
  admission.request = RequestId{slot + 1};
  admission.num_prompt_tokens = static_cast<uint32_t>(tokens.size());
  admission.tokens = std::move(tokens);
  admission.sampling.temperature = 0.0f;
  return admission;
}

// Prompts of slot 0, which is ours in EP, and of slot 1, which is rank 1's.
StepPlan Prefill(const StepLayout& layout) {
  StepPlan plan;
  plan.step = StepId{7};
  plan.layout = layout;
  plan.admissions = {Greedy(0, {1, 2, 3}), Greedy(1, {5, 6})};
  if (layout.attention.is_ep()) {
    plan.page_rows = {{0, 0, 0, {3, 4}}, {1, 0, 1, {3, 4}}};
    plan.items = {{0, 0, 3, 0, true}, {1, 0, 2, 1, true}};
  } else {
    plan.page_rows = {
        {0, 0, 0, {3}}, {0, 0, 1, {3}}, {1, 0, 0, {8}}, {1, 0, 1, {8}}};
    plan.items = {{0, 0, 3, 0, true}, {1, 0, 2, 0, true}};
  }
  return plan;
}

StepPlan Decode(const StepLayout& layout, std::vector<WorkItem> items) {
  StepPlan plan;
  plan.step = StepId{8};
  plan.layout = layout;
  plan.items = std::move(items);
  return plan;
}

class StepExecutorTest : public testing::Test {
 protected:
  // What rank 1 shows from now on.
  void PeerShows(const StepResult& result) {
    TokenBoard(boards_[1].data(), {}, kCapacity).Post(result);
  }
  void PeerDraws(uint32_t slot, uint32_t position, int32_t token) {
    StepResult shown;
    shown.sampled = {{slot, position, token, 0.0f, {}}};
    PeerShows(shown);
  }
  // Both prompts, with the first token of each.
  void ExecutePrefill(const StepLayout& layout) {
    PeerDraws(1, 2, After(6));
    ASSERT_THAT(executor_.Execute(Prefill(layout)), IsOk());
    PeerShows({});
  }
  const std::vector<int32_t>& TokensOf(uint32_t slot) const {
    return table_.Find(slot)->tokens;
  }

  std::vector<std::vector<std::byte>> boards_{
      kRanks, std::vector<std::byte>(TokenBoard::SizeBytes(kCapacity))};
  SequenceTable table_{0, kSlots, kPages, kVocabulary};
  FakeForward forward_;
  FakeBarrier barrier_;
  TokenBoard board_{
      boards_[0].data(), {boards_[0].data(), boards_[1].data()}, kCapacity};
  StepExecutor executor_{StepContext{.rank = 0,
                                     .num_ranks = kRanks,
                                     .attention = kAttention,
                                     .sequences = &table_,
                                     .forward = &forward_,
                                     .board = &board_,
                                     .barrier = &barrier_}};
};

TEST_F(StepExecutorTest, WorkThatCannotBeIsInvalidAndComputesNothing) {
  ExecutePrefill(Ep());
  const struct {
    WorkItem item;
    const char* why;
  } rows[] = {
      {{0, 3, 1, 2, true}, "owner 2"},
      {{0, 3, 2, 0, true}, "work up to token 5 but only 4 are known"},
      // What the others compute must hold together here as well.
      {{1, 3, 1, 1, true}, "work up to token 4 but only 3 are known"},
      {{2, 0, 1, 0, false}, "not here"},
      {{1, 2, 1, 0, true}, "0 blocks"},  // its pages are rank 1's
  };
  for (const auto& [item, why] : rows) {
    EXPECT_THAT(executor_.Execute(Decode(Ep(), {item})),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(why)));
  }
  StepPlan plan = Decode(Ep(), {});
  plan.released = {kSlots};
  EXPECT_THAT(executor_.Execute(plan), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_EQ(forward_.runs, 1);
  EXPECT_EQ(barrier_.waits, 1);
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7));
}

// The rows before the error have been drawn by then.
TEST_F(StepExecutorTest, AFailedForwardPassComesThroughAndAppendsNothing) {
  ExecutePrefill(Ep());
  const StepPlan plan = Decode(Ep(), {{0, 3, 1, 0, true}});
  forward_.status = absl::DataLossError("impossible numbers");
  EXPECT_THAT(executor_.Execute(plan),
              StatusIs(StatusCode::kDataLoss, "impossible numbers"));
  EXPECT_EQ(barrier_.waits, 1);  // nothing is shown to anybody
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
  forward_.status = absl::OkStatus();
  const auto again = executor_.Execute(plan);
  ASSERT_THAT(again, IsOk());
  EXPECT_THAT(again->sampled, ElementsAre(SampledToken{0, 4, 5, 0.0f, {}}));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4, 5));
}

TEST_F(StepExecutorTest, AFailedBarrierComesThroughAndAppendsNothing) {
  ExecutePrefill(Ep());
  PeerDraws(1, 3, 8);
  const StepPlan plan = Decode(Ep(), {{0, 3, 1, 0, true}, {1, 2, 1, 1, true}});
  barrier_.status = absl::DeadlineExceededError("rank 1 did not come");
  EXPECT_THAT(executor_.Execute(plan),
              StatusIs(StatusCode::kDeadlineExceeded, "rank 1 did not come"));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7));
  barrier_.status = absl::OkStatus();
  ASSERT_THAT(executor_.Execute(plan), IsOk());
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7, 8));
}

TEST_F(StepExecutorTest, ABoardThatIsNoneIsDataLossAndAppendsNothing) {
  ExecutePrefill(Ep());
  boards_[1].assign(boards_[1].size(), std::byte{0xff});
  EXPECT_THAT(executor_.Execute(Decode(Ep(), {{0, 3, 1, 0, true}})),
              StatusIs(StatusCode::kDataLoss, HasSubstr("rank 1")));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
}

TEST_F(StepExecutorTest, APeersTokenThatCannotFollowIsInvalid) {
  ExecutePrefill(Ep());
  for (const auto& [position, token] :
       {std::pair{4u, 8}, {2u, 8}, {3u, kVocabulary}, {3u, -1}}) {
    PeerDraws(1, position, token);
    EXPECT_THAT(executor_.Execute(Decode(Ep(), {{1, 2, 1, 1, true}})),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("slot 1")));
    EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7));
  }
}

TEST_F(StepExecutorTest, RefusedSequencesArePassedOverAndReported) {
  StepPlan plan = Prefill(Tp());
  plan.admissions[0].tokens[1] = kVocabulary;
  const auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  const std::string why =
      "token 10 at position 1; the model has the ids 0 to 9";
  EXPECT_THAT(result->refused, ElementsAre(RefusedSequence{0, why}));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{1, 2, 7, 0.0f, {}}));
  EXPECT_THAT(forward_.tokens, ElementsAre(5, 6));
  EXPECT_THAT(forward_.pages, ElementsAre(ElementsAre(8)));
  EXPECT_THAT(forward_.rows_of_rank, ElementsAre(2, 0));
}

TEST_F(StepExecutorTest, ARefusedSequenceOfAnotherRankIsReportedByAll) {
  StepPlan plan = Prefill(Ep());
  plan.admissions[1].sampling.num_logprobs = kMaxLogprobs + 1;
  const auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  ASSERT_EQ(result->refused.size(), 1u);
  EXPECT_EQ(result->refused[0].slot, 1u);
  EXPECT_THAT(result->refused[0].reason, HasSubstr("21 log-probabilities"));
  EXPECT_THAT(forward_.rows_of_rank, ElementsAre(3, 0));
}

// The board of the step before may still be read.
TEST_F(StepExecutorTest, WithAllRefusedABarrierStandsForTheForwardPass) {
  StepPlan plan = Prefill(Ep());
  for (Admission& admission : plan.admissions) admission.tokens[0] = -1;
  const auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->refused.size(), 2u);
  EXPECT_THAT(result->sampled, IsEmpty());
  EXPECT_EQ(forward_.runs, 0);
  EXPECT_EQ(barrier_.waits, 2);
  barrier_.status = absl::AbortedError("given up");
  EXPECT_THAT(executor_.Execute(plan), StatusIs(StatusCode::kAborted));
  EXPECT_EQ(barrier_.waits, 3);
}

TEST_F(StepExecutorTest, RowsWithNumbersThatAreNotFiniteAreCounted) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  StepPlan plan = Prefill(Ep());
  plan.admissions[0].sampling.num_prompt_logprobs = 0;
  forward_.first_logit = {nan, 0.0f, -infinity};
  auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->nonfinite_rows, 2u);
  EXPECT_EQ(result->nonfinite_slot, 0u);
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{0, 3, 4, 0.0f, {}}));
  // The others' count as well.
  StepResult shown;
  shown.nonfinite_rows = 1;
  shown.nonfinite_slot = 1;
  PeerShows(shown);
  result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->nonfinite_rows, 3u);
  EXPECT_EQ(result->nonfinite_slot, 1u);
  // And are not carried over to the next step.
  forward_.first_logit.clear();
  PeerShows({});
  result = executor_.Execute(Decode(Ep(), {{0, 3, 1, 0, true}}));
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->nonfinite_rows, 0u);
}

TEST_F(StepExecutorTest, InEpTheBatchIsOurOwnRowsBesideTheNumbersOfAll) {
  StepPlan plan = Prefill(Ep());
  plan.admissions.push_back(Greedy(2, {9, 8}));
  plan.page_rows.push_back({2, 0, 0, {5, 6}});
  plan.items.push_back({2, 0, 1, 0, false});  // the first part of its prompt
  const auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->step, StepId{7});
  EXPECT_EQ(forward_.layout, Ep());
  EXPECT_THAT(forward_.tokens, ElementsAre(1, 2, 3, 9));
  EXPECT_THAT(forward_.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(forward_.row_sequence, ElementsAre(0, 0, 0, 1));
  EXPECT_THAT(forward_.pages,
              ElementsAre(ElementsAre(3, 4), ElementsAre(5, 6)));
  EXPECT_THAT(forward_.rows_of_rank, ElementsAre(4, 2));
  EXPECT_THAT(forward_.logit_rows, ElementsAre(2));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{0, 3, 4, 0.0f, {}}));
}

TEST_F(StepExecutorTest, InEpARankWithoutRowsTakesPart) {
  ExecutePrefill(Ep());
  PeerDraws(1, 3, 8);
  const auto result = executor_.Execute(Decode(Ep(), {{1, 2, 1, 1, true}}));
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(forward_.runs, 2);
  EXPECT_THAT(forward_.tokens, IsEmpty());
  EXPECT_THAT(forward_.rows_of_rank, ElementsAre(0, 1));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{1, 3, 8, 0.0f, {}}));
}

TEST_F(StepExecutorTest, InTpTheBatchIsAllRows) {
  PeerDraws(1, 2, 7);  // the ranks take turns with the rows of logits
  const auto result = executor_.Execute(Prefill(Tp()));
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(forward_.layout, Tp());
  EXPECT_THAT(forward_.tokens, ElementsAre(1, 2, 3, 5, 6));
  EXPECT_THAT(forward_.positions, ElementsAre(0, 1, 2, 0, 1));
  EXPECT_THAT(forward_.row_sequence, ElementsAre(0, 0, 0, 1, 1));
  EXPECT_THAT(forward_.pages, ElementsAre(ElementsAre(3), ElementsAre(8)));
  EXPECT_THAT(forward_.logit_rows, ElementsAre(2, 4));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{0, 3, 4, 0.0f, {}},
                                           SampledToken{1, 2, 7, 0.0f, {}}));
}

// In TP whichever rank drew it: the plan names no token.
TEST_F(StepExecutorTest, ADecodeItemTakesTheTokenSampledEarlier) {
  ExecutePrefill(Tp());
  PeerDraws(1, 3, After(7));
  const auto result =
      executor_.Execute(Decode(Tp(), {{0, 3, 1, 0, true}, {1, 2, 1, 0, true}}));
  ASSERT_THAT(result, IsOk());
  EXPECT_THAT(forward_.tokens, ElementsAre(4, 7));
  EXPECT_THAT(forward_.positions, ElementsAre(3, 2));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7, 8));
}

TEST_F(StepExecutorTest, ASampledTokenHasTheLogprobsAskedFor) {
  StepPlan plan = Prefill(Ep());
  plan.admissions[0].sampling.num_logprobs = 2;
  const auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  const Logprobs expected = ComputeLogprobs(LogitsAfter(3), 4, 2);
  const std::vector<TokenLogprob> top = {
      {expected.top[0].token, expected.top[0].logprob},
      {expected.top[1].token, expected.top[1].logprob}};
  EXPECT_THAT(result->sampled,
              ElementsAre(SampledToken{0, 3, 4, expected.logprob, top}));
  EXPECT_THAT(result->prompt_logprobs, IsEmpty());
}

// Of every token but the first, which follows nothing; and in order, though
// every other row is another rank's.
TEST_F(StepExecutorTest, APromptHasTheLogprobsAskedFor) {
  StepPlan plan = Prefill(Tp());
  plan.admissions[0] = Greedy(0, {1, 2, 9, 0});
  plan.items[0].num_tokens = 4;
  for (Admission& admission : plan.admissions) {
    admission.sampling.num_prompt_logprobs = 1;
  }
  StepResult shown;
  shown.prompt_logprobs = {{0, 2, 9, -1.5f, {{3, -0.5f}}, 4}};
  shown.sampled = {{0, 4, 1, 0.0f, {}}, {1, 2, 7, 0.0f, {}}};
  PeerShows(shown);
  const auto result = executor_.Execute(plan);
  ASSERT_THAT(result, IsOk());
  // The last row of each prompt is for the token behind it.
  EXPECT_THAT(forward_.logit_rows, ElementsAre(0, 1, 2, 3, 4, 5));
  const auto likeliest = [](uint32_t slot, uint32_t position, int32_t before) {
    const int32_t token = After(before);
    const float logprob =
        ComputeLogprobs(LogitsAfter(before), token, 1).logprob;
    return PromptLogprob{slot, position, token, logprob, {{token, logprob}}, 1};
  };
  EXPECT_THAT(result->prompt_logprobs,
              ElementsAre(likeliest(0, 1, 1), shown.prompt_logprobs[0],
                          likeliest(0, 3, 9), likeliest(1, 1, 5)));
  EXPECT_EQ(result->sampled, shown.sampled);
}

TEST_F(StepExecutorTest, AStepExecutedAgainGivesTheSame) {
  StepPlan plan = Prefill(Ep());
  plan.admissions[0].sampling.temperature = 1.0f;
  plan.admissions[0].sampling.seed = 5;
  plan.admissions[0].sampling.num_logprobs = 1;
  plan.admissions[0].sampling.frequency_penalty = 0.5f;  // needs the history
  PeerDraws(1, 2, 7);
  ASSERT_THAT(executor_.Execute(plan), IsOk());
  PeerDraws(1, 3, 8);
  const StepPlan next = Decode(Ep(), {{0, 3, 1, 0, true}, {1, 2, 1, 1, true}});
  const auto first = executor_.Execute(next);
  ASSERT_THAT(first, IsOk());
  const Sequence before = *table_.Find(0);
  const auto again = executor_.Execute(next);
  ASSERT_THAT(again, IsOk());
  EXPECT_EQ(again->sampled, first->sampled);
  EXPECT_EQ(TokensOf(0), before.tokens);
  EXPECT_EQ(table_.Find(0)->history.entries().size(),
            before.history.entries().size());
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7, 8));
}

}  // namespace
}  // namespace moebius
