// Where a new coordinator goes on: what is adopted, and above all what is not.
#include "coordinator/decisions/recovery_plan.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

constexpr int kRanks = 2;
const Layout kEp = ExpertParallel();
const Layout kTp = TensorParallel(kRanks);

class RecoveryPlanTest : public testing::Test {
 protected:
  void SetUp() override {
    Note(journal::TermBegun{Term{1}});
    Note(journal::GroupBegun{kEp});
    for (uint64_t id = 1; id <= 3; ++id) {
      Generation generation;
      generation.prompt.assign(40, 7);
      generation.stop.max_tokens = 100;
      Note(journal::Accepted{{{RequestId{id}, generation}}, "", 0});
      journal::StepTokens tokens{StepId{id}, {}};
      SampledToken token;
      token.position = 40;
      tokens.tokens.push_back({RequestId{id}, token, {}});
      Note(tokens);
    }
    for (Stand& stand : stands_) {
      stand.loaded = true;
      stand.last_executed = StepId{9};
    }
  }
  void Note(journal::Record record) {
    ASSERT_THAT(journal_.Apply(std::move(record)), IsOk());
  }
  // A switch to TP at step 10, with a block of request 1 in slot 5.
  void NoteDecided(Epoch epoch) {
    journal::SwitchDecided decided{epoch, kEp, kTp, StepId{10}, {}, {}};
    decided.plan.tables = {{5, 1, {{0, 0, 2, {0, 1}}, {1, 2, 2, {0, 1}}}}};
    decided.running = {{RequestId{1}, 5, 16}};
    Note(journal::EpochProposed{epoch});
    Note(decided);
  }
  RecoveryPlan Plan() {
    return PlanRecovery(journal_, {{kRanks, 8, 4}, kEp, stands_, held_});
  }
  // As rank `rank` holds it: `heads` heads in three blocks.
  static HeldSequence Held(uint32_t slot, uint64_t request, uint32_t computed,
                           int heads, PageId first_page) {
    HeldSequence held{slot, RequestId{request}, computed, heads, {}};
    for (int i = 0; i < 3 * heads; ++i) held.pages.push_back(first_page + i);
    return held;
  }

  JournalState journal_;
  std::vector<Stand> stands_ = std::vector<Stand>(kRanks);
  std::vector<std::vector<HeldSequence>> held_ =
      std::vector<std::vector<HeldSequence>>(kRanks);
};

TEST_F(RecoveryPlanTest, WithoutWeightsTheGroupBeginsAnew) {
  for (Stand& stand : stands_) stand.loaded = false;
  const RecoveryPlan plan = Plan();
  EXPECT_TRUE(plan.anew);
  EXPECT_EQ(plan.layout, kEp);
  EXPECT_TRUE(plan.adopted.empty());
  EXPECT_EQ(plan.next_step, StepId{10});
}

TEST_F(RecoveryPlanTest, WhatAllRanksAgreeOnIsAdopted) {
  held_[0] = {Held(5, 1, 40, 4, 0), {6, RequestId{2}, 40, 0, {}}};
  held_[1] = {{5, RequestId{1}, 40, 0, {}}, Held(6, 2, 33, 4, 0)};
  const RecoveryPlan plan = Plan();
  ASSERT_EQ(plan.adopted.size(), 2u);
  EXPECT_EQ(plan.adopted[0].request, RequestId{1});
  EXPECT_EQ(plan.adopted[0].table.slot, 5u);
  EXPECT_EQ(plan.adopted[0].table.tables[0].rank, 0);
  EXPECT_EQ(plan.adopted[0].computed, 40u);
  EXPECT_EQ(plan.adopted[1].table.tables[0].rank, 1);
  EXPECT_EQ(plan.adopted[1].computed, 33u);
}

TEST_F(RecoveryPlanTest, TheLastKnownTokenIsComputedAgain) {
  held_[0] = {Held(5, 1, 45, 4, 0)};
  held_[1] = {{5, RequestId{1}, 45, 0, {}}};
  ASSERT_EQ(Plan().adopted.size(), 1u);
  EXPECT_EQ(Plan().adopted[0].computed, 40u);  // 41 tokens are known
}

