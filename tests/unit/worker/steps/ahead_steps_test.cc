// Steps launched behind one another over devices that keep the tokens they
// draw: real tables and slots of four ranks, passes that are made up.
#include "worker/steps/ahead_steps.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sample.h"
#include "tests/status_matchers.h"
#include "worker/steps/sequence_table.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr int kRanks = 4;
constexpr uint32_t kSlots = 4;
constexpr int kMaxRows = 16;
constexpr int32_t kVocabulary = 97;
constexpr uint32_t kPositions = 64;
const AttentionShape kAttention{kRanks, 8, 2};

int32_t After(int32_t token, int position) {
  return (token * 5 + position) % kVocabulary;
}

// The devices of a group. What was launched runs when somebody awaits its end.
class Devices {
 public:
  struct Row {
    int32_t token = 0;
    int position = 0;
    int known = -1;
    int place = -1;
    bool by_host = false;
  };
  struct LaunchedPass {
    uint64_t number = 0;
    Layout attention;  // part p of a group draws every tp_size-th row from p
    std::vector<Row> rows;
  };

  Devices() {
    for (auto& board : boards) {
      board.resize(static_cast<size_t>(ResultBoard::SizeBytes(kMaxRows)));
    }
  }
  GpuSampledRow& At(Rank rank, uint64_t pass, int row) {
    auto* const rows = reinterpret_cast<GpuSampledRow*>(boards[rank].data());
    return rows[static_cast<int>(pass % kPassCopies) * kMaxRows + row];
  }
  void Run(Rank rank, const LaunchedPass& pass) {
    for (size_t j = pass.attention.part_of(rank); j < pass.rows.size();
         j += pass.attention.tp_size) {
      const Row& row = pass.rows[j];
      const int32_t token =
          IsAtPlace(row.token) ? places[rank][PlaceOf(row.token)] : row.token;
      GpuSampledRow& out = At(rank, pass.number, static_cast<int>(j));
      out = {};
      out.finite = 1;
      out.token = row.known >= 0 ? row.known : After(token, row.position);
      if (row.place < 0 || row.by_host) continue;
      for (auto& of_rank : places) of_rank[row.place] = out.token;
    }
  }

  std::vector<std::byte> boards[kRanks];
  std::map<int, int32_t> places[kRanks];
};

class FakePasses final : public PassLauncher {
 public:
  FakePasses(Rank rank, Devices* devices) : rank_(rank), devices_(devices) {}

  absl::Status Launch(const Pass<Cpu>& pass, uint64_t number) override {
    EXPECT_LT(under_way_.size(), size_t{kMostUnderWay});
    EXPECT_FALSE(drawn_by_host_) << "behind one that the host has to draw";
    Devices::LaunchedPass launched{number, pass.layout.attention, {}};
    for (int j = 0; j < pass.wanted.size; ++j) {
      const SampleRow& wanted = pass.samples.first[j];
      const int at = pass.wanted_rows[j];
      Devices::Row row{pass.tokens[at], pass.rows.positions[at], wanted.known,
                       wanted.place, false};
      if (wanted.known < 0) CheckSample(wanted, row);
      row.by_host = wanted.known < 0 && !wanted.sampling->allowed_ids.empty();
      drawn_by_host_ = drawn_by_host_ || row.by_host;
      launched.rows.push_back(row);
    }
    EXPECT_TRUE(!drawn_by_host_ || under_way_.empty());
    most_under_way = std::max(most_under_way, under_way_.size() + 1);
    under_way_.push_back(std::move(launched));
    return absl::OkStatus();
  }
  void AwaitEnd(uint64_t number) override {
    for (const Devices::LaunchedPass& pass : under_way_) {
      if (pass.number == number) devices_->Run(rank_, pass);
    }
  }
  absl::Status Finish(uint64_t number) override {
    EXPECT_EQ(under_way_.front().number, number);
    under_way_.pop_front();
    return std::exchange(next_error, absl::OkStatus());
  }
  void DrawOnHost() override { drawn_by_host_ = false; }
  void Drain() override {
    under_way_.clear();
    drawn_by_host_ = false;
  }

  size_t most_under_way = 0;
  absl::Status next_error;

