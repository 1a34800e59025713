#include "coordinator/bench/throughput_bench.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxSpecificationBytes = 1 << 20;
constexpr int kMaxCases = 1000;
constexpr int kMaxRepeat = 1000;
constexpr int kMaxTimeLimitSeconds = 86400;
constexpr int kMaxStreams = 65536;
constexpr int kMaxTokens = 1 << 20;

// Which of them the group has, the engine says.
absl::StatusOr<LayoutChoice> ReadChoice(const std::string& word) {
  const auto choice = ParseLayoutChoice(word);
  if (choice.has_value()) return *choice;
  return absl::InvalidArgumentError(absl::StrCat(
      "layout: allowed is ", std::string(kLayoutNames), ", or auto"));
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

absl::StatusOr<Json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(path, kMaxSpecificationBytes));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object() || !json.contains("cases") ||
      !json["cases"].is_array() || json["cases"].size() > kMaxCases) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": not a specification {\"cases\": [...], \"repeat\": n}"));
  }
  return json;
}

absl::StatusOr<int> ReadCount(const Json& json, const char* key, int fallback,
                              int most) {
  if (!json.contains(key)) return fallback;
  const Json& value = json[key];
  if (!value.is_number_integer() || value < 1 || value > most) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": allowed is a whole number from 1 to ", most));
  }
  return value.get<int>();
}

}  // namespace

nlohmann::ordered_json ThroughputBench::ResultOf(
    const nlohmann::ordered_json& spec, const Case& one,
    const std::vector<Figures>& runs) {
  std::vector<double> decode, prefill;
  for (const Figures& figures : runs) {
    decode.push_back(figures.decode_per_s);
    prefill.push_back(figures.prefill_per_s);
  }
  Json result = spec;
  result["layout"] = one.layout;
  result["runs"] = runs.size();
  result["decode_tokens_per_s"] = Median(decode);
  result["prefill_tokens_per_s"] = Median(prefill);
  result["step_ms_median"] =
      Median(decode) > 0 ? 1000.0 * one.streams / Median(decode) : 0.0;
  return result;
}

Json ThroughputBench::ResultOf(const std::string& policy,
                               std::vector<RolloutRun> runs) {
  std::sort(runs.begin(), runs.end(),
            [](const RolloutRun& a, const RolloutRun& b) {
              return a.seconds < b.seconds;
            });
  const RolloutRun& median = runs[runs.size() / 2];
  return {{"policy", policy},
          {"runs", runs.size()},
          {"seconds", median.seconds},
          {"tokens", median.tokens},
          {"tokens_per_s", static_cast<double>(median.tokens) / median.seconds},
          {"switches", median.switches}};
}

absl::StatusOr<ThroughputBench::Figures> ThroughputBench::RunOnce(
    EngineHost& engine, const Case& one) {
  std::vector<Generation> generations;
  for (int i = 0; i < one.streams; ++i) {
    generations.push_back(MadeUpGeneration(static_cast<uint64_t>(i),
                                           vocab_size_, one.prompt_tokens,
                                           one.output_tokens));
  }
  ASSIGN_OR_RETURN(const BenchEngine::Times times,
                   bench_.RunAll(engine, std::move(generations), deadline_));
  Figures figures;
  figures.prefill_per_s =
      double{1} * one.streams * one.prompt_tokens / times.all_first_s;
  if (times.all_running_s > 0) {
    figures.decode_per_s =
        static_cast<double>(times.tokens_of_all) / times.all_running_s;
  }
  return figures;
}

// One warm-up that does not count, then `repeat` runs, as far as they come.
absl::Status ThroughputBench::RunCase(EngineHost& engine, const Case& one,
                                      int repeat, std::vector<Figures>& runs) {
  ASSIGN_OR_RETURN(const LayoutChoice choice, ReadChoice(one.layout));
  if (choice.is_auto()) {
    return absl::InvalidArgumentError("layout: auto is for rollouts alone");
  }
  RETURN_IF_ERROR(bench_.SetLayout(engine, choice, deadline_).status());
  RETURN_IF_ERROR(RunOnce(engine, one).status());
  for (int i = 0; i < repeat; ++i) {
    ASSIGN_OR_RETURN(const Figures figures, RunOnce(engine, one));
    runs.push_back(figures);
  }
  return absl::OkStatus();
}