// A plan reached rank 0 alone: request 1 has left, 3 has its slot.
TEST_F(RecoveryPlanTest, WhatAPlanDidOnSomeRanksIsNotTaken) {
  held_[0] = {Held(5, 3, 0, 4, 0)};
  held_[1] = {{5, RequestId{1}, 40, 0, {}}};
  EXPECT_TRUE(Plan().adopted.empty());
  held_[0] = {};  // a worker that knows none: but 1's pages were there
  EXPECT_TRUE(Plan().adopted.empty());
}

TEST_F(RecoveryPlanTest, ARankWithoutTablesCostsOnlyItsOwn) {
  held_[0] = {};
  held_[1] = {Held(6, 2, 40, 4, 0), {5, RequestId{1}, 40, 0, {}}};
  ASSERT_EQ(Plan().adopted.size(), 1u);
  EXPECT_EQ(Plan().adopted[0].request, RequestId{2});
}

TEST_F(RecoveryPlanTest, EndedAndUnknownRequestsAreNotAdopted) {
  Note(journal::Ended{RequestId{1}, FinishReason::kStop, "", 5});
  held_[0] = {Held(5, 1, 40, 4, 0), Held(6, 99, 40, 4, 12)};
  held_[1] = {{5, RequestId{1}, 40, 0, {}}, {6, RequestId{99}, 40, 0, {}}};
  EXPECT_TRUE(Plan().adopted.empty());
}

TEST_F(RecoveryPlanTest, InTpEveryRankHoldsItsHeads) {
  Note(journal::EpochProposed{Epoch{1}});
  Note(journal::SwitchDecided{Epoch{1}, kEp, kTp, StepId{4}, {}, {}});
  Note(journal::SwitchDone{Epoch{1}});
  held_[0] = {Held(5, 1, 40, 2, 0)};
  held_[1] = {Held(5, 1, 38, 2, 0)};
  RecoveryPlan plan = Plan();
  EXPECT_EQ(plan.layout, kTp);
  ASSERT_EQ(plan.adopted.size(), 1u);
  EXPECT_EQ(plan.adopted[0].computed, 38u);
  EXPECT_EQ(plan.adopted[0].table.tables.size(), 2u);
  // One has a block less, or nothing at all.
  held_[1][0].pages.resize(4);
  plan = Plan();
  ASSERT_EQ(plan.adopted.size(), 1u);
  EXPECT_EQ(plan.adopted[0].table.num_blocks, 2);
  EXPECT_EQ(plan.adopted[0].table.tables[0].pages.size(), 4u);
  EXPECT_EQ(plan.adopted[0].computed, 32u);
  held_[1].clear();
  EXPECT_TRUE(Plan().adopted.empty());
  // Its memory is gone, whatever it says.
  held_[1] = {Held(5, 1, 38, 2, 0)};
  stands_[1].loaded = false;
  EXPECT_TRUE(Plan().adopted.empty());
}

TEST_F(RecoveryPlanTest, ADecidedSwitchIsFinishedOrWasFinished) {
  journal::SwitchDecided decided{Epoch{1}, kEp, kTp, StepId{10}, {}, {}};
  KvTable table{
      5, 3, {{0, 0, 2, {0, 1, 2, 3, 4, 5}}, {1, 2, 2, {0, 1, 2, 3, 4, 5}}}};
  decided.plan.tables = {table};
  decided.running = {{RequestId{1}, 5, 40}};
  Note(journal::EpochProposed{Epoch{1}});
  Note(decided);
  RecoveryPlan plan = Plan();
  EXPECT_TRUE(plan.unfinished);
  EXPECT_FALSE(plan.finished);
  EXPECT_EQ(plan.layout, kTp);
  EXPECT_EQ(plan.next_step, StepId{10});
  ASSERT_EQ(plan.adopted.size(), 1u);
  EXPECT_EQ(plan.adopted[0].table, table);
  // A step beyond the boundary was executed: it is complete.
  stands_[1].last_executed = StepId{10};
  held_[0] = {Held(5, 1, 40, 2, 7)};
  held_[1] = {Held(5, 1, 40, 2, 9)};
  plan = Plan();
  EXPECT_TRUE(plan.finished);
  EXPECT_FALSE(plan.unfinished);
  ASSERT_EQ(plan.adopted.size(), 1u);
  EXPECT_EQ(plan.adopted[0].table.tables[0].pages[0], 7u);
}

