// Passes that are captured and replayed give the bits of those that are not.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/pass_cpu.h"

namespace moebius {
namespace {

using absl::StatusCode;

const bool kPrepared = (PrepareForRanksOnOneGpu(), true);

constexpr int kPrompt = 5;  // tokens
constexpr int kSteps = 3;
constexpr int kMaxSequences = 33;
constexpr int kMaxRows = kPrompt * kMaxSequences;

// By sequence and position.
using LogitMap = std::map<std::pair<int, int>, std::vector<float>>;

int TokenAt(int sequence, int position) {
  return (sequence * 37 + position * 11 + position * position) % 149;
}

void ExpectSameBits(const LogitMap& got, const LogitMap& expected) {
  for (const auto& [place, row] : got) {
    const std::vector<float>& want = expected.at(place);
    ASSERT_EQ(std::memcmp(row.data(), want.data(), row.size() * sizeof(float)),
              0)
        << "sequence " << place.first << ", position " << place.second;
  }
}

// Ranks that hold the experts in EP, low, and in another layout, high, each in
// slots of its own: in TP, unless given. A sequence is of attention's group
// sequence % num_groups.
class Group {
 public:
  explicit Group(int num_ranks, GpuRanksOptions how = {})
      : Group(num_ranks, TensorParallel(num_ranks), std::move(how)) {}
  Group(int num_ranks, Layout other, GpuRanksOptions how = {})
      : num_ranks_(num_ranks), other_(other) {
    GroupOptions options;
    options.spec = SpecOf(OddConfig());
    options.num_ranks = num_ranks;
    options.max_rows = kMaxRows;
    options.num_pages = kMaxSequences * 2;
    options.spare_slots = 2;  // as many as there are MoE layers
    options.experts = ep();
    shape_ = MakeModelShape(options.spec, num_ranks, 2).value();
    how.more_experts = {high()};
    if (!how.ahead.has_value()) how.ahead = Layouts();
    if (how.captured.has_value()) how.rehearsed = Layouts();
    ranks_ = std::make_unique<GpuRanks<Numerics::kExact>>(options, shape_, how);
  }

  static ExpertsState ep() {
    return ExpertsState::At(ExpertParallel(), Side::kLow);
  }
  ExpertsState high() const { return ExpertsState::At(other_, Side::kHigh); }
  // All pairs of attention and experts that are steady.
  std::vector<StepLayout> Layouts() const {
    std::vector<StepLayout> layouts;
    for (const Layout attention : {ExpertParallel(), other_}) {
      for (const ExpertsState& experts : {ep(), high()}) {
        layouts.push_back({attention, experts});
      }
      if (num_ranks_ == 1) break;
    }
    return layouts;
  }
  GpuRanks<Numerics::kExact>& ranks() { return *ranks_; }

