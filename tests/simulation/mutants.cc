#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <variant>

#include "common/base/unique_fd.h"
#include "tests/simulation/mutant_makers.h"
#include "worker/memory/region.h"
#include "worker/memory/signals.h"

namespace moebius::simulation {
namespace {

using wire::CommandMessage;
using wire::Halted;
using wire::Load;
using wire::Restore;
using wire::Resume;

// ---- recovery --------------------------------------------------------------

Make OfTails(std::function<bool(Resume&)> change) {
  return Of<Resume>([change](Rank, Resume& resume) {
    return resume.tail.has_value() && change(resume);
  });
}

void AddRecovery(std::vector<MutantInfo>& all) {
  all.push_back({"tail-skips-layer",
                 "the layer in flight counts as done when a switch is finished",
                 OfTails([](Resume& resume) {
                   if (resume.experts.layers_done >= kLayers) return false;
                   ++resume.experts.layers_done;
                   return true;
                 })});
  all.push_back({"tail-repeats-layer",
                 "a layer whose sources are gone is done again",
                 OfTails([](Resume& resume) {
                   if (resume.experts.layers_done == 0) return false;
                   --resume.experts.layers_done;
                   return true;
                 })});
  all.push_back({"tail-forgets-pages",
                 "the waves of a switch count as done when it is finished",
                 OfTails([](Resume& resume) {
                   SwitchTail& tail = *resume.tail;
                   tail.waves_done = static_cast<int>(tail.kv.waves.size());
                   return !tail.kv.waves.empty();
                 })});
  all.push_back({"commit-reversed", "a recovery takes a committed switch back",
                 OfTails([](Resume& resume) {
                   resume.experts = ExpertsState::At(resume.experts.from,
                                                     resume.experts.side);
                   resume.tail.reset();
                   return true;
                 })});
  all.push_back({"barrier-number-reused",
                 "a group resumes with barriers that some have arrived at",
                 Of<Resume>([](Rank, Resume& resume) {
                   if (resume.next_barrier < 8) return false;
                   resume.next_barrier -= 4;
                   return true;
                 })});
  all.push_back({"stand-without-barriers",
                 "halted workers do not tell their barriers",
                 OfReports<Halted>([](Rank, Halted& halted) {
                   halted.stand.barriers = 0;
                   return true;
                 })});
  all.push_back({"step-number-reused",
                 "a group resumes with the number of its last step",
                 Of<Resume>([](Rank, Resume& resume) {
                   if (resume.next_step.value < 2) return false;
                   --resume.next_step.value;
                   return true;
                 })});
  all.push_back({"restore-loses-sequence",
                 "one worker is not told the last sequence",
                 Of<Restore>([](Rank rank, Restore& restore) {
                   if (rank != 1 || restore.sequences.empty()) return false;
                   restore.sequences.pop_back();
                   return true;
                 })});
  all.push_back({"restore-loses-token",
                 "the last token of a sequence is not restored",
                 Of<Restore>([](Rank, Restore& restore) {
                   if (restore.sequences.empty()) return false;
                   Admission& admission = restore.sequences[0].admission;
                   if (admission.tokens.size() <= admission.num_prompt_tokens) {
                     return false;
                   }
                   admission.tokens.pop_back();
                   return true;
                 })});
  all.push_back({"restore-other-seed",
                 "a restored sequence draws with another seed",
                 Of<Restore>([](Rank, Restore& restore) {
                   for (auto& sequence : restore.sequences) {
                     sequence.admission.sampling.seed ^= 1;
                   }
                   return !restore.sequences.empty();
                 })});
  all.push_back({"restore-counts-as-prompt",
                 "what a restored sequence has generated counts as its prompt",
                 Of<Restore>([](Rank, Restore& restore) {
                   bool changed = false;
                   for (auto& sequence : restore.sequences) {
                     Admission& admission = sequence.admission;
                     changed = changed || admission.num_prompt_tokens !=
                                              admission.tokens.size();
                     admission.num_prompt_tokens =
                         static_cast<uint32_t>(admission.tokens.size());
                   }
                   return changed;
                 })});
  all.push_back({"rollback-too-short",
                 "a chunk of a prompt that was not computed counts as such",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->command = [resumed = std::array<bool, kMaxRanks>{}](
                                         Rank rank,
                                         CommandMessage& message) mutable {
                     if (std::holds_alternative<Resume>(message.command)) {
                       resumed[rank] = true;
                     }
                     auto* plan = std::get_if<StepPlan>(&message.command);
                     if (plan == nullptr || !resumed[rank]) return false;
                     resumed[rank] = false;
                     bool changed = false;
                     for (WorkItem& item : plan->items) {
                       if (item.num_tokens < 3) continue;
                       item.position += 2;
                       item.num_tokens -= 2;
                       changed = true;
                     }
                     return changed;
                   };
                   return mutant;
                 }});
}

// ---- memory and processes --------------------------------------------------

void AddMemory(std::vector<MutantInfo>& all) {
  all.push_back({"barrier-lets-through",
                 "a barrier ends now and then before all have come",
                 [](uint64_t seed) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->early = [rng = Rng(seed)](SimulatedWorker&) mutable {
                     return rng.Chance(0.01);
                   };
                   return mutant;
                 }});
  all.push_back({"zombie",
                 "a worker is replaced before it was killed, and goes on later",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->spares = true;
                   return mutant;
                 }});
  all.push_back({"kv-zeroed", "a successor clears the pages that it takes over",
                 OfWithdrawals([](Rank rank, RegionKind kind, VaultStore& store,
                                  absl::StatusOr<RegionDescriptor>&) {
                   if (kind != RegionKind::kKv) return;
                   std::memset(
                       store.MutableView(kind, rank), 0,
                       static_cast<size_t>(store.SizeBytes(kind, rank)));
                 })});
  all.push_back(
      {"kv-apart", "a successor's pages are not those that its peers map",
       OfWithdrawals([](Rank rank, RegionKind kind, VaultStore& store,
                        absl::StatusOr<RegionDescriptor>& kept) {
         if (kind != RegionKind::kKv || !kept.ok()) return;
         const int64_t size = store.SizeBytes(kind, rank);
         auto region = CreateMemfdRegion("apart", size, {.huge_pages = false});
         if (!region.ok()) return;
         std::memcpy((*region)->mutable_base(), store.View(kind, rank),
                     static_cast<size_t>(size));
         auto fd = Duplicate((*region)->descriptor());
         if (fd.ok()) kept->fd = *std::move(fd);
       })});
  all.push_back({"weights-torn", "a death damages the dead worker's weights",
                 OfWithdrawals([](Rank rank, RegionKind kind, VaultStore& store,
                                  absl::StatusOr<RegionDescriptor>&) {
                   if (kind != RegionKind::kExperts) return;
                   std::byte* const experts = store.MutableView(kind, rank);
                   for (int64_t i = 0; i < store.SizeBytes(kind, rank) / 4;
                        i += 4096) {
                     experts[i] ^= std::byte{16};
                   }
                 })});
  all.push_back({"empty-says-loaded",
                 "a successor with new memory says that weights are in it",
                 OfReports<Halted>([](Rank, Halted& halted) {
                   if (halted.round < 2 || halted.stand.loaded) return false;
                   halted.stand.loaded = true;
                   return true;
                 })});
  all.push_back({"load-in-first-layout",
                 "a successor with new memory loads the layout of the start",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->command = [first = std::optional<ExpertsState>()](
                                         Rank,
                                         CommandMessage& message) mutable {
                     auto* const load = std::get_if<Load>(&message.command);
                     if (load == nullptr) return false;
                     if (!first.has_value()) first = load->experts;
                     return std::exchange(load->experts, *first) != *first;
                   };
                   return mutant;
                 }});
  all.push_back({"old-mappings",
                 "no rank learns that a peer's memory is another",
                 Of<Resume>([](Rank, Resume& resume) {
                   bool changed = false;
                   for (Incarnation& memory : resume.memories) {
                     changed = changed || memory.value != 1;
                     memory = Incarnation{1};
                   }
                   return changed;
                 })});
}

