// The scheduler against a simulated group, at random: arrivals, aborts, ends,
// tiny pools, switches that are committed or aborted, results that come late
// or, when the group recovers, never. Whatever happens, every request gets the
// tokens of a quiet run, each once.
#include <deque>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/decisions/scheduler.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/decisions/simulated_group.h"

namespace moebius {
namespace {

struct WalkFigures {
  uint64_t finished = 0, aborted = 0, preemptions = 0, switches = 0,
           switches_aborted = 0, switches_refused = 0, moves = 0,
           switches_between = 0, queue_full = 0, prompt_logprobs = 0,
           recoveries = 0, steps_lost = 0;
};

class Walk {
 public:
  Walk(const AttentionShape& shape, uint32_t seed, WalkFigures& figures)
      : random_(seed), figures_(figures) {
    options_.attention = shape;
    layouts_ = LayoutsOf(shape);
    options_.layout = layouts_[Below(static_cast<int>(layouts_.size()))];
    options_.max_running = 1 + Below(16);
    options_.max_queue = 4 + Below(12);
    options_.token_budget = 1 + Below(Chance(3) ? 8 : 80);
    options_.max_model_len = 20 + Below(100);
    // Short prompts with long answers outgrow a pool; the rest seldom do.
    long_answers_ = Chance(2);
    if (long_answers_) {
      options_.max_model_len = 100 + Below(100);
      options_.token_budget += 16;
    }
    options_.first_step = StepId{1 + random_() % 1000};
    // From a pool that just holds the largest request up to a roomy one.
    const uint32_t least =
        BlocksFor(options_.max_model_len - 1) * shape.num_kv_heads;
    const int plenty = 1 + Below(long_answers_ || Chance(2) ? 2 : 12);
    for (Rank r = 0; r < shape.num_ranks; ++r) {
      options_.pages_per_rank.push_back(least * plenty +
                                        static_cast<uint32_t>(Below(3)));
    }
    lateness_ = 1 + Below(4);
  }

  void Run(int requests) {
    auto scheduler = Scheduler::Create(options_);
    ASSERT_THAT(scheduler, IsOk());
    scheduler_.emplace(*std::move(scheduler));
    group_.emplace(options_);
    int left = requests;
    for (int turn = 0; left > 0 || !clients_.empty(); ++turn) {
      ASSERT_LT(turn, 200000) << "stuck";
      if (left > 0 && Chance(3)) {
        for (int i = 1 + Below(6); i > 0 && left > 0; --i) left -= AddOne();
      }
      if (Chance(40)) AbortOne();
      if (options_.attention.num_ranks > 1 && Chance(25)) {
        ASSERT_NO_FATAL_FAILURE(Switch());
      }
      if (Chance(30)) Recover();
      ASSERT_NO_FATAL_FAILURE(Turn());
      if (testing::Test::HasFailure()) return;
    }
    while (!late_.empty()) {
      ASSERT_NO_FATAL_FAILURE(Deliver());
    }
    CheckAllIsOver();
    figures_.preemptions += scheduler_->counters().preemptions;
  }

 private:
  struct Client {
    std::vector<int32_t> prompt;
    std::vector<int32_t> expected;
    size_t stop_after = 0;  // tokens after which the host ends it
    bool wants_prompt = false;
    size_t received = 0;
  };

  int Below(int n) { return static_cast<int>(random_() % n); }
  bool Chance(int one_in) { return Below(one_in) == 0; }

  int AddOne() {
    Client client;
    const int most = options_.max_model_len - 1;
    client.prompt.resize(
        1 + Below(!long_answers_ && Chance(4) ? most : std::min(most, 20)));
    for (int32_t& t : client.prompt) t = Below(kSimulatedVocabulary);
    const int max_tokens =
        1 + Below(long_answers_ || Chance(4) ? options_.max_model_len : 24);
    const RequestId id{next_id_};
    const size_t count = std::min<size_t>(
        max_tokens, options_.max_model_len - client.prompt.size());
    client.expected = QuietRun(id.value, client.prompt, count);
    client.stop_after = Chance(3) ? 1 + Below(static_cast<int>(count)) : count;
    SamplingParams sampling;
    if (Chance(4)) {
      sampling.num_prompt_logprobs = 0;
      client.wants_prompt = true;
    }
    const bool room = scheduler_->queue_room() > 0;
    const absl::Status status =
        scheduler_->Add(id, client.prompt, sampling, max_tokens);
    if (!room) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
      ++figures_.queue_full;
      return 0;
    }
    EXPECT_THAT(status, IsOk());
    ++next_id_;
    clients_.emplace(id.value, std::move(client));
    return 1;
  }

