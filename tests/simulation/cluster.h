// A whole group in one thread: launcher, coordinator, workers, clients.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine/engine_host.h"
#include "deploy/launcher/supervision.h"
#include "tests/simulation/front.h"
#include "tests/simulation/mutants.h"
#include "tests/simulation/network.h"
#include "tests/simulation/observer.h"
#include "tests/simulation/options.h"
#include "tests/simulation/script.h"
#include "tests/simulation/vault.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

struct RunOptions {
  bool trace = false;       // print what happens
  bool keep_notes = false;  // remember the last notes
  const MutantInfo* mutant = nullptr;
  Script* script = nullptr;  // is played, and told what happens
};

struct Outcome {
  uint64_t hash = 0;
  Tally tally;
  std::optional<Violation> violation;
  std::deque<std::string> notes;
  std::vector<Front::Choice> choices;
  int switches = 0;
  uint64_t recoveries = 0;
  int64_t end_us = 0;
};

// Plays a seed from start to end. Equal calls have equal outcomes.
Outcome Play(const Options& options, const RunOptions& run);

// All asks of a model by a group without faults: what AnswersOf gives.
std::vector<Front::Choice> PlayQuietly(int model);

}  // namespace moebius::simulation
