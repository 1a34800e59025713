// The host's side of a worker's sequences: what plans may and may not say, and
// what they become.
#include "worker/steps/sequence_table.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int kRanks = 2;
constexpr Rank kRank = 1;
constexpr uint32_t kSlots = 4, kPages = 100, kRows = 8, kContext = 20;
constexpr int32_t kVocabulary = 50;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const AttentionShape kAttention{kRanks, 4, 2};

StepLayout Ep() {
  return {ExpertParallel(), ExpertsState::At(ExpertParallel(), Side::kLow)};
}
StepLayout Tp() {
  return {TensorParallel(kRanks),
          ExpertsState::At(TensorParallel(kRanks), Side::kLow)};
}

Admission AdmissionOf(uint32_t slot, std::vector<int32_t> tokens) {
  Admission admission;
  admission.slot = slot;
  admission.request = RequestId{slot + 1};
  admission.num_prompt_tokens = static_cast<uint32_t>(tokens.size());
  admission.tokens = std::move(tokens);
  return admission;
}

StepPlan Admit(uint32_t slot, std::vector<int32_t> tokens) {
  StepPlan plan;
  plan.layout = Ep();
  plan.admissions = {AdmissionOf(slot, std::move(tokens))};
  plan.page_rows = {{slot, 0, kRank, {3, 4}},
                    {slot, 0, 0, {90, 91}}};  // another rank's
  return plan;
}

StepPlan Work(std::vector<WorkItem> items) {
  StepPlan plan;
  plan.layout = Ep();
  plan.items = std::move(items);
  return plan;
}

class SequenceTableTest : public testing::Test {
 protected:
  absl::StatusOr<Batch> Apply(StepPlan plan) {
    plan.step = StepId{++steps_};
    return table_.Apply(std::move(plan));
  }
  // The device does it at once.
  void Do(StepPlan plan) {
    absl::StatusOr<Batch> batch = Apply(std::move(plan));
    ASSERT_THAT(batch, IsOk());
    slots_.Apply(*batch);
    table_.NoteDone();
  }
  std::vector<uint32_t> Computed() const {
    std::vector<uint32_t> computed;
    for (const HeldSequence& held : table_.Held()) {
      computed.push_back(held.computed);
    }
    return computed;
  }

  uint64_t steps_ = 0;
  DeviceSlots slots_{kRank, kSlots, kVocabulary};
  SequenceTable table_{
      {kRank, kRanks, kAttention, kSlots, kRows, kPages, kContext, kVocabulary},
      &slots_};
};

TEST_F(SequenceTableTest, RefusesWhatIsOutOfRange) {
  EXPECT_THAT(Apply(Admit(kSlots, {1})), StatusIs(kInvalid));
  StepPlan plan = Admit(0, {1});
  plan.page_rows[0].pages[0] = kPages;
  EXPECT_THAT(Apply(plan), StatusIs(kInvalid, HasSubstr("page 100")));
  plan = Admit(0, {1});
  plan.page_rows[0].block = 1;  // block 0 is missing
  EXPECT_THAT(Apply(plan), StatusIs(kInvalid, HasSubstr("order")));
  plan = Admit(0, {1});
  plan.admissions[0].num_prompt_tokens = 2;
  EXPECT_THAT(Apply(plan), StatusIs(kInvalid, HasSubstr("a prompt of 2")));
  plan = StepPlan();
  plan.released = {kSlots};
  EXPECT_THAT(Apply(plan), StatusIs(kInvalid));
  plan = StepPlan();
  plan.page_rows = {{2, 0, kRank, {1, 2}}};
  EXPECT_THAT(Apply(plan), StatusIs(kInvalid, HasSubstr("not here")));
}

