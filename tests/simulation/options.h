// What a seed stands for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/config/config.h"
#include "tests/simulation/rng.h"

namespace moebius::simulation {

struct Options {
  uint64_t seed = 0;
  bool steady = false;  // everything takes the same time every time (rng.h)

  // ---- the group
  int model = 0;  // index among the small models
  int num_workers = 2;
  int spare_slots = 1;
  LayoutChoice layout = LayoutChoice::kEp;
  std::vector<LayoutChoice> candidates = {LayoutChoice::kEp, LayoutChoice::kTp};
  int steps_ahead = 2;
  int token_budget = 32;
  int max_running = 8;
  double pool = 4;  // KV room of a rank, in sequences of full length

  // ---- the work
  int num_choices = 8;    // of all requests
  double many = 0;        // share of requests with more than one
  int arrivals_ms = 500;  // within this time
  int step_us = 1000;     // what a step takes to compute
  // A result can be collected up to so long after its step; and, if not 0, only
  // at multiples of this time, with all others.
  int results_late_us = 0, results_together_us = 0;
  double aborts = 0;  // share of requests
  // Share of choices with a token that the model does not have; the coordinator
  // lets it pass.
  double refused = 0;
  int switches = 2;  // ordered by hand, within the time of faults

  // ---- the faults, until fault_ms after the group serves
  int fault_ms = 1000;
  double loss = 0, repetition = 0;  // of messages
  int delay_min_us = 20, delay_max_us = 200;
  bool reorder = false;
  int queue_limit = 256;  // messages to one worker that are not taken yet
  int partitions = 0, pauses = 0, coordinator_pauses = 0, kills = 0;
  // Chance of a crash each time a worker reaches a fault point: of a step, of a
  // switch, of a recovery. At most max_crashes in all.
  double crash_in_step = 0, crash_in_switch = 0, crash_in_recovery = 0;
  int max_crashes = 0;
  // The same of the coordinator's fault points and its journal's; and from
  // outside. Its disk is full for a while, so often.
  double coordinator_crash = 0;
  int coordinator_kills = 0, full_disks = 0;
  // Chance that it is full for a while from the moment a switch is decided, so
  // that its end is not on it.
  double full_at_switch = 0;
  int power_losses = 0;  // of the whole machine
  uint64_t rotate_bytes = 1 << 20;
  double memory_loss =
      0;  // of a worker that dies, with all that the vault keeps
  // Chance that a fault point fails, or holds a worker up.
  double errors = 0, stalls = 0;
  // Chance that a worker is not told of a step's end, and that a step has none.
  double completions_lost = 0, steps_hung = 0;
};

// One of the layouts of the group, each as likely.
LayoutChoice AnyLayout(Rng& rng, const Options& options);

// Pure: the options of a seed.
Options OptionsOf(uint64_t seed);

// The same group and work without any fault.
Options WithoutFaults(Options options);

// All of them in some lines.
std::string Show(const Options& options);

// The configuration of the group. `model_path` of a small model whose longest
// sequence takes `pool_bytes` of KV.
Config ConfigOf(const Options& options, const std::string& model_path,
                int64_t sequence_bytes);

}  // namespace moebius::simulation
