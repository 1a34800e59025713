// A worker's part in rounds of recovery, message by message: what is repeated,
// late or lost.
#include "worker/worker_loop.h"

#include <csignal>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;

// Gives what was put into it, then stops the loop.
class ScriptedLink final : public Link {
 public:
  absl::Status Send(std::string_view bytes) override {
    auto message =
        wire::DecodeReport(absl::MakeConstSpan(bytes.data(), bytes.size()));
    EXPECT_THAT(message, IsOk());
    reports.push_back(std::move(message->report));
    return absl::OkStatus();
  }
  absl::StatusOr<std::optional<std::string>> Receive(int) override {
    if (commands.empty()) {
      stop = 1;
      return std::nullopt;
    }
    std::string bytes = std::move(commands.front());
    commands.pop_front();
    return bytes;
  }

  std::deque<std::string> commands;
  std::vector<wire::Report> reports;
  volatile std::sig_atomic_t stop = 0;
};

class NoFence final : public CpuFence {
 public:
  absl::Status Wait() override { return absl::OkStatus(); }
  void Abandon() override { ++abandonments; }
  void AbandonForPeers() override {}
  uint64_t abandoned() const override { return 0; }
  void GoOn(uint64_t) override {}

  int abandonments = 0;
};

class ScriptedCheck final : public WeightCheck {
 public:
  void Begin(Epoch epoch, const ExpertsState&) override {
    begun.push_back(epoch);
    sum = Sum{epoch, 0xfeed};
  }
  void GiveUp() override {
    ++given_up;
    sum.reset();
  }
  std::optional<Sum> Take() override { return std::exchange(sum, {}); }

  std::vector<Epoch> begun;
  int given_up = 0;
  std::optional<Sum> sum;
};

class WorkerLoopTest : public testing::Test {
 protected:
  WorkerLoopTest() {
    context_.incarnation = Incarnation{1};
    context_.link = &link_;
    context_.switches = &switches_;
    context_.sequences = &sequences_;
    context_.fence = &fence_;
    context_.signals = &signals_;
    context_.check = &check_;
    context_.load = [this](const wire::Load&) -> absl::StatusOr<wire::Loaded> {
      ++loads_;
      return wire::Loaded{0, 1000, 7};
    };
    context_.meet = [this](absl::Span<const Incarnation>) {
      ++resumed_;
      return absl::OkStatus();
    };
  }

  void Come(uint64_t sequence, wire::Command command) {
    link_.commands.push_back(Encode(wire::CommandMessage{
        {Term{1}, Incarnation{1}, sequence}, std::move(command)}));
  }
  // Runs to the end of what has come; the reports, by their kind.
  std::vector<size_t> Run() {
    EXPECT_THAT(WorkerLoop(context_).Run(&link_.stop), IsOk());
    std::vector<size_t> kinds;
    for (const wire::Report& report : link_.reports)
      kinds.push_back(report.index());
    return kinds;
  }
  template <typename T>
  static size_t Kind() {
    return wire::Report(T{}).index();
  }

  ScriptedLink link_;
  NoFence fence_;
  ScriptedCheck check_;
  SignalsBlock signals_{};
  DeviceSlots slots_{0, 4, 100};
  SequenceTable sequences_{{0, 1, {}, 4, 16, 16, 64, 100}, &slots_};
  SwitchExecutor switches_{SwitchContext{
      0, 1, {}, {}, 0, 0, nullptr, &sequences_, &fence_, nullptr}};
  WorkerLoop::Context context_;
  int loads_ = 0;
  int resumed_ = 0;
};

wire::Resume ResumeOf(uint64_t round) {
  wire::Resume resume;
  resume.round = round;
  resume.experts = ExpertsState::At(ExpertParallel(), Side::kLow);
  resume.next_step = StepId{1};
  resume.next_barrier = 1;
  resume.memories = {Incarnation{1}};
  return resume;
}

