// moebius bench: its subcommands, and what they share.
#include <fstream>
#include <string>
#include <thread>

#include "common/cat.h"
#include "common/status_macros.h"
#include "deploy/bench_commands.h"

namespace moebius {

nlohmann::json DescribeMachine() {
  std::string cpu = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) cpu = line.substr(colon + 2);
    break;
  }
  return {{"cpu", cpu}, {"cores", std::thread::hardware_concurrency()}};
}

absl::Status WriteFigures(const std::string& file, nlohmann::json figures) {
  if (file.empty()) return absl::OkStatus();
  figures["machine"] = DescribeMachine();
  std::ofstream out(file);
  out << figures.dump(2) << "\n";
  out.flush();
  if (!out) return absl::InvalidArgumentError(Cat("cannot write ", file));
  return absl::OkStatus();
}

void AddBenchCommand(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand(
      "bench", "Measure: throughput of the engine, an HTTP server, switches.");
  bench->require_subcommand(1);
  AddBenchThroughputCommand(*bench, action);
  AddBenchServeCommand(*bench, action);
  AddBenchSwitchCommand(*bench, action);
}

}  // namespace moebius
