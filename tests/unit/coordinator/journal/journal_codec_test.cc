// Every record survives the codec, and no bytes can hurt the reader.
#include "coordinator/journal/journal_codec.h"

#include <random>
#include <string>
#include <variant>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/journal/journal_samples.h"

namespace moebius {
namespace {

using journal::DecodeRecords;
using journal::Record;
using testing::HasSubstr;

std::string Bytes(const Record& record) {
  std::string bytes;
  EXPECT_THAT(journal::Encode(record, bytes), IsOk());
  return bytes;
}

std::vector<Record> Samples() {
  std::vector<Record> samples = SampleHistory();
  samples.push_back(SampleSummary());
  samples.push_back(journal::Summary{.next_request = RequestId{1}});
  return samples;
}

TEST(JournalCodec, EmptyAndTruncatedBytesAreRefused) {
  EXPECT_THAT(DecodeRecords({}), StatusIs(absl::StatusCode::kInvalidArgument));
  for (const Record& record : Samples()) {
    const std::string bytes = Bytes(record);
    for (size_t size = 1; size < bytes.size(); ++size) {
      EXPECT_THAT(DecodeRecords(absl::MakeConstSpan(bytes).first(size)),
                  StatusIs(absl::StatusCode::kInvalidArgument));
    }
  }
}

TEST(JournalCodec, FlippedBytesNeverCrash) {
  std::mt19937 random(7);
  for (const Record& record : Samples()) {
    const std::string bytes = Bytes(record);
    for (int i = 0; i < 2000; ++i) {
      std::string bad = bytes;
      const int flips = 1 + random() % 4;
      for (int k = 0; k < flips; ++k) bad[random() % bad.size()] = random();
      const auto records = DecodeRecords(bad);
      if (!records.ok()) continue;
      for (const Record& one : *records) {
        Validate(one).IgnoreError();
        Bytes(one);
      }
    }
  }
}

TEST(JournalCodec, ARecordOverItsBoundLeavesTheBytesAsTheyWere) {
  journal::Accepted accepted;
  accepted.generations = {{RequestId{1}, SampleGeneration()}};
  accepted.context.assign(journal::kMaxRecordBytes, 'x');
  std::string bytes = "before";
  EXPECT_THAT(journal::Encode(accepted, bytes),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("at most 67108864")));
  EXPECT_EQ(bytes, "before");
}

TEST(JournalCodec, ARecordThatWouldGrowInMemoryIsRefused) {
  // Prompts that are written once for all choices are held once for each.
  journal::Accepted accepted;
  accepted.generations.resize(kMaxGenerations,
                              {RequestId{1}, SampleGeneration()});
  for (auto& one : accepted.generations) one.generation.prompt.resize(16385);
  const std::string bytes = Bytes(accepted);
  EXPECT_LT(bytes.size(), size_t{4} << 20);
  EXPECT_THAT(DecodeRecords(bytes), StatusIs(absl::StatusCode::kInvalidArgument,
                                             HasSubstr("prompt tokens")));
}

TEST(JournalCodec, EveryRecordSurvives) {
  for (const Record& record : Samples()) {
    EXPECT_THAT(Validate(record), IsOk());
    const auto back = DecodeRecords(Bytes(record));
    ASSERT_THAT(back, IsOk());
    ASSERT_EQ(back->size(), 1);
    EXPECT_EQ(back->front(), record) << record.index();
  }
}

TEST(JournalCodec, EveryKindIsAmongTheSamples) {
  std::vector<bool> seen(std::variant_size_v<Record>);
  for (const Record& record : Samples()) seen[record.index()] = true;
  EXPECT_THAT(seen, testing::Each(true));
}

TEST(JournalCodec, RecordsFollowOneAnother) {
  std::string bytes;
  for (const Record& record : Samples()) bytes += Bytes(record);
  const auto back = DecodeRecords(bytes);
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(*back, Samples());
}

TEST(JournalCodec, UnalignedBytesAreRead) {
  const std::string bytes = Bytes(SampleDecision());
  for (size_t shift = 1; shift < 8; ++shift) {
    const std::string moved = std::string(shift, 'x') + bytes;
    EXPECT_THAT(DecodeRecords(absl::MakeConstSpan(moved).subspan(shift)),
                IsOk());
  }
}

TEST(JournalCodec, ChoicesOfOnePromptHoldItOnce) {
  journal::Accepted accepted;
  for (uint64_t id = 1; id <= 8; ++id) {
    accepted.generations.push_back({RequestId{id}, SampleGeneration()});
    accepted.generations.back().generation.prompt.assign(1000, 5);
  }
  const std::string bytes = Bytes(accepted);
  EXPECT_LT(bytes.size(), 4 * 1000 + 8 * 500);
  EXPECT_THAT(*DecodeRecords(bytes), testing::ElementsAre(Record(accepted)));
}

TEST(JournalCodec, AStepWithoutLogprobsDoesNotWriteThem) {
  journal::StepTokens step{StepId{5}, {}};
  for (uint64_t id = 1; id <= 256; ++id) {
    step.tokens.push_back({RequestId{id}, {0, 100, 7, 0.0f, {}}, {}});
  }
  EXPECT_LT(Bytes(step).size(), 256 * 16 + 200);
  step.tokens[17].token.logprob = -0.0f;
  const auto back = DecodeRecords(Bytes(step));
  ASSERT_THAT(back, IsOk());
  EXPECT_TRUE(std::signbit(
      std::get<journal::StepTokens>((*back)[0]).tokens[17].token.logprob));
}

TEST(JournalCodec, TokensInARowAreOneRun) {
  journal::StepTokens step{StepId{5}, {}};
  for (uint32_t i = 0; i < 1000; ++i) {
    step.tokens.push_back(SampleToken(1 + i / 500, 100 + i % 500, 7));
  }
  // Neither of these goes on where the one before it ends.
  step.tokens.push_back(SampleToken(2, 601, 7));
  step.tokens.push_back(SampleToken(3, 602, 7));
  step.tokens.push_back(SampleToken(3, 602, 7));
  const std::string bytes = Bytes(step);
  EXPECT_LT(bytes.size(), 4 * 1003 + 300);
  EXPECT_THAT(*DecodeRecords(bytes), testing::ElementsAre(Record(step)));
}

TEST(JournalCodec, SlotsAreNotKept) {
  journal::StepTokens step{
      StepId{5}, {{RequestId{1}, {9, 2, 7, 0, {}}, {{9, 1, 5, -1, {}}}}}};
  const auto back = DecodeRecords(Bytes(step));
  ASSERT_THAT(back, IsOk());
  step.tokens[0].token.slot = step.tokens[0].prompt_logprobs[0].slot = 0;
  EXPECT_EQ(back->front(), Record(step));
}

TEST(JournalCodec, RandomHistoriesSurvive) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    RandomHistory history(seed);
    JournalState live, read;
    for (int i = 0; i < 200; ++i) {
      const Record record = history.Next(live);
      ASSERT_THAT(live.Apply(record), IsOk());
      auto back = DecodeRecords(Bytes(record));
      ASSERT_THAT(back, IsOk());
      ASSERT_THAT(read.Apply((*back)[0]), IsOk());
    }
    EXPECT_EQ(live, read);
  }
}

}  // namespace
}  // namespace moebius