 private:
  // The host knows what it has to know.
  static void CheckSample(const SampleRow& wanted, const Devices::Row& row) {
    EXPECT_GE(row.place, 0);
    const SamplingParams& sampling = *wanted.sampling;
    int counted = 0;
    for (const TokenHistory::Entry& entry : wanted.history->entries()) {
      counted += entry.output_count;
    }
    if (NeedsHistory(sampling)) {
      EXPECT_EQ(static_cast<size_t>(counted), wanted.output.size());
    }
    const bool long_words =
        !sampling.bad_words.empty() && sampling.bad_words[0].size() > 1;
    if (long_words || !sampling.allowed_ids.empty()) {
      EXPECT_EQ(
          std::count_if(wanted.output.begin(), wanted.output.end(), IsAtPlace),
          0);
    }
  }

  const Rank rank_;
  Devices* const devices_;
  std::deque<Devices::LaunchedPass> under_way_;
  bool drawn_by_host_ = false;
};

class CountingBarrier final : public Barrier {
 public:
  absl::Status Wait() override {
    ++waits;
    return absl::OkStatus();
  }
  int waits = 0;
};

struct OneRank {
  OneRank(Rank rank, Devices* devices)
      : slots(rank, kSlots, kVocabulary),
        table({.rank = rank,
               .num_ranks = kRanks,
               .attention = kAttention,
               .max_slots = kSlots,
               .max_rows = kMaxRows,
               .num_pages = 1000,
               .max_positions = kPositions,
               .vocab_size = kVocabulary},
              &slots),
        passes(rank, devices),
        board({devices->boards[0].data(), devices->boards[1].data(),
               devices->boards[2].data(), devices->boards[3].data()},
              kMaxRows),
        steps({rank, kRanks, &slots, &passes, &board, &barrier}) {}

  DeviceSlots slots;
  SequenceTable table;
  FakePasses passes;
  CountingBarrier barrier;
  const ResultBoard board;
  AheadSteps steps;
};

Admission Greedy(uint32_t slot, std::vector<int32_t> tokens) {
  Admission admission;
  admission.slot = slot;
  admission.request = RequestId{slot + 1};
  admission.num_prompt_tokens = static_cast<uint32_t>(tokens.size());
  admission.tokens = std::move(tokens);
  admission.sampling.temperature = 0.0f;
  return admission;
}

// The parameter is tp_size.
class AheadStepsTest : public testing::TestWithParam<int> {
 protected:
  AheadStepsTest() {
    for (Rank r = 0; r < kRanks; ++r) {
      ranks_.push_back(std::make_unique<OneRank>(r, &devices_));
    }
  }
  static Layout layout() { return Layout{GetParam()}; }
  static int GroupOf(uint32_t slot) {
    return static_cast<int>(slot) % layout().num_groups(kRanks);
  }
  // With all pages that a sequence may ever have.
  static void Admit(StepPlan& plan, Admission admission) {
    const uint32_t slot = admission.slot;
    for (uint32_t block = 0; block < kPositions / kPageTokens; ++block) {
      for (Rank r = 0; r < kRanks; ++r) {
        if (layout().group_of(r) != GroupOf(slot)) continue;
        PageRow row{slot, block, r, {}};
        row.pages.assign(HeadsOf(kAttention, layout(), r).num_kv(), slot);
        plan.page_rows.push_back(row);
      }
    }
    plan.admissions.push_back(std::move(admission));
  }
  StepPlan Plan() const {
    StepPlan plan;
    plan.step = next_step_;
    plan.layout = {layout(), ExpertsState::At(layout(), Side::kLow)};
    return plan;
  }
  static void AddItem(StepPlan& plan, uint32_t slot, uint32_t position,
                      uint32_t count, bool sample = true) {
    plan.items.push_back(
        {slot, position, count, static_cast<uint8_t>(GroupOf(slot)), sample});
  }

