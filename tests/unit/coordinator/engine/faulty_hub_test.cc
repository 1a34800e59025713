// Faults of messages: what can be said, what befalls messages, and that the
// bounds hold.
#include "coordinator/engine/faulty_hub.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/wire/wire.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Notes what is sent, and gives what it was told to.
class NotingHub final : public Hub {
 public:
  absl::Status Send(Rank rank, Incarnation, std::string_view bytes) override {
    if (gone) return absl::UnavailableError("gone");
    const auto message =
        wire::DecodeCommand(absl::MakeConstSpan(bytes.data(), bytes.size()));
    sent.emplace_back(rank, message.ok() ? message->envelope.sequence : 0);
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<Message>> Receive(int timeout_ms) override {
    waited_ms = timeout_ms;
    return std::exchange(to_give, {});
  }
  void Wake() override { ++wakes; }

  std::vector<std::pair<Rank, uint64_t>> sent;  // rank, sequence
  std::vector<Message> to_give;
  int waited_ms = 0;
  int wakes = 0;
  bool gone = false;
};

class FaultyHubTest : public testing::Test {
 protected:
  void Make(std::string_view text) {
    auto faults = ParseMessageFaults(text);
    ASSERT_THAT(faults, IsOk());
    auto inner = std::make_unique<NotingHub>();
    inner_ = inner.get();
    hub_ = std::make_unique<FaultyHub>(
        std::move(inner), *std::move(faults),
        [this](Direction direction, Rank rank) {
          if (full_ == rank) return FaultyHub::LinkState::kFull;
          return cut_ == std::pair(direction, rank)
                     ? FaultyHub::LinkState::kCut
                     : FaultyHub::LinkState::kOpen;
        },
        [this] { return now_; });
  }
  absl::Status Send(Rank rank, uint64_t sequence, wire::Command command) {
    return hub_->Send(
        rank, Incarnation{1},
        Encode(wire::CommandMessage{{Term{1}, Incarnation{1}, sequence},
                                    std::move(command)}));
  }
  void Arrive(Rank rank, uint64_t sequence, wire::Report report) {
    inner_->to_give.push_back(
        {rank, Incarnation{1},
         Encode(wire::ReportMessage{{Term{1}, Incarnation{1}, sequence},
                                    std::move(report)})});
  }
  // Sequences of what comes out.
  std::vector<uint64_t> Receive(int timeout_ms = 0) {
    auto received = hub_->Receive(timeout_ms);
    EXPECT_THAT(received, IsOk());
    std::vector<uint64_t> sequences;
    for (const Hub::Message& message : *received) {
      sequences.push_back(
          message.bytes.empty()
              ? 0
              : wire::DecodeReport(message.bytes)->envelope.sequence);
    }
    return sequences;
  }
  void Advance(int ms) { now_ += std::chrono::milliseconds(ms); }

