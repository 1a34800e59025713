// The subcommands of `moebius bench`, and what they share.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "deploy/command.h"
#include "nlohmann/json.hpp"

namespace moebius {

void AddBenchThroughputCommand(CLI::App& bench, Action& action);
void AddBenchServeCommand(CLI::App& bench, Action& action);
void AddBenchSwitchCommand(CLI::App& bench, Action& action);

// Processor and cores of this machine: {"cpu": "...", "cores": 2}.
nlohmann::json DescribeMachine();

// Writes `figures` to the file, if its name is not empty, with the machine in
// it.
absl::Status WriteFigures(const std::string& file, nlohmann::json figures);

}  // namespace moebius
