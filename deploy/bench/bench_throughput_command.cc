// moebius bench throughput: a group driven through its coordinator, without
// HTTP.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "deploy/bench/bench_commands.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/config_flags.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"
#include "deploy/launcher/group.h"
#include "deploy/launcher/private_dir.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxResultBytes = 16 << 20;

struct ThroughputArgs {
  ConfigFlags flags;
  std::vector<int> streams = {1, 8, 32};
  std::vector<std::string> layouts = {"ep", "tp"};
  int prompt_tokens = 64;
  int output_tokens = 128;
  int prefill = 1024;
  int repeat = 3;
  double timeout_s = kDefaultBenchSeconds;
  std::string json_file;
};

Json MakeCase(int streams, int prompt_tokens, int output_tokens,
              const std::string& layout) {
  return {{"streams", streams},
          {"prompt_tokens", prompt_tokens},
          {"output_tokens", output_tokens},
          {"layout", layout}};
}

Json MakeSpec(const ThroughputArgs& args) {
  Json cases = Json::array();
  for (const std::string& layout : args.layouts) {
    for (int streams : args.streams) {
      cases.push_back(
          MakeCase(streams, args.prompt_tokens, args.output_tokens, layout));
    }
    if (args.prefill > 0) {
      cases.push_back(MakeCase(1, args.prefill, 1, layout));
    }
  }
  return {{"cases", cases},
          {"repeat", args.repeat},
          {"time_limit_s", static_cast<int>(std::ceil(args.timeout_s))}};
}

absl::StatusOr<Json> ReadResult(const std::string& path) {
  // The file is ours: that it is missing is no mistake of the user's.
  const std::string text = ReadFile(path, kMaxResultBytes).value_or("");
  Json result = Json::parse(text, nullptr, false);
  if (!result.is_object() || !result["cases"].is_array()) {
    return absl::InternalError("the coordinator wrote no result");
  }
  return result;
}

std::string Rate(const Json& result, const char* key) {
  const double value = NumberAt(result, key);
  return value > 0 ? ShortNumber(value) : "-";
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
  const int most_streams =
      *std::max_element(args.streams.begin(), args.streams.end());
  config.scheduler.max_running =
      std::max(config.scheduler.max_running, most_streams);
  config.scheduler.token_budget =
      std::max(config.scheduler.token_budget, config.scheduler.max_running);
  // Only the benchmark switches.
  config.layout.choice =
      args.layouts.front() == "tp" ? LayoutChoice::kTp : LayoutChoice::kEp;
  ASSIGN_OR_RETURN(PrivateDir dir,
                   PrivateDir::Create(PrivateDir::DefaultBase()));
  RETURN_IF_ERROR(dir.WriteFile("spec.json", MakeSpec(args).dump()));
  const std::string result_path = Cat(dir.path(), "/result.json");

  GroupOptions options;
  options.config = config;
  options.one_shot = true;
  options.banner = false;
  options.coordinator_program = "moebius-engine-bench";
  options.coordinator_args = {"--spec", Cat(dir.path(), "/spec.json"),
                              "--result", result_path};
  Console console = Console::Standard();
  ASSIGN_OR_RETURN(const int exit_code, RunGroup(options, console));
  if (exit_code != 0) return absl::InternalError("the benchmark failed");
  ASSIGN_OR_RETURN(Json result, ReadResult(result_path));
  std::fputs(Describe(result).c_str(), stdout);
  if (BoolAt(result, "cut_short")) {
    SayCutShort(absl::DeadlineExceededError(""), args.timeout_s,
                result["cases"].size(), MakeSpec(args)["cases"].size(),
                "cases");
  }
  result["model"] = config.model.path;
  result["workers"] = config.workers.count;
  return WriteFigures(args.json_file, std::move(result));
}

}  // namespace

void AddBenchThroughputCommand(CLI::App& bench, Action& action) {
  auto args = std::make_shared<ThroughputArgs>();
  CLI::App* command = bench.add_subcommand(
      "throughput",
      "Tokens per second of a group that is driven through its coordinator, "
      "without HTTP. Starts a group of its own.");
  command
      ->add_option("--streams", args->streams,
                   "Sequences in flight, a case for each [default 1,8,32]")
      ->option_text("N,...")
      ->delimiter(',')
      ->check(CLI::Range(1, 65536));
  command
      ->add_option("--layouts", args->layouts,
                   "Layouts, all cases in each [default ep,tp]")
      ->option_text("ep|tp,...")
      ->delimiter(',')
      ->check(OneOf({"ep", "tp"}));
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
  AddTimeLimit(*command, args->timeout_s);
  command
      ->add_option("--json", args->json_file, "Writes the figures to a file.")
      ->option_text("FILE");
  args->flags.AddTo(*command, false);
  command->callback([args, &action] {
    action = [args] {
      const absl::Status status = Run(*args);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}

}  // namespace moebius