// The coordinator that ended the switch could not write that down, and told a
// rank with new memory to go on before it died.
TEST_F(RecoveryPlanTest, ASwitchIsOverForMemoryThatWasNewAfterIt) {
  NoteDecided(Epoch{3});
  held_[0] = {{5, RequestId{1}, 0, 2, {}}};
  held_[1] = {Held(5, 1, 16, 2, 0)};
  stands_[0].epochs_over = Epoch{2};
  EXPECT_TRUE(Plan().unfinished);
  stands_[0].epochs_over = Epoch{3};
  const RecoveryPlan plan = Plan();
  EXPECT_TRUE(plan.finished);
  EXPECT_FALSE(plan.unfinished);
  EXPECT_EQ(plan.layout, kTp);
  EXPECT_TRUE(plan.adopted.empty());
}

TEST_F(RecoveryPlanTest, MemoryLostInASwitchLosesAllKv) {
  NoteDecided(Epoch{1});
  stands_[0].loaded = false;
  const RecoveryPlan plan = Plan();
  EXPECT_TRUE(plan.unfinished);
  EXPECT_TRUE(plan.adopted.empty());
}

// Four ranks in two groups of two; a request's KV is on the ranks of one.
TEST(RecoveryPlanOfGroups, ASequenceIsAdoptedByOneWholeGroup) {
  JournalState journal;
  ASSERT_THAT(journal.Apply(journal::TermBegun{Term{1}}), IsOk());
  ASSERT_THAT(journal.Apply(journal::GroupBegun{Layout{2}}), IsOk());
  Generation generation;
  generation.prompt.assign(40, 7);
  generation.stop.max_tokens = 100;
  ASSERT_THAT(
      journal.Apply(journal::Accepted{{{RequestId{1}, generation}}, "", 0}),
      IsOk());
  std::vector<Stand> stands(4);
  for (Stand& stand : stands) stand.loaded = true;
  const HeldSequence half{5, RequestId{1}, 30, 2, {0, 1, 2, 3}};
  const HeldSequence none{5, RequestId{1}, 30, 0, {}};
  struct Row {
    const char* name;
    std::vector<const HeldSequence*> held;  // [rank]
    Rank adopted_by;                        // -1: by nobody
  };
  for (const Row& row : {
           Row{"the second group", {&none, &none, &half, &half}, 2},
           {"the first group", {&half, &half, &none, &none}, 0},
           {"half a group", {&none, &none, &half, &none}, -1},
           {"halves of two", {&none, &half, &half, &none}, -1},
           {"both", {&half, &half, &half, &half}, -1},
           {"more than one", {&half, &half, &half, &none}, -1},
       }) {
    std::vector<std::vector<HeldSequence>> held;
    for (const HeldSequence* one : row.held) held.push_back({*one});
    const RecoveryPlan plan =
        PlanRecovery(journal, {{4, 8, 4}, kEp, stands, held});
    EXPECT_EQ(plan.layout, Layout{2});
    ASSERT_EQ(plan.adopted.size(), row.adopted_by < 0 ? 0u : 1u) << row.name;
    if (row.adopted_by < 0) continue;
    const KvTable& table = plan.adopted[0].table;
    ASSERT_EQ(table.tables.size(), 2u) << row.name;
    EXPECT_EQ(table.tables[0].rank, row.adopted_by) << row.name;
    EXPECT_EQ(table.tables[1].kv_begin, 2) << row.name;
  }
}

}  // namespace
}  // namespace moebius
