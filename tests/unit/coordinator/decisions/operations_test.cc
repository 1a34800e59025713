#include "coordinator/decisions/operations.h"

#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

KnownOperation Known(std::string id, OperationKind kind, bool ended,
                     LayoutChoice choice = LayoutChoice::kEp) {
  KnownOperation known;
  known.operation = {std::move(id), kind, choice};
  if (ended) known.end.emplace();
  return known;
}

TEST(Operations, WhatMayBegin) {
  using enum OperationKind;
  using enum OperationVerdict;
  const std::vector<KnownOperation> known = {
      Known("old", kLayout, /*ended=*/true, LayoutChoice::kTp),
      Known("runs", kLayout, /*ended=*/false, LayoutChoice::kEp),
      Known("drains", kDrain, /*ended=*/false),
      Known("undrains", kUndrain, /*ended=*/false),
  };
  struct Row {
    const char* name;
    Operation asked;
    OperationVerdict verdict;
    const KnownOperation* by;
  };
  for (const Row& row : {
           Row{"ended", {"old", kLayout, LayoutChoice::kTp}, kKnown, &known[0]},
           {"runs", {"runs", kLayout, LayoutChoice::kEp}, kKnown, &known[1]},
           {"another layout",
            {"old", kLayout, LayoutChoice::kEp},
            kOtherId,
            &known[0]},
           {"another kind", {"runs", kDrain}, kOtherId, &known[1]},
           {"layout after layout", {"new", kLayout}, kBusy, &known[1]},
           {"drain after drain", {"new", kDrain}, kBusy, &known[2]},
           {"undrain", {"new", kUndrain}, kBegins, nullptr},
       }) {
    const OperationJudgement judged = Judge(known, row.asked);
    EXPECT_EQ(judged.verdict, row.verdict) << row.name;
    EXPECT_EQ(judged.known, row.by) << row.name;
  }
  EXPECT_EQ(Judge({}, {"new", kLayout}).verdict, kBegins);
  EXPECT_EQ(Judge({&known[0], 1}, {"new", kLayout}).verdict, kBegins);
}

// A state with a switch to TP decided as epoch 3, and done or not.
JournalState StateWithSwitch(bool done) {
  JournalState state;
  journal::SwitchDecided decided;
  decided.epoch = Epoch{3};
  decided.from = ExpertParallel();
  decided.to = TensorParallel(2);
  decided.boundary = StepId{1};
  EXPECT_TRUE(state.Apply(journal::TermBegun{Term{1}}).ok());
  EXPECT_TRUE(state.Apply(journal::EpochProposed{Epoch{3}}).ok());
  EXPECT_TRUE(state.Apply(decided).ok());
  if (done) {
    EXPECT_TRUE(state.Apply(journal::SwitchDone{Epoch{3}}).ok());
  }
  return state;
}

TEST(Operations, HowANewCoordinatorGoesOn) {
  using enum OperationKind;
  using enum OperationResume;
  const Layout ep = ExpertParallel(), tp = TensorParallel(2);
  struct Row {
    const char* name;
    OperationKind kind;
    std::optional<Layout> target;
    uint64_t decided_before;
    bool done;
    OperationResume expected;
  };
  for (const Row& row : {
           Row{"its switch goes on", kLayout, tp, 2, false, kAwaitSwitch},
           {"its switch is done", kLayout, tp, 2, true, kSwitchDone},
           {"the switch was before it", kLayout, tp, 3, true, kRepeat},
           {"another switch goes on", kLayout, ep, 2, false, kRepeat},
           {"another switch is done", kLayout, ep, 2, true, kRepeat},
           {"the policy chooses", kLayout, std::nullopt, 2, true, kRepeat},
           {"a drain", kDrain, ep, 2, true, kRepeat},
       }) {
    KnownOperation one = Known("a", row.kind, /*ended=*/false);
    one.decided = Epoch{row.decided_before};
    EXPECT_EQ(HowToResume(one, row.target, StateWithSwitch(row.done)),
              row.expected)
        << row.name;
  }
  EXPECT_EQ(HowToResume(Known("a", kLayout, false), tp, JournalState()),
            kRepeat);
}

}  // namespace
}  // namespace moebius
