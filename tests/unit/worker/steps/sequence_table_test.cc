// A worker's sequences: what plans may and may not say, and saying it twice.
#include "worker/steps/sequence_table.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Rank kRank = 1;
constexpr uint32_t kSlots = 4, kPages = 100;
constexpr int32_t kVocabulary = 50;

StepPlan Admit(uint32_t slot, std::vector<int32_t> tokens) {
  StepPlan plan;
  Admission admission;
  admission.slot = slot;
  admission.num_prompt_tokens = static_cast<uint32_t>(tokens.size());
  admission.tokens = std::move(tokens);
  plan.admissions.push_back(admission);
  plan.page_rows.push_back(PageRow{slot, 0, kRank, {3, 4}});
  plan.page_rows.push_back(PageRow{slot, 0, 0, {90, 91}});  // another rank's
  return plan;
}

class SequenceTableTest : public testing::Test {
 protected:
  SequenceTable table_{kRank, kSlots, kPages, kVocabulary};
};

TEST_F(SequenceTableTest, RefusesWhatIsOutOfRange) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(table_.Apply(Admit(kSlots, {1})), StatusIs(invalid));
  StepPlan plan = Admit(0, {1});
  plan.page_rows[0].pages[0] = kPages;
  EXPECT_THAT(table_.Apply(plan), StatusIs(invalid, HasSubstr("page 100")));
  plan = Admit(0, {1});
  plan.page_rows[0].block = 1;  // block 0 is missing
  EXPECT_THAT(table_.Apply(plan), StatusIs(invalid, HasSubstr("order")));
  plan = StepPlan();
  plan.released = {kSlots};
  EXPECT_THAT(table_.Apply(plan), StatusIs(invalid));
  plan = StepPlan();
  plan.page_rows = {{2, 0, kRank, {1, 2}}};
  EXPECT_THAT(table_.Apply(plan), StatusIs(invalid, HasSubstr("not here")));
}

// What a request brings ends its own sequence, not the worker.
TEST_F(SequenceTableTest, ASequenceThatCannotBeComputedIsMarkedAndTakenIn) {
  for (const int32_t token : {kVocabulary, -1}) {
    ASSERT_THAT(table_.Apply(Admit(0, {1, token})), IsOk());
    EXPECT_TRUE(table_.IsRefused(0));
    EXPECT_EQ(table_.Find(0)->refused,
              absl::StrCat("token ", token,
                           " at position 1; the model has the ids 0 to 49"));
    EXPECT_THAT(table_.Find(0)->pages, ElementsAre(3, 4));
  }
  StepPlan plan = Admit(1, {1});
  plan.admissions[0].sampling.num_prompt_logprobs = kMaxLogprobs + 1;
  ASSERT_THAT(table_.Apply(plan), IsOk());
  EXPECT_TRUE(table_.IsRefused(1));
  plan = Admit(2, {1});
  plan.admissions[0].sampling.temperature = std::nanf("");
  ASSERT_THAT(table_.Apply(plan), IsOk());
  EXPECT_TRUE(table_.IsRefused(2));
  // Work that was passed over has computed nothing.
  plan = StepPlan();
  plan.items = {WorkItem{0, 0, 2, 0, true}};
  table_.NoteDone(plan);
  EXPECT_EQ(table_.Held()[0].computed, 0u);
  // The slot's next sequence is another.
  ASSERT_THAT(table_.Apply(Admit(0, {1})), IsOk());
  EXPECT_FALSE(table_.IsRefused(0));
  EXPECT_FALSE(table_.IsRefused(3));
}

TEST_F(SequenceTableTest, ARestoredSequenceIsRefusedAsAnAdmittedOne) {
  RestoredSequence sequence;
  sequence.admission = Admit(0, {kVocabulary}).admissions[0];
  ASSERT_THAT(table_.Put(sequence), IsOk());
  EXPECT_TRUE(table_.IsRefused(0));
}

TEST_F(SequenceTableTest, TakesItsOwnRowsAlone) {
  ASSERT_THAT(table_.Apply(Admit(2, {5, 6, 7})), IsOk());
  const Sequence* sequence = table_.Find(2);
  ASSERT_NE(sequence, nullptr);
  EXPECT_THAT(sequence->pages, ElementsAre(3, 4));
  EXPECT_EQ(sequence->num_blocks(), 1);
}

TEST_F(SequenceTableTest, APlanAppliedAgainChangesNothing) {
  const StepPlan plan = Admit(2, {5, 6, 7});
  ASSERT_THAT(table_.Apply(plan), IsOk());
  ASSERT_THAT(table_.Append(2, 3, 9), IsOk());
  ASSERT_THAT(table_.Apply(plan), IsOk());
  EXPECT_THAT(table_.Find(2)->tokens, ElementsAre(5, 6, 7));
  EXPECT_THAT(table_.Find(2)->pages, ElementsAre(3, 4));
}

TEST_F(SequenceTableTest, TokensComeOneAfterTheOther) {
  ASSERT_THAT(table_.Apply(Admit(0, {5, 6})), IsOk());
  EXPECT_THAT(table_.Append(0, 3, 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(table_.Append(0, 2, kVocabulary),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(table_.Append(1, 0, 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(table_.Append(0, 2, 1), IsOk());
  EXPECT_THAT(table_.Append(0, 2, 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(SequenceTableTest, TruncatedTokensLeaveTheHistoryToo) {
  StepPlan plan = Admit(0, {5, 6});
  plan.admissions[0].sampling.frequency_penalty = 0.5f;
  ASSERT_THAT(table_.Apply(plan), IsOk());
  ASSERT_THAT(table_.Append(0, 2, 9), IsOk());
  ASSERT_THAT(table_.Append(0, 3, 9), IsOk());
  table_.TruncateTo(0, 3);
  EXPECT_THAT(table_.Find(0)->tokens, ElementsAre(5, 6, 9));
  int count = 0;
  for (const auto& entry : table_.Find(0)->history.entries()) {
    if (entry.token == 9) count = entry.output_count;
  }
  EXPECT_EQ(count, 1);
}

TEST_F(SequenceTableTest, WorkNeedsTokensAndPages) {
  ASSERT_THAT(table_.Apply(Admit(0, {5, 6, 7})), IsOk());
  EXPECT_THAT(table_.CheckItem(WorkItem{0, 0, 3, 0, true}, 2), IsOk());
  EXPECT_THAT(table_.CheckItem(WorkItem{0, 0, 4, 0, true}, 2),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("known")));
  EXPECT_THAT(table_.CheckItem(WorkItem{0, 0, 3, 0, true}, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("heads")));
  EXPECT_THAT(table_.CheckItem(WorkItem{3, 0, 1, 0, true}, 2),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(SequenceTableTest, NewTablesReplaceAllOldOnes) {
  ASSERT_THAT(table_.Apply(Admit(0, {5})), IsOk());
  ASSERT_THAT(table_.Apply(Admit(1, {5})), IsOk());
  const std::vector<KvTable> bad = {{3, 1, {{kRank, 0, 1, {5}}}}};
  EXPECT_THAT(table_.ReplaceTables(bad),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(table_.Find(0)->pages, ElementsAre(3, 4));
  const std::vector<KvTable> tables = {
      {0, 1, {{0, 0, 1, {8}}, {kRank, 1, 1, {9}}}}};
  ASSERT_THAT(table_.ReplaceTables(tables), IsOk());
  EXPECT_THAT(table_.Find(0)->pages, ElementsAre(9));
  EXPECT_EQ(table_.Find(1)->num_blocks(), 0);
}

}  // namespace
}  // namespace moebius
