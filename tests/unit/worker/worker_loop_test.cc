// A worker's part in steps and in rounds of recovery, message by message: what
// is repeated, late or lost, of messages and of steps.
#include "worker/worker_loop.h"

#include <csignal>
#include <deque>
#include <functional>
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
using testing::HasSubstr;
using testing::IsEmpty;

// What an engine is told to do with the steps that it is given: nothing, until
// the test or Await ends them.
class ScriptedEngine final : public StepEngine {
 public:
  void Issue(Batch batch) override {
    ASSERT_LT(num_under_way(), static_cast<size_t>(kMaxIssued));
    issued_.push_back(batch.step);
  }
  std::optional<StepEnd> Collect() override {
    if (ended_.empty()) return std::nullopt;
    StepEnd end = std::move(ended_.front());
    ended_.pop_front();
    if (!end.status.ok()) issued_.clear();
    return end;
  }
  // What happens meanwhile ends a step; if nothing does, the wait does.
  void Await() override {
    ++waits;
    while (ended_.empty() && happens && happens()) {
    }
    if (ended_.empty() && !issued_.empty() && !loses) End();
  }
  void Drain() override { ++drains; }
  int completion_fd() const override { return kFd; }

  // The first step that is under way ends so.
  void End(absl::Status status = absl::OkStatus()) {
    StepEnd end{std::move(status), {}};
    end.result.step = issued_.front();
    issued_.pop_front();
    ended_.push_back(std::move(end));
  }
  // Two ends are given in the wrong order.
  void SwapEnds() { std::swap(ended_[0], ended_[1]); }
  size_t num_under_way() const { return issued_.size() + ended_.size(); }

  static constexpr int kFd = 77;
  std::function<bool()> happens;  // the next event; false: it is none of ours
  bool loses = false;             // the step that is waited for
  int waits = 0;
  int drains = 0;

 private:
  std::deque<StepId> issued_;
  std::deque<StepEnd> ended_;
};

// Gives what was put into it, or does it and wakes the loop; then stops the
// loop.
class ScriptedLink final : public Link {
 public:
  absl::Status Send(std::string_view bytes) override {
    auto message =
        wire::DecodeReport(absl::MakeConstSpan(bytes.data(), bytes.size()));
    EXPECT_THAT(message, IsOk());
    reports.push_back(std::move(message->report));
    return absl::OkStatus();
  }
  absl::StatusOr<std::optional<std::string>> Receive(int,
                                                     int wake_fd) override {
    EXPECT_EQ(wake_fd, ScriptedEngine::kFd);
    if (events.empty()) {
      stop = 1;
      return std::nullopt;
    }
    const Event event = std::move(events.front());
    events.pop_front();
    return event.what();
  }
  // The next event, if it is the engine's; false: it is none.
  bool LetEngineAct() {
    if (events.empty() || !events.front().of_engine) return false;
    const Event event = std::move(events.front());
    events.pop_front();
    event.what();
    return true;
  }

  struct Event {
    std::function<std::optional<std::string>()> what;
    bool of_engine = false;
  };
  std::deque<Event> events;
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

wire::Resume ResumeOf(uint64_t round) {
  wire::Resume resume;
  resume.round = round;
  resume.experts = ExpertsState::At(ExpertParallel(), Side::kLow);
  resume.next_step = StepId{1};
  resume.next_barrier = 1;
  resume.memories = {Incarnation{1}};
  return resume;
}

const StepLayout kLayout = {ExpertParallel(),
                            ExpertsState::At(ExpertParallel(), Side::kLow)};

StepPlan PlanOf(uint64_t step) {
  StepPlan plan;
  plan.step = StepId{step};
  plan.layout = kLayout;
  return plan;
}

class WorkerLoopTest : public testing::Test {
 protected:
  WorkerLoopTest() {
    engine_.happens = [this] { return link_.LetEngineAct(); };
    context_.incarnation = Incarnation{1};
    context_.link = &link_;
    context_.engine = &engine_;
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
    ComeFrom(Term{1}, sequence, std::move(command));
  }
  void ComeFrom(Term term, uint64_t sequence, wire::Command command) {
    std::string bytes = Encode(wire::CommandMessage{
        {term, Incarnation{1}, sequence}, std::move(command)});
    link_.events.push_back({[bytes] { return bytes; }});
  }
  // The engine tells the loop.
  void Happen(std::function<void()> event) {
    const auto happen = [event]() -> std::optional<std::string> {
      event();
      return std::nullopt;
    };
    link_.events.push_back({happen, true});
  }
  // A group that goes on; the next command is number 4, the next step 1.
  void Begin() {
    Come(1, wire::Greet{});
    Come(2, wire::Halt{1});
    Come(3, ResumeOf(1));
  }
  // Reports since the group went on.
  std::vector<size_t> RunOn() {
    std::vector<size_t> kinds = Run();
    kinds.erase(kinds.begin(), kinds.begin() + 2);
    return kinds;
  }
  // Runs to the end of what has come; the reports, by their kind.
  std::vector<size_t> Run() {
    ended_ = WorkerLoop(context_).Run(&link_.stop);
    std::vector<size_t> kinds;
    for (const wire::Report& report : link_.reports)
      kinds.push_back(report.index());
    return kinds;
  }
  template <typename T>
  static size_t Kind() {
    return wire::Report(T{}).index();
  }

