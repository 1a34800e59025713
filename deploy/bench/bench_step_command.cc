// moebius bench step: single steps, against what they must move at least.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/config/config_yaml.h"
#include "deploy/bench/bench_commands.h"
#include "deploy/bench/bench_program.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/config_flags.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/private_dir.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxResultBytes = 16 << 20;
// What large BF16 products are known to reach on an H200.
constexpr double kH200Products = 790e12;
// A prefill of many tokens takes a processor longer than a step that serves.
constexpr int kStepTimeoutMs = 120000;

struct StepArgs {
  ConfigFlags flags;
  std::vector<int> streams = {1, 8, 32, 128};
  std::vector<std::string> layouts;
  int kv_tokens = 1024;
  int prefill = 2048;
  int prefill_streams = 8;
  int steps = 20;
  BenchLimits limits;
};

Json MakeSpec(const StepArgs& args, const std::vector<std::string>& layouts) {
  Json cases = Json::array();
  for (const std::string& layout : layouts) {
    for (const int streams : args.streams) {
      cases.push_back({{"layout", layout},
                       {"kind", "decode"},
                       {"sequences", streams},
                       {"tokens", args.kv_tokens}});
    }
    if (args.prefill > 0) {
      cases.push_back({{"layout", layout},
                       {"kind", "prefill"},
                       {"sequences", args.prefill_streams},
                       {"tokens", args.prefill}});
    }
  }
  return {{"cases", cases}, {"steps", args.steps}};
}

absl::StatusOr<Json> ReadResult(const std::string& path) {
  const std::string text = ReadFile(path, kMaxResultBytes).value_or("");
  Json result = Json::parse(text, nullptr, false);
  if (!result.is_object() || !result["cases"].is_array()) {
    return absl::InternalError("the benchmark wrote no result");
  }
  return result;
}

bool IsMeasured(const Json& one) { return !one.contains("refused"); }

bool AnyMeasured(const Json& result) {
  const Json& cases = result["cases"];
  return std::any_of(cases.begin(), cases.end(), IsMeasured);
}

std::string Percent(double share) {
  return Cat(ShortNumber(100 * share), " %");
}

// Adds what follows from the figures of a case and the rates of the run.
void AddRatios(const Json& result, Json& one) {
  const double seconds = NumberAt(one, "ms_median") / 1000;
  const double copy = std::max(NumberAt(result, "copy_bytes_per_s"),
                               NumberAt(result, "driver_copy_bytes_per_s"));
  const double product = NumberAt(result, "product_operations_per_s");
  if (seconds <= 0 || copy <= 0 || product <= 0) return;
  const double floor_s = NumberAt(one, "bytes") / copy;
  const double product_s = NumberAt(one, "operations") / product;
  one["bytes_floor_ms"] = 1000 * floor_s;
  one["operations_floor_ms"] = 1000 * product_s;
  one["times_bytes_floor"] = floor_s > 0 ? seconds / floor_s : 0;
  one["times_floor"] = seconds / std::max({1e-12, floor_s, product_s});
  one["share_of_product_rate"] = product_s / seconds;
  if (TextAt(result, "device").find("H200") != std::string::npos) {
    one["share_of_790_tflops"] =
        NumberAt(one, "operations") / seconds / kH200Products;
  }
}

std::string DescribeCases(const Json& result) {
  std::vector<std::vector<std::string>> rows;
  for (const Json& one : result["cases"]) {
    std::vector<std::string> row = {
        Cat(TextAt(one, "layout"), " ", TextAt(one, "kind")),
        Cat(CountAt(one, "sequences")), Cat(CountAt(one, "tokens"))};
    if (IsMeasured(one)) {
      row.insert(row.end(), {ShortNumber(NumberAt(one, "ms_median")),
                             ShortNumber(NumberAt(one, "experts_per_layer")),
                             ShortNumber(NumberAt(one, "bytes") / 1e9),
                             ShortNumber(NumberAt(one, "operations") / 1e9),
                             ShortNumber(NumberAt(one, "bytes_floor_ms")),
                             ShortNumber(NumberAt(one, "operations_floor_ms")),
                             ShortNumber(NumberAt(one, "times_floor"))});
      if (one.contains("share_of_790_tflops")) {
        row.push_back(Percent(NumberAt(one, "share_of_790_tflops")));
      }
    }
    rows.push_back(std::move(row));
  }
  std::vector<std::string> header = {
      "step",  "sequences",  "tokens",         "ms",   "experts/layer", "GB",
      "GFLOP", "ms to copy", "ms to multiply", "times"};
  if (TextAt(result, "device").find("H200") != std::string::npos) {
    header.push_back("of 790 TFLOP/s");
  }
  return FormatTable(header, rows);
}

