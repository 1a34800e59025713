// Planted bugs of switches, of the side of the slots, and of the check of the
// weights after a switch.
#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <variant>

#include "tests/simulation/mutant_makers.h"
#include "worker/memory/signals.h"

namespace moebius::simulation {
namespace {

using wire::CommandMessage;
using wire::Commit;
using wire::Halted;
using wire::Load;
using wire::Prepare;
using wire::Resume;
using wire::WeightsChecked;

// ---- switches --------------------------------------------------------------

void AddPages(std::vector<MutantInfo>& all) {
  all.push_back({"kv-move-lost", "a switch forgets a page",
                 Of<Prepare>([](Rank, Prepare& prepare) {
                   if (prepare.kv.waves.empty()) return false;
                   prepare.kv.waves.back().pop_back();
                   if (prepare.kv.waves.back().empty()) {
                     prepare.kv.waves.pop_back();
                   }
                   return true;
                 })});
  all.push_back({"kv-moves-crossed", "a switch takes one page for another",
                 Of<Prepare>([](Rank, Prepare& prepare) {
                   for (auto& wave : prepare.kv.waves) {
                     for (size_t i = 1; i < wave.size(); ++i) {
                       if (wave[i].dst_rank != wave[0].dst_rank ||
                           wave[i].src_page == wave[0].src_page) {
                         continue;
                       }
                       std::swap(wave[0].src_page, wave[i].src_page);
                       std::swap(wave[0].src_rank, wave[i].src_rank);
                       return true;
                     }
                   }
                   return false;
                 })});
  all.push_back(
      {"kv-page-torn", "the second half of a wave spoils a byte of the first",
       [](uint64_t) {
         auto mutant = std::make_unique<FromFunctions>();
         mutant->at_point = [](SimulatedWorker& worker, FaultId id,
                               VaultStore& store) {
           if (id != FaultId::kWorkerPagesPassed) return;
           std::byte* const kv =
               store.MutableView(RegionKind::kKv, worker.rank());
           const int64_t size = store.SizeBytes(RegionKind::kKv, worker.rank());
           if (kv == nullptr) return;
           for (int64_t i = 0; i < std::min<int64_t>(size, 1 << 20); i += 512) {
             kv[i] ^= std::byte{1};
           }
         };
         return mutant;
       }});
}

void AddRecords(std::vector<MutantInfo>& all) {
  all.push_back(
      {"record-before-barrier",
       "a worker records a layer before all others have pulled it",
       [](uint64_t) {
         auto mutant = std::make_unique<FromFunctions>();
         auto epochs = std::make_shared<std::array<Epoch, kMaxRanks>>();
         mutant->taken = [epochs](Rank rank, Incarnation,
                                  CommandMessage& message) {
           if (const auto* commit = std::get_if<Commit>(&message.command)) {
             (*epochs)[rank] = commit->epoch;
           } else if (const auto* resume =
                          std::get_if<Resume>(&message.command);
                      resume != nullptr && resume->tail.has_value()) {
             (*epochs)[rank] = resume->tail->epoch;
           }
           return false;
         };
         mutant->at_point = [epochs](SimulatedWorker& worker, FaultId id,
                                     VaultStore& store) {
           std::byte* const base =
               store.MutableView(RegionKind::kSignals, worker.rank());
           if (id != FaultId::kWorkerPulled || base == nullptr) return;
           SignalsBlock* const block = SignalsAt(base);
           SwitchProgress progress = LoadSwitchProgress(*block);
           const Epoch epoch = (*epochs)[worker.rank()];
           if (progress.epoch != epoch) {
             const bool turned = progress.layers_done == kLayers;
             progress = {epoch,
                         turned ? OtherSide(progress.side) : progress.side, 0,
                         0};
           }
           progress.layers_done = std::min(progress.layers_done + 1, kLayers);
           StoreSwitchProgress(block, progress);
         };
         return mutant;
       }});
  all.push_back(
      {"layout-of-one-step-old",
       "the first step after a switch has the old layout", [](uint64_t) {
         auto mutant = std::make_unique<FromFunctions>();
         mutant->command = [layouts = std::array<StepLayout, kMaxRanks>{}](
                               Rank rank, CommandMessage& message) mutable {
           auto* plan = std::get_if<StepPlan>(&message.command);
           if (plan == nullptr) return false;
           const StepLayout before = std::exchange(layouts[rank], plan->layout);
           if (plan->step.value == 1 || before == plan->layout) return false;
           plan->layout = before;
           return true;
         };
         return mutant;
       }});
}

// ---- the side of the slots -------------------------------------------------

void AddSides(std::vector<MutantInfo>& all) {
  all.push_back({"load-on-other-side",
                 "a successor with new memory loads its layers on the side "
                 "where the others have none",
                 OfCommands([](Rank, CommandMessage& message) {
                   auto* const load = std::get_if<Load>(&message.command);
                   if (load == nullptr) return false;
                   load->experts.side = OtherSide(load->experts.side);
                   return true;
                 })});
  all.push_back({"record-without-side",
                 "workers do not tell on which side their layers lie",
                 OfReports<Halted>([](Rank, Halted& halted) {
                   return std::exchange(halted.stand.side, Side::kLow) !=
                          Side::kLow;
                 })});
  all.push_back({"resume-on-other-side",
                 "a group resumes with the slots that were left",
                 Of<Resume>([](Rank, Resume& resume) {
                   if (resume.round < 2) return false;
                   resume.experts.side = OtherSide(resume.experts.side);
                   return true;
                 })});
  all.push_back({"side-not-turned",
                 "steps after a switch read the slots from before it",
                 OfCommands([](Rank, CommandMessage& message) {
                   auto* const plan = std::get_if<StepPlan>(&message.command);
                   if (plan == nullptr) return false;
                   return std::exchange(plan->layout.experts.side,
                                        Side::kLow) != Side::kLow;
                 })});
}

void AddChecks(std::vector<MutantInfo>& all) {
  all.push_back({"check-overtaken",
                 "a checksum that comes late, of where the layers lay before, "
                 "is told as that of the switch that overtook it",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->keeps_check = true;
                   return mutant;
                 }});
  all.push_back(
      {"check-of-one-rank-wrong", "a rank's checksum is not that of its slots",
       OfReports<WeightsChecked>([](Rank rank, WeightsChecked& checked) {
         if (rank != 0) return false;
         ++checked.weight_checksum;
         return true;
       })});
}

}  // namespace

void AddSwitches(std::vector<MutantInfo>& all) {
  AddPages(all);
  AddRecords(all);
  AddSides(all);
  AddChecks(all);
}

}  // namespace moebius::simulation
