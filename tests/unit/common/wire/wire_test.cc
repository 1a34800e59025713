// Every message survives the codec, and no bytes can hurt the reader.
#include "common/wire/wire.h"

#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/common/wire/wire_samples.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST(Wire, EveryCommandSurvives) {
  for (const wire::CommandMessage& message : SampleCommands()) {
    const std::string bytes = Encode(message);
    const auto back = wire::DecodeCommand(bytes);
    ASSERT_THAT(back, IsOk());
    EXPECT_EQ(back->envelope.term, message.envelope.term);
    EXPECT_EQ(back->envelope.incarnation, message.envelope.incarnation);
    EXPECT_EQ(back->envelope.sequence, message.envelope.sequence);
    EXPECT_EQ(back->command.index(), message.command.index());
    // Encoding is canonical, so equal bytes are equal values.
    EXPECT_EQ(Encode(*back), bytes);
  }
}

TEST(Wire, EveryReportSurvives) {
  for (const wire::ReportMessage& message : SampleReports()) {
    const std::string bytes = Encode(message);
    const auto back = wire::DecodeReport(bytes);
    ASSERT_THAT(back, IsOk());
    EXPECT_EQ(back->report.index(), message.report.index());
    EXPECT_EQ(Encode(*back), bytes);
  }
}

TEST(Wire, StepPlanKeepsEveryField) {
  const StepPlan plan = SampleStepPlan();
  const auto back = wire::DecodeCommand(Encode(wire::CommandMessage{{}, plan}));
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(std::get<StepPlan>(back->command), plan);
}

TEST(Wire, UnalignedBytesAreRead) {
  const std::string bytes = Encode(SampleCommands().front());
  for (size_t shift = 1; shift < 8; ++shift) {
    const std::string moved = std::string(shift, 'x') + bytes;
    EXPECT_THAT(wire::DecodeCommand(absl::MakeConstSpan(moved).subspan(shift)),
                IsOk());
  }
}

TEST(Wire, EmptyAndTruncatedBytesAreRefused) {
  EXPECT_THAT(wire::DecodeCommand({}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  for (const wire::CommandMessage& message : SampleCommands()) {
    const std::string bytes = Encode(message);
    for (size_t size = 1; size < bytes.size(); size += 8) {
      EXPECT_THAT(wire::DecodeCommand(absl::MakeConstSpan(bytes).first(size)),
                  StatusIs(absl::StatusCode::kInvalidArgument));
    }
  }
}

TEST(Wire, ForeignVersionIsNamed) {
  std::string bytes = Encode(wire::CommandMessage{{}, wire::Shutdown{}});
  // The version is the only 32-bit field that holds kWireVersion here.
  const std::string version(reinterpret_cast<const char*>(&wire::kVersion), 4);
  const size_t at = bytes.rfind(version);
  ASSERT_NE(at, std::string::npos);
  bytes[at] = 77;
  EXPECT_THAT(
      wire::DecodeCommand(bytes),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version 77")));
}

TEST(Wire, OutOfRangeNumbersAreRefused) {
  StepPlan plan = SampleStepPlan();
  plan.items[0].num_tokens = 0;
  EXPECT_THAT(wire::DecodeCommand(Encode(wire::CommandMessage{{}, plan})),
              StatusIs(absl::StatusCode::kInvalidArgument));
  plan = SampleStepPlan();
  plan.items[0].group = kMaxRanks;
  EXPECT_THAT(wire::DecodeCommand(Encode(wire::CommandMessage{{}, plan})),
              StatusIs(absl::StatusCode::kInvalidArgument));
  plan = SampleStepPlan();
  plan.admissions[0].num_prompt_tokens = 1000;
  EXPECT_THAT(wire::DecodeCommand(Encode(wire::CommandMessage{{}, plan})),
              StatusIs(absl::StatusCode::kInvalidArgument));
  plan = SampleStepPlan();
  plan.layout.attention.tp_size = kMaxRanks + 1;
  EXPECT_THAT(wire::DecodeCommand(Encode(wire::CommandMessage{{}, plan})),
              StatusIs(absl::StatusCode::kInvalidArgument));
  wire::Hello hello;
  hello.rank = 3;
  hello.num_ranks = 2;
  EXPECT_THAT(wire::DecodeReport(Encode(wire::ReportMessage{{}, hello})),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(Wire, FlippedBytesNeverCrash) {
  std::mt19937 random(7);
  for (const wire::CommandMessage& message : SampleCommands()) {
    const std::string bytes = Encode(message);
    for (int i = 0; i < 2000; ++i) {
      std::string bad = bytes;
      const int flips = 1 + random() % 4;
      for (int k = 0; k < flips; ++k) bad[random() % bad.size()] = random();
      const auto command = wire::DecodeCommand(bad);
      if (command.ok()) Encode(*command);
      wire::DecodeReport(bad).IgnoreError();
    }
  }
}

}  // namespace
}  // namespace moebius