TEST_F(WorkerLoopTest, ALateCopyOfAHaltHidesNothingThatFollows) {
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(3, wire::Restore{1, {}});
  Come(2, wire::Halt{1});
  Come(4, ResumeOf(1));
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>()));
  EXPECT_EQ(resumed_, 1);
}

TEST_F(WorkerLoopTest, AHaltThatIsSaidAgainIsAnsweredAgain) {
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(4, wire::Halt{1});  // 3 was lost
  Come(5, ResumeOf(1));
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::Halted>()));
  EXPECT_EQ(resumed_, 1);
}

// Peers that have heard Resume wait for us in their first step.
TEST_F(WorkerLoopTest, ALostResumeIsTold) {
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(4, wire::Abort{});  // 3 was lost
  Come(5, wire::Abort{});
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::Interrupted>()));
  EXPECT_EQ(fence_.abandonments, 1);
}

// They hear no Halt while they wait.
TEST_F(WorkerLoopTest, AHaltBehindALostCommandFreesThePeers) {
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(3, ResumeOf(1));
  Come(4, wire::Halt{2});  // nothing was lost
  Come(5, ResumeOf(2));
  Come(7, wire::Halt{3});  // 6 was lost
  Come(8, ResumeOf(3));
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::Halted>(), Kind<wire::Halted>()));
  EXPECT_EQ(resumed_, 3);
  EXPECT_EQ(fence_.abandonments, 1);
}

TEST_F(WorkerLoopTest, WeightsThatAreThereAreNotLoadedAgainInTheRound) {
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(3, wire::Load{1, {}, {}});
  Come(4, wire::Halt{1});
  Come(5, wire::Load{1, {}, {}});
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::Loaded>(), Kind<wire::Halted>(),
                                 Kind<wire::Loaded>()));
  EXPECT_EQ(loads_, 1);
}

TEST_F(WorkerLoopTest, WhichSwitchesAreOverStaysWithTheMemory) {
  wire::Resume resume = ResumeOf(1);
  resume.last_epoch = Epoch{5};
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(3, resume);
  Come(4, wire::Halt{2});
  ASSERT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::Halted>()));
  EXPECT_EQ(std::get<wire::Halted>(link_.reports[1]).stand.epochs_over,
            Epoch{0});
  EXPECT_EQ(std::get<wire::Halted>(link_.reports[2]).stand.epochs_over,
            Epoch{5});
}

TEST_F(WorkerLoopTest, ACheckThatIsAskedForIsTakenAndTold) {
  wire::Resume resume = ResumeOf(1);
  resume.last_epoch = Epoch{5};
  resume.check_weights = true;
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(3, resume);
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::WeightsChecked>()));
  EXPECT_THAT(check_.begun, ElementsAre(Epoch{5}));
  const auto& told = std::get<wire::WeightsChecked>(link_.reports[2]);
  EXPECT_EQ(told.epoch, Epoch{5});
  EXPECT_EQ(told.weight_checksum, 0xfeedu);
}

// What is loaded would be read half old and half new.
TEST_F(WorkerLoopTest, ALoadGivesTheCheckUp) {
  check_.Begin(Epoch{1}, {});
  Come(1, wire::Greet{});
  Come(2, wire::Halt{1});
  Come(3, wire::Load{1, {}, {}});
  Come(4, ResumeOf(1));
  EXPECT_THAT(Run(), ElementsAre(Kind<wire::Hello>(), Kind<wire::Halted>(),
                                 Kind<wire::Loaded>()));
  EXPECT_EQ(check_.given_up, 1);
}

TEST_F(WorkerLoopTest, AnotherRoundLoadsAnew) {
  Come(1, wire::Greet{});
  for (uint64_t round : {1, 2}) {
    Come(2 * round, wire::Halt{round});
    Come(2 * round + 1, wire::Load{round, {}, {}});
  }
  Run();
  EXPECT_EQ(loads_, 2);
}

}  // namespace
}  // namespace moebius