  // On every rank.
  void Enter(const StepPlan& plan) {
    next_step_ = plan.step.next();
    for (const auto& rank : ranks_) {
      absl::StatusOr<Batch> batch = rank->table.Apply(plan);
      ASSERT_THAT(batch, IsOk());
      rank->steps.Enter(*std::move(batch));
    }
  }
  bool CanLaunch(Rank rank = 0) const {
    return ranks_[rank]->steps.CanLaunch();
  }
  bool AllCanLaunch() const {
    return std::all_of(ranks_.begin(), ranks_.end(), [](const auto& rank) {
      return rank->steps.CanLaunch();
    });
  }
  void Launch() {
    for (const auto& rank : ranks_) {
      ASSERT_TRUE(rank->steps.CanLaunch());
      ASSERT_THAT(rank->steps.Launch(), IsOk());
    }
  }
  void EnterAndLaunch(const StepPlan& plan) {
    Enter(plan);
    Launch();
  }
  // The first step under way, on all ranks; they say the same.
  StepResult Finish() {
    const StepId step = next_finished_;
    next_finished_ = step.next();
    for (const auto& rank : ranks_) rank->steps.AwaitEnd(step);
    std::vector<StepResult> results;
    for (const auto& rank : ranks_) {
      absl::StatusOr<StepResult> result = rank->steps.Finish();
      EXPECT_THAT(result, IsOk());
      if (!result.ok()) return {};
      rank->table.NoteDone();
      std::sort(result->sampled.begin(), result->sampled.end(),
                [](const SampledToken& a, const SampledToken& b) {
                  return a.slot < b.slot;
                });
      results.push_back(*std::move(result));
    }
    EXPECT_EQ(results[0].step, step);
    for (const StepResult& result : results) {
      EXPECT_EQ(results[0].sampled, result.sampled);
      EXPECT_EQ(results[0].prompt_logprobs, result.prompt_logprobs);
    }
    return results[0];
  }

  Devices devices_;
  std::vector<std::unique_ptr<OneRank>> ranks_;
  StepId next_step_{1}, next_finished_{1};
};

std::string NameOf(const testing::TestParamInfo<int>& info) {
  return std::string(LayoutName(Layout{info.param}, kRanks));
}
INSTANTIATE_TEST_SUITE_P(Layouts, AheadStepsTest, testing::Values(1, 2, kRanks),
                         NameOf);

TEST_P(AheadStepsTest, AnErrorOfAPassIsThatOfItsStep) {
  StepPlan plan = Plan();
  Admit(plan, Greedy(0, {1, 2, 3}));
  AddItem(plan, 0, 0, 3);
  EnterAndLaunch(plan);
  ranks_[0]->passes.next_error = absl::AbortedError("a peer gave up");
  EXPECT_THAT(ranks_[0]->steps.Finish().status(),
              StatusIs(StatusCode::kAborted));
}

TEST_P(AheadStepsTest, WhatAPeerShowsIsChecked) {
  for (const auto spoil : {+[](GpuSampledRow& row) { row.num_top = 100; },
                           +[](GpuSampledRow& row) { row.num_top = -1; },
                           +[](GpuSampledRow& row) { row.token = -1; },
                           +[](GpuSampledRow& row) { row.token = 97; }}) {
    for (const auto& rank : ranks_) rank->table.Reset();
    StepPlan plan = Plan();
    // Not of rank 0, in any layout.
    Admit(plan, Greedy(0, {1, 2}));
    Admit(plan, Greedy(1, {1, 2}));
    AddItem(plan, 0, 0, 2);
    AddItem(plan, 1, 0, 2);
    EnterAndLaunch(plan);
    for (const auto& rank : ranks_) rank->steps.AwaitEnd(plan.step);
    const int group = GroupOf(1), row = group == 0 ? 1 : 0;
    spoil(devices_.At(layout().first_rank(group) + row, plan.step.value, row));
    EXPECT_FALSE(ranks_[0]->steps.Finish().ok());
    for (const auto& rank : ranks_) rank->steps.Drain();
  }
}

TEST_P(AheadStepsTest, ABatchThatDoesNotFollowIsRefused) {
  StepPlan plan = Plan();
  Admit(plan, Greedy(0, {1, 2, 3}));
  AddItem(plan, 0, 0, 3, false);
  EnterAndLaunch(plan);
  Batch batch;
  batch.step = next_step_;
  batch.layout = Plan().layout;
  batch.chunks = {{0, 0, 1, 3, true}};
  batch.rows_of_group.assign(layout().num_groups(kRanks), 0);
  batch.rows_of_group[0] = 1;
  batch.wanted_of_group = batch.rows_of_group;
  ranks_[0]->steps.Enter(batch);
  EXPECT_THAT(ranks_[0]->steps.Launch(),
              StatusIs(StatusCode::kInternal, HasSubstr("does not follow")));
}