TEST_F(SequenceTableTest, RefusesWorkThatCannotBe) {
  Do(Admit(0, {1, 2, 3}));
  Do(Work({{0, 0, 3, kRank, true}}));  // token 3 is known from here on
  StepPlan others = Admit(1, {5, 6});
  others.page_rows.erase(others.page_rows.begin());
  others.items = {{1, 0, 1, 0, false}};
  Do(others);
  const uint32_t most = std::numeric_limits<uint32_t>::max();
  const struct {
    WorkItem item;
    const char* why;
  } rows[] = {
      {{0, 3, 1, 2, true}, "group 2"},
      {{0, 3, 2, kRank, true}, "work up to token 5 but only 4 are known"},
      {{0, 3, most, kRank, true}, "but only 4 are known"},
      {{0, 3, 0, kRank, false}, "work on 0 tokens"},
      // What the others compute must hold together here as well.
      {{1, 1, 2, 0, true}, "work up to token 3 but only 2 are known"},
      {{2, 0, 1, kRank, false}, "not here"},
      {{kSlots, 0, 1, kRank, false}, "not here"},
      {{1, 1, 1, kRank, true}, "0 blocks"},  // its pages are rank 0's
  };
  for (const auto& [item, why] : rows) {
    EXPECT_THAT(Apply(Work({item})), StatusIs(kInvalid, HasSubstr(why)));
  }
  EXPECT_EQ(table_.Find(0)->length, 4u);
  EXPECT_EQ(table_.Find(1)->length, 2u);
}

TEST_F(SequenceTableTest, RefusesWorkBeforeWhichSomethingIsNotComputed) {
  Do(Admit(0, {1, 2, 3, 4}));
  EXPECT_THAT(Apply(Work({{0, 1, 1, kRank, false}})),
              StatusIs(kInvalid, HasSubstr("from 1 on, with 0 before")));
  Do(Work({{0, 0, 2, kRank, false}}));
  EXPECT_THAT(Apply(Work({{0, 3, 1, kRank, true}})), StatusIs(kInvalid));
  EXPECT_THAT(Apply(Work({{0, 2, 2, kRank, true}})), IsOk());
}

TEST_F(SequenceTableTest, RefusesWorkBeyondTheContext) {
  StepPlan plan = Admit(0, std::vector<int32_t>(kContext + 1, 1));
  plan.page_rows.push_back({0, 1, kRank, {7, 8}});
  Do(plan);
  for (uint32_t at : {0u, 8u}) Do(Work({{0, at, 8, kRank, false}}));
  EXPECT_THAT(Apply(Work({{0, 16, 5, kRank, false}})),
              StatusIs(kInvalid, HasSubstr("a context of 20")));
  EXPECT_THAT(Apply(Work({{0, 16, 4, kRank, false}})), IsOk());
}

// The row before each token of a prompt but the first, and before a drawn one.
TEST_F(SequenceTableTest, CountsTheRowsWhoseLogitsAreWanted) {
  StepPlan plan = Admit(0, {1, 2, 3, 4});
  plan.admissions[0].sampling.num_prompt_logprobs = 0;
  plan.items = {{0, 0, 1, 0, false}};
  const auto wanted = [&](std::vector<WorkItem> items) {
    StepPlan next = Work(std::move(items));
    const auto batch = Apply(next);
    EXPECT_THAT(batch, IsOk());
    return batch->wanted_of_group;
  };
  const auto first = Apply(plan);
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(first->wanted_of_group, ElementsAre(1, 0));
  EXPECT_THAT(wanted({{0, 1, 2, 0, false}}), ElementsAre(2, 0));
  EXPECT_THAT(wanted({{0, 3, 1, 0, false}}), ElementsAre(0, 0));
  EXPECT_THAT(wanted({{0, 3, 1, 0, true}}), ElementsAre(1, 0));
  EXPECT_THAT(wanted({{0, 2, 2, 0, true}}), ElementsAre(2, 0));
  EXPECT_THAT(wanted({{0, 4, 1, 0, true}}), ElementsAre(1, 0));
}

TEST_F(SequenceTableTest, RefusesASequenceThatIsNamedTwice) {
  Do(Admit(0, {1, 2, 3, 4}));
  EXPECT_THAT(Apply(Work({{0, 0, 1, kRank, false}, {0, 0, 1, kRank, false}})),
              StatusIs(kInvalid, HasSubstr("twice")));
}

