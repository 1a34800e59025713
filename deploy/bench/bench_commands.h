// The subcommands of `moebius bench`, and what they share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "deploy/cli/command.h"
#include "nlohmann/json.hpp"

namespace moebius {

void AddBenchThroughputCommand(CLI::App& bench, Action& action);
void AddBenchStepCommand(CLI::App& bench, Action& action);
void AddBenchRolloutCommand(CLI::App& bench, Action& action);
void AddBenchServeCommand(CLI::App& bench, Action& action);
void AddBenchSwitchCommand(CLI::App& bench, Action& action);

// What every benchmark takes.
struct BenchLimits {
  double timeout_s = 600;  // for the whole, starting its group included
  std::string json_file;   // of the figures; none by default
};
// Adds --timeout and --json.
void AddLimits(CLI::App& command, BenchLimits& limits);

// True if `status` only says that the time was over or that a signal came: what
// was measured until then is worth showing.
bool IsCutShort(const absl::Status& status);

// How a benchmark that has nothing to show ends: `status`, or the flag's name
// if only the time was over.
absl::Status NothingMeasured(const absl::Status& status, double timeout_s);

// "Cut short after 600 s (--timeout): 7 of 20 switches." or "Interrupted: 7 of
// 20 switches.", on standard output.
void SayCutShort(const absl::Status& status, double timeout_s, uint64_t done,
                 uint64_t wanted, std::string_view what);

// Writes `figures` to the file, if its name is not empty, with the machine in
// it.
absl::Status WriteFigures(const std::string& file, nlohmann::json figures);

}  // namespace moebius
