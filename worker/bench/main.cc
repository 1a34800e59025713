// moebius-step-bench: the ranks of a group in one process, without a
// coordinator. `moebius bench step` starts it, and
// `bench switch`, for a rate to compare with.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/config_yaml.h"
#include "worker/bench/step_bench.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxSpecBytes = 1 << 20;
constexpr size_t kMaxCases = 1000;

struct Spec {
  std::vector<StepCase> cases;
  int steps = 20;
};

absl::StatusOr<int> CountAt(const Json& json, const char* key, int most) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_integer() || *found < 1 ||
      *found > most) {
    return absl::InvalidArgumentError(
        absl::StrCat(key, ": needed is a whole number from 1 to ", most));
  }
  return found->get<int>();
}

absl::StatusOr<StepCase> ParseCase(const Json& json, int num_ranks) {
  if (!json.is_object()) return absl::InvalidArgumentError("not a case");
  StepCase one;
  ASSIGN_OR_RETURN(one.layout,
                   ParseLayout(json.value("layout", ""), num_ranks));
  one.kind = json.value("kind", "") == "prefill" ? StepCase::Kind::kPrefill
                                                 : StepCase::Kind::kDecode;
  ASSIGN_OR_RETURN(one.sequences, CountAt(json, "sequences", 65536));
  ASSIGN_OR_RETURN(one.tokens, CountAt(json, "tokens", 1 << 20));
  return one;
}

// {"cases": [{"layout": "ep|tp|tpN", "kind": "decode|prefill", "sequences": n,
//   "tokens": n}], "steps": n}
absl::StatusOr<Spec> ReadSpec(const std::string& path, int num_ranks) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxSpecBytes));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("cases") ||
      !json["cases"].is_array() || json["cases"].size() > kMaxCases) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a list of cases"));
  }
  Spec spec;
  ASSIGN_OR_RETURN(spec.steps, CountAt(json, "steps", 10000));
  for (const Json& one : json["cases"]) {
    ASSIGN_OR_RETURN(StepCase parsed, ParseCase(one, num_ranks));
    spec.cases.push_back(parsed);
  }
  return spec;
}

// Time of the parts, and how many experts were named: means over ranks.
void AddShares(const StepFigures& figures, Json& json) {
  Json parts = Json::object();
  const double ranks = static_cast<double>(figures.shares.size());
  for (size_t p = 0; p < kNumPassParts; ++p) {
    double ms = 0;
    for (const PassShares& shares : figures.shares) ms += shares.part_ms[p];
    parts[std::string(PassPartName(static_cast<PassPart>(p)))] = ms / ranks;
  }
  json["part_ms"] = std::move(parts);
  double named = 0, layers = 0;
  for (const PassShares& shares : figures.shares) {
    for (const double of_layer : shares.experts_named) {
      named += of_layer;
      layers += 1 / ranks;
    }
  }
  // Each rank of a group has a slice of them.
  json["experts_per_layer"] =
      layers > 0 ? named / layers / figures.one.layout.tp_size : 0;
}

Json ToJson(const StepFigures& figures, int num_ranks) {
  const StepCase& one = figures.one;
  Json json = {{"layout", LayoutName(one.layout, num_ranks)},
               {"kind", one.decodes() ? "decode" : "prefill"},
               {"sequences", one.sequences},
               {"tokens", one.tokens}};
  if (!figures.refused.empty()) {
    json["refused"] = figures.refused;
    return json;
  }
  json["steps"] = figures.steps;
  json["ms_median"] = figures.ms_median;
  json["ms_min"] = figures.ms_min;
  json["bytes"] = figures.work.bytes;
  json["operations"] = figures.work.operations;
  AddShares(figures, json);
  return json;
}

// Whole, or not at all: it may be read when we are ended.
absl::Status Write(const Json& result, const std::string& path) {
  const std::string written = path + ".new";
  std::ofstream file(written);
  file << result.dump(2) << "\n";
  file.close();
  if (!file || std::rename(written.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

// Of the first rank's device, on which a group may be.
absl::Status MeasureCopiesAlone(const Config& config,
                                const std::string& result_path) {
  ASSIGN_OR_RETURN(const auto platform, ChoosePlatform(config, 0));
  ASSIGN_OR_RETURN(const CopyRates copies, platform->MeasureCopies());
  Json result = {{"copy_bytes_per_s", copies.kernel},
                 {"driver_copy_bytes_per_s", copies.driver}};
  if (copies.between_gpus.has_value()) {
    const PeerRates& rates = *copies.between_gpus;
    result["between_gpus"] = {{"driver_bytes_per_s", rates.driver},
                              {"kernel_bytes_per_s", rates.kernel},
                              {"nccl_bytes_per_s", rates.nccl},
                              {"nccl_packed_bytes_per_s", rates.nccl_packed},
                              {"no_nccl", rates.no_nccl}};
  }
  return Write(result, result_path);
}

absl::Status MeasureAll(const Config& config, const std::string& spec_path,
                        const std::string& result_path) {
  ASSIGN_OR_RETURN(const Spec spec, ReadSpec(spec_path, config.workers.count));
  const auto say = [](std::string_view line) {
    std::fprintf(stderr, "%s\n", std::string(line).c_str());
  };
  ASSIGN_OR_RETURN(const auto bench,
                   StepBench::Create(config, spec.cases, spec.steps, say));
  ASSIGN_OR_RETURN(const CopyRates copies, bench->MeasureCopies());
  ASSIGN_OR_RETURN(const double products, bench->MeasureProducts());
  Json result = {{"device", bench->device_name()},
                 {"workers", config.workers.count},
                 {"copy_bytes_per_s", copies.kernel},
                 {"driver_copy_bytes_per_s", copies.driver},
                 {"product_operations_per_s", products},
                 {"cases", Json::array()}};
  for (const StepCase& one : spec.cases) {
    ASSIGN_OR_RETURN(const StepFigures figures, bench->Measure(one));
    result["cases"].push_back(ToJson(figures, config.workers.count));
    RETURN_IF_ERROR(Write(result, result_path));
    say(absl::StrCat(
        std::string(LayoutName(one.layout, config.workers.count)), ", ",
        one.decodes() ? "decode" : "prefill", " of ", one.sequences, ": ",
        figures.refused.empty() ? absl::StrCat(figures.ms_median, " ms")
                                : figures.refused));
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace moebius

int main(int argc, char** argv) {
  CLI::App app(
      "Times steps of a Moebius group without a coordinator. `moebius bench "
      "step` starts it; it is of no use alone.");
  std::string config_path, spec, result;
  app.add_option("--config", config_path, "effective configuration (YAML)")
      ->required();
  app.add_option("--spec", spec,
                 "the cases to measure (JSON); without, plain copies alone");
  app.add_option("--result", result, "where to write the figures (JSON)")
      ->required();
  CLI11_PARSE(app, argc, argv);

  moebius::StartLogging("step-bench");
  const auto config = moebius::LoadConfigYaml(config_path);
  absl::Status status = config.status();
  if (status.ok()) {
    moebius::SetLogLevel(config->log.level);
    status = spec.empty() ? moebius::MeasureCopiesAlone(*config, result)
                          : moebius::MeasureAll(*config, spec, result);
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}
