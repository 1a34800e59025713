// From a plan to a result on rank 0 of two: real tables and boards, a forward
// pass and a barrier that do as they are told.
#include "worker/steps/step_executor.h"

#include <limits>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "worker/steps/sequence_table.h"

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
class FakeForward {
 public:
  absl::Status Run(const Pass<Cpu>& pass) {
    ++runs;
    layout = pass.layout;
    tokens.assign(pass.tokens, pass.tokens + pass.rows.size);
    positions.assign(pass.rows.positions.begin(), pass.rows.positions.end());
    rows_of_group.assign(pass.rows_of_group.begin(), pass.rows_of_group.end());
    wanted_of_group.assign(pass.wanted_of_group.begin(),
                           pass.wanted_of_group.end());
    logit_rows.assign(pass.wanted_rows, pass.wanted_rows + pass.wanted.size);
    row_sequence.clear();
    pages.clear();
    for (const QueryChunk& chunk : pass.rows.chunks) {
      row_sequence.insert(row_sequence.end(), chunk.num_rows,
                          static_cast<uint32_t>(pages.size()));
      pages.emplace_back(chunk.pages.begin(), chunk.pages.end());
    }
    const Layout attention = pass.layout.attention;
    for (int j = attention.part_of(rank); j < pass.wanted.size;
         j += attention.tp_size) {
      std::vector<float> logits = LogitsAfter(tokens[logit_rows[j]]);
      if (j < static_cast<int>(first_logit.size())) logits[0] = first_logit[j];
      Sample(Cpu{}, {logits.data(), 1, kVocabulary, kVocabulary},
             pass.samples.Each(j, 1, 1));
    }
    return status;  // it may fail behind some rows, too
  }

  Rank rank = 0;
  absl::Status status;
  std::vector<float> first_logit;  // [j] in place of logit 0
  int runs = 0;
  StepLayout layout;
  std::vector<int32_t> tokens, positions, logit_rows;
  std::vector<uint32_t> row_sequence;  // number of its chunk
  std::vector<int> rows_of_group, wanted_of_group;
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
  absl::StatusOr<StepResult> Execute(StepPlan plan) {
    plan.step = next_step_;
    next_step_ = next_step_.next();
    absl::StatusOr<Batch> batch = table_.Apply(plan);
    EXPECT_THAT(batch, IsOk());
    return executor_.Run(*std::move(batch));
  }
  // Both prompts, with the first token of each.
  void ExecutePrefill(const StepLayout& layout) {
    PeerDraws(1, 2, After(6));
    ASSERT_THAT(Execute(Prefill(layout)), IsOk());
    PeerShows({});
  }
  const std::vector<int32_t>& TokensOf(uint32_t slot) const {
    return slots_.At(slot).tokens;
  }

  std::vector<std::vector<std::byte>> boards_{
      kRanks, std::vector<std::byte>(TokenBoard::SizeBytes(kCapacity))};
  DeviceSlots slots_{0, kSlots, kVocabulary};
  SequenceTable table_{
      {0, kRanks, kAttention, kSlots, 16, kPages, 64, kVocabulary}, &slots_};
  StepId next_step_{7};
  FakeForward forward_;
  FakeBarrier barrier_;
  TokenBoard board_{
      boards_[0].data(), {boards_[0].data(), boards_[1].data()}, kCapacity};
  StepExecutor executor_{StepContext{
      .rank = 0,
      .num_ranks = kRanks,
      .slots = &slots_,
      .forward = [this](const Pass<Cpu>& pass) { return forward_.Run(pass); },
      .board = &board_,
      .barrier = &barrier_}};
};

// The rows before the error have been drawn by then.
TEST_F(StepExecutorTest, AFailedForwardPassComesThroughAndAppendsNothing) {
  ExecutePrefill(Ep());
  const StepPlan plan = Decode(Ep(), {{0, 3, 1, 0, true}});
  forward_.status = absl::DataLossError("impossible numbers");
  EXPECT_THAT(Execute(plan),
              StatusIs(StatusCode::kDataLoss, "impossible numbers"));
  EXPECT_EQ(barrier_.waits, 1);  // nothing is shown to anybody
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
}

// Such as one that was dropped and comes back.
TEST_F(StepExecutorTest, ABatchThatDoesNotFollowIsAnErrorAndComputesNothing) {
  ExecutePrefill(Ep());
  auto batch = table_.Apply(Decode(Ep(), {{0, 3, 1, 0, true}}));
  ASSERT_THAT(batch, IsOk());
  const int before = forward_.runs;
  slots_.Reset();
  EXPECT_THAT(executor_.Run(*std::move(batch)),
              StatusIs(StatusCode::kInternal, HasSubstr("does not follow")));
  EXPECT_EQ(forward_.runs, before);
}

TEST_F(StepExecutorTest, AFailedBarrierComesThroughAndAppendsNothing) {
  ExecutePrefill(Ep());
  PeerDraws(1, 3, 8);
  const StepPlan plan = Decode(Ep(), {{0, 3, 1, 0, true}, {1, 2, 1, 1, true}});
  barrier_.status = absl::DeadlineExceededError("rank 1 did not come");
  EXPECT_THAT(Execute(plan),
              StatusIs(StatusCode::kDeadlineExceeded, "rank 1 did not come"));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7));
}

