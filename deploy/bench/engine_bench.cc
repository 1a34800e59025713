#include "deploy/bench/engine_bench.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "deploy/launcher/console.h"
#include "deploy/launcher/group.h"
#include "deploy/launcher/private_dir.h"

namespace moebius {
namespace {

constexpr size_t kMaxResultBytes = 16 << 20;

}  // namespace

nlohmann::json EngineCase(int streams, int prompt_tokens, int output_tokens,
                          const std::string& layout) {
  return {{"streams", streams},
          {"prompt_tokens", prompt_tokens},
          {"output_tokens", output_tokens},
          {"layout", layout}};
}

absl::StatusOr<nlohmann::json> RunEngineBench(Config config, int streams,
                                              const nlohmann::json& spec) {
  config.scheduler.max_running =
      std::max(config.scheduler.max_running, streams);
  config.scheduler.max_queue = std::max(config.scheduler.max_queue, streams);
  config.scheduler.token_budget =
      std::max(config.scheduler.token_budget, config.scheduler.max_running);
  ASSIGN_OR_RETURN(PrivateDir dir,
                   PrivateDir::Create(PrivateDir::DefaultBase()));
  RETURN_IF_ERROR(dir.WriteFile("spec.json", spec.dump()));
  const std::string result_path = Cat(dir.path(), "/result.json");

  GroupOptions options;
  options.config = std::move(config);
  options.one_shot = true;
  options.banner = false;
  options.coordinator_program = "moebius-engine-bench";
  options.coordinator_args = {"--spec", Cat(dir.path(), "/spec.json"),
                              "--result", result_path};
  Console console = Console::Standard();
  ASSIGN_OR_RETURN(const int exit_code, RunGroup(options, console));
  if (exit_code != 0) return absl::InternalError("the benchmark failed");
  // The file is ours: that it is missing is no mistake of the user's.
  const std::string text = ReadFile(result_path, kMaxResultBytes).value_or("");
  nlohmann::json result = nlohmann::json::parse(text, nullptr, false);
  if (!result.is_object() || !result["cases"].is_array()) {
    return absl::InternalError("the coordinator wrote no result");
  }
  return result;
}

}  // namespace moebius
