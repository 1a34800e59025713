// Passes that are launched behind one another, with tokens that the host has
// not seen, draw what passes one at a time draw.
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <string>
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
constexpr int kSteps = 12;
constexpr int kMaxSequences = 12;

// [sequence] Tokens, with those of the prompt.
using Texts = std::vector<std::vector<int32_t>>;

class Group {
 public:
  using Ranks = GpuRanks<Numerics::kExact>;

  Group(int num_ranks, Layout layout, bool graphs) : num_ranks_(num_ranks) {
    options_.spec = SpecOf(OddConfig());
    options_.num_ranks = num_ranks;
    options_.layout = layout;
    options_.max_rows = kPrompt * kMaxSequences;
    options_.num_pages = kMaxSequences * 2;
    shape_ = MakeModelShape(options_.spec, num_ranks).value();
    ranks_ = std::make_unique<Ranks>(options_, shape_,
                                     GpuRanksOptions{.graphs = graphs});
  }
  Ranks& ranks() { return *ranks_; }

  // A step of tokens [begin, end) of each sequence; a token that is not there
  // yet is one that the device has. Launches it.
  absl::Status Launch(Rank rank, GpuPasses<Numerics::kExact>& passes,
                      const Texts& texts, int begin, int end) {
    const Layout layout = options_.layout;
    const int heads = HeadsOf(shape_.attention, layout, rank).num_kv();
    std::vector<std::vector<int32_t>> tokens;
    std::vector<std::vector<PageId>> pages;
    tokens.reserve(texts.size());
    pages.reserve(texts.size());
    PassBuilder builder;
    builder.Begin({options_.layout, options_.experts_state()}, num_ranks_,
                  rank);
    for (int s = 0; s < static_cast<int>(texts.size()); ++s) {
      const int group = s % layout.num_groups(num_ranks_);
      if (group != layout.group_of(rank)) {
        builder.AddOthers(group, end - begin, 1);
        continue;
      }
      std::vector<int32_t>& of_rows = tokens.emplace_back();
      for (int p = begin; p < end; ++p) {
        const bool known = p < static_cast<int>(texts[s].size());
        of_rows.push_back(known ? texts[s][p] : TokenAtPlace(s));
      }
      std::vector<PageId>& of_sequence = pages.emplace_back();
      for (int h = 0; h < heads; ++h) {
        of_sequence.push_back(static_cast<PageId>(2 * s + h));
      }
      builder.AddChunk(of_rows, begin, of_sequence);
      builder.Want(end - begin - 1, {.sampling = &greedy_, .place = s});
    }
    return passes.Launch(builder.Build(), static_cast<uint64_t>(end));
  }

  // Waits for the step up to `end`, and adds its tokens.
  absl::Status Finish(Rank rank, GpuPasses<Numerics::kExact>& passes,
                      int num_sequences, int end, Texts& drawn) {
    const auto number = static_cast<uint64_t>(end);
    passes.AwaitEnd(number);
    const Layout layout = options_.layout;
    int row = 0;
    for (int s = 0; s < num_sequences; ++s) {
      if (s % layout.num_groups(num_ranks_) != layout.group_of(rank)) continue;
      const int j = row++;
      if (j % layout.tp_size != layout.part_of(rank)) continue;
      drawn[s].push_back(passes.results(number)[j].token);
    }
    return passes.Finish(number);
  }

  // `ahead`: how many steps are under way.
  absl::Status DecodeOn(Rank rank, Texts texts, int ahead, Texts& drawn) {
    return ranks_->Do(rank, [&](auto& passes) {
      const int count = static_cast<int>(texts.size());
      for (int step = 0; step < kSteps + ahead - 1; ++step) {
        if (step < kSteps) {
          const int begin = step == 0 ? 0 : kPrompt + step - 1;
          const absl::Status launched =
              Launch(rank, passes, texts, begin, kPrompt + step);
          if (!launched.ok()) return launched;
        }
        if (step < ahead - 1) continue;
        const absl::Status finished =
            Finish(rank, passes, count, kPrompt + step - ahead + 1, drawn);
        if (!finished.ok()) return finished;
      }
      return absl::OkStatus();
    });
  }

  // What is drawn behind the prompts.
  Texts Decode(const Texts& prompts, int ahead) {
    std::vector<Texts> of_rank(static_cast<size_t>(num_ranks_),
                               Texts(prompts.size()));
    std::vector<std::thread> threads;
    for (Rank r = 0; r < num_ranks_; ++r) {
      threads.emplace_back([&, r] {
        const absl::Status status = DecodeOn(r, prompts, ahead, of_rank[r]);
        EXPECT_THAT(status, IsOk());
        if (!status.ok()) ranks_->GiveUp();
      });
    }
    for (std::thread& thread : threads) thread.join();
    Texts drawn(prompts.size());
    for (const Texts& texts : of_rank) {
      for (size_t s = 0; s < texts.size(); ++s) {
        if (!texts[s].empty()) drawn[s] = texts[s];
      }
    }
    return drawn;
  }

