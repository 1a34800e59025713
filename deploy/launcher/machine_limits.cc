#include "deploy/launcher/machine_limits.h"

#include <algorithm>
#include <sstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/config/layout_config.h"
#include "common/config/model_config.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

constexpr int kMaxGroupDepth = 32;         // of control groups
constexpr size_t kMaxFileBytes = 1 << 20;  // of the kernel's

// Nothing where it cannot be read.
std::string TextOf(const std::string& path) {
  return ReadFile(path, kMaxFileBytes).value_or("");
}

// The number behind `key` in lines of "KEY NUMBER", with or without a colon.
std::optional<int64_t> NumberBehind(const std::string& path,
                                    const std::string& key) {
  std::istringstream file(TextOf(path));
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name, number;
    words >> name >> number;
    int64_t value = 0;
    if (name == key && absl::SimpleAtoi(number, &value)) return value;
  }
  return std::nullopt;
}

// A file that is one number. Nothing for "max".
std::optional<int64_t> NumberIn(const std::string& path) {
  std::istringstream file(TextOf(path));
  std::string word;
  int64_t value = 0;
  if (!(file >> word) || !absl::SimpleAtoi(word, &value)) return std::nullopt;
  return value;
}

// What the limit of a control group leaves. Files that are cached count as
// free: the kernel gives them up.
std::optional<FreeMemory> LeftOf(const std::string& folder,
                                 const char* limit_file,
                                 const char* usage_file) {
  const auto limit = NumberIn(Cat(folder, "/", limit_file));
  const auto usage = NumberIn(Cat(folder, "/", usage_file));
  if (!limit.has_value() || !usage.has_value()) return std::nullopt;
  const std::string stat = Cat(folder, "/memory.stat");
  const int64_t cached = NumberBehind(stat, "inactive_file").value_or(0) +
                         NumberBehind(stat, "active_file").value_or(0);
  const int64_t used = *usage - std::clamp<int64_t>(cached, 0, *usage);
  return FreeMemory{std::max<int64_t>(*limit - used, 0), folder};
}

// Our control group and those above it: version 2 ("0::/PATH"), or the memory
// controller of version 1 ("N:memory:/PATH").
std::vector<std::optional<FreeMemory>> GroupsLeave(const std::string& root) {
  std::vector<std::optional<FreeMemory>> left;
  std::istringstream file(TextOf(Cat(root, "/proc/self/cgroup")));
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second =
        first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers != "memory") continue;
    const std::string mount =
        Cat(root, v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
    std::string path = line.substr(second + 1);
    for (int depth = 0; depth < kMaxGroupDepth; ++depth) {
      if (path == "/") path.clear();
      const std::string folder = Cat(mount, path);
      left.push_back(v2 ? LeftOf(folder, "memory.max", "memory.current")
                        : LeftOf(folder, "memory.limit_in_bytes",
                                 "memory.usage_in_bytes"));
      if (path.empty()) break;
      path.erase(path.rfind('/'));
    }
  }
  return left;
}

}  // namespace

std::optional<FreeMemory> ReadFreeMemory(const std::string& root) {
  std::vector<std::optional<FreeMemory>> all = GroupsLeave(root);
  if (const auto kib =
          NumberBehind(Cat(root, "/proc/meminfo"), "MemAvailable:")) {
    all.push_back(FreeMemory{*kib * 1024, "MemAvailable"});
  }
  std::optional<FreeMemory> least;
  for (std::optional<FreeMemory>& one : all) {
    if (!one.has_value()) continue;
    if (!least.has_value() || one->bytes < least->bytes) {
      least = std::move(one);
    }
  }
  return least;
}

absl::Status CheckKvMemory(const Config& config, const FreeMemory& free) {
  if (config.workers.device != DeviceChoice::kCpu) return absl::OkStatus();
  // The key's limit keeps the product within 64 bits.
  const int64_t wanted = config.workers.kv_bytes * config.workers.count;
  if (wanted <= free.bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat("key 'workers.kv_bytes' (--kv-bytes): ", config.workers.count,
          config.workers.count == 1 ? " worker" : " workers", " with ",
          HumanBytes(static_cast<uint64_t>(config.workers.kv_bytes)),
          " of KV memory each want ", HumanBytes(static_cast<uint64_t>(wanted)),
          "; there are ", HumanBytes(static_cast<uint64_t>(free.bytes)), " (",
          free.said_by, ")"));
}

absl::Status CheckLength(const Config& config) {
  const auto model = LoadModelConfig(config.model.path);
  if (!model.ok() || config.model.max_model_len <= model->max_positions) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      Cat("key 'model.max_model_len' (--max-model-len): ",
          config.model.max_model_len, " tokens are more than the model's ",
          model->max_positions,
          " (max_position_embeddings in its config.json); beyond those its "
          "answers would be nonsense"));
}

absl::Status CheckLayoutsOfModel(const Config& config) {
  const auto model = LoadModelConfig(config.model.path);
  if (!model.ok()) return absl::OkStatus();
  const AttentionShape attention = {config.workers.count, model->num_q_heads,
                                    model->num_kv_heads};
  if (!Validate(attention).ok()) return absl::OkStatus();
  return CheckLayouts(config, LayoutsOf(attention));
}

}  // namespace moebius
