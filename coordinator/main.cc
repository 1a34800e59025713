// moebius-coordinator: the process that decides. Started by the launcher.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>

#include "common/base/exit_code.h"
#include "common/vault/child_program.h"
#include "coordinator/coordinator_flags.h"
#include "coordinator/coordinator_process.h"
#include "coordinator/journal/journal_command.h"

namespace {

// `moebius journal ACTION DIR`, which executes us with the same words.
int JournalMain(std::string_view action, const std::string& dir) {
  const absl::StatusOr<int> exit_code =
      action == "check" ? moebius::CheckJournalCommand(dir)
      : action == "repair"
          ? moebius::RepairJournalCommand(dir)
          : absl::InvalidArgumentError("the journal is checked or repaired");
  if (exit_code.ok()) return *exit_code;
  std::fprintf(stderr, "moebius: %s\n",
               std::string(exit_code.status().message()).c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "journal") {
    return JournalMain(argv[2], argv[3]);
  }
  CLI::App app(
      "The coordinator of a Moebius group. `moebius serve` starts it; it is of "
      "no use alone.");
  moebius::ChildProgram program{.name = "coordinator"};
  program.rank = moebius::kCoordinatorRank;
  moebius::CoordinatorOptions options;
  moebius::AddCoordinatorFlags(app, program, options);
  app.add_option("--checkpoint", options.checkpoint,
                 "fingerprint of the checkpoint that workers have loaded");
  int port = -1, admin_port = -1;
  app.add_option("--port", port, "in place of the configuration's http.port");
  app.add_option("--admin-port", admin_port,
                 "in place of the configuration's admin.port");
  CLI11_PARSE(app, argc, argv);

  std::signal(SIGPIPE, SIG_IGN);
  // SIGTERM is waited for, so it is blocked before any thread starts.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  int num_cut = 0;
  const int exit_code = moebius::RunChildProgram(
      program, [&](const moebius::Config& config, moebius::VaultClient& vault) {
        options.config = config;
        if (port >= 0) options.config.http.port = port;
        if (admin_port >= 0) options.config.admin.port = admin_port;
        options.dir = program.dir;
        return moebius::RunCoordinator(options, vault, &num_cut);
      });
  return num_cut > 0 ? moebius::kExitDrainCut : exit_code;
}