absl::Status ThroughputBench::RunCases(EngineHost& engine, const Json& cases,
                                       int repeat, Json& results) {
  for (const Json& json : cases) {
    Case one;
    ASSIGN_OR_RETURN(one.streams, ReadCount(json, "streams", 1, kMaxStreams));
    ASSIGN_OR_RETURN(one.prompt_tokens,
                     ReadCount(json, "prompt_tokens", 64, kMaxTokens));
    ASSIGN_OR_RETURN(one.output_tokens,
                     ReadCount(json, "output_tokens", 128, kMaxTokens));
    one.layout = json.value("layout", "ep");
    std::vector<Figures> runs;
    const absl::Status status = RunCase(engine, one, repeat, runs);
    if (!runs.empty()) results.push_back(ResultOf(json, one, runs));
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

absl::StatusOr<ThroughputBench::Rollout> ThroughputBench::ReadRollout(
    const Json& json) {
  Rollout rollout;
  ASSIGN_OR_RETURN(rollout.prompt_tokens,
                   ReadCount(json, "prompt_tokens", 64, kMaxTokens));
  for (const char* list : {"output_tokens", "policies"}) {
    if (!json.contains(list) || !json[list].is_array() || json[list].empty() ||
        json[list].size() > kMaxStreams) {
      return absl::InvalidArgumentError(
          absl::StrCat("rollout: no list '", list, "'"));
    }
  }
  for (const Json& tokens : json["output_tokens"]) {
    if (!tokens.is_number_integer() || tokens < 1 || tokens > kMaxTokens) {
      return absl::InvalidArgumentError("rollout: output_tokens");
    }
    rollout.output_tokens.push_back(tokens.get<int>());
  }
  for (const Json& policy : json["policies"]) {
    if (!policy.is_string()) {
      return absl::InvalidArgumentError("rollout: policies");
    }
    rollout.policies.push_back(policy.get<std::string>());
    RETURN_IF_ERROR(ReadChoice(rollout.policies.back()).status());
  }
  return rollout;
}

// A few tokens of everything in every layout that is named, and in those that
// the load chooses among: what is made late is made.
absl::Status ThroughputBench::WarmUp(EngineHost& engine,
                                     const Rollout& rollout) {
  constexpr int kTokens = 8;
  std::vector<LayoutChoice> layouts;
  for (const std::string& policy : rollout.policies) {
    ASSIGN_OR_RETURN(const LayoutChoice choice, ReadChoice(policy));
    if (!choice.is_auto()) {
      layouts.push_back(choice);
      continue;
    }
    for (const Layout candidate : candidates_) {
      layouts.push_back(LayoutChoice::Of(candidate));
    }
  }
  for (const LayoutChoice choice : layouts) {
    RETURN_IF_ERROR(bench_.SetLayout(engine, choice, deadline_).status());
    std::vector<Generation> generations;
    for (size_t i = 0; i < rollout.output_tokens.size(); ++i) {
      generations.push_back(
          MadeUpGeneration(i, vocab_size_, rollout.prompt_tokens, kTokens));
    }
    RETURN_IF_ERROR(
        bench_.RunAll(engine, std::move(generations), deadline_).status());
  }
  return absl::OkStatus();
}

absl::StatusOr<ThroughputBench::RolloutRun> ThroughputBench::RunRollout(
    EngineHost& engine, const Rollout& rollout, const std::string& policy) {
  ASSIGN_OR_RETURN(const LayoutChoice choice, ReadChoice(policy));
  // What is not the rollout's own: it may be counted only when a step has
  // followed.
  uint64_t switches = engine.GetStatus().switches_total;
  const LayoutChoice begin =
      choice.is_auto() ? LayoutChoice::Of(candidates_.front()) : choice;
  ASSIGN_OR_RETURN(const bool switched,
                   bench_.SetLayout(engine, begin, deadline_));
  if (switched) ++switches;
  RETURN_IF_ERROR(bench_.SetLayout(engine, choice, deadline_).status());
  std::vector<Generation> generations;
  for (size_t i = 0; i < rollout.output_tokens.size(); ++i) {
    generations.push_back(MadeUpGeneration(
        i, vocab_size_, rollout.prompt_tokens, rollout.output_tokens[i]));
  }
  ASSIGN_OR_RETURN(const BenchEngine::Times times,
                   bench_.RunAll(engine, std::move(generations), deadline_));
  return RolloutRun{times.total_s, times.tokens,
                    engine.GetStatus().switches_total - switches};
}

// Policies take turns, so that all see the machine in the same state.
absl::Status ThroughputBench::RunRollouts(EngineHost& engine, const Json& json,
                                          int repeat, Json& results) {
  ASSIGN_OR_RETURN(const Rollout rollout, ReadRollout(json));
  std::vector<std::vector<RolloutRun>> runs(rollout.policies.size());
  absl::Status status = WarmUp(engine, rollout);
  for (int i = 0; i < repeat && status.ok(); ++i) {
    for (size_t p = 0; p < runs.size() && status.ok(); ++p) {
      const auto run = RunRollout(engine, rollout, rollout.policies[p]);
      status = run.status();
      if (run.ok()) runs[p].push_back(*run);
    }
  }
  for (size_t p = 0; p < runs.size(); ++p) {
    if (runs[p].empty()) continue;
    results.push_back(ResultOf(rollout.policies[p], runs[p]));
  }
  return status;
}

absl::Status ThroughputBench::Run(EngineHost& engine,
                                  const std::string& spec_path,
                                  const std::string& result_path) {
  ASSIGN_OR_RETURN(const Json spec, ReadJson(spec_path));
  ASSIGN_OR_RETURN(const int repeat, ReadCount(spec, "repeat", 3, kMaxRepeat));
  ASSIGN_OR_RETURN(const int limit_s,
                   ReadCount(spec, "time_limit_s", 600, kMaxTimeLimitSeconds));
  deadline_ = Deadline::After(absl::Seconds(limit_s));
  RETURN_IF_ERROR(bench_.WaitUntilReady(deadline_));
  Json cases = Json::array(), rollouts = Json::array();
  absl::Status status = RunCases(engine, spec["cases"], repeat, cases);
  if (status.ok() && spec.contains("rollout")) {
    status = RunRollouts(engine, spec["rollout"], repeat, rollouts);
  }
  const bool cut_short =
      absl::IsDeadlineExceeded(status) && !(cases.empty() && rollouts.empty());
  if (!cut_short) RETURN_IF_ERROR(status);
  std::ofstream file(result_path);
  file << Json{{"cut_short", cut_short},
               {"cases", cases},
               {"rollout", rollouts}}
              .dump(2)
       << "\n";
  file.close();
  if (!file) {
    return absl::UnavailableError(absl::StrCat("cannot write ", result_path));
  }
  return absl::OkStatus();
}

}  // namespace moebius
