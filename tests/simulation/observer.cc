#include "tests/simulation/observer.h"

#include <algorithm>
#include <utility>

#include "common/base/cat.h"
#include "common/base/fnv.h"

namespace moebius::simulation {
namespace {

uint64_t HashOf(const StepPlan& plan) {
  Fnv1a hash;
  for (unsigned char c : Encode(wire::CommandMessage{{}, plan})) hash.Add(c);
  return hash.hash();
}

}  // namespace

Observer::Observer(World* world, int num_ranks, Layout layout)
    : world_(world),
      num_ranks_(num_ranks),
      first_(ExpertsState::AtHome(layout)) {}

const ExpertsState& Observer::experts() const {
  return decisions_.empty() ? first_ : decisions_.back().experts;
}

void Observer::OnCommand(Rank rank, Incarnation, const wire::Command& command) {
  std::visit([&](const auto& body) { On(rank, body); }, command);
}

void Observer::On(Rank rank, const StepPlan& plan) {
  const uint64_t hash = HashOf(plan);
  const auto [known, is_new] = plans_.emplace(plan.step.value, hash);
  if (!is_new && known->second != hash) {
    world_->Violate('C', Cat("two plans for step ", plan.step.value));
  }
  if (is_new && plan.step.value <= last_planned_) {
    world_->Violate(
        'C', Cat("step ", plan.step.value, " after step ", last_planned_));
  }
  last_planned_ = std::max(last_planned_, plan.step.value);
  ExpertsState experts = first_;
  for (const Decision& decision : decisions_) {
    if (decision.boundary <= plan.step) experts = decision.experts;
  }
  if (plan.layout != StepLayout{experts.to, experts}) {
    world_->Violate('F', Cat("step ", plan.step.value,
                             " is planned in a layout that was not decided"));
  }
  Tables& tables = tables_[rank];
  for (uint32_t slot : plan.released) Release(tables, slot);
  for (const Admission& admission : plan.admissions) {
    Release(tables, admission.slot);
  }
  for (const PageRow& row : plan.page_rows) {
    Put(tables, row.slot, row.block, row.rank, row.pages);
  }
}

void Observer::On(Rank, const wire::Prepare& prepare) {
  if (!prepared_.contains(prepare.epoch.value) && !prepared_.empty() &&
      prepare.epoch.value < prepared_.rbegin()->first) {
    world_->Violate('F', Cat("epoch ", prepare.epoch.value, " comes late"));
  }
  prepared_.emplace(prepare.epoch.value, prepare);
}

void Observer::On(Rank rank, const wire::Commit& commit) {
  const auto prepared = prepared_.find(commit.epoch.value);
  if (prepared == prepared_.end() || aborted_.contains(commit.epoch.value)) {
    world_->Violate('F', Cat("commit of epoch ", commit.epoch.value,
                             ", which was refused or never proposed"));
    return;
  }
  if (decisions_.empty() || decisions_.back().epoch != commit.epoch) {
    if (!decisions_.empty() && commit.epoch < decisions_.back().epoch) {
      world_->Violate('F', Cat("an old commit of ", commit.epoch.value));
    }
    decisions_.push_back(
        {commit.epoch, commit.boundary,
         experts().Towards(prepared->second.target).Finished()});
  } else if (decisions_.back().boundary != commit.boundary) {
    world_->Violate('F', Cat("two boundaries of epoch ", commit.epoch.value));
  }
  Tables& tables = tables_[rank];
  // A request that is not in it has ended.
  tables.pages.clear();
  tables.owner.clear();
  for (const KvTable& table : prepared->second.kv.tables) Put(tables, table);
}

void Observer::On(Rank, const wire::Abort& abort) {
  aborted_.insert(abort.epoch.value);
  for (const Decision& decision : decisions_) {
    if (decision.epoch == abort.epoch) {
      world_->Violate(
          'F', Cat("epoch ", abort.epoch.value, " is committed and aborted"));
    }
  }
}

void Observer::On(Rank rank, const wire::Restore& restore) {
  Tables& tables = tables_[rank];
  if (std::exchange(tables.round, restore.round) != restore.round) {
    tables.pages.clear();
    tables.owner.clear();
  }
  for (const RestoredSequence& sequence : restore.sequences) {
    Release(tables, sequence.admission.slot);
    Put(tables, sequence.table);
  }
}

void Observer::On(Rank rank, const wire::Resume& resume) {
  Tables& tables = tables_[rank];
  if (std::exchange(tables.round, resume.round) != resume.round) {
    tables.pages.clear();
    tables.owner.clear();
  }
  const ExpertsState after =
      resume.experts.steady() ? resume.experts : resume.experts.Finished();
  // A commit that no worker was sent, since all had gone, is known from here.
  if (resume.tail.has_value() &&
      (decisions_.empty() || decisions_.back().epoch < resume.tail->epoch)) {
    decisions_.push_back({resume.tail->epoch, resume.next_step,
                          experts().Towards(after.to).Finished()});
  }
  // Where no memory has weights, the group begins anew in its first layout, or
  // in the midst of the switch; and on whichever side it loads them.
  const bool anew =
      std::all_of(words_.begin(), words_.end(),
                  [](const Words& words) { return words.loaded == 0; });
  const bool may_be = !resume.tail.has_value() || after.to == experts().to;
  if (anew && may_be && after != experts()) {
    const Epoch epoch = decisions_.empty() ? Epoch{0} : decisions_.back().epoch;
    decisions_.push_back({epoch, StepId{0}, after});
  }
  if (after != experts()) {
    world_->Violate('F', "the group resumes in a layout that was not decided");
  }
  if (resume.tail.has_value() &&
      resume.tail->epoch != decisions_.back().epoch) {
    world_->Violate('F', Cat("the rest of switch ", resume.tail->epoch.value,
                             " is to be done, which is over"));
  }
  uint64_t last = last_planned_;
  for (const Words& words : words_) last = std::max(last, words.step);
  if (resume.next_step.value <= last) {
    world_->Violate('C', Cat("step ", resume.next_step.value, " again"));
  }
  // Of steps that only lost memory knew nobody can tell.
  executed_.erase(executed_.lower_bound(resume.next_step.value),
                  executed_.end());
}

void Observer::OnNewCoordinator() {
  for (Tables& tables : tables_) tables = Tables{};
  plans_.clear();
  last_planned_ = 0;
  // What was decided holds for whatever it plans.
  for (Decision& decision : decisions_) decision.boundary = StepId{0};
}

void Observer::OnPowerLost() {
  taken_ = {};
  words_ = {};
}

void Observer::OnSwitchReport(Epoch epoch, bool done) {
  bool decided = false;
  for (const Decision& decision : decisions_) {
    decided = decided || decision.epoch == epoch;
  }
  if (decided != done && epoch.value != 0) {
    world_->Violate('F', Cat("switch ", epoch.value, " was ",
                             decided ? "committed and reported as refused"
                                     : "reported as done and never committed"));
  }
}

void Observer::Release(Tables& tables, uint32_t slot) {
  const auto found = tables.pages.find(slot);
  if (found == tables.pages.end()) return;
  for (const auto& [block, pages] : found->second) {
    for (PageId page : pages) {
      const auto owner = tables.owner.find({block.first, page});
      if (owner != tables.owner.end() && owner->second == slot) {
        tables.owner.erase(owner);
      }
    }
  }
  tables.pages.erase(found);
}

void Observer::Put(Tables& tables, uint32_t slot, uint32_t block, Rank rank,
                   absl::Span<const PageId> pages) {
  std::vector<PageId>& own = tables.pages[slot][{rank, block}];
  for (PageId page : own) tables.owner.erase({rank, page});
  own.assign(pages.begin(), pages.end());
  for (PageId page : pages) {
    const auto [owner, is_new] =
        tables.owner.emplace(std::pair(rank, page), slot);
    if (!is_new) {
      world_->Violate(
          'D', Cat("page ", page, " of rank ", rank, " belongs to slots ",
                   owner->second, " and ", slot));
    }
  }
}

void Observer::Put(Tables& tables, const KvTable& table) {
  for (const RankTable& rank : table.tables) {
    for (int block = 0; block < table.num_blocks; ++block) {
      Put(tables, table.slot, static_cast<uint32_t>(block), rank.rank,
          {rank.pages.data() + block * rank.num_kv,
           static_cast<size_t>(rank.num_kv)});
    }
  }
}

void Observer::OnTaken(Rank rank, Incarnation incarnation,
                       const wire::Command& command) {
  const auto* plan = std::get_if<StepPlan>(&command);
  if (plan == nullptr) return;
  Taken& taken = taken_[rank];
  if (std::exchange(taken.incarnation, incarnation) != incarnation) {
    taken.hashes.clear();
  }
  taken.hashes[plan->step.value] = HashOf(*plan);
}

Observer::Words Observer::WordsOf(const SignalsBlock& block) {
  return {block.identity.incarnation.load(),    block.arrival.sequence.load(),
          block.arrival.aborted_through.load(), block.progress.step.load(),
          block.progress.switch_record.load(),  block.progress.loaded.load()};
}

void Observer::Look(const VaultStore& store) {
  for (Rank r = 0; r < num_ranks_; ++r) {
    const SignalsBlock* const block = store.Signals(r);
    words_[r] = block == nullptr ? Words{} : WordsOf(*block);
  }
}

void Observer::AfterSlice(const VaultStore& store, Rank rank,
                          Incarnation incarnation) {
  for (Rank r = 0; r < num_ranks_; ++r) {
    const SignalsBlock* const block = store.Signals(r);
    if (block == nullptr) continue;
    const Words now = WordsOf(*block);
    if (now == words_[r]) continue;
    if (r != rank) {
      // A successor with new memory ends the barriers of its peers.
      Words raised = words_[r];
      raised.aborted = std::max(raised.aborted, now.aborted);
      if (now == raised) continue;
      world_->Violate('E', Cat("worker ", rank, " wrote signals of ", r));
      continue;
    }
    if (now.incarnation > incarnation.value) {
      world_->Violate(
          'E', Cat("worker ", rank, " incarnation ", incarnation.value,
                   " wrote after incarnation ", now.incarnation, " had begun"));
    }
    if (now.sequence < words_[r].sequence || now.aborted < words_[r].aborted) {
      world_->Violate('E', Cat("the barriers of worker ", r, " went back"));
    }
    if (now.step == words_[r].step || now.step == 0) continue;
    const Taken& taken = taken_[rank];
    const auto plan = taken.hashes.find(now.step);
    if (plan == taken.hashes.end() || taken.incarnation != incarnation) {
      world_->Violate('C', Cat("worker ", rank, " has executed step ", now.step,
                               " without its plan"));
      continue;
    }
    const auto [known, is_new] = executed_.emplace(now.step, plan->second);
    if (!is_new && known->second != plan->second) {
      world_->Violate('C',
                      Cat("ranks executed different plans as step ", now.step));
    }
  }
}

}  // namespace moebius::simulation
