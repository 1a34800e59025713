// The device's side of the sequences: batches, drawn tokens, new tables.
#include "worker/steps/device_slots.h"

#include <map>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sample.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Rank kRank = 1;
constexpr uint32_t kSlots = 4;
constexpr int32_t kVocabulary = 50;

Admission AdmissionOf(uint32_t slot, std::vector<int32_t> tokens) {
  Admission admission;
  admission.slot = slot;
  admission.num_prompt_tokens = 2;
  admission.tokens = std::move(tokens);
  return admission;
}

Batch Admit(uint32_t slot, std::vector<int32_t> tokens) {
  Batch batch;
  batch.admissions = {AdmissionOf(slot, std::move(tokens))};
  batch.page_rows = {{slot, 0, kRank, {3, 4}}};
  return batch;
}

class DeviceSlotsTest : public testing::Test {
 protected:
  void Apply(Batch batch) { slots_.Apply(batch); }

  DeviceSlots slots_{kRank, kSlots, kVocabulary};
};

TEST_F(DeviceSlotsTest, TokensThatCannotFollowChangeNothing) {
  Apply(Admit(0, {5, 6}));
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(slots_.Append(0, 3, 1), StatusIs(invalid));  // 2 is missing
  EXPECT_THAT(slots_.Append(0, 1, 1), StatusIs(invalid));
  EXPECT_THAT(slots_.Append(0, 2, kVocabulary), StatusIs(invalid));
  EXPECT_THAT(slots_.Append(0, 2, -1), StatusIs(invalid));
  EXPECT_THAT(slots_.Append(1, 0, 1), StatusIs(invalid));  // nothing is there
  EXPECT_THAT(slots_.Append(kSlots, 0, 1), StatusIs(invalid));
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(5, 6));
  EXPECT_THAT(slots_.Append(0, 2, 1), IsOk());
  EXPECT_THAT(slots_.Append(0, 2, 1), StatusIs(invalid));
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(5, 6, 1));
}

TEST_F(DeviceSlotsTest, TokensThatAreNotExpectedChangeNothing) {
  Apply(Admit(0, {5, 6}));
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(slots_.Expect(0, 3), StatusIs(invalid));  // 2 is missing
  EXPECT_THAT(slots_.Expect(1, 0), StatusIs(invalid));  // nothing is there
  EXPECT_THAT(slots_.Expect(kSlots, 0), StatusIs(invalid));
  const uint64_t holder = slots_.At(0).holder;
  EXPECT_THAT(slots_.Fill({0, holder, 2, 1}), StatusIs(invalid));
  EXPECT_THAT(slots_.Expect(0, 2), IsOk());
  EXPECT_THAT(slots_.Expect(0, 3), IsOk());
  EXPECT_THAT(slots_.Fill({0, holder, 3, 1}), StatusIs(invalid));  // 2 is first
  EXPECT_THAT(slots_.Fill({0, holder, 2, -1}), StatusIs(invalid));
  EXPECT_THAT(slots_.Fill({0, holder, 2, kVocabulary}), StatusIs(invalid));
  const int32_t expected = TokenAtPlace(0);
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(5, 6, expected, expected));
  EXPECT_EQ(slots_.At(0).num_expected(), 2);
  EXPECT_THAT(slots_.Fill({0, holder, 2, 1}), IsOk());
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(5, 6, 1, expected));
  EXPECT_THAT(slots_.Fill({0, holder, 3, 2}), IsOk());
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(5, 6, 1, 2));
  EXPECT_EQ(slots_.At(0).num_expected(), 0);
}

TEST_F(DeviceSlotsTest, ATokenOfAnEarlierHolderIsNobodys) {
  Apply(Admit(0, {5, 6}));
  EXPECT_THAT(slots_.Expect(0, 2), IsOk());
  const uint64_t holder = slots_.At(0).holder;
  Apply(Admit(0, {7, 8}));
  EXPECT_THAT(slots_.Expect(0, 2), IsOk());
  EXPECT_THAT(slots_.Fill({0, holder, 2, 1}), IsOk());
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(7, 8, TokenAtPlace(0)));
  slots_.Reset();
  EXPECT_THAT(slots_.Fill({0, holder, 2, 1}), IsOk());
  EXPECT_THAT(slots_.At(0).tokens, IsEmpty());
}

