// Meetings of GPUs at which somebody is missing.
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/pass_cpu.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

const bool kPrepared = (PrepareForRanksOnOneGpu(), true);

// Two ranks, and passes of one of them.
class MeetingsTest : public testing::Test {
 protected:
  using Ranks = GpuRanks<Numerics::kExact>;

  void Begin(Layout layout, absl::Duration timeout) {
    layout_ = layout;
    GroupOptions options;
    options.spec = SpecOf(OddConfig());
    options.num_ranks = 2;
    options.layout = layout;
    options.max_rows = 64;
    options.make_ranks = [&](const GroupOptions& all, const ModelShape& shape) {
      auto ranks = std::make_unique<Ranks>(all, shape,
                                           GpuRanksOptions{.timeout = timeout});
      ranks_ = ranks.get();
      return ranks;
    };
    group_ = std::make_unique<TestGroup>(options);
  }
  absl::Status RunAlone(Rank rank) {
    const std::vector<int32_t> tokens = {1, 2, 3};
    const std::vector<PageId> pages = {0, 1};
    const SamplingParams sampling{.temperature = 0.0f};
    PassBuilder builder;
    builder.Begin({layout_, ExpertsState::At(layout_, Side::kLow)}, 2, rank);
    builder.AddChunk(tokens, 0, pages);
    builder.Want(2, {.sampling = &sampling});
    return group_->Run(rank, builder.Build());
  }
  // The group goes on together, and steps work.
  void ExpectGoesOn() {
    const uint64_t next =
        std::max(ranks_->fence(0).abandoned(), ranks_->fence(1).abandoned()) +
        1;
    for (const Rank r : {0, 1}) ranks_->fence(r).GoOn(next);
    for (int step = 0; step < 3; ++step) {
      std::atomic<int> rows = 0;
      const std::vector<Piece> pieces = {{0, {1 + step}}, {1, {4 + step}}};
      EXPECT_THAT(group_->Step(pieces, [&](int, int, auto) { ++rows; }),
                  IsOk());
      EXPECT_EQ(rows, 2);
    }
  }

  Layout layout_;
  std::unique_ptr<TestGroup> group_;
  Ranks* ranks_ = nullptr;
};

TEST_F(MeetingsTest, TheDeadlineEndsAPassAndNamesWhoIsMissing) {
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    Begin(layout, absl::Milliseconds(200));
    for (const Rank r : {0, 1}) {
      EXPECT_THAT(RunAlone(r), StatusIs(StatusCode::kDeadlineExceeded,
                                        HasSubstr(r == 0 ? "rank 1 not at"
                                                         : "rank 0 not at")));
      const uint64_t next =
          std::max(ranks_->fence(0).abandoned(), ranks_->fence(1).abandoned()) +
          1;
      for (const Rank each : {0, 1}) ranks_->fence(each).GoOn(next);
    }
    ExpectGoesOn();
  }
}

TEST_F(MeetingsTest, AnAbortEndsAPassAtOnce) {
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    for (const Rank aborter : {0, 1}) {
      Begin(layout, absl::Minutes(5));
      const absl::Time begin = absl::Now();
      const uint64_t before = ranks_->fence(0).abandoned();
      std::thread waits([&] {
        EXPECT_THAT(RunAlone(0),
                    StatusIs(StatusCode::kAborted,
                             HasSubstr(aborter == 0 ? "rank 0 aborted"
                                                    : "rank 1 aborted")));
      });
      while (ranks_->fence(0).abandoned() == before) std::this_thread::yield();
      ranks_->fence(aborter).Abandon();
      waits.join();
      EXPECT_LT(absl::Now() - begin, absl::Minutes(1));
      ExpectGoesOn();
    }
  }
}

TEST_F(MeetingsTest, WhatIsGivenUpBeforeItBeginsEndsAtOnce) {
  Begin(TensorParallel(2), absl::Minutes(5));
  ranks_->fence(0).Abandon();
  EXPECT_THAT(RunAlone(0), StatusIs(StatusCode::kAborted));
  EXPECT_THAT(RunAlone(1), StatusIs(StatusCode::kAborted));
  ExpectGoesOn();
}

}  // namespace
}  // namespace moebius