  void GoOn() {
    uint64_t next = 0;
    for (Rank r = 0; r < num_ranks_; ++r) {
      next = std::max(next, ranks_->fence(r).abandoned() + 1);
    }
    for (Rank r = 0; r < num_ranks_; ++r) ranks_->fence(r).GoOn(next);
  }

 private:
  const int num_ranks_;
  const SamplingParams greedy_{.temperature = 0.0f};
  GroupOptions options_;
  ModelShape shape_;
  std::unique_ptr<Ranks> ranks_;
};

Texts Prompts(int count) {
  Texts prompts;
  for (int s = 0; s < count; ++s) {
    std::vector<int32_t>& prompt = prompts.emplace_back();
    for (int p = 0; p < kPrompt; ++p) {
      prompt.push_back((s * 37 + p * 11 + p * p) % 149);
    }
  }
  return prompts;
}

// Of one rank, whose every step is told of every token before it.
const Texts& Expected() {
  static const auto* const expected = [] {
    Group group(1, ExpertParallel(), false);
    Texts texts = Prompts(kMaxSequences);
    auto* const drawn = new Texts(texts.size());
    const absl::Status status = group.ranks().Do(0, [&](auto& passes) {
      for (int step = 0; step < kSteps; ++step) {
        const int begin = step == 0 ? 0 : kPrompt + step - 1;
        absl::Status one =
            group.Launch(0, passes, texts, begin, kPrompt + step);
        one.Update(
            group.Finish(0, passes, kMaxSequences, kPrompt + step, *drawn));
        if (!one.ok()) return one;
        for (size_t s = 0; s < texts.size(); ++s) {
          texts[s].push_back((*drawn)[s].back());
        }
      }
      return absl::OkStatus();
    });
    EXPECT_THAT(status, IsOk());
    return drawn;
  }();
  return *expected;
}

void ExpectAsExpected(const Texts& drawn) {
  for (size_t s = 0; s < drawn.size(); ++s) {
    EXPECT_EQ(drawn[s], Expected()[s]) << "sequence " << s;
  }
}

TEST(Ahead, TokensThatTheHostHasNotSeenAreThoseThatAreDrawn) {
  for (const int n : {1, 2, 4}) {
    for (const Layout layout :
         LayoutsOf({n, OddConfig().num_q_heads, OddConfig().num_kv_heads})) {
      for (const bool graphs : {true, false}) {
        Group group(n, layout, graphs);
        for (const int count : {1, 3, 8, kMaxSequences}) {
          for (const int ahead : {1, 2}) {
            SCOPED_TRACE(testing::Message()
                         << n << " ranks, tp " << layout.tp_size << ", graphs "
                         << graphs << ", " << count << " sequences, " << ahead
                         << " under way");
            ExpectAsExpected(group.Decode(Prompts(count), ahead));
          }
        }
      }
    }
  }
}

// What is behind a pass that is given up is given up as well, and meets nobody
// by its numbers; afterwards all goes on.
TEST(Ahead, APassThatIsGivenUpEndsThoseBehindIt) {
  for (const Layout layout : {ExpertParallel(), TensorParallel(2)}) {
    Group group(2, layout, true);
    for (const Rank aborter : {0, 1}) {
      const uint64_t before = group.ranks().fence(0).abandoned();
      std::thread alone([&] {
        EXPECT_THAT(
            group.ranks().Do(
                0,
                [&](auto& passes) {
                  const Texts texts = Prompts(4);
                  Texts drawn(texts.size());
                  EXPECT_THAT(group.Launch(0, passes, texts, 0, kPrompt),
                              IsOk());
                  EXPECT_THAT(
                      group.Launch(0, passes, texts, kPrompt, kPrompt + 1),
                      IsOk());
                  EXPECT_THAT(group.Finish(0, passes, 4, kPrompt, drawn),
                              StatusIs(StatusCode::kAborted));
                  EXPECT_THAT(group.Finish(0, passes, 4, kPrompt + 1, drawn),
                              StatusIs(StatusCode::kAborted));
                  return absl::OkStatus();
                }),
            IsOk());
      });
      while (group.ranks().fence(0).abandoned() == before) {
        std::this_thread::yield();
      }
      group.ranks().fence(aborter).Abandon();
      alone.join();
      group.GoOn();
      ExpectAsExpected(group.Decode(Prompts(4), 2));
    }
  }
}

}  // namespace
}  // namespace moebius