TEST_F(DeviceSlotsTest, AReleasedSlotHasNothingOfItsSequence) {
  Apply(Admit(0, {5, 6}));
  Batch batch;
  batch.released = {0};
  Apply(batch);
  EXPECT_THAT(slots_.At(0).tokens, IsEmpty());
  EXPECT_EQ(slots_.At(0).num_blocks(), 0);
  EXPECT_THAT(slots_.At(0).history.entries(), IsEmpty());
}

TEST_F(DeviceSlotsTest, ASlotThatIsReleasedAndFilledAtOnceHasTheNew) {
  Apply(Admit(0, {5, 6}));
  Batch batch = Admit(0, {7, 8, 9});
  batch.released = {0};
  batch.page_rows[0].pages = {1};
  Apply(batch);
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(7, 8, 9));
  EXPECT_THAT(slots_.At(0).pages, ElementsAre(1));
  EXPECT_EQ(slots_.At(0).num_kv, 1);
}

TEST_F(DeviceSlotsTest, PagesGrowRowByRow) {
  Apply(Admit(2, {5, 6}));
  Batch batch;
  batch.page_rows = {{2, 1, kRank, {8, 9}}};
  Apply(batch);
  EXPECT_THAT(slots_.At(2).pages, ElementsAre(3, 4, 8, 9));
  EXPECT_EQ(slots_.At(2).num_blocks(), 2);
}

TEST_F(DeviceSlotsTest, AHistoryHasPromptAndOutputApart) {
  Batch batch = Admit(0, {5, 6, 6});
  batch.admissions[0].sampling.frequency_penalty = 0.5f;
  Apply(batch);
  ASSERT_THAT(slots_.Append(0, 3, 9), IsOk());
  std::map<int32_t, std::pair<bool, int32_t>> seen;
  for (const auto& entry : slots_.At(0).history.entries()) {
    seen[entry.token] = {entry.in_prompt, entry.output_count};
  }
  EXPECT_EQ(seen, (std::map<int32_t, std::pair<bool, int32_t>>{
                      {5, {true, 0}}, {6, {true, 1}}, {9, {false, 1}}}));
}

TEST_F(DeviceSlotsTest, WhatIsRestoredReplacesWhatWasThere) {
  Apply(Admit(0, {5, 6}));
  Apply(Admit(1, {5, 6}));
  slots_.Reset();
  EXPECT_THAT(slots_.At(1).tokens, IsEmpty());
  RestoredSequence sequence;
  sequence.admission = AdmissionOf(0, {7, 8, 9});
  sequence.table = {0, 1, {{0, 0, 1, {20}}, {kRank, 1, 1, {21}}}};
  slots_.Put(sequence);
  EXPECT_THAT(slots_.At(0).tokens, ElementsAre(7, 8, 9));
  EXPECT_THAT(slots_.At(0).pages, ElementsAre(21));
}

TEST_F(DeviceSlotsTest, NewTablesReplaceAllOldOnesAndLeaveTheTokens) {
  Apply(Admit(0, {5, 6}));
  Apply(Admit(1, {5, 6}));
  const std::vector<KvTable> tables = {
      {0, 1, {{0, 0, 1, {8}}, {kRank, 1, 1, {9}}}}};
  slots_.ReplaceTables(tables);
  EXPECT_THAT(slots_.At(0).pages, ElementsAre(9));
  EXPECT_EQ(slots_.At(0).num_kv, 1);
  EXPECT_EQ(slots_.At(1).num_blocks(), 0);
  EXPECT_THAT(slots_.At(1).tokens, ElementsAre(5, 6));
}

}  // namespace
}  // namespace moebius
