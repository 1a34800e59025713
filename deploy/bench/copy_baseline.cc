#include "deploy/bench/copy_baseline.h"

#include <algorithm>
#include <string>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/config/config_yaml.h"
#include "deploy/bench/bench_program.h"
#include "deploy/bench/statistics.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"
#include "deploy/launcher/private_dir.h"

namespace moebius {
namespace {

constexpr size_t kMaxResultBytes = 1 << 16;

}  // namespace

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
  const auto result = nlohmann::json::parse(text, nullptr, false);
  if (!result.is_object()) return absl::InternalError("no rate of copies");
  kernel_.push_back(NumberAt(result, "copy_bytes_per_s"));
  driver_.push_back(NumberAt(result, "driver_copy_bytes_per_s"));
  return absl::OkStatus();
}

double CopyBaseline::kernel() const { return Summarize(kernel_).median; }
double CopyBaseline::driver() const { return Summarize(driver_).median; }
double CopyBaseline::best() const { return std::max(kernel(), driver()); }

}  // namespace moebius
