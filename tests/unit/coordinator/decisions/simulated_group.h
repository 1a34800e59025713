// A group of workers that executes plans as real ones do, with one number in
// place of each token's K and V, and checks everything a plan must hold. A
// token is a hash of what the pages say was before it, so a page in the wrong
// place is a wrong token.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "common/step/step_plan.h"
#include "common/step/step_result.h"
#include "coordinator/decisions/scheduler.h"
#include "gtest/gtest.h"

namespace moebius {

inline constexpr int32_t kSimulatedVocabulary = 1000;
// What is said of a sequence with a token beyond it.
inline constexpr char kRefusal[] = "no such token";

// Folds a token into the state of a sequence.
inline uint64_t Fold(uint64_t state, int32_t token) {
  state = (state ^ static_cast<uint64_t>(token + 1)) * 0x9E3779B97F4A7C15u;
  return state ^ (state >> 29);
}
inline uint64_t StartState(uint64_t seed) { return seed * 77 + 5; }
inline int32_t TokenOf(uint64_t state) {
  return static_cast<int32_t>((state >> 20) % kSimulatedVocabulary);
}
inline float LogprobOf(uint64_t state, int32_t token) {
  return -static_cast<float>((state ^ static_cast<uint64_t>(token)) % 997);
}

// What a quiet run gives.
inline std::vector<int32_t> QuietRun(uint64_t seed,
                                     const std::vector<int32_t>& prompt,
                                     size_t count) {
  uint64_t state = StartState(seed);
  for (const int32_t token : prompt) state = Fold(state, token);
  std::vector<int32_t> tokens;
  while (tokens.size() < count) {
    tokens.push_back(TokenOf(state));
    state = Fold(state, tokens.back());
  }
  return tokens;
}

class SimulatedGroup {
 public:
  SimulatedGroup(const SchedulerOptions& options)
      : options_(options),
        layout_(options.layout),
        experts_(ExpertsState::AtHome(options.layout)),
        next_step_(options.first_step),
        slots_(options.max_running) {
    for (const uint32_t pages : options.pages_per_rank) {
      pools_.push_back(std::vector<Page>(pages));
    }
  }

  // Executes a plan and returns the ranks' results. Failed expectations are
  // reported by the test framework.
  std::vector<StepResult> Execute(const StepPlan& plan) {
    EXPECT_EQ(plan.step, next_step_);
    next_step_ = next_step_.next();
    EXPECT_EQ(plan.layout, (StepLayout{layout_, experts_}))
        << "a step of another layout";
    EXPECT_FALSE(plan.items.empty());
    for (const uint32_t slot : plan.released) Release(slot);
    for (const Admission& admission : plan.admissions) Admit(admission);
    for (const PageRow& row : plan.page_rows) AddRow(row);
    std::vector<StepResult> results(ranks());
    for (StepResult& result : results) result.step = plan.step;
    std::set<uint32_t> seen;
    int tokens = 0;
    for (const WorkItem& item : plan.items) {
      EXPECT_TRUE(seen.insert(item.slot).second) << "two items of a slot";
      tokens += static_cast<int>(item.num_tokens);
      Run(item, results);
    }
    EXPECT_LE(tokens, options_.token_budget);
    return results;
  }

  // Moves pages as the plan says and takes its tables.
  void Switch(Layout target, const KvPlan& plan) {
    for (const auto& wave : plan.waves) {
      std::vector<Page> read;
      for (const PageMove& m : wave) {
        read.push_back(pools_[m.src_rank][m.src_page]);
      }
      for (size_t i = 0; i < wave.size(); ++i) {
        pools_[wave[i].dst_rank][wave[i].dst_page] = read[i];
      }
    }
    for (Slot& slot : slots_) slot.tables.clear();
    for (const KvTable& table : plan.tables) {
      for (const RankTable& t : table.tables) {
        slots_[table.slot].tables[t.rank] = t.pages;
      }
    }
    layout_ = target;
    experts_ = experts_.Towards(target).Finished();
    CheckOwnership();
  }

  // Takes these sequences in place of all that it holds; pages stay.
  void TakeOver(const std::vector<RestoredSequence>& sequences) {
    for (Slot& slot : slots_) slot = Slot{};
    for (const RestoredSequence& sequence : sequences) {
      Slot& slot = slots_[sequence.admission.slot];
      EXPECT_FALSE(slot.live);
      slot.live = true;
      slot.restored = true;
      slot.request = sequence.admission.request;
      slot.num_prompt = sequence.admission.num_prompt_tokens;
      slot.sampling = sequence.admission.sampling;
      slot.tokens = sequence.admission.tokens;
      slot.refused = IsRefused(sequence.admission);
      for (const RankTable& t : sequence.table.tables) {
        slot.tables[t.rank] = t.pages;
        // Given out by a plan that never came.
        for (const PageId page : t.pages)
          pools_[t.rank][page].resize(kPageTokens);
      }
    }
    CheckOwnership();
  }