TEST_F(SequenceTableTest, RefusesMoreRowsThanAStepHas) {
  Do(Admit(0, {1, 2, 3, 4, 5}));
  Do(Admit(1, {1, 2, 3, 4, 5}));
  EXPECT_THAT(Apply(Work({{0, 0, 5, kRank, false}, {1, 0, 4, 0, false}})),
              StatusIs(kInvalid, HasSubstr("more than 8 rows")));
  EXPECT_THAT(Apply(Work({{0, 0, 5, kRank, false}, {1, 0, 3, 0, false}})),
              IsOk());
}

// A step that is only planned counts for those behind it.
TEST_F(SequenceTableTest, PlansMayBeAheadOfTheDevice) {
  StepPlan plan = Admit(0, {1, 2, 3});
  plan.items = {{0, 0, 3, kRank, true}};
  ASSERT_THAT(Apply(plan), IsOk());
  ASSERT_THAT(Apply(Work({{0, 3, 1, kRank, true}})), IsOk());
  const auto third = Apply(Work({{0, 4, 1, kRank, true}}));
  ASSERT_THAT(third, IsOk());
  EXPECT_THAT(third->chunks, ElementsAre(Batch::Chunk{0, 0, 1, 4, true}));
  EXPECT_EQ(table_.Find(0)->length, 6u);
  EXPECT_EQ(table_.Find(0)->computed, 0u);
  table_.NoteDone();
  table_.NoteDone();
  EXPECT_EQ(table_.Find(0)->computed, 4u);
}

// Its step was planned before the slot was given on.
TEST_F(SequenceTableTest, AStepThatIsDoneLateCountsForItsOwnSequencesAlone) {
  StepPlan plan = Admit(0, {1, 2, 3});
  plan.items = {{0, 0, 3, kRank, true}};
  ASSERT_THAT(Apply(plan), IsOk());
  StepPlan next = Admit(0, {7, 8});
  next.released = {0};
  next.items = {{0, 0, 1, kRank, false}};
  ASSERT_THAT(Apply(next), IsOk());
  table_.NoteDone();
  EXPECT_THAT(Computed(), ElementsAre(0));
  table_.NoteDone();
  EXPECT_THAT(Computed(), ElementsAre(1));
  StepPlan last = Work({{0, 1, 1, kRank, true}});
  ASSERT_THAT(Apply(last), IsOk());
  StepPlan gone;
  gone.released = {0};
  ASSERT_THAT(Apply(gone), IsOk());
  table_.NoteDone();
  EXPECT_THAT(Computed(), IsEmpty());
}

TEST_F(SequenceTableTest, InEpABatchIsOurOwnRowsBesideTheNumbersOfAll) {
  Do(Admit(0, {1, 2, 3}));
  StepPlan others = Admit(1, {5, 6});
  others.page_rows.erase(others.page_rows.begin());
  Do(others);
  StepPlan plan = Admit(2, {9, 8});
  plan.released = {3};
  plan.items = {
      {0, 0, 3, kRank, true}, {1, 0, 2, 0, true}, {2, 0, 1, kRank, false}};
  const auto batch = Apply(plan);
  ASSERT_THAT(batch, IsOk());
  EXPECT_EQ(batch->step, StepId{steps_});
  EXPECT_EQ(batch->layout, Ep());
  EXPECT_THAT(batch->released, ElementsAre(3));
  EXPECT_THAT(batch->admissions, ElementsAre(plan.admissions[0]));
  EXPECT_THAT(batch->page_rows, ElementsAre(plan.page_rows[0]));
  EXPECT_THAT(batch->chunks, ElementsAre(Batch::Chunk{0, 0, 3, 0, true},
                                         Batch::Chunk{2, 3, 1, 0, false}));
  EXPECT_THAT(batch->elsewhere,
              ElementsAre(Batch::Elsewhere{0, {1, 0, 2, 0, true}}));
  EXPECT_EQ(batch->num_rows(), 4u);
  EXPECT_THAT(batch->rows_of_group, ElementsAre(2, 4));
}

