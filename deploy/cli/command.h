// How a subcommand of `moebius` is made known to main.cc.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace moebius {

// What the chosen command does; returns the program's exit code.
using Action = std::function<int()>;

// Exit codes of all commands.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;  // flags, configuration

// Each adds its command to `app`, which sets `action` when it is chosen.
void AddServeCommand(CLI::App& app, Action& action);
void AddStatusCommand(CLI::App& app, Action& action);
void AddLayoutCommand(CLI::App& app, Action& action);
void AddDrainCommands(CLI::App& app, Action& action);
void AddBenchCommand(CLI::App& app, Action& action);
void AddChaosCommand(CLI::App& app, Action& action);
void AddDemoCommand(CLI::App& app, Action& action);
void AddJournalCommand(CLI::App& app, Action& action);
void AddCheckDeployCommand(CLI::App& app, Action& action);
void AddManualCommands(CLI::App& app, Action& action);

// Says "moebius: <message>" on standard error; returns the exit code that
// suits: kExitUsage for what the user said, kExitFailed otherwise.
int ReportError(const absl::Status& status);

// Chosen, `command` does `run(*args)`; its status is the exit code.
template <typename Args, typename Run>
void RunWhenChosen(CLI::App& command, Action& action,
                   std::shared_ptr<Args> args, Run run) {
  command.callback([args = std::move(args), run, &action] {
    action = [args, run] {
      const absl::Status status = run(*args);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}

}  // namespace moebius
