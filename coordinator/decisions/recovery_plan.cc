#include "coordinator/decisions/recovery_plan.h"

#include <algorithm>
#include <map>
#include <set>

namespace moebius {
namespace {

class Planner {
 public:
  Planner(const JournalState& journal, const RecoveryInput& input)
      : journal_(journal), input_(input) {
    for (const Stand& stand : input.stands) {
      last_executed_ = std::max(last_executed_, stand.last_executed);
      epochs_over_ = std::max(epochs_over_, stand.epochs_over);
      any_loaded_ = any_loaded_ || stand.loaded;
    }
  }

  RecoveryPlan Plan() {
    RecoveryPlan plan;
    plan.next_step = std::max(last_executed_, journal_.last_step()).next();
    const auto& undone = journal_.undone();
    // Numbers of steps without a result are left out in recoveries.
    if (undone.has_value()) {
      plan.next_step = std::max(plan.next_step, undone->boundary);
    }
    plan.anew = !any_loaded_;
    if (plan.anew) {
      plan.layout = input_.initial;
      return plan;
    }
    if (!undone.has_value()) {
      plan.layout = journal_.layout().value_or(input_.initial);
      AdoptHeld(plan);
      return plan;
    }
    plan.layout = undone->to;
    // A step beyond the boundary takes all ranks, each of which was through
    // with the switch by then. And no rank is told to go on after a switch, be
    // it with new memory, that has not ended.
    plan.finished =
        last_executed_ >= undone->boundary || epochs_over_ >= undone->epoch;
    plan.unfinished = !plan.finished;
    if (plan.finished) {
      AdoptHeld(plan);
    } else if (AllLoaded()) {
      AdoptDecided(plan, *undone);
    }
    return plan;
  }

 private:
  int num_ranks() const { return static_cast<int>(input_.stands.size()); }
  bool AllLoaded() const {
    return std::all_of(input_.stands.begin(), input_.stands.end(),
                       [](const Stand& stand) { return stand.loaded; });
  }

  // Tokens that are known of a request that goes on; 0: it does not.
  size_t KnownTokens(RequestId request) const {
    const JournalChoice* choice = journal_.Find(request);
    if (choice == nullptr || choice->finish.has_value()) return 0;
    return choice->generation.prompt.size() + choice->tokens.size();
  }

  // The last known token has yet to be computed.
  bool Adopt(RecoveryPlan& plan, RequestId request, KvTable table,
             uint32_t computed) const {
    const size_t known = KnownTokens(request);
    if (known == 0 || table.num_blocks == 0) return false;
    computed = std::min(
        {computed, static_cast<uint32_t>(known - 1),
         static_cast<uint32_t>(table.num_blocks) * uint32_t{kPageTokens}});
    plan.adopted.push_back({request, std::move(table), computed});
    return true;
  }

  // At the boundary: the plan of the switch says where the pages are or will
  // be.
  void AdoptDecided(RecoveryPlan& plan,
                    const journal::SwitchDecided& decided) const {
    for (const KvTable& table : decided.plan.tables) {
      for (const journal::RunningSequence& running : decided.running) {
        if (running.slot != table.slot) continue;
        Adopt(plan, running.request, table, running.computed);
      }
    }
  }

  // Whether all that is said of this slot, and of this request, is the same.
  bool Agreed(uint32_t slot, RequestId request) const {
    for (const auto& held : input_.held) {
      bool here = held.empty();  // a worker that knows none says nothing
      for (const HeldSequence& one : held) {
        if (one.slot == slot && one.request == request) here = true;
        if ((one.slot == slot) != (one.request == request)) return false;
      }
      if (!here) return false;
    }
    return true;
  }

  const HeldSequence* HeldBy(Rank rank, RequestId request) const {
    if (!input_.stands[rank].loaded) return nullptr;
    for (const HeldSequence& one : input_.held[rank]) {
      if (one.request == request) return &one;
    }
    return nullptr;
  }

  // The rank's part of the table, if it has pages of just its heads.
  void AddRank(Layout layout, Rank rank, RequestId request, KvTable& table,
               uint32_t& computed) const {
    const HeldSequence* held = HeldBy(rank, request);
    const HeadRange heads = HeadsOf(input_.attention, layout, rank);
    if (held == nullptr || held->num_kv != heads.num_kv() ||
        held->pages.empty()) {
      return;
    }
    const int blocks = static_cast<int>(held->pages.size()) / held->num_kv;
    table.num_blocks =
        table.tables.empty() ? blocks : std::min(table.num_blocks, blocks);
    computed = std::min(computed, held->computed);
    table.tables.push_back({rank, heads.kv_begin, heads.num_kv(), held->pages});
  }

  // Whether just the ranks of one group are in the table, and all of them.
  static bool IsOneGroup(Layout layout, const KvTable& table) {
    return table.tables.size() == static_cast<size_t>(layout.tp_size) &&
           layout.group_of(table.tables.front().rank) ==
               layout.group_of(table.tables.back().rank);
  }

  void AdoptHeld(RecoveryPlan& plan) const {
    std::map<RequestId, uint32_t> slots;
    for (const auto& held : input_.held) {
      for (const HeldSequence& one : held) slots.emplace(one.request, one.slot);
    }
    for (const auto& [request, slot] : slots) {
      if (KnownTokens(request) == 0 || !Agreed(slot, request)) continue;
      KvTable table;
      table.slot = slot;
      uint32_t computed = UINT32_MAX;
      for (Rank rank = 0; rank < num_ranks(); ++rank) {
        AddRank(plan.layout, rank, request, table, computed);
      }
      if (!IsOneGroup(plan.layout, table)) continue;
      for (RankTable& rank : table.tables) {
        rank.pages.resize(static_cast<size_t>(table.num_blocks) * rank.num_kv);
      }
      Adopt(plan, request, std::move(table), computed);
    }
  }

  const JournalState& journal_;
  const RecoveryInput& input_;
  StepId last_executed_;
  Epoch epochs_over_;
  bool any_loaded_ = false;
};

}  // namespace

RecoveryPlan PlanRecovery(const JournalState& journal,
                          const RecoveryInput& input) {
  return Planner(journal, input).Plan();
}

}  // namespace moebius
