// Stop strings are noticed beside the engine, however late, and answers are the
// same.
#include <algorithm>
#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/engine/engine_host_fixture.h"

namespace moebius {
namespace {

// Does nothing until it is let go: then as TextThread.
class HeldText final : public TextStage {
 public:
  explicit HeldText(OutputListener listener)
      : text_(&TestTokenizer(), std::move(listener)) {}

  void Begin(std::function<void()> wake) override {
    text_.Begin(std::move(wake));
    TextBatch batch;
    batch.emplace_back(TextCall([this] { let_go_.WaitForNotification(); }));
    text_.Push(batch);
  }
  void Push(TextBatch& batch) override {
    absl::MutexLock lock(&mutex_);
    num_drawn_ += static_cast<int>(
        std::count_if(batch.begin(), batch.end(), [](const TextItem& item) {
          return std::holds_alternative<TokenDrawn>(item);
        }));
    text_.Push(batch);
  }
  std::vector<TextEnd> TakeEnds() override { return text_.TakeEnds(); }
  size_t backlog() const override { return text_.backlog() + planted_; }
  void Flush() override { text_.Flush(); }

  void AwaitDrawn(int count) {
    absl::MutexLock lock(&mutex_);
    const auto drawn = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return num_drawn_ >= count;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&drawn), kLong));
  }
  int num_drawn() {
    absl::MutexLock lock(&mutex_);
    return num_drawn_;
  }
  void LetGo() { let_go_.Notify(); }
  void PlantBacklog(size_t size) { planted_ = size; }

 private:
  std::atomic<size_t> planted_{0};
  absl::Mutex mutex_;
  int num_drawn_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Notification let_go_;
  TextThread text_;  // waits for let_go_
};

class EngineTextTest : public EngineHostTest {
 protected:
  void StartHeld() {
    make_text_ = [this](OutputListener listener) {
      auto text = std::make_unique<HeldText>(std::move(listener));
      text_ = text.get();
      return text;
    };
    Start();
  }
  void OpenJournal() {
    auto opened = Journal::Open({.checkpoint = 1, .salt = 1}, disk_);
    ASSERT_THAT(opened, IsOk());
    journal_ = std::move(opened->journal);
    ASSERT_THAT(journal_->Append(journal::TermBegun{
                    Term{journal_->state().term().value + 1}}),
                IsOk());
    ASSERT_THAT(journal_->Commit(), IsOk());
  }

  // What token `index` of request 1 says, as a word to stop at, which is in
  // nothing before it.
  static std::string WordAt(size_t index) {
    StopCriteria all;
    all.max_tokens = kTokens;
    GenerationOutput text(&TestTokenizer(), all);
    std::string before;
    const auto quiet = QuietRun(1, Request(6, kTokens).prompt, kTokens);
    for (size_t i = 0; i < kTokens; ++i) {
      Output output;
      text.Add({0, 0, quiet[i], 0, {}}, output);
      if (i >= index && !output.text.empty() &&
          before.find(output.text) == std::string::npos) {
        return output.text;
      }
      before += output.text;
    }
    ADD_FAILURE() << "no such word";
    return "";
  }
  static Generation Stopping() {
    Generation generation = Request(6, kTokens);
    generation.stop.stop = {WordAt(5)};
    return generation;
  }
  // What a group says that notices the word at once.
  static Listener::Stream Answer() {
    GenerationOutput text(&TestTokenizer(), Stopping().stop);
    Listener::Stream answer;
    for (int32_t token : QuietRun(1, Stopping().prompt, kTokens)) {
      Output output;
      text.Add({0, 0, token, 0, {}}, output);
      answer.tokens.push_back(token);
      answer.text += output.text;
      answer.finish = output.finish;
      answer.stop_reason = output.stop_reason;
      if (output.finish.has_value()) break;
    }
    EXPECT_EQ(answer.finish, FinishReason::kStop);
    return answer;
  }
  static void ExpectAnswer(const Listener::Stream& stream) {
    const Listener::Stream answer = Answer();
    EXPECT_EQ(stream.tokens, answer.tokens);
    EXPECT_EQ(stream.text, answer.text);
    EXPECT_EQ(stream.finish, answer.finish);
    EXPECT_EQ(stream.stop_reason, answer.stop_reason);
  }
  Listener::Stream AttachTo(RequestId id) {
    const auto told =
        std::make_shared<std::promise<absl::StatusOr<std::vector<Output>>>>();
    engine_->Attach({id}, [told](auto outputs) { told->set_value(outputs); });
    const auto outputs = told->get_future().get();
    EXPECT_THAT(outputs, IsOk());
    Listener fresh;
    if (outputs.ok()) fresh.Hear(*outputs);
    return fresh.Get(id);
  }

  static constexpr int kTokens = 60;
  HeldText* text_ = nullptr;  // the engine's
};

