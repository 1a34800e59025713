// moebius bench rollout: all sequences at once, a few of them long, as in a
// step of reinforcement learning.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
#include "deploy/bench/bench_commands.h"
#include "deploy/bench/crossover_report.h"
#include "deploy/bench/engine_bench.h"
#include "deploy/bench/rollout_lengths.h"
#include "deploy/bench/statistics.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/config_flags.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

struct RolloutArgs {
  ConfigFlags flags;
  int requests = 256;
  int prompt_tokens = 64;
  RolloutLengths lengths;
  std::vector<std::string> policies = {"ep", "tp", "auto"};
  bool find_crossover = false;
  int repeat = 1;
  BenchLimits limits;
};

bool IsAuto(const std::string& policy) { return policy == "auto"; }

// The time of the automatic policy over that of the best fixed layout, less
// one; nothing unless it and two layouts were measured.
absl::StatusOr<double> BehindBest(const Json& result) {
  double automatic = 0, best = std::numeric_limits<double>::infinity();
  int layouts = 0;
  for (const Json& one : result["rollout"]) {
    const double seconds = NumberAt(one, "seconds");
    if (IsAuto(TextAt(one, "policy"))) {
      automatic = seconds;
    } else {
      best = std::min(best, seconds);
      ++layouts;
    }
  }
  if (layouts < 2 || automatic <= 0) {
    return absl::NotFoundError("not all were measured");
  }
  return automatic / best - 1;
}

// All that will be used, each once.
std::vector<LayoutChoice> LayoutsOf(const RolloutArgs& args,
                                    const Config& config) {
  std::vector<LayoutChoice> layouts;
  const auto add = [&](LayoutChoice layout) {
    layout = layout.InGroup(config.workers.count);
    if (std::find(layouts.begin(), layouts.end(), layout) == layouts.end()) {
      layouts.push_back(layout);
    }
  };
  for (const LayoutChoice layout : config.layout.candidates) add(layout);
  for (const std::string& policy : args.policies) {
    if (!IsAuto(policy)) add(*ParseLayoutChoice(policy));
  }
  return layouts;
}

// Decode of more and more sequences in each layout, up to all of them.
Json CasesOf(const RolloutArgs& args,
             const std::vector<LayoutChoice>& layouts) {
  constexpr int kPromptTokens = 16, kOutputTokens = 32;
  Json cases = Json::array();
  if (!args.find_crossover) return cases;
  for (const LayoutChoice layout : layouts) {
    for (int streams = 1; streams < 2 * args.requests; streams *= 2) {
      cases.push_back(EngineCase(std::min(streams, args.requests),
                                 kPromptTokens, kOutputTokens,
                                 LayoutChoiceName(layout)));
    }
  }
  return cases;
}

void Show(const Json& result, const RolloutArgs& args) {
  const Json& lengths = ObjectAt(result, "output_tokens");
  std::printf(
      "%s\n\n",
      Cat(args.requests, " sequences at once, prompts of ", args.prompt_tokens,
          " tokens; output tokens log-normal (median ", args.lengths.median,
          ", sigma ", ShortNumber(args.lengths.sigma), ", from ",
          args.lengths.least, " to ", args.lengths.most, ", seed ",
          args.lengths.seed, "), drawn: mean ",
          ShortNumber(NumberAt(lengths, "mean")), ", median ",
          ShortNumber(NumberAt(lengths, "median")), ", p99 ",
          ShortNumber(NumberAt(lengths, "p99")), ", max ",
          ShortNumber(NumberAt(lengths, "max")))
          .c_str());
  std::vector<std::vector<std::string>> rows;
  for (const Json& one : result["rollout"]) {
    rows.push_back({TextAt(one, "policy"),
                    ShortNumber(NumberAt(one, "seconds")),
                    ShortNumber(NumberAt(one, "tokens_per_s")),
                    Cat(CountAt(one, "switches"))});
  }
  std::fputs(
      FormatTable({"layout", "seconds", "tokens/s", "switches"}, rows).c_str(),
      stdout);
  if (const auto behind = BehindBest(result); behind.ok()) {
    std::string thresholds;
    for (const Json& one : result["thresholds"]) {
      thresholds +=
          Cat(thresholds.empty() ? "" : ", ", ShortNumber(one.get<double>()));
    }
    std::printf("%s\n", Cat("auto, which changes at ", thresholds,
                            " requests in flight, takes ",
                            ShortNumber(std::abs(100 * *behind)), " % ",
                            *behind > 0 ? "more" : "less",
                            " time than the best fixed layout.")
                            .c_str());
  }
}

