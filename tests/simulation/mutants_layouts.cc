// Planted bugs of the layouts between EP and TP: several groups of several
// ranks.
#include <utility>

#include "tests/simulation/mutant_makers.h"

namespace moebius::simulation {
namespace {

using wire::Prepare;
using wire::Resume;

// Of a sequence in another group than the first, of several ranks.
bool IsBetween(const KvTable& table) {
  return table.tables.size() > 1 && table.tables[0].rank > 0;
}

}  // namespace

void AddLayouts(std::vector<MutantInfo>& all) {
  all.push_back({"group-forgotten",
                 "a sequence between EP and TP is computed by the first group",
                 Of<StepPlan>([](Rank, StepPlan& plan) {
                   if (plan.layout.attention.is_ep()) return false;
                   bool changed = false;
                   for (WorkItem& item : plan.items) {
                     changed = changed || item.group != 0;
                     item.group = 0;
                   }
                   return changed;
                 })});
  all.push_back({"parts-crossed",
                 "two ranks of a group take each other's pages after a switch",
                 Of<Prepare>([](Rank, Prepare& prepare) {
                   bool changed = false;
                   for (KvTable& table : prepare.kv.tables) {
                     if (!IsBetween(table)) continue;
                     RankTable& first = table.tables[0];
                     RankTable& last = table.tables.back();
                     changed = changed || first.pages != last.pages;
                     std::swap(first.pages, last.pages);
                   }
                   return changed;
                 })});
  all.push_back({"groups-crossed",
                 "after a switch a sequence counts as one of another group",
                 Of<Prepare>([](Rank, Prepare& prepare) {
                   for (KvTable& table : prepare.kv.tables) {
                     if (!IsBetween(table) || table.num_blocks == 0) continue;
                     const Rank shift = table.tables[0].rank;
                     for (RankTable& one : table.tables) one.rank -= shift;
                     return true;
                   }
                   return false;
                 })});
  all.push_back({"resumed-as-ep",
                 "a group that was between EP and TP goes on in EP",
                 Of<Resume>([](Rank, Resume& resume) {
                   const int width = resume.experts.to.tp_size;
                   const int ranks = static_cast<int>(resume.memories.size());
                   if (width == 1 || width == ranks) return false;
                   resume.experts =
                       ExpertsState::At(ExpertParallel(), resume.experts.side);
                   return true;
                 })});
}

}  // namespace moebius::simulation