  // Adds the logits of one step: tokens [begin, end) of each sequence.
  void Step(const StepLayout& layout, const std::vector<int>& sequences,
            int begin, int end, LogitMap& logits) {
    std::vector<LogitMap> of_rank(static_cast<size_t>(num_ranks_));
    std::vector<std::thread> threads;
    for (Rank r = 0; r < num_ranks_; ++r) {
      threads.emplace_back([&, r] {
        const absl::Status status =
            RunRank(r, layout, {sequences, begin, end}, of_rank[r]);
        EXPECT_THAT(status, IsOk());
        if (!status.ok()) ranks_->GiveUp();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const LogitMap& rows : of_rank) {
      for (const auto& [place, row] : rows) logits[place] = row;
    }
  }

  // Prompts of these sequences, and some steps of decode.
  LogitMap Decode(const StepLayout& layout, const std::vector<int>& sequences) {
    LogitMap logits;
    Step(layout, sequences, 0, kPrompt, logits);
    for (int step = 0; step < kSteps; ++step) {
      Step(layout, sequences, kPrompt + step, kPrompt + step + 1, logits);
    }
    return logits;
  }

  // Of one rank alone.
  absl::Status RunAlone(Rank rank, const StepLayout& layout) {
    LogitMap logits;
    return RunRank(rank, layout, {{0, 1}, 0, 1}, logits);
  }

 private:
  struct Piece {
    std::vector<int> sequences;
    int begin, end;
  };

  absl::Status RunRank(Rank rank, const StepLayout& layout, const Piece& piece,
                       LogitMap& logits) {
    const Layout attention = layout.attention;
    const int count = piece.end - piece.begin;
    const int heads = HeadsOf(shape_.attention, attention, rank).num_kv();
    const SamplingParams greedy{.temperature = 0.0f};
    std::map<int, std::vector<int32_t>> tokens;
    std::map<int, std::vector<PageId>> pages;
    std::vector<std::pair<int, int>> places;
    std::vector<std::vector<float>> rows;
    rows.reserve(kMaxRows);
    PassBuilder builder;
    builder.Begin(layout, num_ranks_, rank);
    for (const int s : piece.sequences) {
      const int group = s % attention.num_groups(num_ranks_);
      if (group != attention.group_of(rank)) {
        builder.AddOthers(group, count, count);
        continue;
      }
      for (int i = piece.begin; i < piece.end; ++i) {
        tokens[s].push_back(TokenAt(s, i));
      }
      for (int h = 0; h < heads; ++h) {
        pages[s].push_back(static_cast<PageId>(2 * s + h));
      }
      builder.AddChunk(tokens[s], piece.begin, pages[s]);
      for (int i = 0; i < count; ++i) {
        places.push_back({s, piece.begin + i});
        float* const row = rows.emplace_back(shape_.spec.vocab_size).data();
        builder.Want(i, {.sampling = &greedy, .logits = row});
      }
    }
    const absl::Status status = ranks_->Run(rank, builder.Build());
    for (size_t j = attention.part_of(rank); j < places.size();
         j += attention.tp_size) {
      logits[places[j]] = rows[j];
    }
    return status;
  }

  const int num_ranks_;
  const Layout other_;
  ModelShape shape_;
  std::unique_ptr<GpuRanks<Numerics::kExact>> ranks_;
};

std::vector<int> FirstSequences(int count) {
  std::vector<int> sequences;
  for (int s = 0; s < count; ++s) sequences.push_back(s);
  return sequences;
}

// One rank, nothing captured.
const LogitMap& Expected() {
  static const auto* const expected = [] {
    Group group(1, {.graphs = false});
    return new LogitMap(group.Decode({ExpertParallel(), Group::ep()},
                                     FirstSequences(kMaxSequences)));
  }();
  return *expected;
}

TEST(PassGraphs, ReplayedPassesHaveTheSameBitsInEveryLayoutAndSize) {
  for (const int n : {1, 2, 4}) {
    Group group(n);
    const int graphs = group.ranks().num_graphs(0);
    EXPECT_GT(graphs, 10);
    for (const StepLayout& layout : group.Layouts()) {
      for (const int count : {1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 25, 33}) {
        SCOPED_TRACE(testing::Message()
                     << n << " ranks, attention " << layout.attention.tp_size
                     << ", experts " << layout.experts.to.tp_size << ", "
                     << count << " sequences");
        ExpectSameBits(group.Decode(layout, FirstSequences(count)), Expected());
      }
    }
    EXPECT_EQ(group.ranks().num_graphs(0), graphs);  // nothing was missing
  }
}

// Half of the ranks share a sequence's heads.
TEST(PassGraphs, ReplayedPassesBetweenEpAndTpHaveTheSameBits) {
  Group group(4, Layout{2});
  const int graphs = group.ranks().num_graphs(0);
  for (const StepLayout& layout : group.Layouts()) {
    for (const int count : {1, 2, 3, 5, 8, 17, 33}) {
      SCOPED_TRACE(testing::Message()
                   << "attention " << layout.attention.tp_size << ", experts "
                   << layout.experts.to.tp_size << ", " << count
                   << " sequences");
      ExpectSameBits(group.Decode(layout, FirstSequences(count)), Expected());
    }
    // One group is without rows.
    ExpectSameBits(group.Decode(layout, {1, 3, 5}), Expected());
  }
  EXPECT_EQ(group.ranks().num_graphs(0), graphs);
}

TEST(PassGraphs, RanksWithoutRowsReplayToo) {
  for (const int n : {2, 4}) {
    Group group(n);
    for (int s = 0; s < n; ++s) {
      // All of one rank.
      const std::vector<int> sequences = {s, s + n, s + 2 * n};
      for (const StepLayout& layout : group.Layouts()) {
        ExpectSameBits(group.Decode(layout, sequences), Expected());
      }
    }
  }
}

// Steps of all layouts in turn, and of switches between them.
TEST(PassGraphs, LayoutsDoNotDisturbOneAnother) {
  for (const int n : {2, 4}) {
    Group group(n);
    std::vector<StepLayout> layouts = group.Layouts();
    for (const Layout attention : {ExpertParallel(), TensorParallel(n)}) {
      StepLayout between = {attention, Group::ep().Towards(TensorParallel(n))};
      between.experts.layers_done = 1;
      layouts.push_back(between);
    }
    LogitMap logits;
    for (int round = 0; round < 2; ++round) {
      for (size_t i = 0; i < layouts.size(); ++i) {
        group.Step(layouts[i], {static_cast<int>(i)}, 0, kPrompt, logits);
      }
      for (int at = kPrompt; at < kPrompt + kSteps; ++at) {
        for (size_t i = 0; i < layouts.size(); ++i) {
          group.Step(layouts[i], {static_cast<int>(i)}, at, at + 1, logits);
        }
      }
      ExpectSameBits(logits, Expected());
    }
  }
}

TEST(PassGraphs, AReplayedPassThatIsGivenUpHarmsNoOther) {
  Group group(2);
  for (const StepLayout& layout : group.Layouts()) {
    if (layout.attention.is_ep() != layout.experts.from.is_ep()) continue;
    for (const Rank aborter : {0, 1}) {
      const uint64_t before = group.ranks().fence(0).abandoned();
      std::thread waits([&] {
        EXPECT_THAT(group.RunAlone(0, layout), StatusIs(StatusCode::kAborted));
      });
      while (group.ranks().fence(0).abandoned() == before) {
        std::this_thread::yield();
      }
      group.ranks().fence(aborter).Abandon();
      waits.join();
      const uint64_t next = std::max(group.ranks().fence(0).abandoned(),
                                     group.ranks().fence(1).abandoned()) +
                            1;
      for (const Rank r : {0, 1}) group.ranks().fence(r).GoOn(next);
      ExpectSameBits(group.Decode(layout, FirstSequences(4)), Expected());
    }
  }
}

TEST(PassGraphs, APassIsCapturedWhenItComesAgain) {
  // Nor has it come in a rehearsal.
  Group group(
      1,
      {.max_graphs = 2, .rehearse = false, .ahead = std::vector<StepLayout>{}});
  const StepLayout layout = {ExpertParallel(), Group::ep()};
  LogitMap logits;
  const std::vector<std::vector<int>> counts = {{1, 0}, {1, 1}, {2, 1}, {1, 1},
                                                {2, 2}, {4, 2}, {4, 2}, {4, 2}};
  group.Step(layout, FirstSequences(4), 0, kPrompt, logits);
  for (const std::vector<int>& c : counts) {
    group.Step(layout, FirstSequences(c[0]), kPrompt, kPrompt + 1, logits);
    EXPECT_EQ(group.ranks().num_graphs(0), c[1]);
    ExpectSameBits(logits, Expected());
  }
}

TEST(PassGraphs, LayoutsThatAreNotNamedAreNotCaptured) {
  const StepLayout named = {ExpertParallel(), Group::ep()};
  GpuRanksOptions how;
  how.ahead = {named};
  how.captured = {ExpertParallel()};
  Group group(2, how);
  const int graphs = group.ranks().num_graphs(0);
  EXPECT_GT(graphs, 0);
  for (const StepLayout& layout : group.Layouts()) {
    ExpectSameBits(group.Decode(layout, FirstSequences(4)), Expected());
    EXPECT_EQ(group.ranks().num_graphs(0), graphs);
  }
}

// A larger pass than all before brings larger memory.
TEST(PassGraphs, GraphsOfReplacedMemoryAreForgotten) {
  Group group(1, {.rehearse = false, .ahead = std::vector<StepLayout>{}});
  const StepLayout layout = {ExpertParallel(), Group::ep()};
  LogitMap logits;
  const auto decode = [&](int count) {
    group.Step(layout, FirstSequences(count), kPrompt, kPrompt + 1, logits);
  };
  group.Step(layout, FirstSequences(2), 0, kPrompt, logits);
  for (const int count : {1, 2, 1, 2}) decode(count);
  EXPECT_EQ(group.ranks().num_graphs(0), 2);
  group.Step(layout, FirstSequences(kMaxSequences), 0, kPrompt, logits);
  decode(2);
  EXPECT_EQ(group.ranks().num_graphs(0), 1);
  decode(1);
  EXPECT_EQ(group.ranks().num_graphs(0), 2);
  ExpectSameBits(logits, Expected());
}

}  // namespace
}  // namespace moebius