  void AbortOne() {
    if (clients_.empty()) return;
    auto it = clients_.begin();
    std::advance(it, Below(static_cast<int>(clients_.size())));
    EXPECT_TRUE(scheduler_->Abort(RequestId{it->first}));
    EXPECT_FALSE(scheduler_->Abort(RequestId{it->first}));
    clients_.erase(it);
    ++figures_.aborted;
  }

  // The results that are late never come; whatever the workers did of those
  // steps, they did.
  void Recover() {
    figures_.steps_lost += late_.size();
    ++figures_.recoveries;
    late_.clear();
    scheduler_->RollBack();
    EXPECT_EQ(scheduler_->steps_in_flight(), 0);
    group_->TakeOver(scheduler_->Snapshot());
    EXPECT_EQ(scheduler_->counters().running, group_->live());
  }

  // Issues a step, or takes in a result, whichever may be done.
  void Turn() {
    if (static_cast<int>(late_.size()) < lateness_ && !Chance(5)) {
      const StepId expected = scheduler_->next_step();
      if (auto plan = scheduler_->NextStep()) {
        ASSERT_EQ(plan->step, expected);
        late_.emplace_back(plan->step, group_->Execute(*plan));
        ASSERT_EQ(scheduler_->steps_in_flight(),
                  static_cast<int>(late_.size()));
        CheckCounters();
        return;
      }
      ASSERT_EQ(scheduler_->next_step(), expected);
      ASSERT_TRUE(!late_.empty() || clients_.empty())
          << "nothing to do, and " << clients_.size() << " requests unfinished";
    }
    if (!late_.empty()) {
      ASSERT_NO_FATAL_FAILURE(Deliver());
    }
  }

  void CheckCounters() {
    const SchedulerCounters counters = scheduler_->counters();
    ASSERT_LE(counters.running, options_.max_running);
    ASSERT_EQ(counters.running, group_->live());
    ASSERT_LE(counters.running + counters.waiting,
              static_cast<int>(clients_.size()));
  }

  void Deliver() {
    auto [step, results] = std::move(late_.front());
    late_.pop_front();
    auto tokens = scheduler_->OnResult(step, absl::MakeSpan(results));
    ASSERT_THAT(tokens, IsOk());
    for (const NewToken& token : *tokens) Receive(token);
  }

  void Receive(const NewToken& token) {
    const auto it = clients_.find(token.request.value);
    ASSERT_NE(it, clients_.end()) << "a token of a request that has ended";
    Client& client = it->second;
    ASSERT_LT(client.received, client.expected.size());
    ASSERT_EQ(token.token.position, client.prompt.size() + client.received);
    ASSERT_EQ(token.token.token, client.expected[client.received])
        << "token " << client.received << " of request " << it->first;
    const bool first = client.received++ == 0;
    if (first && client.wants_prompt) {
      ASSERT_EQ(token.prompt_logprobs.size(), client.prompt.size() - 1);
      uint64_t state = Fold(StartState(it->first), client.prompt[0]);
      for (size_t p = 1; p < client.prompt.size(); ++p) {
        const PromptLogprob& logprob = token.prompt_logprobs[p - 1];
        ASSERT_EQ(logprob.position, p);
        ASSERT_EQ(logprob.token, client.prompt[p]);
        ASSERT_EQ(logprob.logprob, LogprobOf(state, client.prompt[p]));
        state = Fold(state, client.prompt[p]);
      }
      ++figures_.prompt_logprobs;
    } else {
      ASSERT_TRUE(token.prompt_logprobs.empty());
    }
    ASSERT_EQ(token.reached_limit, client.received == client.expected.size());
    if (client.received == client.stop_after) {
      ASSERT_TRUE(scheduler_->Finish(token.request));
      clients_.erase(it);
      ++figures_.finished;
    }
  }