absl::Status Run(const RolloutArgs& args) {
  if (args.lengths.least > args.lengths.most) {
    return absl::InvalidArgumentError(
        "--output-least is more than --output-most");
  }
  Config defaults;
  defaults.log.level = LogLevel::kWarn;
  ASSIGN_OR_RETURN(Config config, args.flags.Load(defaults));
  if (config.workers.count < 2) {
    return absl::InvalidArgumentError(
        "a group of 1 worker has one layout only; there is nothing to compare");
  }
  config.layout.choice = LayoutChoice::kEp;  // the benchmark sets it
  const std::vector<LayoutChoice> layouts = LayoutsOf(args, config);
  // A GPU captures what will be used.
  if (!config.layout.resident.has_value()) config.layout.resident = layouts;
  const std::vector<int> lengths = DrawLengths(args.lengths, args.requests);
  const Json spec = {
      {"cases", CasesOf(args, layouts)},
      {"repeat", args.repeat},
      {"time_limit_s", static_cast<int>(std::ceil(args.limits.timeout_s))},
      {"rollout",
       {{"prompt_tokens", args.prompt_tokens},
        {"output_tokens", lengths},
        {"policies", args.policies}}}};
  ASSIGN_OR_RETURN(Json result, RunEngineBench(config, args.requests, spec));
  if (const std::string text = AddCrossovers(result, config.workers.count);
      !text.empty()) {
    std::printf("%s\n", text.c_str());
  }
  result["output_tokens"] = ToJson(Summarize({lengths.begin(), lengths.end()}));
  result["requests"] = args.requests;
  result["candidates"] = Json::array();
  for (const Layout layout : CandidateLayouts(config)) {
    result["candidates"].push_back(
        std::string(LayoutName(layout, config.workers.count)));
  }
  result["thresholds"] = LayoutThresholds(config);
  if (const auto behind = BehindBest(result); behind.ok()) {
    result["auto_behind_better"] = *behind;
  }
  Show(result, args);
  if (BoolAt(result, "cut_short")) {
    SayCutShort(absl::DeadlineExceededError(""), args.limits.timeout_s,
                result["rollout"].size(), args.policies.size(), "layouts");
  }
  result["model"] = config.model.path;
  result["workers"] = config.workers.count;
  result["workers_per_gpu"] = config.workers.per_gpu;
  return WriteFigures(args.limits.json_file, std::move(result));
}

void AddLengthOptions(CLI::App& command, RolloutLengths& lengths) {
  command
      .add_option("--output-median", lengths.median,
                  "Median of the tokens generated in a sequence [default 128]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--output-sigma", lengths.sigma,
                  "Standard deviation of their logarithm: with 1, one in a "
                  "hundred is ten times the median [default 1]")
      ->option_text("X")
      ->check(CLI::Range(0.0, 4.0));
  command
      .add_option("--output-least", lengths.least, "None has fewer [default 8]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--output-most", lengths.most, "None has more [default 2048]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--seed", lengths.seed, "Draws other lengths [default 1]")
      ->option_text("N");
}

}  // namespace

void AddBenchRolloutCommand(CLI::App& bench, Action& action) {
  auto args = std::make_shared<RolloutArgs>();
  CLI::App* command = bench.add_subcommand(
      "rollout",
      "Many sequences at once of which a few are long, until the last one has "
      "ended: in EP, in TP, and with the layout that the load decides, one "
      "after the other in the same group. `auto` begins in TP, or in the "
      "widest of --set layout.candidates='...'; its thresholds are --set "
      "layout.switch_threshold=N or --set layout.thresholds='...', and `bench "
      "throughput` finds where they should be. Starts a group of its own.");
  command->add_option("--requests", args->requests, "Sequences [default 256]")
      ->option_text("N")
      ->check(CLI::Range(1, 4096));
  command
      ->add_option("--prompt-tokens", args->prompt_tokens,
                   "Tokens of each prompt [default 64]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  AddLengthOptions(*command, args->lengths);
  command->add_flag("--find-crossover", args->find_crossover,
                    "First measures from how many sequences on EP is faster, "
                    "or of other layouts the next narrower: where the "
                    "thresholds of `auto` should be");
  command
      ->add_option("--layouts", args->policies,
                   "What is compared [default ep,tp,auto]")
      ->option_text("ep|tp|tpN|auto,...")
      ->delimiter(',')
      ->check(LayoutWord(/*also_auto=*/true));
  command
      ->add_option("--repeat", args->repeat,
                   "Runs of each, by turns; medians are shown [default 1]")
      ->option_text("N")
      ->check(CLI::Range(1, 1000));
  AddLimits(*command, args->limits);
  args->flags.AddTo(*command, false);
  RunWhenChosen(*command, action, args, &Run);
}

}  // namespace moebius