// The operators, by their time in all cases together, longest first.
std::vector<std::string> PartNames(const Json& result) {
  std::map<std::string, double> ms;
  for (const Json& one : result["cases"]) {
    for (const auto& [name, part] : ObjectAt(one, "part_ms").items()) {
      ms[name] += part.get<double>();
    }
  }
  std::vector<std::string> names;
  for (const auto& [name, sum] : ms) names.push_back(name);
  std::stable_sort(names.begin(), names.end(),
                   [&](const std::string& a, const std::string& b) {
                     return ms[a] > ms[b];
                   });
  return names;
}

std::string DescribeParts(const Json& result) {
  std::vector<std::string> header = {"milliseconds"};
  std::vector<std::vector<std::string>> rows;
  for (const std::string& name : PartNames(result)) rows.push_back({name});
  rows.push_back({"sum, watched"});
  for (const Json& one : result["cases"]) {
    if (!IsMeasured(one)) continue;
    header.push_back(Cat(TextAt(one, "layout"), " ", TextAt(one, "kind"), " ",
                         CountAt(one, "sequences")));
    const Json& parts = ObjectAt(one, "part_ms");
    double total = 0;
    for (const Json& ms : parts) total += ms.get<double>();
    for (std::vector<std::string>& row : rows) {
      const double ms = NumberAt(parts, row.front().c_str());
      row.push_back(&row == &rows.back()
                        ? ShortNumber(total)
                        : Cat(ShortNumber(ms), " (",
                              std::lround(total > 0 ? 100 * ms / total : 0),
                              " %)"));
    }
  }
  return FormatTable(header, rows);
}

void Show(const Json& result) {
  if (AnyMeasured(result)) {
    std::printf("%s\n", DescribeCases(result).c_str());
  }
  for (const Json& one : result["cases"]) {
    if (IsMeasured(one)) continue;
    std::printf("%s %s of %llu was not measured: %s\n",
                TextAt(one, "layout").c_str(), TextAt(one, "kind").c_str(),
                static_cast<unsigned long long>(CountAt(one, "sequences")),
                TextAt(one, "refused").c_str());
  }
  if (!AnyMeasured(result)) return;
  std::printf("%s\n", DescribeParts(result).c_str());
  const double driver = NumberAt(result, "driver_copy_bytes_per_s");
  const std::string copies = Cat(
      ShortNumber(NumberAt(result, "copy_bytes_per_s") / 1e9), " GB/s",
      driver > 0
          ? Cat(" by a kernel, ", ShortNumber(driver / 1e9), " by the driver")
          : std::string());
  std::printf(
      "On %s, workers: %s. \"times\" is ms over the larger of the two before "
      "it.\nIn the same run a plain copy reads and writes %s, and our product "
      "of large\nsquare BF16 matrices makes %s GFLOP/s.\n",
      TextAt(result, "device").c_str(), Cat(CountAt(result, "workers")).c_str(),
      copies.c_str(),
      ShortNumber(NumberAt(result, "product_operations_per_s") / 1e9).c_str());
}

// The group is as large as the steps need.
Config ForSteps(Config config, const StepArgs& args) {
  const int most_streams =
      *std::max_element(args.streams.begin(), args.streams.end());
  config.scheduler.max_running = std::max(
      {config.scheduler.max_running, most_streams, args.prefill_streams});
  config.scheduler.token_budget =
      std::max({config.scheduler.token_budget, config.scheduler.max_running,
                args.prefill * args.prefill_streams});
  if (config.model.max_model_len == 0) {
    constexpr int kFurtherSteps = 16;
    config.model.max_model_len =
        std::max(args.kv_tokens + args.steps, args.prefill) + kFurtherSteps;
  }
  return config;
}