TEST_F(SequenceTableTest, InTpABatchIsAllRows) {
  StepPlan plan = Admit(0, {1, 2, 3});
  plan.layout = Tp();
  plan.page_rows = {{0, 0, kRank, {3}}, {1, 0, kRank, {4}}};
  plan.admissions.push_back(AdmissionOf(1, {5, 6}));
  plan.items = {{0, 0, 3, 0, true}, {1, 0, 2, 0, true}};
  const auto batch = Apply(plan);
  ASSERT_THAT(batch, IsOk());
  EXPECT_THAT(batch->chunks, ElementsAre(Batch::Chunk{0, 0, 3, 0, true},
                                         Batch::Chunk{1, 3, 2, 0, true}));
  EXPECT_THAT(batch->rows_of_group, ElementsAre(5));
}

// Two groups of two: a batch is the rows of our group, whichever part we are.
TEST(SequenceTable, BetweenEpAndTpABatchIsTheRowsOfOurGroup) {
  const Layout half{2};
  StepPlan plan;
  plan.step = StepId{1};
  plan.layout = {half, ExpertsState::At(half, Side::kLow)};
  plan.admissions = {AdmissionOf(0, {1, 2, 3}), AdmissionOf(1, {5, 6}),
                     AdmissionOf(2, {7})};
  // A KV head on each rank of the group.
  plan.page_rows = {{0, 0, 2, {3}}, {0, 0, 3, {4}}, {1, 0, 0, {5}},
                    {1, 0, 1, {6}}, {2, 0, 2, {7}}, {2, 0, 3, {8}}};
  plan.items = {{0, 0, 3, 1, true}, {1, 0, 2, 0, true}, {2, 0, 1, 1, true}};
  for (Rank rank = 0; rank < 4; ++rank) {
    DeviceSlots slots(rank, kSlots, kVocabulary);
    SequenceTable table(
        {rank, 4, {4, 8, 2}, kSlots, kRows, kPages, kContext, kVocabulary},
        &slots);
    const auto batch = table.Apply(plan);
    ASSERT_THAT(batch, IsOk());
    const Batch::Chunk first{0, 0, 3, 0, true}, second{1, 0, 2, 0, true},
        third{2, 3, 1, 0, true};
    EXPECT_THAT(batch->rows_of_group, ElementsAre(2, 4));
    EXPECT_THAT(batch->wanted_of_group, ElementsAre(1, 2));
    if (rank >= 2) {
      EXPECT_THAT(batch->chunks, ElementsAre(first, third));
      EXPECT_THAT(batch->elsewhere, ElementsAre(Batch::Elsewhere{0, second}));
    } else {
      EXPECT_THAT(batch->chunks, ElementsAre(second));
      EXPECT_THAT(batch->elsewhere, ElementsAre(Batch::Elsewhere{1, first},
                                                Batch::Elsewhere{1, third}));
    }
    StepPlan beyond;
    beyond.step = StepId{2};
    beyond.layout = plan.layout;
    beyond.items = {{0, 3, 1, 2, true}};
    EXPECT_THAT(table.Apply(beyond), StatusIs(kInvalid, HasSubstr("group 2")));
    beyond.layout.attention = Layout{3};
    EXPECT_THAT(table.Apply(beyond),
                StatusIs(kInvalid, HasSubstr("attention of tp_size 3")));
  }
}