  template <typename T>
  const T& Report(size_t index) const {
    return std::get<T>(link_.reports[index]);
  }

  ScriptedLink link_;
  ScriptedEngine engine_;
  absl::Status ended_;  // how the loop did
  NoFence fence_;
  ScriptedCheck check_;
  SignalsBlock signals_{};
  DeviceSlots slots_{0, 4, 100};
  SequenceTable sequences_{{0, 1, {1, 4, 2}, 4, 16, 16, 64, 100}, &slots_};
  SwitchExecutor switches_{SwitchContext{
      0, 1, {}, {}, 0, nullptr, &sequences_, &fence_, nullptr, nullptr}};
  WorkerLoop::Context context_;
  int loads_ = 0;
  int resumed_ = 0;
};

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

// ---- steps -----------------------------------------------------------------

using Result = StepResult;

TEST_F(WorkerLoopTest, StepsAreIssuedAsTheyCome) {
  Begin();
  Come(4, PlanOf(1));
  EXPECT_THAT(RunOn(), IsEmpty());
  EXPECT_THAT(ended_, IsOk());
  EXPECT_EQ(engine_.num_under_way(), 1u);
  EXPECT_EQ(engine_.waits, 0);
  // Nobody is there any more to hear of them.
  EXPECT_EQ(fence_.abandonments, 1);
  EXPECT_EQ(engine_.drains, 1);
}

TEST_F(WorkerLoopTest, ResultsAreToldWhenTheyComeAlsoSeveralAtOnce) {
  Begin();
  Come(4, PlanOf(1));
  Come(5, PlanOf(2));
  Happen([this] { engine_.End(); });
  Happen([] {});  // woken for nothing
  Come(6, PlanOf(3));
  Happen([this] {
    EXPECT_EQ(signals_.progress.step.load(), 1u);
    engine_.End();
    engine_.End();
  });
  EXPECT_THAT(RunOn(),
              ElementsAre(Kind<Result>(), Kind<Result>(), Kind<Result>()));
  for (uint64_t step : {1, 2, 3}) {
    EXPECT_EQ(Report<Result>(1 + step).step, StepId{step});
  }
  EXPECT_EQ(signals_.progress.step.load(), 3u);
  EXPECT_EQ(engine_.waits, 2);
  EXPECT_EQ(fence_.abandonments, 0);
}

TEST_F(WorkerLoopTest, ResultsAreTakenBesideACommandThatComes) {
  Begin();
  Come(4, PlanOf(1));
  link_.events.push_back({[this] {
    engine_.End();  // and nobody was told
    return Encode(
        wire::CommandMessage{{Term{1}, Incarnation{1}, 5}, PlanOf(2)});
  }});
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>()));
  EXPECT_EQ(engine_.num_under_way(), 1u);
}

TEST_F(WorkerLoopTest, RanksBesideTheFirstTellOnlyTheirProgress) {
  context_.rank = 1;
  Begin();
  Come(4, PlanOf(1));
  Happen([this] { engine_.End(); });
  EXPECT_THAT(RunOn(), IsEmpty());
  EXPECT_EQ(signals_.progress.step.load(), 1u);
}

TEST_F(WorkerLoopTest, AHaltBehindStepsIsAnsweredOnceTheyAreDoneAndTold) {
  Begin();
  for (uint64_t step : {1, 2, 3}) Come(3 + step, PlanOf(step));
  Come(7, wire::Halt{2});
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>(), Kind<Result>(),
                                   Kind<Result>(), Kind<wire::Halted>()));
  EXPECT_EQ(Report<wire::Halted>(5).stand.last_executed, StepId{3});
  EXPECT_EQ(engine_.waits, 3);  // each is told when it is done
  EXPECT_EQ(fence_.abandonments, 0);
}

// The step before may still read what a switch moves.
TEST_F(WorkerLoopTest, PrepareAndCommitFindTheStepsBeforeThemDone) {
  Begin();
  Come(4, PlanOf(1));
  Come(5, wire::Prepare{Epoch{1}, ExpertParallel(), {}});
  Come(6, PlanOf(2));
  Come(7, wire::Commit{Epoch{1}, StepId{3}});  // which was not prepared
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>(), Kind<wire::Prepared>(),
                                   Kind<Result>(), Kind<wire::Fault>()));
  EXPECT_THAT(ended_, StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(WorkerLoopTest, ALateCopyOfAHaltWaitsForNoStep) {
  Begin();
  Come(4, PlanOf(1));
  Come(2, wire::Halt{1});
  EXPECT_THAT(RunOn(), IsEmpty());
  EXPECT_EQ(engine_.waits, 0);
}

TEST_F(WorkerLoopTest, AnotherCoordinatorIsGreetedBehindTheStepsOfTheLast) {
  Begin();
  Come(4, PlanOf(1));
  ComeFrom(Term{2}, 1, wire::Greet{});
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>(), Kind<wire::Hello>()));
  EXPECT_EQ(fence_.abandonments, 1);
}