TEST_P(AheadStepsTest, TokensOnTheWayAreTakenFromTheDevice) {
  StepPlan plan = Plan();
  for (uint32_t slot : {0, 1, 2}) {
    Admit(plan, Greedy(slot, {static_cast<int32_t>(slot), 2}));
    AddItem(plan, slot, 0, 2);
  }
  EnterAndLaunch(plan);
  std::vector<std::vector<int32_t>> drawn(3);
  for (uint32_t position = 2; position < 20; ++position) {
    plan = Plan();
    for (uint32_t slot : {0, 1, 2}) AddItem(plan, slot, position, 1);
    EnterAndLaunch(plan);
    for (const SampledToken& token : Finish().sampled) {
      EXPECT_EQ(token.position, position);
      drawn[token.slot].push_back(token.token);
    }
  }
  for (uint32_t slot : {0, 1, 2}) {
    int32_t token = 2;
    for (size_t i = 0; i < drawn[slot].size(); ++i) {
      token = After(token, static_cast<int>(i) + 1);
      EXPECT_EQ(drawn[slot][i], token);
    }
  }
  EXPECT_EQ(ranks_[0]->passes.most_under_way, 2u);
  EXPECT_EQ(ranks_[0]->barrier.waits, 0);
}

TEST_P(AheadStepsTest, WhatDependsOnTokensWaitsForThem) {
  const auto make = [](int kind) {
    SamplingParams sampling{.temperature = 0.0f};
    if (kind == 0) sampling.frequency_penalty = 0.5f;
    if (kind == 1) sampling.bad_words = {{1, 2}};
    if (kind == 2) sampling.bad_words = {{1}};  // on no other token
    if (kind == 3) sampling.min_tokens = 5;     // on their number
    return sampling;
  };
  for (const int kind : {0, 1, 2, 3}) {
    for (const auto& rank : ranks_) rank->table.Reset();
    StepPlan plan = Plan();
    Admission admission = Greedy(0, {1, 2});
    admission.sampling = make(kind);
    Admit(plan, admission);
    AddItem(plan, 0, 0, 2);
    EnterAndLaunch(plan);
    plan = Plan();
    AddItem(plan, 0, 2, 1);
    Enter(plan);
    EXPECT_EQ(CanLaunch(), kind >= 2) << kind;
    // The last group has no part in it, unless it is the only one.
    EXPECT_EQ(CanLaunch(kRanks - 1), kind >= 2 || GroupOf(1) != 0);
    if (kind >= 2) Launch();
    Finish();
    if (kind < 2) Launch();
    Finish();
  }
}

// On all ranks, whoever draws.
TEST_P(AheadStepsTest, AStepThatDrawsOnTheHostIsAlone) {
  StepPlan plan = Plan();
  Admit(plan, Greedy(0, {1, 2}));
  AddItem(plan, 0, 0, 2);
  EnterAndLaunch(plan);
  plan = Plan();
  Admission admission = Greedy(1, {1, 2});
  admission.sampling.allowed_ids = {3, 4};
  Admit(plan, admission);
  AddItem(plan, 1, 0, 2);
  Enter(plan);
  for (const Rank r : {0, 1}) EXPECT_FALSE(CanLaunch(r));
  Finish();
  Launch();
  plan = Plan();
  AddItem(plan, 0, 2, 1);
  Enter(plan);
  for (const Rank r : {0, 1}) EXPECT_FALSE(CanLaunch(r));
  for (const auto& rank : ranks_) EXPECT_EQ(rank->barrier.waits, 0);
  Finish();
  for (const auto& rank : ranks_) EXPECT_EQ(rank->barrier.waits, 1);
  Launch();
  Finish();
}

TEST_P(AheadStepsTest, AStepOfRefusedSequencesIsNoPass) {
  StepPlan plan = Plan();
  Admit(plan, Greedy(0, {1, kVocabulary}));
  AddItem(plan, 0, 0, 2);
  EnterAndLaunch(plan);
  const StepResult result = Finish();
  ASSERT_EQ(result.refused.size(), 1u);
  EXPECT_EQ(ranks_[0]->passes.most_under_way, 0u);
  for (const auto& rank : ranks_) EXPECT_EQ(rank->barrier.waits, 1);
}