TEST_F(EngineTextTest, AStopThatIsNoticedAfterTheLastTokenIsTheSameEnd) {
  OpenJournal();
  StartHeld();
  const RequestId id = Submit(Stopping());
  ASSERT_EQ(id, RequestId{1});
  text_->AwaitDrawn(kTokens);
  EXPECT_TRUE(listener_.Get(id).tokens.empty());
  text_->LetGo();
  ExpectAnswer(listener_.AwaitEnd(id));
  ExpectAnswer(AttachTo(id));
  EXPECT_EQ(engine_->GetStatus().requests_finished, 1u);
  engine_->Stop();
  const JournalChoice* choice = journal_->state().Find(id);
  ASSERT_NE(choice, nullptr);
  ASSERT_TRUE(choice->finish.has_value());
  EXPECT_EQ(choice->finish->reason, FinishReason::kStop);
  EXPECT_EQ(choice->finish->stop_reason, Answer().stop_reason);
  EXPECT_EQ(choice->tokens.size(), size_t{kTokens});
}

TEST_F(EngineTextTest, AStopThatIsNoticedInMidStreamEndsIt) {
  StartHeld();
  hub_->HoldAfterResults(20);
  const RequestId id = Submit(Stopping());
  hub_->AwaitHeld();
  text_->LetGo();
  ExpectAnswer(listener_.AwaitEnd(id));
  hub_->Hold(false);
  // Its slot and pages are free.
  listener_.AwaitEnd(Submit(Request(4, 2)));
  EXPECT_LT(text_->num_drawn(), kTokens);
}

TEST_F(EngineTextTest, TokensBehindAStopThatOnlyTheJournalKnowsStayUnsaid) {
  OpenJournal();
  {
    journal::Accepted accepted;
    accepted.generations = {{RequestId{1}, Stopping()}};
    ASSERT_THAT(journal_->Append(accepted), IsOk());
    journal::StepTokens step{StepId{1}, {}};
    uint32_t position = 6;
    for (int32_t token : QuietRun(1, Stopping().prompt, 40)) {
      step = {step.step.next(),
              {{RequestId{1}, {0, position++, token, 0, {}}, {}}}};
      ASSERT_THAT(journal_->Append(step), IsOk());
    }
    ASSERT_THAT(journal_->Commit(), IsOk());
  }
  Start();
  // Its end is told once the journal has it, which may be after the end of a
  // request that came later.
  listener_.AwaitEnd(RequestId{1});
  ExpectAnswer(AttachTo(RequestId{1}));
  engine_->Stop();
  EXPECT_EQ(journal_->state().Find(RequestId{1})->tokens.size(), 40u);
  EXPECT_EQ(journal_->state().Find(RequestId{1})->finish->stop_reason,
            Answer().stop_reason);
}

TEST_F(EngineTextTest, AbortWinsOverAStopThatNobodyHasHeardOf) {
  StartHeld();
  const RequestId id = Submit(Stopping());
  text_->AwaitDrawn(kTokens);
  engine_->Abort(id);
  const RequestId other = Submit(Request(4, 2));
  text_->LetGo();
  listener_.AwaitEnd(other);
  EXPECT_EQ(engine_->GetStatus().requests_aborted, 1u);
  EXPECT_FALSE(listener_.Get(id).finish.has_value());
}

TEST_F(EngineTextTest, StopWaitsForTheEndsThatAreFoundAlready) {
  StartHeld();
  const RequestId id = Submit(Stopping());
  text_->AwaitDrawn(kTokens);
  std::thread stop([&] { engine_->Stop(); });
  text_->LetGo();
  stop.join();
  ExpectAnswer(listener_.Get(id));
  EXPECT_EQ(engine_->num_cut(), 0);
}

TEST_F(EngineTextTest, DrainEndsBehindTheLastOutput) {
  StartHeld();
  const RequestId id = Submit(Stopping());
  text_->AwaitDrawn(kTokens);
  const auto ended_before = std::make_shared<std::promise<bool>>();
  engine_->Drain([this, id, ended_before](bool) {
    ended_before->set_value(listener_.Get(id).finish.has_value());
  });
  text_->LetGo();
  EXPECT_TRUE(ended_before->get_future().get());
}

TEST_F(EngineTextTest, NoStepIsPlannedAheadOfATextStageThatIsFarBehind) {
  StartHeld();
  text_->LetGo();
  text_->PlantBacklog(kMaxTextBacklog + 1);
  // All are accepted, each in a turn of its own, and nothing more happens.
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.push_back(Submit(Request(4, 2)));
    listener_.AwaitOutputs(ids.back(), 1);
  }
  EXPECT_EQ(text_->num_drawn(), 0);
  text_->PlantBacklog(0);
  engine_->Abort(RequestId{999});  // wakes it
  for (const RequestId id : ids) {
    EXPECT_EQ(listener_.AwaitEnd(id).tokens.size(), 2u);
  }
}

}  // namespace
}  // namespace moebius