  // The next plan is of this step.
  void GoOn(StepId step) { next_step_ = step; }
  Layout layout() const { return layout_; }
  const ExpertsState& experts() const { return experts_; }

  // No page belongs to two sequences.
  void CheckOwnership() const {
    std::set<std::pair<Rank, PageId>> owned;
    for (const Slot& slot : slots_) {
      for (const auto& [rank, pages] : slot.tables) {
        for (const PageId page : pages) {
          EXPECT_TRUE(owned.insert({rank, page}).second)
              << "page " << page << " of rank " << rank << " is held twice";
        }
      }
    }
  }

  int live() const {
    int count = 0;
    for (const Slot& slot : slots_) count += slot.live;
    return count;
  }
  // Requests in the order of their first admission.
  const std::vector<RequestId>& first_admissions() const {
    return first_admissions_;
  }
  // Requests admitted again, in order.
  const std::vector<RequestId>& second_admissions() const {
    return second_admissions_;
  }

 private:
  // One page: for each token, what was computed there.
  struct Cell {
    uint64_t request = 0;
    uint32_t position = ~0u;
    int head = -1;
    int32_t token = -1;
    friend bool operator==(const Cell&, const Cell&) = default;
  };
  using Page = std::vector<Cell>;

  struct Slot {
    bool live = false;
    RequestId request;
    uint32_t num_prompt = 0;
    SamplingParams sampling;
    std::vector<int32_t> tokens;
    uint32_t computed = 0;
    bool refused = false;   // it has a token that the model does not
    bool restored = false;  // and no work since: `computed` is not known
    std::map<Rank, std::vector<PageId>> tables;
  };

  int ranks() const { return options_.attention.num_ranks; }

  static bool IsRefused(const Admission& admission) {
    return std::any_of(
        admission.tokens.begin(), admission.tokens.end(),
        [](int32_t token) { return token >= kSimulatedVocabulary; });
  }

  void Release(uint32_t slot) {
    ASSERT_LT(slot, slots_.size());
    EXPECT_TRUE(slots_[slot].live) << "slot " << slot << " released twice";
    slots_[slot] = Slot{};
  }

  void Admit(const Admission& admission) {
    ASSERT_LT(admission.slot, slots_.size());
    Slot& slot = slots_[admission.slot];
    EXPECT_FALSE(slot.live) << "slot " << admission.slot << " is taken";
    EXPECT_GE(admission.tokens.size(), admission.num_prompt_tokens);
    slot = Slot{};
    slot.live = true;
    slot.request = admission.request;
    slot.num_prompt = admission.num_prompt_tokens;
    slot.sampling = admission.sampling;
    slot.tokens = admission.tokens;
    slot.refused = IsRefused(admission);
    for (const Slot& other : slots_) {
      EXPECT_TRUE(&other == &slot || !other.live ||
                  other.request != slot.request)
          << "a request in two slots";
    }
    (known_.insert(admission.request.value).second ? first_admissions_
                                                   : second_admissions_)
        .push_back(admission.request);
  }

  bool IsHeld(Rank rank, PageId page) const {
    for (const Slot& slot : slots_) {
      const auto it = slot.tables.find(rank);
      if (it == slot.tables.end()) continue;
      const std::vector<PageId>& pages = it->second;
      if (std::find(pages.begin(), pages.end(), page) != pages.end()) {
        return true;
      }
    }
    return false;
  }

  void AddRow(const PageRow& row) {
    ASSERT_LT(row.slot, slots_.size());
    ASSERT_LT(row.rank, ranks());
    Slot& slot = slots_[row.slot];
    EXPECT_TRUE(slot.live);
    const int heads = HeadsOf(options_.attention, layout_, row.rank).num_kv();
    ASSERT_EQ(row.pages.size(), static_cast<size_t>(heads));
    std::vector<PageId>& table = slot.tables[row.rank];
    EXPECT_EQ(table.size(), size_t{row.block} * heads) << "a row out of order";
    for (const PageId page : row.pages) {
      ASSERT_LT(page, pools_[row.rank].size());
      EXPECT_FALSE(IsHeld(row.rank, page)) << "a page given out twice";
      table.push_back(page);
      // What was there before is no longer anybody's.
      pools_[row.rank][page] = Page(kPageTokens);
    }
  }

