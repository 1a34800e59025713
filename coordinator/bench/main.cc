// moebius-engine-bench: a coordinator without a front, which measures instead
// of serving. `moebius bench throughput` and `bench rollout` have the launcher
// start it in the coordinator's place.
#include <CLI/CLI.hpp>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
#include "common/vault/child_program.h"
#include "coordinator/api/checkpoint_codec.h"
#include "coordinator/bench/throughput_bench.h"
#include "coordinator/coordinator_flags.h"
#include "coordinator/coordinator_setup.h"
#include "coordinator/engine/engine_host.h"
#include "coordinator/engine/text_thread.h"

namespace moebius {
namespace {

absl::Status Measure(const CoordinatorOptions& options, VaultClient& vault,
                     const std::string& spec, const std::string& result) {
  ASSIGN_OR_RETURN(const auto codec,
                   CheckpointCodec::Load(options.config.model.path));
  ASSIGN_OR_RETURN(const auto faults, OpenFaults(options));
  ASSIGN_OR_RETURN(const UniqueFd lock, LockGroup(options.dir));
  ASSIGN_OR_RETURN(auto hub, BindHub(options, faults.get(), vault));
  ASSIGN_OR_RETURN(EngineOptions engine_options,
                   MakeEngineOptions(options, codec->tokenizer(), vault));
  ThroughputBench bench(engine_options.model.vocab_size,
                        CandidateLayouts(options.config));
  engine_options.on_ready = [&bench, &vault] {
    vault.Ready().IgnoreError();
    bench.engine_side().Ready();
  };
  engine_options.on_failed = [&bench](absl::Status status) {
    bench.engine_side().Fail(std::move(status));
  };
  auto text = std::make_unique<TextThread>(
      &codec->tokenizer(), [&bench](std::vector<Output> outputs) {
        bench.engine_side().OnOutputs(outputs);
      });
  EngineHost engine(std::move(engine_options), std::move(hub), std::move(text));
  engine.Start();
  const absl::Status status = bench.Run(engine, spec, result);
  engine.Stop();
  return status;
}

}  // namespace
}  // namespace moebius

int main(int argc, char** argv) {
  CLI::App app(
      "Measures the engine of a Moebius group. `moebius bench throughput` "
      "starts it; it is of no use alone.");
  moebius::ChildProgram program{.name = "coordinator"};
  program.rank = moebius::kCoordinatorRank;
  moebius::CoordinatorOptions options;
  moebius::AddCoordinatorFlags(app, program, options);
  std::string spec, result;
  app.add_option("--spec", spec, "the cases to measure (JSON)")->required();
  app.add_option("--result", result, "where to write the figures (JSON)")
      ->required();
  CLI11_PARSE(app, argc, argv);

  std::signal(SIGPIPE, SIG_IGN);
  return moebius::RunChildProgram(
      program, [&](const moebius::Config& config, moebius::VaultClient& vault) {
        options.config = config;
        options.dir = program.dir;
        return moebius::Measure(options, vault, spec, result);
      });
}
