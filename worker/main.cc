// moebius-worker: one rank of a group. Started by the launcher.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/config_yaml.h"
#include "worker/worker_process.h"

namespace {

volatile std::sig_atomic_t stop_requested = 0;

constexpr absl::Duration kVaultTimeout = absl::Seconds(10);

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "One worker of a Moebius group. `moebius serve` starts it; it is of no "
      "use alone.");
  std::string config_path;
  moebius::WorkerOptions options;
  app.add_option("--config", config_path, "effective configuration (YAML)")
      ->required();
  app.add_option("--dir", options.dir, "private directory of the group")
      ->required();
  app.add_option("--rank", options.rank, "rank, from 0")->required();
  app.add_option("--incarnation", options.incarnation.value,
                 "number of this life of the rank")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  spdlog::set_default_logger(spdlog::stderr_color_mt("worker"));
  spdlog::set_pattern("%L %v");
  auto vault =
      moebius::VaultClient::Connect(options.dir, options.rank, kVaultTimeout);
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

  // An interactive Ctrl-C reaches the whole process group; the launcher decides
  // what it means.
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGTERM, [](int) { stop_requested = 1; });
  const absl::Status status =
      moebius::RunWorker(options, **vault, &stop_requested);
  if (status.ok()) return 0;
  spdlog::error("{}", status.ToString());
  (*vault)->Failed(status.message()).IgnoreError();
  return 1;
}