  // Where a sequence's tokens are on one rank.
  struct Tokens {
    const std::vector<PageId>& table;
    std::vector<Page>& pool;
    uint32_t num_heads;
    uint32_t num_tokens;  // that have a page

    Cell& At(uint32_t local_head, uint32_t position) {
      const PageId page =
          table[position / kPageTokens * num_heads + local_head];
      return pool[page][position % kPageTokens];
    }
  };
  Tokens TokensOn(Slot& slot, Rank rank) {
    const std::vector<PageId>& table = slot.tables[rank];
    const auto heads = static_cast<uint32_t>(
        HeadsOf(options_.attention, layout_, rank).num_kv());
    return {table, pools_[rank], heads,
            static_cast<uint32_t>(table.size()) / heads * kPageTokens};
  }

  void Run(const WorkItem& item, std::vector<StepResult>& results) {
    ASSERT_LT(item.slot, slots_.size());
    Slot& slot = slots_[item.slot];
    ASSERT_TRUE(slot.live);
    if (slot.refused) {
      results[layout_.first_rank(item.group)].refused.push_back(
          {item.slot, kRefusal});
      return;
    }
    if (std::exchange(slot.restored, false)) slot.computed = item.position;
    EXPECT_EQ(item.position, slot.computed) << "a hole, or work done twice";
    ASSERT_GT(item.num_tokens, 0u);
    const uint32_t end = item.position + item.num_tokens;
    ASSERT_LE(end, slot.tokens.size()) << "a token nobody knows";
    ASSERT_LT(item.group, layout_.num_groups(ranks()));
    const Rank first = layout_.first_rank(item.group);
    const Rank last = layout_.first_rank(item.group + 1);
    for (const auto& [rank, pages] : slot.tables) {
      EXPECT_TRUE(pages.empty() || (rank >= first && rank < last))
          << "pages off their group";
    }
    uint64_t state = 0;
    for (Rank r = first; r < last; ++r) {
      const HeadRange heads = HeadsOf(options_.attention, layout_, r);
      Tokens tokens = TokensOn(slot, r);
      ASSERT_LE(end, tokens.num_tokens)
          << "no page for a token of request " << slot.request.value
          << " on rank " << r;
      for (int h = 0; h < heads.num_kv(); ++h) {
        for (uint32_t p = item.position; p < end; ++p) {
          tokens.At(h, p) = {slot.request.value, p, heads.kv_begin + h,
                             slot.tokens[p]};
        }
        // Attention reads all that was before.
        state = StartState(slot.request.value);
        for (uint32_t p = 0; p < end; ++p) {
          const Cell& cell = tokens.At(h, p);
          const Cell expected{slot.request.value, p, heads.kv_begin + h,
                              slot.tokens[p]};
          if (!(cell == expected)) {
            ADD_FAILURE() << "position " << p << " of request "
                          << slot.request.value << ", head " << h << " of rank "
                          << r << ", is not what was written";
          }
          if (p >= item.position && p > 0) {
            ReportPrompt(slot, item.slot, p, state, r == first && h == 0,
                         results[first]);
          }
          state = Fold(state, cell.token);
        }
        if (end < slot.num_prompt) {
          ReportPrompt(slot, item.slot, end, state, r == first && h == 0,
                       results[first]);
        }
      }
    }
    slot.computed = end;
    if (item.sample) {
      EXPECT_EQ(end, slot.tokens.size());
      SampledToken sample;
      sample.slot = item.slot;
      sample.position = end;
      sample.token = TokenOf(state);
      const Rank by = first + static_cast<Rank>(item.slot) % layout_.tp_size;
      results[by].sampled.push_back(sample);
      slot.tokens.push_back(sample.token);
    }
  }

  // The token at `position`, whose probability the row before it gives.
  void ReportPrompt(const Slot& slot, uint32_t index, uint32_t position,
                    uint64_t state, bool speaks, StepResult& result) {
    if (!speaks || slot.sampling.num_prompt_logprobs < 0 ||
        position >= slot.num_prompt) {
      return;
    }
    // The first position of a chunk was told by the chunk before.
    if (position == slot.computed && position > 0) return;
    result.prompt_logprobs.push_back({index,
                                      position,
                                      slot.tokens[position],
                                      LogprobOf(state, slot.tokens[position]),
                                      {}});
  }

  SchedulerOptions options_;
  Layout layout_;
  ExpertsState experts_;  // every switch turns the side
  StepId next_step_;
  std::vector<Slot> slots_;
  std::vector<std::vector<Page>> pools_;  // [rank][page]
  std::set<uint64_t> known_;
  std::vector<RequestId> first_admissions_, second_admissions_;
};

}  // namespace moebius
