#include "tests/simulation/options.h"

#include <algorithm>
#include <cstdio>

#include "tests/simulation/rng.h"

namespace moebius::simulation {
namespace {

// Half of all seeds do without a kind of fault, so that each is also met alone.
bool Has(Rng& rng) { return rng.Chance(0.5); }

// The heads of the models divide into all of them.
std::vector<LayoutChoice> LayoutsOf(const Options& options) {
  std::vector<LayoutChoice> choices;
  for (int width = 1; width <= options.num_workers; ++width) {
    if (options.num_workers % width != 0) continue;
    choices.push_back(
        LayoutChoice::Of(Layout{width}).InGroup(options.num_workers));
  }
  return choices;
}

void ChooseGroup(Rng& rng, Options& options) {
  // Groups of eight take longest, so they are rarer.
  constexpr struct {
    int model, num_workers;
  } kGroups[] = {{0, 2}, {0, 2}, {0, 2}, {0, 4}, {0, 4},
                 {0, 8}, {1, 2}, {1, 3}, {1, 3}, {1, 6}};
  const auto group = kGroups[rng.Int(0, std::size(kGroups) - 1)];
  options.model = group.model;
  options.num_workers = group.num_workers;
  options.spare_slots = rng.Chance(0.7) ? 1 : rng.Int(2, 3);
  options.layout =
      rng.Chance(0.3) ? LayoutChoice::kAuto : AnyLayout(rng, options);
  // Half of the groups know EP and TP alone.
  if (Has(rng)) {
    options.candidates.clear();
    for (const LayoutChoice choice : LayoutsOf(options)) {
      if (rng.Chance(0.7)) options.candidates.push_back(choice);
    }
    if (options.candidates.empty()) options.candidates = LayoutsOf(options);
  }
  options.steps_ahead = rng.Int(1, 4);
  options.token_budget = rng.Int(0, 1) == 0 ? rng.Int(8, 16) : rng.Int(17, 48);
  options.max_running = std::min(rng.Int(2, 12), options.token_budget);
  options.pool = Has(rng) ? rng.Uniform(1, 2) : rng.Uniform(2, 8);
}

void ChooseWork(Rng& rng, Options& options) {
  options.num_choices = Has(rng) ? rng.Int(2, 8) : rng.Int(9, 24);
  options.many = Has(rng) ? rng.Uniform(0, 0.6) : 0;
  options.fault_ms = rng.Int(200, 2500);
  options.arrivals_ms = rng.Int(10, options.fault_ms);
  options.step_us = Has(rng) ? rng.Int(100, 3000) : rng.Int(3000, 30000);
  options.aborts = Has(rng) ? rng.Uniform(0, 0.4) : 0;
  options.switches = rng.Chance(0.9) ? rng.Int(2, 9) : 0;
}

void ChooseNetwork(Rng& rng, Options& options) {
  if (Has(rng)) options.loss = rng.Uniform(0, rng.Chance(0.7) ? 0.02 : 0.3);
  if (Has(rng)) options.repetition = rng.Uniform(0, 0.5);
  options.delay_min_us = rng.Int(10, 200);
  options.delay_max_us = options.delay_min_us +
                         (Has(rng) ? rng.Int(10, 500) : rng.Int(500, 20000));
  options.reorder = rng.Chance(0.3);
  options.queue_limit = rng.Chance(0.1) ? rng.Int(6, 20) : 256;
  if (rng.Chance(0.3)) options.partitions = rng.Int(1, 3);
}

void ChooseProcessFaults(Rng& rng, Options& options) {
  if (rng.Chance(0.3)) options.pauses = rng.Int(1, 3);
  if (rng.Chance(0.2)) options.coordinator_pauses = rng.Int(1, 3);
  if (rng.Chance(0.4)) options.kills = rng.Int(1, 3);
  if (Has(rng)) options.crash_in_step = rng.Uniform(0, 0.001);
  if (Has(rng)) options.crash_in_switch = rng.Uniform(0, 0.1);
  if (Has(rng)) options.crash_in_recovery = rng.Uniform(0, 0.1);
  options.max_crashes = rng.Int(1, 8);
  if (rng.Chance(0.3)) options.memory_loss = rng.Uniform(0, 0.7);
  if (rng.Chance(0.4)) options.coordinator_crash = rng.Uniform(0, 0.03);
  if (rng.Chance(0.3)) options.coordinator_kills = rng.Int(1, 3);
  if (rng.Chance(0.15)) options.full_disks = rng.Int(1, 2);
  if (rng.Chance(0.15)) options.power_losses = rng.Int(1, 2);
  options.rotate_bytes = static_cast<uint64_t>(rng.Int(1'000, 100'000));
  if (rng.Chance(0.2)) options.errors = rng.Uniform(0, 0.003);
  if (rng.Chance(0.3)) options.stalls = rng.Uniform(0, 0.002);
}

// Switches of a group that has little to do, so that no step follows soon, and
// whose end the journal cannot say: memory has to, and that is lost too, of one
// worker after the other.
void ChooseForgottenSwitches(Rng& rng, Options& options) {
  options.num_workers = 2;
  options.candidates = {LayoutChoice::kEp, LayoutChoice::kTp};
  if (!options.layout.is_auto()) options.layout = AnyLayout(rng, options);
  options.num_choices = rng.Int(1, 4);
  options.fault_ms = rng.Int(1000, 3000);
  options.arrivals_ms = options.fault_ms;
  options.switches = rng.Int(4, 12);
  options.partitions = options.full_disks = options.power_losses = 0;
  options.loss = 0;
  options.kills = rng.Int(4, 10);
  options.memory_loss = rng.Uniform(0.5, 1);
  options.max_crashes = 1;
  options.coordinator_kills = rng.Int(1, 4);
  options.full_at_switch = rng.Uniform(0.5, 1);
}

void ChooseDevice(Rng& rng, Options& options) {
  if (Has(rng)) options.results_late_us = rng.Int(1, 3 * options.step_us);
  if (rng.Chance(0.3)) {
    options.results_together_us = rng.Int(options.step_us, 4 * options.step_us);
  }
  if (rng.Chance(0.3)) options.completions_lost = rng.Uniform(0, 0.3);
  // Who misses the worker is the coordinator that told it to work: another one
  // would wait for its Hello, as it does for that of one that is loading.
  const bool one_coordinator =
      options.coordinator_crash == 0 && options.coordinator_kills == 0;
  if (one_coordinator && rng.Chance(0.5)) {
    options.steps_hung = rng.Uniform(0, 0.005);
  }
}

}  // namespace

LayoutChoice AnyLayout(Rng& rng, const Options& options) {
  const std::vector<LayoutChoice> choices = LayoutsOf(options);
  return choices[rng.Int(0, static_cast<int>(choices.size()) - 1)];
}

Options OptionsOf(uint64_t seed) {
  Rng rng(seed * 2 + 1);
  Options options;
  options.seed = seed;
  ChooseGroup(rng, options);
  ChooseWork(rng, options);
  ChooseNetwork(rng, options);
  ChooseProcessFaults(rng, options);
  if (rng.Chance(0.2)) ChooseForgottenSwitches(rng, options);
  if (rng.Chance(0.2)) options.refused = rng.Uniform(0.05, 0.6);
  ChooseDevice(rng, options);
  return options;
}

Options WithoutFaults(Options options) {
  const Options none;
  options.loss = options.repetition = 0;
  options.delay_min_us = none.delay_min_us;
  options.delay_max_us = none.delay_max_us;
  options.reorder = false;
  options.queue_limit = none.queue_limit;
  options.partitions = options.pauses = options.coordinator_pauses = 0;
  options.kills = options.max_crashes = 0;
  options.crash_in_step = options.crash_in_switch = options.memory_loss = 0;
  options.crash_in_recovery = options.errors = options.stalls = 0;
  options.results_late_us = options.results_together_us = 0;
  options.completions_lost = options.steps_hung = 0;
  options.coordinator_crash = 0;
  options.coordinator_kills = options.full_disks = options.power_losses = 0;
  options.full_at_switch = 0;
  options.aborts = 0;
  return options;
}

std::string Show(const Options& o) {
  char text[1536];
  std::snprintf(
      text, sizeof(text),
      "seed %llu\n"
      "  group   model %d, %d workers, %d spare slots, layout %s, steps ahead "
      "%d, budget %d, "
      "running %d, pool %.2f\n"
      "  work    %d choices within %d ms, several a request %.2f, aborts "
      "%.2f, refused %.2f, %d switches\n"
      "  device  %d us a step, results up to %d us late, every %d us; "
      "completions lost %.3f, steps hung %.5f\n"
      "  network loss %.3f, repetition %.3f, delay %d..%d us, %s, queue %d, "
      "%d partitions\n"
      "  faults  for %d ms: %d kills, %d pauses, %d coordinator pauses; "
      "crashes "
      "%.5f in steps, %.4f in switches, %.4f in recovery, at most %d; memory "
      "lost %.2f, errors %.4f, stalls %.4f\n"
      "  coordinator  crashes %.4f, %d kills, disk full %d "
      "times and at "
      "%.2f of switches, segments of "
      "%llu bytes; %d losses of power",
      static_cast<unsigned long long>(o.seed), o.model, o.num_workers,
      o.spare_slots, LayoutChoiceName(o.layout).c_str(), o.steps_ahead,
      o.token_budget, o.max_running, o.pool, o.num_choices, o.arrivals_ms,
      o.many, o.aborts, o.refused, o.switches, o.step_us, o.results_late_us,
      o.results_together_us, o.completions_lost, o.steps_hung, o.loss,
      o.repetition, o.delay_min_us, o.delay_max_us,
      o.reorder ? "reordered" : "in order", o.queue_limit, o.partitions,
      o.fault_ms, o.kills, o.pauses, o.coordinator_pauses, o.crash_in_step,
      o.crash_in_switch, o.crash_in_recovery, o.max_crashes, o.memory_loss,
      o.errors, o.stalls, o.coordinator_crash, o.coordinator_kills,
      o.full_disks, o.full_at_switch,
      static_cast<unsigned long long>(o.rotate_bytes), o.power_losses);
  return text;
}

Config ConfigOf(const Options& options, const std::string& model_path,
                int64_t sequence_bytes) {
  Config config;
  config.model.path = model_path;
  config.workers.count = options.num_workers;
  config.layout.spare_slots = options.spare_slots;
  config.workers.threads = 1;
  config.workers.spin_us = 0;
  config.workers.kv_bytes =
      static_cast<int64_t>(options.pool * sequence_bytes) + 1;
  config.layout.choice = options.layout;
  config.layout.candidates = options.candidates;
  config.scheduler.steps_ahead = options.steps_ahead;
  config.scheduler.token_budget = options.token_budget;
  config.scheduler.max_running = options.max_running;
  config.scheduler.max_queue = 128;
  config.layout.switch_threshold = 4;
  config.layout.min_dwell_ms = 100;
  config.layout.smoothing_ms = 50;
  config.workers.step_timeout_ms = 300;
  config.workers.stall_timeout_ms = 1500;
  config.layout.prepare_timeout_ms = 300;
  config.layout.switch_timeout_ms = 1000;
  return config;
}

}  // namespace moebius::simulation