TEST_P(AheadStepsTest, AnotherSequenceDoesNotGetTheTokenOfTheOneBefore) {
  StepPlan plan = Plan();
  Admit(plan, Greedy(0, {1, 2}));
  AddItem(plan, 0, 0, 2);
  EnterAndLaunch(plan);
  plan = Plan();
  plan.released = {0};
  Admit(plan, Greedy(0, {7, 8}));
  AddItem(plan, 0, 0, 2);
  EnterAndLaunch(plan);
  EXPECT_EQ(Finish().sampled[0].token, After(2, 1));
  EXPECT_EQ(ranks_[0]->slots.At(0).tokens.back(), TokenAtPlace(0));
  EXPECT_EQ(Finish().sampled[0].token, After(8, 1));
  EXPECT_EQ(ranks_[0]->slots.At(0).tokens.back(), After(8, 1));
}

// Sequences of all kinds come, go, and are decoded, and now and then all is
// given up.
class AheadStepsWalk : public AheadStepsTest {
 protected:
  void Walk(unsigned seed) {
    random_.seed(seed);
    for (int step = 0; step < 60; ++step) {
      const StepPlan plan = AnyPlan();
      Enter(plan);
      while (!AllCanLaunch()) FinishAndCheck();
      Launch();
      std::vector<int>& ids = under_way_.emplace_back();
      for (const Known& one : known_) ids.push_back(one.id);
      if (Chance(3)) GiveUp();
    }
    while (!under_way_.empty()) FinishAndCheck();
    GiveUp();
  }

 private:
  struct Known {
    bool live = false;
    int id = 0;
    uint32_t planned = 0;  // tokens, once all steps are done
    Admission admission;   // with the tokens that came in
  };

  bool Chance(int percent) {
    return static_cast<int>(random_() % 100) < percent;
  }
  Admission AnyAdmission(uint32_t slot) {
    Admission admission = Greedy(slot, {});
    const uint32_t count = 1 + random_() % 3;
    for (uint32_t i = 0; i < count; ++i) {
      admission.tokens.push_back(static_cast<int32_t>(random_() % kVocabulary));
    }
    admission.num_prompt_tokens = count;
    if (Chance(20)) admission.sampling.presence_penalty = 1.0f;
    if (Chance(10)) admission.sampling.bad_words = {{1, 2, 3}};
    if (Chance(10)) admission.sampling.allowed_ids = {1};
    if (Chance(20)) admission.sampling.num_prompt_logprobs = 0;
    return admission;
  }
  StepPlan AnyPlan() {
    StepPlan plan = Plan();
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      Known& one = known_[slot];
      if (one.live && (Chance(10) || one.planned + 1 >= kPositions)) {
        plan.released.push_back(slot);
        one = {};
      }
      if (one.live) {
        if (Chance(20)) continue;
        AddItem(plan, slot, one.planned - 1, 1);
        ++one.planned;
      } else if (Chance(50)) {
        one = {true, next_id_++, 0, AnyAdmission(slot)};
        const auto count = static_cast<uint32_t>(one.admission.tokens.size());
        Admit(plan, one.admission);
        AddItem(plan, slot, 0, count);
        one.planned = count + 1;
      }
    }
    return plan;
  }
  // Every token is the one that a step at a time would draw.
  void FinishAndCheck() {
    const std::vector<int> ids = under_way_.front();
    under_way_.pop_front();
    for (const SampledToken& token : Finish().sampled) {
      Known& one = known_[token.slot];
      if (one.id != ids[token.slot]) continue;  // it has left since
      std::vector<int32_t>& tokens = one.admission.tokens;
      ASSERT_EQ(token.position, tokens.size());
      ASSERT_EQ(token.token,
                After(tokens.back(), static_cast<int>(tokens.size()) - 1));
      tokens.push_back(token.token);
    }
  }
  void GiveUp() {
    for (const auto& rank : ranks_) {
      rank->steps.Drain();
      rank->table.Reset();
    }
    under_way_.clear();
    known_.assign(kSlots, {});
    next_finished_ = next_step_;
  }

  std::mt19937 random_;
  std::vector<Known> known_ = std::vector<Known>(kSlots);
  int next_id_ = 1;
  // [step][slot] The sequences that they are of.
  std::deque<std::vector<int>> under_way_;
};

INSTANTIATE_TEST_SUITE_P(Layouts, AheadStepsWalk, testing::Values(1, 2, kRanks),
                         NameOf);

TEST_P(AheadStepsWalk, AnyOrderOfStepsDrawsTheSameTokens) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    Walk(seed);
  }
  EXPECT_EQ(ranks_[0]->passes.most_under_way, 2u);
}

}  // namespace
}  // namespace moebius
