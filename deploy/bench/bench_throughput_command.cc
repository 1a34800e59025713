// moebius bench throughput: a group driven through its coordinator, without
// HTTP.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/bench/bench_commands.h"
#include "deploy/bench/crossover_report.h"
#include "deploy/bench/engine_bench.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/config_flags.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

struct ThroughputArgs {
  ConfigFlags flags;
  std::vector<int> streams = {1, 8, 32};
  std::vector<std::string> layouts = {"ep", "tp"};
  int prompt_tokens = 64;
  int output_tokens = 128;
  int prefill = 1024;
  int repeat = 3;
  BenchLimits limits;
};

Json MakeSpec(const ThroughputArgs& args) {
  Json cases = Json::array();
  for (const std::string& layout : args.layouts) {
    for (int streams : args.streams) {
      cases.push_back(
          EngineCase(streams, args.prompt_tokens, args.output_tokens, layout));
    }
    if (args.prefill > 0) {
      cases.push_back(EngineCase(1, args.prefill, 1, layout));
    }
  }
  return {{"cases", cases},
          {"repeat", args.repeat},
          {"time_limit_s", static_cast<int>(std::ceil(args.limits.timeout_s))}};
}

std::string Rate(const Json& result, const char* key) {
  const double value = NumberAt(result, key);
  return value > 0 ? ShortNumber(value) : "-";
}

bool AnyEndedEarly(const Json& result) {
  const Json& cases = result["cases"];
  return std::any_of(cases.begin(), cases.end(), [](const Json& one) {
    return CountAt(one, "output_tokens") > 1 &&
           NumberAt(one, "decode_tokens_per_s") <= 0;
  });
}

std::string Describe(const Json& result) {
  std::vector<std::vector<std::string>> rows;
  for (const Json& one : result["cases"]) {
    const bool is_prefill = CountAt(one, "output_tokens") <= 1;
    rows.push_back(
        {TextAt(one, "layout"), Cat(CountAt(one, "streams")),
         Cat(CountAt(one, "prompt_tokens")), Cat(CountAt(one, "output_tokens")),
         is_prefill ? "-" : Rate(one, "decode_tokens_per_s"),
         Rate(one, "prefill_tokens_per_s"), Rate(one, "step_ms_median")});
  }
  return FormatTable({"layout", "streams", "prompt", "output",
                      "decode tokens/s", "prefill tokens/s", "ms/step"},
                     rows);
}

absl::Status Run(const ThroughputArgs& args) {
  Config defaults;
  defaults.log.level = LogLevel::kWarn;
  ASSIGN_OR_RETURN(Config config, args.flags.Load(defaults));
  // Only the benchmark switches.
  std::vector<LayoutChoice> layouts;
  for (const std::string& name : args.layouts) {
    layouts.push_back(*ParseLayoutChoice(name));
  }
  config.layout.choice = layouts.front();
  if (!config.layout.resident.has_value()) config.layout.resident = layouts;
  const int most_streams =
      *std::max_element(args.streams.begin(), args.streams.end());
  const Json spec = MakeSpec(args);
  ASSIGN_OR_RETURN(Json result, RunEngineBench(config, most_streams, spec));
  std::fputs(Describe(result).c_str(), stdout);
  if (AnyEndedEarly(result)) {
    std::printf(
        "-: some streams ended before all had begun; more --output-tokens "
        "would tell\n");
  }
  if (config.workers.count > 1) {
    std::printf("\n%s", AddCrossovers(result, config.workers.count).c_str());
  }
  if (BoolAt(result, "cut_short")) {
    SayCutShort(absl::DeadlineExceededError(""), args.limits.timeout_s,
                result["cases"].size(), spec["cases"].size(), "cases");
  }
  result["model"] = config.model.path;
  result["workers"] = config.workers.count;
  result["workers_per_gpu"] = config.workers.per_gpu;
  return WriteFigures(args.limits.json_file, std::move(result));
}

}  // namespace

void AddBenchThroughputCommand(CLI::App& bench, Action& action) {
  auto args = std::make_shared<ThroughputArgs>();
  CLI::App* command = bench.add_subcommand(
      "throughput",
      "Tokens per second of a group that is driven through its coordinator, "
      "without HTTP, and from how many streams on EP is faster than TP, or any "
      "other layout than its wider neighbour. Starts a group of its own.");
  command
      ->add_option("--streams", args->streams,
                   "Sequences in flight, a case for each [default 1,8,32]")
      ->option_text("N,...")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536));
  command
      ->add_option("--layouts", args->layouts,
                   "Layouts, all cases in each [default ep,tp]")
      ->option_text("ep|tp|tpN,...")
      ->delimiter(',')
      ->check(LayoutWord(/*also_auto=*/false));
  command
      ->add_option("--prompt-tokens", args->prompt_tokens,
                   "Tokens of each prompt [default 64]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option("--output-tokens", args->output_tokens,
                   "Tokens generated in each sequence [default 128]")
      ->option_text("N")
      ->check(CLI::Range(2, 1 << 20));
  command
      ->add_option("--prefill", args->prefill,
                   "One more case in each layout: a prompt of this many "
                   "tokens; 0 leaves it out [default 1024]")
      ->option_text("N")
      ->check(CLI::Range(0, 1 << 20));
  command
      ->add_option("--repeat", args->repeat,
                   "Runs of each case; medians are shown [default 3]")
      ->option_text("N")
      ->check(CLI::Range(1, 1000));
  AddLimits(*command, args->limits);
  args->flags.AddTo(*command, false);
  RunWhenChosen(*command, action, args, &Run);
}

}  // namespace moebius
