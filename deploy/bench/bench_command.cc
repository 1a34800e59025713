// moebius bench: its subcommands, and what they share.
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/bench/bench_commands.h"

namespace moebius {
namespace {

// Processor and cores of this machine: {"cpu": "...", "cores": 2}.
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

}  // namespace

void AddLimits(CLI::App& command, BenchLimits& limits) {
  command
      .add_option("--timeout", limits.timeout_s,
                  "Seconds that the whole may take; when they are over, what "
                  "was measured is shown [default 600]")
      ->option_text("S")
      ->check(CLI::Range(1.0, 86400.0));
  command
      .add_option("--json", limits.json_file, "Writes the figures to a file.")
      ->option_text("FILE");
}

bool IsCutShort(const absl::Status& status) {
  return absl::IsDeadlineExceeded(status) || absl::IsCancelled(status);
}

absl::Status NothingMeasured(const absl::Status& status, double timeout_s) {
  if (!absl::IsDeadlineExceeded(status)) return status;
  return absl::DeadlineExceededError(Cat("nothing was measured within ",
                                         absl::StrFormat("%g", timeout_s),
                                         " s (--timeout)"));
}

void SayCutShort(const absl::Status& status, double timeout_s, uint64_t done,
                 uint64_t wanted, std::string_view what) {
  const std::string why =
      absl::IsCancelled(status)
          ? std::string("Interrupted")
          : Cat("Cut short after ", absl::StrFormat("%g", timeout_s),
                " s (--timeout)");
  std::printf("%s\n",
              Cat(why, ": ", done, " of ", wanted, " ", what, ".").c_str());
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
      "bench",
      "Measure: throughput of the engine, single steps, rollouts, an HTTP "
      "server, switches.");
  bench->require_subcommand(1);
  AddBenchThroughputCommand(*bench, action);
  AddBenchStepCommand(*bench, action);
  AddBenchRolloutCommand(*bench, action);
  AddBenchServeCommand(*bench, action);
  AddBenchSwitchCommand(*bench, action);
}

}  // namespace moebius
