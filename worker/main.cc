// moebius-worker: one rank of a group. Started by the launcher.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <string>

#include "common/vault/child_program.h"
#include "worker/worker_process.h"

namespace {

volatile std::sig_atomic_t stop_requested = 0;
pid_t launcher = 0;

// The launcher alone says when we end. A service manager that signals everybody
// would else take away the workers that are to finish the requests in flight.
void OnStop(int, siginfo_t* info, void*) {
  if (info->si_pid == launcher) stop_requested = 1;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "One worker of a Moebius group. `moebius serve` starts it; it is of no "
      "use alone.");
  moebius::ChildProgram program{.name = "worker"};
  moebius::WorkerOptions options;
  moebius::WorkerPlace place;
  app.add_option("--config", program.config_path,
                 "effective configuration (YAML)")
      ->required();
  app.add_option("--dir", program.dir, "private directory of the group")
      ->required();
  app.add_option("--rank", program.rank, "rank, from 0")->required();
  app.add_option("--incarnation", options.incarnation.value,
                 "number of this process of the rank")
      ->capture_default_str();
  app.add_flag("--adopt", options.adopt,
               "go on with the memory of this rank's predecessor");
  app.add_option("--control-keys", place.control_keys_fd,
                 "descriptor to read our keys of the control channel from");
  CLI11_PARSE(app, argc, argv);

  program.name += " " + std::to_string(program.rank);
  launcher = getppid();
  struct sigaction stop = {};
  stop.sa_sigaction = OnStop;
  stop.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGTERM, &stop, nullptr);
  return moebius::RunChildProgram(program, [&](const moebius::Config& config,
                                               moebius::VaultClient& vault) {
    options.config = config;
    options.rank = program.rank;
    place.dir = program.dir;
    return moebius::RunWorkerProcess(options, place, vault, &stop_requested);
  });
}