// ---- the coordinator's death -----------------------------------------------

void AddCoordinator(std::vector<MutantInfo>& all) {
  all.push_back({"journal-tail-lost",
                 "what the journal was given last is not there when it is read",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->coordinator_lost = [](SimDisk& disk) {
                     disk.CutNewest(24);
                   };
                   return mutant;
                 }});
  all.push_back({"switch-over-forgotten",
                 "memory does not say that it is newer than a switch",
                 OfReports<Halted>([](Rank, Halted& halted) {
                   return std::exchange(halted.stand.epochs_over, Epoch{0}) !=
                          Epoch{0};
                 })});
  all.push_back({"journal-not-synced",
                 "a client hears of what the disk may still lose",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   mutant->never_syncs = true;
                   return mutant;
                 }});
  all.push_back({"held-too-much",
                 "workers tell a new coordinator of KV that they do not have",
                 OfReports<Halted>([](Rank, Halted& halted) {
                   for (HeldSequence& held : halted.sequences) ++held.computed;
                   return !halted.sequences.empty();
                 })});
}

// ---- messages --------------------------------------------------------------

void AddMessages(std::vector<MutantInfo>& all) {
  all.push_back({"commands-uncounted",
                 "a worker does not notice that a command was lost or repeated",
                 [](uint64_t) {
                   auto mutant = std::make_unique<FromFunctions>();
                   struct Count {
                     Incarnation incarnation;
                     uint64_t next = 1;
                   };
                   mutant->taken = [counts = std::array<Count, kMaxRanks>{}](
                                       Rank rank, Incarnation incarnation,
                                       CommandMessage& message) mutable {
                     Count& count = counts[rank];
                     if (count.incarnation != incarnation) {
                       count = {incarnation, 1};
                     }
                     message.envelope.sequence = count.next++;
                     return true;
                   };
                   return mutant;
                 }});
  all.push_back({"page-given-twice", "two sequences have the same page",
                 Of<StepPlan>([](Rank, StepPlan& plan) {
                   if (plan.page_rows.size() < 2) return false;
                   PageRow& a = plan.page_rows[0];
                   PageRow& b = plan.page_rows[1];
                   if (a.rank != b.rank || a.slot == b.slot) return false;
                   b.pages[0] = a.pages[0];
                   return true;
                 })});
  all.push_back({"plan-differs", "one worker is told another plan",
                 Of<StepPlan>([](Rank rank, StepPlan& plan) {
                   if (rank != 1 || plan.items.size() < 2) return false;
                   plan.items.pop_back();
                   return true;
                 })});
  all.push_back({"tokens-crossed", "two sequences swap their tokens",
                 OfReports<StepResult>([](Rank, StepResult& result) {
                   if (result.sampled.size() < 2) return false;
                   std::swap(result.sampled[0].token, result.sampled[1].token);
                   return true;
                 })});
  all.push_back({"refusal-kept",
                 "the coordinator does not hear that a sequence is refused",
                 OfReports<StepResult>([](Rank, StepResult& result) {
                   if (result.refused.empty()) return false;
                   result.refused.pop_back();
                   return true;
                 })});
  all.push_back({"output-lost", "a token never reaches its client",
                 OfOutputs([](std::vector<Output>& outputs, uint64_t& count) {
                   if (++count == 5) outputs[0].tokens.clear();
                 })});
  all.push_back({"output-twice", "a token reaches its client twice",
                 OfOutputs([](std::vector<Output>& outputs, uint64_t& count) {
                   if (++count == 5) outputs.push_back(outputs[0]);
                 })});
  all.push_back({"text-lost", "a client does not hear what a token says",
                 OfOutputs([](std::vector<Output>& outputs, uint64_t& count) {
                   for (Output& output : outputs) {
                     if (!output.text.empty() && ++count == 5) {
                       output.text.clear();
                     }
                   }
                 })});
  all.push_back({"choice-refused",
                 "of a request's choices one is refused and one accepted",
                 OfOutputs([](std::vector<Output>& outputs, uint64_t&) {
                   for (size_t i = 1; i < outputs.size(); ++i) {
                     if (!outputs[i - 1].accepted || !outputs[i].accepted) {
                       continue;
                     }
                     outputs[i].refused = absl::UnavailableError("planted");
                   }
                 })});
  all.push_back({"end-lost", "a client never hears that its request has ended",
                 OfOutputs([](std::vector<Output>& outputs, uint64_t&) {
                   outputs[0].finish.reset();
                 })});
}

}  // namespace

const std::vector<MutantInfo>& AllMutants() {
  static const auto* const mutants = [] {
    auto* const all = new std::vector<MutantInfo>;
    AddRecovery(*all);
    AddSwitches(*all);
    AddLayouts(*all);
    AddSteps(*all);
    AddMemory(*all);
    AddCoordinator(*all);
    AddMessages(*all);
    AddText(*all);
    return all;
  }();
  return *mutants;
}

const MutantInfo* FindMutant(std::string_view name) {
  for (const MutantInfo& info : AllMutants()) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

}  // namespace moebius::simulation