TEST_F(StepExecutorTest, ABoardThatIsNoneIsDataLossAndAppendsNothing) {
  ExecutePrefill(Ep());
  boards_[1].assign(boards_[1].size(), std::byte{0xff});
  EXPECT_THAT(Execute(Decode(Ep(), {{0, 3, 1, 0, true}})),
              StatusIs(StatusCode::kDataLoss, HasSubstr("rank 1")));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4));
}

TEST_F(StepExecutorTest, APeersTokenThatCannotFollowIsInvalid) {
  ExecutePrefill(Ep());
  for (const auto& [position, token] :
       {std::pair{4u, 8}, {2u, 8}, {3u, kVocabulary}, {3u, -1}}) {
    PeerDraws(1, position, token);
    EXPECT_THAT(Execute(Decode(Ep(), {{1, 2, 1, 1, true}})),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("slot 1")));
    EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7));
  }
}

TEST_F(StepExecutorTest, RefusedSequencesArePassedOverAndReported) {
  StepPlan plan = Prefill(Tp());
  plan.admissions[0].tokens[1] = kVocabulary;
  const auto result = Execute(plan);
  ASSERT_THAT(result, IsOk());
  const std::string why =
      "token 10 at position 1; the model has the ids 0 to 9";
  EXPECT_THAT(result->refused, ElementsAre(RefusedSequence{0, why}));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{1, 2, 7, 0.0f, {}}));
  EXPECT_THAT(forward_.tokens, ElementsAre(5, 6));
  EXPECT_THAT(forward_.pages, ElementsAre(ElementsAre(8)));
  EXPECT_THAT(forward_.rows_of_group, ElementsAre(2));
}

TEST_F(StepExecutorTest, ARefusedSequenceOfAnotherRankIsReportedByAll) {
  StepPlan plan = Prefill(Ep());
  plan.admissions[1].sampling.num_logprobs = kMaxLogprobs + 1;
  const auto result = Execute(plan);
  ASSERT_THAT(result, IsOk());
  ASSERT_EQ(result->refused.size(), 1u);
  EXPECT_EQ(result->refused[0].slot, 1u);
  EXPECT_THAT(result->refused[0].reason, HasSubstr("21 log-probabilities"));
  EXPECT_THAT(forward_.rows_of_group, ElementsAre(3, 0));
}

// The board of the step before may still be read.
TEST_F(StepExecutorTest, WithAllRefusedABarrierStandsForTheForwardPass) {
  StepPlan plan = Prefill(Ep());
  for (Admission& admission : plan.admissions) admission.tokens[0] = -1;
  const auto result = Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->refused.size(), 2u);
  EXPECT_THAT(result->sampled, IsEmpty());
  EXPECT_EQ(forward_.runs, 0);
  EXPECT_EQ(barrier_.waits, 2);
  barrier_.status = absl::AbortedError("given up");
  EXPECT_THAT(Execute(plan), StatusIs(StatusCode::kAborted));
  EXPECT_EQ(barrier_.waits, 3);
}

TEST_F(StepExecutorTest, RowsWithNumbersThatAreNotFiniteAreCounted) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  StepPlan plan = Prefill(Ep());
  plan.admissions[0].sampling.num_prompt_logprobs = 0;
  forward_.first_logit = {nan, 0.0f, -infinity};
  auto result = Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->nonfinite_rows, 2u);
  EXPECT_EQ(result->nonfinite_slot, 0u);
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{0, 3, 4, 0.0f, {}}));
  // The others' count as well.
  StepResult shown;
  shown.nonfinite_rows = 1;
  shown.nonfinite_slot = 1;
  PeerShows(shown);
  result = Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->nonfinite_rows, 3u);
  EXPECT_EQ(result->nonfinite_slot, 1u);
  // And are not carried over to the next step.
  forward_.first_logit.clear();
  PeerShows({});
  result = Execute(Decode(Ep(), {{0, 3, 1, 0, true}}));
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->nonfinite_rows, 0u);
}

TEST_F(StepExecutorTest, InEpTheBatchIsOurOwnRowsBesideTheNumbersOfAll) {
  StepPlan plan = Prefill(Ep());
  plan.admissions.push_back(Greedy(2, {9, 8}));
  plan.page_rows.push_back({2, 0, 0, {5, 6}});
  plan.items.push_back({2, 0, 1, 0, false});  // the first part of its prompt
  const auto result = Execute(plan);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->step, StepId{7});
  EXPECT_EQ(forward_.layout, Ep());
  EXPECT_THAT(forward_.tokens, ElementsAre(1, 2, 3, 9));
  EXPECT_THAT(forward_.positions, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(forward_.row_sequence, ElementsAre(0, 0, 0, 1));
  EXPECT_THAT(forward_.pages,
              ElementsAre(ElementsAre(3, 4), ElementsAre(5, 6)));
  EXPECT_THAT(forward_.rows_of_group, ElementsAre(4, 2));
  EXPECT_THAT(forward_.wanted_of_group, ElementsAre(1, 1));
  EXPECT_THAT(forward_.logit_rows, ElementsAre(2));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{0, 3, 4, 0.0f, {}}));
}