  void Switch() {
    const Layout from = scheduler_->layout();
    std::vector<Layout> others = layouts_;
    std::erase(others, from);
    const Layout to = others[Below(static_cast<int>(others.size()))];
    const auto plan = scheduler_->PlanSwitch(to);
    if (!plan.ok()) {
      ASSERT_THAT(plan, StatusIs(absl::StatusCode::kResourceExhausted,
                                 testing::HasSubstr("all KV memory holds")));
      ++figures_.switches_refused;
      return;
    }
    // While workers prepare, the world goes on.
    for (int i = Below(4); i > 0 && !late_.empty(); --i) {
      ASSERT_NO_FATAL_FAILURE(Deliver());
    }
    if (Chance(4)) AbortOne();
    if (Chance(3)) AddOne();
    if (Chance(4)) {
      ++figures_.switches_aborted;
      ASSERT_EQ(scheduler_->layout(), from);
      return;
    }
    group_->Switch(to, *plan);
    ASSERT_THAT(scheduler_->ApplySwitch(to, *plan), IsOk());
    ASSERT_EQ(scheduler_->layout(), to);
    ++figures_.switches;
    const auto between = [&](Layout layout) {
      return !layout.is_ep() && layout.tp_size < options_.attention.num_ranks;
    };
    figures_.switches_between += between(from) || between(to);
    figures_.moves += plan->num_moves();
  }

  void CheckAllIsOver() {
    EXPECT_TRUE(scheduler_->idle());
    const SchedulerCounters counters = scheduler_->counters();
    EXPECT_EQ(counters.running, 0);
    EXPECT_EQ(counters.waiting, 0);
    for (Rank r = 0; r < options_.attention.num_ranks; ++r) {
      EXPECT_EQ(scheduler_->free_pages(r), options_.pages_per_rank[r]);
    }
    // First come, first served: nobody was admitted before an older one.
    const auto& order = group_->first_admissions();
    for (size_t i = 1; i < order.size(); ++i) {
      EXPECT_LT(order[i - 1], order[i]);
    }
  }

  std::mt19937 random_;
  WalkFigures& figures_;
  SchedulerOptions options_;
  std::vector<Layout> layouts_;
  int lateness_ = 1;
  bool long_answers_ = false;
  std::optional<Scheduler> scheduler_;
  std::optional<SimulatedGroup> group_;
  std::map<uint64_t, Client> clients_;
  std::deque<std::pair<StepId, std::vector<StepResult>>> late_;
  uint64_t next_id_ = 1;
};

TEST(Scheduler, RandomWalkGivesEveryRequestItsQuietTokens) {
  const AttentionShape shapes[] = {{1, 2, 1}, {2, 2, 2}, {2, 4, 1},  {2, 8, 4},
                                   {3, 3, 3}, {4, 4, 2}, {4, 8, 8},  {8, 8, 2},
                                   {8, 8, 4}, {6, 6, 6}, {12, 12, 4}};
  WalkFigures figures;
  for (const AttentionShape& shape : shapes) {
    for (uint32_t seed = 0; seed < 60; ++seed) {
      SCOPED_TRACE(testing::Message()
                   << shape.num_ranks << " ranks, " << shape.num_kv_heads
                   << " KV heads, seed " << seed);
      Walk walk(shape, seed, figures);
      ASSERT_NO_FATAL_FAILURE(walk.Run(30));
      ASSERT_FALSE(testing::Test::HasFailure());
    }
  }
  // The walk has seen all that it is for.
  EXPECT_GT(figures.finished, 8000u);
  EXPECT_GT(figures.aborted, 500u);
  EXPECT_GT(figures.preemptions, 500u);
  EXPECT_GT(figures.switches, 1000u);
  EXPECT_GT(figures.switches_between, 300u);
  EXPECT_GT(figures.switches_aborted, 300u);
  EXPECT_GT(figures.switches_refused, 50u);
  EXPECT_GT(figures.moves, 1000u);
  EXPECT_GT(figures.queue_full, 100u);
  EXPECT_GT(figures.prompt_logprobs, 1000u);
  EXPECT_GT(figures.recoveries, 1000u);
  EXPECT_GT(figures.steps_lost, 1000u);
}

}  // namespace
}  // namespace moebius
