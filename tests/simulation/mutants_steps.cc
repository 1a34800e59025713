// Planted bugs of steps that are issued and collected: of the engine, and of a
// loop that does not wait for it.
#include <array>
#include <memory>
#include <variant>

#include "tests/simulation/mutant_makers.h"

namespace moebius::simulation {
namespace {

Make OfEngine(EngineBug bug) {
  return [bug](uint64_t) {
    auto mutant = std::make_unique<FromFunctions>();
    mutant->engine = [bug](Rank) { return bug; };
    return mutant;
  };
}

// A worker that takes a Halt is told that what is under way is done. Not rank
// 0, whose results would be missed.
Make OfHaltsAtOnce() {
  return [](uint64_t) {
    auto mutant = std::make_unique<FromFunctions>();
    auto halts = std::make_shared<std::array<bool, kMaxRanks>>();
    mutant->taken = [halts](Rank rank, Incarnation,
                            wire::CommandMessage& message) {
      (*halts)[rank] = std::holds_alternative<wire::Halt>(message.command);
      return false;
    };
    mutant->engine = [halts](Rank rank) {
      return rank != 0 && (*halts)[rank] ? EngineBug::kSkipsWaiting
                                         : EngineBug::kNone;
    };
    return mutant;
  };
}

}  // namespace

void AddSteps(std::vector<MutantInfo>& all) {
  all.push_back({"results-swapped",
                 "of two results that are there the later is taken first",
                 OfEngine(EngineBug::kSwapsResults)});
  all.push_back({"aborted-step-told", "a step that was aborted is told as done",
                 OfEngine(EngineBug::kHidesError)});
  all.push_back(
      {"error-not-final",
       "what was issued behind a step that failed is executed and told",
       OfEngine(EngineBug::kRunsBehindError)});
  all.push_back({"dropped-step-comes-back",
                 "a step that was dropped is executed in the next round",
                 OfEngine(EngineBug::kRunsInNextRound)});
  all.push_back(
      {"halted-before-steps-end",
       "a worker says that it has halted, and takes new tables, while "
       "its device executes a step",
       OfHaltsAtOnce()});
}

}  // namespace moebius::simulation