TEST_F(StepExecutorTest, InEpARankWithoutRowsTakesPart) {
  ExecutePrefill(Ep());
  PeerDraws(1, 3, 8);
  const auto result = Execute(Decode(Ep(), {{1, 2, 1, 1, true}}));
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(forward_.runs, 2);
  EXPECT_THAT(forward_.tokens, IsEmpty());
  EXPECT_THAT(forward_.rows_of_group, ElementsAre(0, 1));
  EXPECT_THAT(result->sampled, ElementsAre(SampledToken{1, 3, 8, 0.0f, {}}));
}

TEST_F(StepExecutorTest, InTpTheBatchIsAllRows) {
  PeerDraws(1, 2, 7);  // the ranks take turns with the rows of logits
  const auto result = Execute(Prefill(Tp()));
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

// Rank 3 of 4 is the second one of group 1: of its group's rows it draws every
// second one, and hears of the others.
TEST(StepExecutor, BetweenEpAndTpTheRanksOfAGroupTakeTurns) {
  constexpr int kFour = 4;
  const Layout half{2};
  StepPlan plan;
  plan.step = StepId{1};
  plan.layout = {half, ExpertsState::At(half, Side::kLow)};
  for (uint32_t slot : {0, 1, 2}) {
    plan.admissions.push_back(Greedy(slot, {static_cast<int32_t>(slot), 2}));
    const int group = slot == 1 ? 0 : 1;
    for (const Rank r : {2 * group, 2 * group + 1}) {
      plan.page_rows.push_back({slot, 0, r, {slot}});
    }
    plan.items.push_back({slot, 0, 2, static_cast<uint8_t>(group), true});
  }
  DeviceSlots slots(3, kSlots, kVocabulary);
  SequenceTable table(
      {3, kFour, {kFour, 4, 2}, kSlots, 16, kPages, 64, kVocabulary}, &slots);
  std::vector<std::vector<std::byte>> memory(
      kFour, std::vector<std::byte>(TokenBoard::SizeBytes(kCapacity)));
  std::vector<const std::byte*> boards;
  for (const auto& board : memory) boards.push_back(board.data());
  TokenBoard own(memory[3].data(), boards, kCapacity);
  // What the others draw: slot 0 is the first row of our group.
  for (const auto& [r, slot] : {std::pair{0, 1u}, {2, 0u}}) {
    StepResult shown;
    shown.sampled = {{slot, 2, After(2), 0.0f, {}}};
    TokenBoard(memory[r].data(), {}, kCapacity).Post(shown);
  }
  FakeForward forward;
  forward.rank = 3;
  FakeBarrier barrier;
  StepExecutor executor(StepContext{
      .rank = 3,
      .num_ranks = kFour,
      .slots = &slots,
      .forward = [&](const Pass<Cpu>& pass) { return forward.Run(pass); },
      .board = &own,
      .barrier = &barrier});
  absl::StatusOr<Batch> batch = table.Apply(plan);
  ASSERT_THAT(batch, IsOk());
  const auto result = executor.Run(*std::move(batch));
  ASSERT_THAT(result, IsOk());
  EXPECT_THAT(forward.tokens, ElementsAre(0, 2, 2, 2));
  EXPECT_THAT(forward.rows_of_group, ElementsAre(2, 4));
  EXPECT_THAT(forward.wanted_of_group, ElementsAre(1, 2));
  // Ours is the second row, then what ranks 0 and 2 show.
  EXPECT_THAT(result->sampled,
              ElementsAre(SampledToken{2, 2, After(2), 0.0f, {}},
                          SampledToken{1, 2, After(2), 0.0f, {}},
                          SampledToken{0, 2, After(2), 0.0f, {}}));
}

// In TP whichever rank drew it: the plan names no token.
TEST_F(StepExecutorTest, ADecodeItemTakesTheTokenSampledEarlier) {
  ExecutePrefill(Tp());
  PeerDraws(1, 3, After(7));
  const auto result =
      Execute(Decode(Tp(), {{0, 3, 1, 0, true}, {1, 2, 1, 0, true}}));
  ASSERT_THAT(result, IsOk());
  EXPECT_THAT(forward_.tokens, ElementsAre(4, 7));
  EXPECT_THAT(forward_.positions, ElementsAre(3, 2));
  EXPECT_THAT(TokensOf(0), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(TokensOf(1), ElementsAre(5, 6, 7, 8));
}

TEST_F(StepExecutorTest, ASampledTokenHasTheLogprobsAskedFor) {
  StepPlan plan = Prefill(Ep());
  plan.admissions[0].sampling.num_logprobs = 2;
  const auto result = Execute(plan);
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
  const auto result = Execute(plan);
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

}  // namespace
}  // namespace moebius
