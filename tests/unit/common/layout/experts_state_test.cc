#include "common/layout/experts_state.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int kSizes[] = {1, 2, 3, 4, 6, 8, 12, 16};

ExpertShape Shape(int num_ranks, int layers, int spare) {
  return {num_ranks, layers, 2 * num_ranks + 1, 20, 4, 4, spare};
}

// A group's slots, each block of which knows what it is: the test's own
// memory, against which a state is held.
class Memory {
 public:
  Memory(const ExpertShape& shape, ExpertsState state)
      : shape_(shape),
        slots_(shape.num_ranks,
               std::vector<std::vector<int>>(
                   shape.num_slots(), std::vector<int>(shape.num_ranks, -1))) {
    for (int l = 0; l < shape.num_moe_layers; ++l) {
      for (Rank r = 0; r < shape.num_ranks; ++r) {
        for (int q = 0; q < shape.num_ranks; ++q) {
          slots_[r][state.SlotOf(shape, l)][q] =
              Name(l, BlockAt(state.LayoutOf(shape, l), shape.num_ranks, r, q));
        }
      }
    }
  }

  // Whether every layer lies where the state says, in the layout it says.
  void ExpectHolds(const ExpertsState& state) const {
    for (int l = 0; l < shape_.num_moe_layers; ++l) {
      for (Rank r = 0; r < shape_.num_ranks; ++r) {
        for (int q = 0; q < shape_.num_ranks; ++q) {
          ASSERT_EQ(slots_[r][state.SlotOf(shape_, l)][q],
                    Name(l, BlockAt(state.LayoutOf(shape_, l), shape_.num_ranks,
                                    r, q)))
              << "layer " << l << " after " << state.layers_done;
        }
      }
    }
  }

  // Does the next layer of the switch on ranks [0, ranks): all of them, or
  // fewer, when the rest die before they come to it.
  void CopyNext(const ExpertsState& state, int ranks) {
    const int layer = state.LayerAt(shape_, state.layers_done);
    const int source = state.SourceSlot(shape_, layer);
    const int target = state.TargetSlot(shape_, layer);
    for (int l = 0; l < shape_.num_moe_layers; ++l) {
      ASSERT_NE(state.SlotOf(shape_, l), target) << "not free";
    }
    const int64_t bytes = shape_.block_bytes();
    for (Rank r = 0; r < ranks; ++r) {
      for (const CopySegment& s : PlanSlot(shape_, state.from, state.to, r)) {
        for (int64_t done = 0; done < s.size_bytes; done += bytes) {
          slots_[r][target][(s.dst_offset + done) / bytes] =
              slots_[s.src_rank][source][(s.src_offset + done) / bytes];
        }
      }
    }
  }

 private:
  int Name(int layer, Block block) const {
    return (layer * shape_.num_ranks + block.owner) * shape_.num_ranks +
           block.slice;
  }

  ExpertShape shape_;
  std::vector<std::vector<std::vector<int>>> slots_;  // [rank][slot][block]
};

TEST(ExpertsState, RefusesWhatCannotBe) {
  const ExpertShape shape = Shape(4, 3, 1);
  const Layout ep = ExpertParallel(), tp = TensorParallel(4);
  EXPECT_THAT(Validate({ep, tp, Side::kHigh, 4}, shape),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("4 of 3 layers done")));
  EXPECT_FALSE(Validate({ep, tp, Side::kHigh, -1}, shape).ok());
  EXPECT_FALSE(Validate({ep, ep, Side::kHigh, 1}, shape).ok());
  EXPECT_FALSE(Validate({ep, Layout{3}, Side::kHigh, 0}, shape).ok());
  EXPECT_THAT(Validate({ep, Layout{2}, Side::kHigh, 0}, shape), IsOk());
  EXPECT_FALSE(Validate({Layout{0}, tp, Side::kLow, 0}, shape).ok());
  EXPECT_FALSE(Validate({ep, tp, static_cast<Side>(2), 0}, shape).ok());
  EXPECT_THAT(Validate({ep, tp, Side::kLow, 3}, shape), IsOk());
  EXPECT_THAT(Validate({ep, ep, Side::kLow, 0}, shape), IsOk());
}

TEST(ExpertsState, GoesUpwardFromHighAndDownwardFromLow) {
  const ExpertShape shape = Shape(2, 3, 1);
  const ExpertsState high =
      ExpertsState::At(ExpertParallel(), Side::kHigh).Towards(Layout{2});
  const ExpertsState low = high.Finished().Towards(ExpertParallel());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(high.LayerAt(shape, i), i);
    EXPECT_EQ(low.LayerAt(shape, i), 2 - i);
  }
  EXPECT_EQ(low.side, Side::kLow);
  EXPECT_EQ(low.Finished(), ExpertsState::At(ExpertParallel(), Side::kHigh));
}

// Between any two layouts, for every number of ranks and of spare slots: at
// every layer the state tells the truth, also when some ranks have done the
// next one and it is done again.
TEST(ExpertsState, TellsTheTruthAtEveryLayerOfEverySwitch) {
  for (const int n : kSizes) {
    for (const int spare : {1, 2, 3, 8}) {
      for (int t = 1; t <= n; ++t) {
        for (int u = 1; u <= n; ++u) {
          if (n % t != 0 || n % u != 0 || t == u) continue;
          for (const Side side : {Side::kLow, Side::kHigh}) {
            const ExpertShape shape = Shape(n, 4, spare);
            ExpertsState state =
                ExpertsState::At(Layout{t}, side).Towards(Layout{u});
            Memory memory(shape, state);
            for (int i = 0; i < 4; ++i) {
              ASSERT_NO_FATAL_FAILURE(memory.ExpectHolds(state));
              ASSERT_NO_FATAL_FAILURE(memory.CopyNext(state, n / 2));
              ASSERT_NO_FATAL_FAILURE(memory.ExpectHolds(state));
              ASSERT_NO_FATAL_FAILURE(memory.CopyNext(state, n));
              ++state.layers_done;
            }
            ASSERT_NO_FATAL_FAILURE(memory.ExpectHolds(state));
            ASSERT_NO_FATAL_FAILURE(memory.ExpectHolds(state.Finished()));
          }
        }
      }
    }
  }
}

// Any layouts after one another.
TEST(ExpertsState, AnyWalkOfSwitchesKeepsEveryBlock) {
  std::mt19937 random(1);
  const auto below = [&random](int n) {
    return static_cast<int>(random() % n);
  };
  for (int walk = 0; walk < 300; ++walk) {
    const int n = kSizes[1 + below(7)];
    const ExpertShape shape = Shape(n, 1 + below(6), 1 + below(4));
    std::vector<Layout> layouts;
    for (int t = 1; t <= n; ++t) {
      if (n % t == 0) layouts.push_back(Layout{t});
    }
    ExpertsState state =
        ExpertsState::At(layouts[below(static_cast<int>(layouts.size()))],
                         below(2) == 0 ? Side::kLow : Side::kHigh);
    Memory memory(shape, state);
    for (int turn = 0; turn < 40; ++turn) {
      if (state.steady()) {
        const Layout to = layouts[below(static_cast<int>(layouts.size()))];
        if (!(to == state.to)) state = state.Towards(to);
      } else if (state.layers_done == shape.num_moe_layers) {
        state = state.Finished();
      } else {
        ASSERT_NO_FATAL_FAILURE(memory.CopyNext(state, n));
        ++state.layers_done;
      }
      ASSERT_NO_FATAL_FAILURE(memory.ExpectHolds(state));
    }
  }
}

}  // namespace
}  // namespace moebius
