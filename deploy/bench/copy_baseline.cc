#include "deploy/bench/copy_baseline.h"

#include <algorithm>
#include <string>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/config/config_yaml.h"
#include "deploy/bench/bench_program.h"
#include "deploy/bench/statistics.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"
#include "deploy/launcher/private_dir.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxResultBytes = 1 << 16;

double Median(const std::vector<double>& values) {
  return Summarize(values).median;
}

}  // namespace

CopyBaseline::CopyBaseline(const Config& config)
    : config_(config),
      placement_{config.workers.count, config.workers.per_gpu} {}

absl::Status CopyBaseline::Measure(absl::Duration timeout) {
  ASSIGN_OR_RETURN(PrivateDir dir,
                   PrivateDir::Create(PrivateDir::DefaultBase()));
  RETURN_IF_ERROR(dir.WriteFile("config.yaml", ToYaml(config_)));
  const std::string result_path = Cat(dir.path(), "/result.json");
  Console console = Console::Standard();
  RETURN_IF_ERROR(RunBenchProgram(
      {"moebius-step-bench", "--config", Cat(dir.path(), "/config.yaml"),
       "--result", result_path},
      timeout, console));
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(result_path, kMaxResultBytes));
  const auto result = Json::parse(text, nullptr, false);
  if (!result.is_object()) return absl::InternalError("no rate of copies");
  if (!between_gpus()) {
    rates_.kernel = NumberAt(result, "copy_bytes_per_s");
    rates_.driver = NumberAt(result, "driver_copy_bytes_per_s");
    return absl::OkStatus();
  }
  const Json& between = ObjectAt(result, "between_gpus");
  rates_.kernel = NumberAt(between, "kernel_bytes_per_s");
  rates_.driver = NumberAt(between, "driver_bytes_per_s");
  rates_.nccl = NumberAt(between, "nccl_bytes_per_s");
  rates_.nccl_packed = NumberAt(between, "nccl_packed_bytes_per_s");
  no_nccl_ = between.value("no_nccl", "");
  return absl::OkStatus();
}

double CopyBaseline::WeightShare(const SwitchFigures& of) const {
  // In the memory of one GPU every byte is read and written.
  if (!between_gpus()) return 2;
  const auto from = ParseLayout(of.from, placement_.num_ranks);
  const auto to = ParseLayout(of.to, placement_.num_ranks);
  if (!from.ok() || !to.ok()) return 0;  // a group's words, which it knows
  return WeightShareBetweenGpus(placement_, *from, *to);
}

void CopyBaseline::AddTo(Json& figures,
                         const std::vector<SwitchFigures>& switches) const {
  const double kv_share = between_gpus() ? KvShareBetweenGpus(placement_) : 2;
  std::vector<double> weight_rates, kv_rates;
  for (const SwitchFigures& one : switches) {
    if (one.weight_ms > 0) {
      weight_rates.push_back(WeightShare(one) *
                             static_cast<double>(one.weight_bytes) /
                             (one.weight_ms / 1000));
    }
    if (one.kv_ms > 0) {
      kv_rates.push_back(kv_share * static_cast<double>(one.kv_bytes) /
                         (one.kv_ms / 1000));
    }
  }
  const double weights = Median(weight_rates), kv = Median(kv_rates);
  figures["copy_kernel_gb_per_s"] = rates_.kernel / 1e9;
  figures["copy_driver_gb_per_s"] = rates_.driver / 1e9;
  if (between_gpus()) {
    figures["weight_gb_per_s_a_direction"] = weights / 1e9;
    figures["kv_gb_per_s_a_direction"] = kv / 1e9;
    if (no_nccl_.empty()) {
      figures["nccl_gb_per_s"] = rates_.nccl / 1e9;
      figures["nccl_packed_gb_per_s"] = rates_.nccl_packed / 1e9;
    } else {
      figures["no_nccl"] = no_nccl_;
    }
  } else {
    figures["weight_read_and_written_gb_per_s"] = weights / 1e9;
  }
  const double best = std::max(rates_.kernel, rates_.driver);
  figures["weight_share_of_copy"] = best > 0 ? weights / best : 0;
  figures["kv_share_of_copy"] = best > 0 ? kv / best : 0;
}

std::string CopyBaseline::Describe(const Json& figures) const {
  const auto number = [&](const char* key) {
    return ShortNumber(NumberAt(figures, key));
  };
  const auto percent = [&](const char* key) {
    return Cat(ShortNumber(100 * NumberAt(figures, key)), " %");
  };
  const std::string moved =
      between_gpus() ? Cat(number("weight_gb_per_s_a_direction"),
                           " GB/s a direction between GPUs")
                     : Cat(number("weight_read_and_written_gb_per_s"),
                           " GB/s, read and written");
  std::string text =
      Cat("Weights moved at ", moved, ": ", percent("weight_share_of_copy"),
          " of a plain copy (by a kernel ", number("copy_kernel_gb_per_s"),
          " GB/s, by the driver ", number("copy_driver_gb_per_s"), "); KV at ",
          percent("kv_share_of_copy"), "\n");
  if (!between_gpus()) return text;
  if (!no_nccl_.empty()) return Cat(text, "Without NCCL: ", no_nccl_, "\n");
  return Cat(text, "The same blocks by NCCL: ", number("nccl_gb_per_s"),
             " GB/s, with packing and unpacking ",
             number("nccl_packed_gb_per_s"), "\n");
}

}  // namespace moebius