  NotingHub* inner_ = nullptr;
  std::unique_ptr<FaultyHub> hub_;
  std::optional<std::pair<Direction, Rank>> cut_;
  std::optional<Rank> full_;
  FaultyHub::Clock::time_point now_{};
};

TEST(MessageFaults, WhatIsWrongIsRefused) {
  for (const char* text :
       {"lose", "lose=", "lose=2", "lose=-1", "lose=x", "delay_ms=-1", "seed=x",
        "loose=1", "lose_command=", "lose_command=comit",
        "lose_command=commit#0", "lose_command=commit@16",
        "lose_command=commit@-1", "lose_command=commit:5",
        "delay_command=commit", "delay_command=commit:x", "lose_report=commit",
        "lose_thing=commit", "drop_command=commit"}) {
    EXPECT_THAT(ParseMessageFaults(text),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << text;
  }
  std::string many;
  for (size_t i = 0; i <= MessageFaults::kMaxRules; ++i) {
    many += "lose_command=commit ";
  }
  EXPECT_THAT(ParseMessageFaults(many),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(MessageFaults, EqualSeedsGiveEqualFates) {
  const auto draw = [](const char* text) {
    MessageFates fates(*ParseMessageFaults(text));
    std::vector<MessageFate> all;
    for (int i = 0; i < 500; ++i) {
      all.push_back(fates.Next(Direction::kCommand, 5, i % 2));
    }
    return all;
  };
  const char* text = "lose=0.1 repeat=0.2 reorder=0.1 delay_ms=5 seed=7";
  EXPECT_EQ(draw(text), draw(text));
  EXPECT_NE(draw(text),
            draw("lose=0.1 repeat=0.2 reorder=0.1 delay_ms=5 seed=8"));
  int lost = 0, repeated = 0;
  for (const MessageFate& fate : draw(text)) {
    lost += fate.kind == MessageFate::Kind::kLose;
    repeated += fate.kind == MessageFate::Kind::kRepeat;
    EXPECT_LE(fate.delay_ms, 5);
  }
  EXPECT_NEAR(lost, 50, 25);
  EXPECT_NEAR(repeated, 100, 35);
}

TEST_F(FaultyHubTest, WithoutFaultsAllPassesInOrder) {
  Make("");
  ASSERT_THAT(Send(0, 1, wire::Greet{}), IsOk());
  ASSERT_THAT(Send(1, 1, wire::Greet{}), IsOk());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u), std::pair(1, 1u)));
  Arrive(0, 1, wire::Hello{});
  Arrive(0, 2, wire::Halted{});
  EXPECT_THAT(Receive(), ElementsAre(1, 2));
  EXPECT_THAT(hub_->Receive(-1), IsOk());
  EXPECT_EQ(inner_->waited_ms, -1);
  hub_->Wake();
  EXPECT_EQ(inner_->wakes, 1);
}

TEST_F(FaultyHubTest, ARuleMeansTheNthOfItsKindAndRank) {
  Make("lose_command=commit@1#2 lose_report=switched");
  for (uint64_t i = 1; i <= 3; ++i) {
    for (Rank rank : {0, 1}) ASSERT_THAT(Send(rank, i, wire::Commit{}), IsOk());
    ASSERT_THAT(Send(1, 10 + i, wire::Abort{}), IsOk());
  }
  EXPECT_THAT(inner_->sent,
              ElementsAre(std::pair(0, 1u), std::pair(1, 1u), std::pair(1, 11u),
                          std::pair(0, 2u), std::pair(1, 12u), std::pair(0, 3u),
                          std::pair(1, 3u), std::pair(1, 13u)));
  Arrive(0, 1, wire::Switched{});
  Arrive(1, 1, wire::Switched{});
  EXPECT_THAT(Receive(), ElementsAre(1));
}

TEST_F(FaultyHubTest, NoOneIsToldOfALoss) {
  Make("lose=1");
  inner_->gone = true;
  EXPECT_THAT(Send(0, 1, wire::Commit{}), IsOk());
  // Who has connected is known all the same.
  inner_->to_give.push_back({0, Incarnation{1}, ""});
  Arrive(0, 1, wire::Hello{});
  EXPECT_THAT(Receive(), ElementsAre(0));
}

TEST_F(FaultyHubTest, NothingPassesALinkThatIsCutUntilItHeals) {
  for (const char* text : {"", "lose_command=greet lose_report=hello"}) {
    Make(text);
    cut_ = std::pair(Direction::kCommand, 1);
    ASSERT_THAT(Send(1, 1, wire::Abort{}), IsOk());
    ASSERT_THAT(hub_->Send(1, Incarnation{1}, "no message"), IsOk());
    ASSERT_THAT(Send(0, 1, wire::Abort{}), IsOk());
    EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u)));
    // The other way, and who has connected, is not.
    Arrive(1, 1, wire::Halted{});
    inner_->to_give.push_back({1, Incarnation{1}, ""});
    EXPECT_THAT(Receive(), ElementsAre(1, 0));

    cut_ = std::pair(Direction::kReport, 1);
    Arrive(1, 2, wire::Halted{});
    Arrive(0, 3, wire::Halted{});
    EXPECT_THAT(Receive(), ElementsAre(3));
    ASSERT_THAT(Send(1, 2, wire::Abort{}), IsOk());

    cut_.reset();
    Arrive(1, 4, wire::Halted{});
    EXPECT_THAT(Receive(), ElementsAre(4));
    EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u), std::pair(1, 2u)));
  }
}