TEST_F(WorkerLoopTest, AnInterruptedStepHaltsAndTakesThoseBehindItAlong) {
  Begin();
  Come(4, PlanOf(1));
  Come(5, PlanOf(2));
  Happen([this] { engine_.End(); });
  Come(6, PlanOf(3));
  Happen([this] { engine_.End(absl::AbortedError("rank 1 aborted")); });
  Come(7, PlanOf(4));  // is not issued
  Come(8, wire::Halt{2});
  Come(9, ResumeOf(2));
  Come(10, PlanOf(1));
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>(), Kind<wire::Interrupted>(),
                                   Kind<wire::Halted>()));
  EXPECT_EQ(Report<wire::Interrupted>(3).step, StepId{2});
  EXPECT_EQ(Report<wire::Halted>(4).stand.last_executed, StepId{1});
  EXPECT_EQ(engine_.num_under_way(), 1u);
}

TEST_F(WorkerLoopTest, AHaltBehindAStepThatIsInterruptedIsAnsweredAsWell) {
  Begin();
  Come(4, PlanOf(1));
  link_.events.push_back({[this] {
    engine_.End(absl::DeadlineExceededError("rank 1 did not come"));
    return Encode(
        wire::CommandMessage{{Term{1}, Incarnation{1}, 5}, wire::Halt{2}});
  }});
  EXPECT_THAT(RunOn(),
              ElementsAre(Kind<wire::Interrupted>(), Kind<wire::Halted>()));
  EXPECT_EQ(Report<wire::Interrupted>(2).step, StepId{1});
  EXPECT_EQ(fence_.abandonments, 1);
}

TEST_F(WorkerLoopTest, BehindALostCommandTheStepsBeforeItAreDoneAndTold) {
  Begin();
  Come(4, PlanOf(1));
  Come(6, PlanOf(3));
  Come(7, PlanOf(4));
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>(), Kind<wire::Interrupted>()));
  EXPECT_EQ(Report<wire::Interrupted>(3).step, StepId{2});
  EXPECT_EQ(fence_.abandonments, 1);
}

TEST_F(WorkerLoopTest, APlanThatCannotBeEndsTheWorkerBehindTheStepsBeforeIt) {
  Begin();
  Come(4, PlanOf(1));
  StepPlan plan = PlanOf(2);
  plan.items = {{0, 0, 1, 0, true}};
  Come(5, plan);
  EXPECT_THAT(RunOn(), ElementsAre(Kind<Result>(), Kind<wire::Fault>()));
  EXPECT_THAT(ended_, StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("slot 0")));
  EXPECT_EQ(fence_.abandonments, 1);
}

TEST_F(WorkerLoopTest, AStepThatFailsOtherwiseEndsTheWorker) {
  Begin();
  Come(4, PlanOf(1));
  Come(5, PlanOf(2));
  Happen([this] { engine_.End(absl::DataLossError("impossible numbers")); });
  EXPECT_THAT(RunOn(), ElementsAre(Kind<wire::Fault>()));
  EXPECT_THAT(ended_, StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(Report<wire::Fault>(2).step, StepId{1});
}

TEST_F(WorkerLoopTest, AStepThatTheEngineHasLostEndsTheWorker) {
  engine_.loses = true;
  Begin();
  Come(4, PlanOf(1));
  Come(5, wire::Halt{2});
  EXPECT_THAT(RunOn(), ElementsAre(Kind<wire::Fault>()));
  EXPECT_THAT(ended_, StatusIs(absl::StatusCode::kInternal,
                               "the engine has lost step 1"));
}

TEST_F(WorkerLoopTest, AResultThatIsNotDueEndsTheWorkerAndIsNotTold) {
  Begin();
  Come(4, PlanOf(1));
  Come(5, PlanOf(2));
  Happen([this] {
    engine_.End();
    engine_.End();
    engine_.SwapEnds();
  });
  EXPECT_THAT(RunOn(), ElementsAre(Kind<wire::Fault>()));
  EXPECT_THAT(ended_, StatusIs(absl::StatusCode::kInternal,
                               HasSubstr("step 2 where 1 was next")));
}

TEST_F(WorkerLoopTest, AnEngineThatHasEnoughIsWaitedFor) {
  Begin();
  constexpr uint64_t kMany = StepEngine::kEnough + 1;
  for (uint64_t step = 1; step <= kMany; ++step) Come(3 + step, PlanOf(step));
  EXPECT_EQ(RunOn().size(), kMany - 1);
  EXPECT_THAT(ended_, IsOk());
  EXPECT_EQ(engine_.num_under_way(), 1u);
}

}  // namespace
}  // namespace moebius