absl::Status Run(const StepArgs& args) {
  Config defaults;
  defaults.log.level = LogLevel::kWarn;
  defaults.workers.count = 1;
  defaults.workers.step_timeout_ms = kStepTimeoutMs;
  ASSIGN_OR_RETURN(Config config, args.flags.Load(defaults));
  config = ForSteps(std::move(config), args);
  std::vector<std::string> layouts = args.layouts;
  if (layouts.empty()) layouts = {"ep", "tp"};
  if (config.workers.count == 1) layouts = {"ep"};  // there is no other
  for (const std::string& layout : layouts) {
    RETURN_IF_ERROR(ParseLayout(layout, config.workers.count).status());
  }
  config.layout.choice =
      LayoutChoice::Of(*ParseLayout(layouts.front(), config.workers.count));

  ASSIGN_OR_RETURN(PrivateDir dir,
                   PrivateDir::Create(PrivateDir::DefaultBase()));
  const Json spec = MakeSpec(args, layouts);
  RETURN_IF_ERROR(dir.WriteFile("spec.json", spec.dump()));
  RETURN_IF_ERROR(dir.WriteFile("config.yaml", ToYaml(config)));
  const std::string result_path = Cat(dir.path(), "/result.json");
  Console console = Console::Standard();
  const absl::Status status = RunBenchProgram(
      {"moebius-step-bench", "--config", Cat(dir.path(), "/config.yaml"),
       "--spec", Cat(dir.path(), "/spec.json"), "--result", result_path},
      absl::Seconds(args.limits.timeout_s), console);
  // It writes what it has after each case.
  auto result = ReadResult(result_path);
  if (!status.ok() &&
      (!IsCutShort(status) || !result.ok() || !AnyMeasured(*result))) {
    return NothingMeasured(status, args.limits.timeout_s);
  }
  RETURN_IF_ERROR(result.status());
  for (Json& one : (*result)["cases"]) {
    if (IsMeasured(one)) AddRatios(*result, one);
  }
  Show(*result);
  if (!AnyMeasured(*result)) {
    return absl::InvalidArgumentError("no step fits, so none was measured");
  }
  if (!status.ok()) {
    SayCutShort(status, args.limits.timeout_s, (*result)["cases"].size(),
                spec["cases"].size(), "cases");
    (*result)["cut_short"] = true;
  }
  (*result)["model"] = config.model.path;
  RETURN_IF_ERROR(WriteFigures(args.limits.json_file, *std::move(result)));
  return absl::IsCancelled(status) ? status : absl::OkStatus();
}

void AddOptions(CLI::App& command, StepArgs& args) {
  command
      .add_option("--streams", args.streams,
                  "Sequences of a decode step, a case for each [default "
                  "1,8,32,128]")
      ->option_text("N,...")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024));
  command
      .add_option("--kv-tokens", args.kv_tokens,
                  "Tokens of each sequence before its first decode step; their "
                  "K and V are not computed, but read [default 1024]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--prefill", args.prefill,
                  "One more case in each layout: prompts of this many tokens; "
                  "0 leaves it out [default 2048]")
      ->option_text("N")
      ->check(CLI::Range(0, 1 << 20));
  command
      .add_option("--prefill-streams", args.prefill_streams,
                  "So many of them in one step [default 8]")
      ->option_text("N")
      ->check(CLI::Range(1, 1024));
  command
      .add_option("--layouts", args.layouts,
                  "Layouts, all cases in each; of 8 workers there are ep, tp2, "
                  "tp4 and tp [default ep,tp; ep with one worker]")
      ->option_text("ep|tpN|tp,...")
      ->delimiter(',');
  command
      .add_option("--steps", args.steps,
                  "Steps of each case; medians are shown [default 20]")
      ->option_text("N")
      ->check(CLI::Range(1, 10000));
}

}  // namespace

void AddBenchStepCommand(CLI::App& bench, Action& action) {
  auto args = std::make_shared<StepArgs>();
  CLI::App* command = bench.add_subcommand(
      "step",
      "Single steps of a group without its coordinator: time, what they must "
      "move and compute at least by the experts that were named, the ratio to "
      "a plain copy and to a large product in the same run, and each "
      "operator's share. All workers [default 1] are in one process; on a GPU "
      "there is one. While shares are taken, events stand between "
      "the operators, so their sum is more than a step takes.");
  AddOptions(*command, *args);
  AddLimits(*command, args->limits);
  args->flags.AddTo(*command, false);
  RunWhenChosen(*command, action, args, &Run);
}

}  // namespace moebius