TEST_F(FaultyHubTest, AFullQueueIsReportedUntilThereIsRoom) {
  Make("");
  full_ = 1;
  EXPECT_THAT(Send(1, 1, wire::Abort{}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("full")));
  EXPECT_THAT(Send(0, 1, wire::Abort{}), IsOk());
  full_.reset();
  EXPECT_THAT(Send(1, 2, wire::Abort{}), IsOk());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u), std::pair(1, 2u)));
}

TEST_F(FaultyHubTest, WhoIsNotThereIsReported) {
  Make("");
  inner_->gone = true;
  EXPECT_THAT(Send(0, 1, wire::Commit{}),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(FaultyHubTest, SwapEchoAndRepeat) {
  Make(
      "swap_command=prepare echo_command=resume swap_report=prepared repeat=0");
  ASSERT_THAT(Send(1, 1, wire::Prepare{}), IsOk());
  ASSERT_THAT(Send(0, 1, wire::Commit{}), IsOk());  // another channel
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u)));
  ASSERT_THAT(Send(1, 2, wire::Commit{}), IsOk());
  EXPECT_THAT(Receive(100), IsEmpty());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u), std::pair(1, 2u),
                                        std::pair(1, 1u)));
  inner_->sent.clear();
  ASSERT_THAT(Send(1, 3, wire::Resume{}), IsOk());
  ASSERT_THAT(Send(1, 4, wire::Abort{}), IsOk());
  EXPECT_THAT(Receive(100), IsEmpty());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(1, 3u), std::pair(1, 4u),
                                        std::pair(1, 3u)));
  // Nothing comes to overtake it: it has waited long enough at last.
  Arrive(0, 1, wire::Prepared{});
  EXPECT_THAT(Receive(1000), IsEmpty());
  EXPECT_THAT(Receive(1000), IsEmpty());
  EXPECT_EQ(inner_->waited_ms, FaultyHub::kSwapTimeout.count());
  Advance(FaultyHub::kSwapTimeout.count());
  EXPECT_THAT(Receive(1000), ElementsAre(1));
  EXPECT_EQ(hub_->num_held(), 0u);
}

TEST_F(FaultyHubTest, ALateCopyComesWhenItIsDue) {
  Make("echo_command=abort:300");
  ASSERT_THAT(Send(1, 1, wire::Abort{}), IsOk());
  ASSERT_THAT(Send(1, 2, wire::Prepare{}), IsOk());
  ASSERT_THAT(Send(1, 3, wire::Commit{}), IsOk());
  Advance(300);
  EXPECT_THAT(Receive(), IsEmpty());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(1, 1u), std::pair(1, 2u),
                                        std::pair(1, 3u), std::pair(1, 1u)));
}

TEST_F(FaultyHubTest, RepeatedMessagesComeTwice) {
  Make("repeat=1");
  ASSERT_THAT(Send(1, 1, wire::Commit{}), IsOk());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(1, 1u), std::pair(1, 1u)));
  Arrive(0, 1, wire::Hello{});
  EXPECT_THAT(Receive(), ElementsAre(1, 1));
}

TEST_F(FaultyHubTest, DelayKeepsTheOrderOfAChannel) {
  Make("delay_command=abort:500");
  ASSERT_THAT(Send(1, 1, wire::Abort{}), IsOk());
  ASSERT_THAT(Send(1, 2, wire::Commit{}), IsOk());
  ASSERT_THAT(Send(0, 1, wire::Commit{}), IsOk());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u)));
  EXPECT_THAT(Receive(-1), IsEmpty());
  EXPECT_EQ(inner_->waited_ms, 500);
  Advance(500);
  EXPECT_THAT(Receive(-1), IsEmpty());
  EXPECT_THAT(inner_->sent, ElementsAre(std::pair(0, 1u), std::pair(1, 1u),
                                        std::pair(1, 2u)));
}

TEST_F(FaultyHubTest, WhatIsHeldIsBounded) {
  Make("delay_ms=600000");
  for (uint64_t i = 1; i <= 2 * FaultyHub::kMaxHeld; ++i) {
    ASSERT_THAT(Send(0, i, wire::Abort{}), IsOk());
  }
  EXPECT_LE(hub_->num_held(), FaultyHub::kMaxHeld);
  EXPECT_GE(inner_->sent.size(), FaultyHub::kMaxHeld);
}

}  // namespace
}  // namespace moebius