// What a request brings ends its own sequence, not the worker.
TEST_F(SequenceTableTest, ASequenceThatCannotBeComputedIsPassedOver) {
  for (const int32_t token : {kVocabulary, -1}) {
    StepPlan plan = Admit(0, {1, token});
    plan.items = {{0, 0, 2, kRank, true}};
    const auto batch = Apply(plan);
    ASSERT_THAT(batch, IsOk());
    const std::string why = absl::StrCat(
        "token ", token, " at position 1; the model has the ids 0 to 49");
    EXPECT_THAT(batch->refused, ElementsAre(RefusedSequence{0, why}));
    // Whatever the slot held is over.
    EXPECT_THAT(batch->released, ElementsAre(0));
    EXPECT_THAT(batch->admissions, IsEmpty());
    EXPECT_THAT(batch->page_rows, IsEmpty());
    EXPECT_THAT(batch->chunks, IsEmpty());
    EXPECT_THAT(batch->rows_of_group, ElementsAre(0, 0));
    EXPECT_THAT(table_.Find(0)->pages, ElementsAre(3, 4));
    // Work that was passed over has computed nothing.
    table_.NoteDone();
    EXPECT_THAT(Computed(), ElementsAre(0));
  }
  StepPlan plan = Admit(1, {1});
  plan.admissions[0].sampling.num_prompt_logprobs = kMaxLogprobs + 1;
  ASSERT_THAT(Apply(plan), IsOk());
  EXPECT_THAT(table_.Find(1)->refused, HasSubstr("21 log-probabilities"));
  plan = Admit(2, {1});
  plan.admissions[0].sampling.temperature = std::nanf("");
  ASSERT_THAT(Apply(plan), IsOk());
  EXPECT_NE(table_.Find(2)->refused, "");
  // The slot's next sequence is another.
  ASSERT_THAT(Apply(Admit(0, {1})), IsOk());
  EXPECT_EQ(table_.Find(0)->refused, "");
}

TEST_F(SequenceTableTest, ARestoredSequenceIsRefusedAsAnAdmittedOne) {
  RestoredSequence sequence;
  sequence.admission = AdmissionOf(0, {kVocabulary});
  ASSERT_THAT(table_.Put(sequence), IsOk());
  EXPECT_NE(table_.Find(0)->refused, "");
  EXPECT_THAT(slots_.At(0).tokens, IsEmpty());
}

TEST_F(SequenceTableTest, ARestoredSequenceGoesOnWhereItWas) {
  Do(Admit(0, {5}));
  ASSERT_THAT(Apply(Admit(1, {5})), IsOk());  // and is given up
  table_.Reset();
  EXPECT_THAT(table_.Held(), IsEmpty());
  EXPECT_THAT(slots_.At(0).tokens, IsEmpty());
  RestoredSequence sequence;
  sequence.admission = AdmissionOf(0, {7, 8, 9});
  sequence.table = {0, 1, {{0, 0, 1, {20}}, {kRank, 1, 2, {21, 22}}}};
  sequence.computed = 2;
  ASSERT_THAT(table_.Put(sequence), IsOk());
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(7, 8, 9));
  EXPECT_THAT(slots_.At(0).pages, ElementsAre(21, 22));
  EXPECT_THAT(Computed(), ElementsAre(2));
  EXPECT_THAT(Apply(Work({{0, 2, 1, kRank, true}})), IsOk());
  table_.NoteDone();
  EXPECT_THAT(Computed(), ElementsAre(3));
}

TEST_F(SequenceTableTest, NewTablesReplaceAllOldOnesOnBothSides) {
  Do(Admit(0, {5}));
  Do(Admit(1, {5}));
  const std::vector<KvTable> bad = {{3, 1, {{kRank, 0, 1, {5}}}}};
  EXPECT_THAT(table_.ReplaceTables(bad), StatusIs(kInvalid));
  const std::vector<KvTable> beyond = {{0, 1, {{kRank, 0, 1, {kPages}}}}};
  EXPECT_THAT(table_.ReplaceTables(beyond), StatusIs(kInvalid));
  EXPECT_THAT(table_.Find(0)->pages, ElementsAre(3, 4));
  EXPECT_THAT(slots_.At(0).pages, ElementsAre(3, 4));
  const std::vector<KvTable> tables = {
      {0, 1, {{0, 0, 1, {8}}, {kRank, 1, 1, {9}}}}};
  ASSERT_THAT(table_.ReplaceTables(tables), IsOk());
  EXPECT_THAT(table_.Find(0)->pages, ElementsAre(9));
  EXPECT_THAT(slots_.At(0).pages, ElementsAre(9));
  EXPECT_EQ(table_.Find(1)->num_blocks(), 0);
  EXPECT_EQ(slots_.At(1).num_blocks(), 0);
}

}  // namespace
}  // namespace moebius
