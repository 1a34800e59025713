// moebius-coordinator: the process that decides. Started by the launcher.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <string>

#include "absl/time/time.h"
#include "common/config_yaml.h"
#include "coordinator/coordinator_process.h"

namespace {

constexpr absl::Duration kVaultTimeout = absl::Seconds(10);

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "The coordinator of a Moebius group. `moebius serve` starts it; it is of "
      "no use alone.");
  std::string config_path;
  moebius::CoordinatorOptions options;
  app.add_option("--config", config_path, "effective configuration (YAML)")
      ->required();
  app.add_option("--dir", options.dir, "private directory of the group")
      ->required();
  app.add_option("--term", options.term.value, "number of this life")
      ->capture_default_str();
  auto* spec = app.add_option("--bench-throughput", options.bench_spec,
                              "measure these cases instead of serving (JSON)");
  auto* result = app.add_option("--bench-result", options.bench_result,
                                "where to write the figures (JSON)");
  spec->needs(result);
  result->needs(spec);
  CLI11_PARSE(app, argc, argv);

  spdlog::set_default_logger(spdlog::stderr_color_mt("coordinator"));
  spdlog::set_pattern("%L %v");
  // An interactive Ctrl-C reaches the whole process group; the launcher decides
  // what it means. SIGTERM is waited for, so it is blocked before any thread
  // starts.
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  const bool benchmark = !options.bench_spec.empty();
  if (!benchmark) pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  auto vault = moebius::VaultClient::Connect(
      options.dir, moebius::kCoordinatorRank, kVaultTimeout);
  if (!vault.ok()) {
    spdlog::error("{}", vault.status().ToString());
    return 1;
  }
  auto config = moebius::LoadConfigYaml(config_path);
  if (!config.ok()) {
    spdlog::error("{}", config.status().ToString());
    return 1;
  }
  options.config = *config;
  spdlog::set_level(spdlog::level::from_str(options.config.log_level));

  const absl::Status status =
      benchmark ? moebius::RunThroughputBench(options, **vault)
                : moebius::RunCoordinator(options, **vault);
  if (status.ok()) return 0;
  spdlog::error("{}", status.ToString());
  (*vault)->Failed(status.message()).IgnoreError();
  return 1;
}
