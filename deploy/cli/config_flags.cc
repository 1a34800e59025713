#include "deploy/cli/config_flags.h"

#include <algorithm>
#include <filesystem>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/config/config_yaml.h"

namespace moebius {

void ConfigFlags::Add(CLI::App& command, const char* name, const char* key,
                      const char* value_name) {
  Flag& flag = Describe(name, key);
  flag.option = command.add_option(name, flag.value, flag.help);
  flag.option->option_text(value_name);
  flag.option->take_last();
  flag.option->group("Configuration");
}

void ConfigFlags::AddSwitch(CLI::App& command, const char* name,
                            const char* key) {
  Flag& flag = Describe(name, key);
  // "true" without a value; --NAME=false takes it back.
  flag.option = command.add_flag(name, flag.value, flag.help);
  flag.option->take_last();
  flag.option->group("Configuration");
}

ConfigFlags::Flag& ConfigFlags::Describe(const char* name, const char* key) {
  static const auto* keys = new std::vector<ConfigKeyInfo>(ConfigKeys());
  const auto info =
      std::find_if(keys->begin(), keys->end(),
                   [&](const ConfigKeyInfo& k) { return k.name == key; });
  CHECK(info != keys->end());
  auto flag = std::make_unique<Flag>();
  flag->name = name;
  flag->key = key;
  flag->help = Cat(
      info->help, " [", key, "; default ",
      info->default_value.empty() ? std::string("none") : info->default_value,
      "]");
  flags_.push_back(std::move(flag));
  return *flags_.back();
}

void ConfigFlags::AddTo(CLI::App& command, bool listeners) {
  command
      .add_option("-c,--config", file_,
                  "Configuration file; flags win over it.")
      ->option_text("FILE")
      ->group("Configuration");
  Add(command, "--model", "model.path", "DIR");
  Add(command, "--served-name", "model.served_name", "NAME");
  Add(command, "--load-format", "model.load_format", "auto|dummy");
  Add(command, "--max-model-len", "model.max_model_len", "N");
  Add(command, "--workers", "workers.count", "N");
  Add(command, "--device", "workers.device", "cpu|cuda|auto");
  Add(command, "--numerics", "workers.numerics", "auto|exact|fast");
  Add(command, "--workers-per-gpu", "workers.per_gpu", "N");
  Add(command, "--gpu-memory-fraction", "workers.gpu_memory_fraction", "X");
  Add(command, "--threads", "workers.threads", "N");
  Add(command, "--kv-dtype", "workers.kv_dtype", "auto|float32|bfloat16");
  Add(command, "--kv-bytes", "workers.kv_bytes", "BYTES");
  Add(command, "--max-running", "scheduler.max_running", "N");
  Add(command, "--token-budget", "scheduler.token_budget", "N");
  if (listeners) {
    Add(command, "--layout", "layout.choice", "ep|tp|tpN|auto");
    Add(command, "--max-queue", "scheduler.max_queue", "N");
    Add(command, "--host", "http.host", "ADDRESS");
    Add(command, "--port", "http.port", "PORT");
    Add(command, "--admin-host", "admin.host", "ADDRESS");
    Add(command, "--admin-port", "admin.port", "PORT");
    Add(command, "--agent-port", "admin.agent_port", "PORT");
    Add(command, "--api-keys-file", "http.api_keys_file", "FILE");
    AddSwitch(command, "--allow-unauthenticated", "http.allow_unauthenticated");
    Add(command, "--admin-api-key-file", "admin.api_key_file", "FILE");
    AddSwitch(command, "--admin-allow-unauthenticated",
              "admin.allow_unauthenticated");
    Add(command, "--drain-timeout-ms", "http.drain_timeout_ms", "MS");
  }
  Add(command, "--log-level", "log.level", "LEVEL");
  Add(command, "--log-format", "log.format", "text|json");
  command
      .add_option("--set", sets_,
                  "Sets any key of the configuration; may be repeated. "
                  "--help-config lists the keys.")
      ->option_text("KEY=VALUE")
      ->expected(1)
      ->take_all()
      ->group("Configuration");
}

absl::StatusOr<Config> ConfigFlags::Load(const Config& defaults) const {
  Config config = defaults;
  ConfigLines lines;
  if (!file_.empty()) {
    ASSIGN_OR_RETURN(config, LoadConfigYaml(file_, config, &lines));
  }
  // Where the model path was said: what a message about it names.
  std::string origin = "key 'model.path'";
  std::string relative_to = file_;
  if (const auto line = lines.find("model.path"); line != lines.end()) {
    origin = Cat(file_, ":", line->second, ": ", origin);
  }
  const auto set = [&](const std::string& key, const std::string& value,
                       const std::string& name) -> absl::Status {
    RETURN_IF_ERROR(SetConfigKey(config, key, value, name));
    if (key == "model.path") {
      origin = name;
      relative_to.clear();
    }
    return absl::OkStatus();
  };
  for (const std::string& pair : sets_) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(
          Cat("--set: allowed is KEY=VALUE, not '", pair, "'"));
    }
    RETURN_IF_ERROR(
        set(pair.substr(0, equals), pair.substr(equals + 1), "--set"));
  }
  for (const auto& flag : flags_) {
    if (flag->option->count() == 0) continue;
    RETURN_IF_ERROR(set(flag->key, flag->value, flag->name));
  }
  absl::StatusOr<std::string> path =
      ResolveModelPath(config.model.path, relative_to);
  if (!path.ok()) {
    return absl::NotFoundError(
        Cat(origin, ": allowed is the folder of a checkpoint; there is ",
            StdView(path.status().message())));
  }
  config.model.path = *std::move(path);
  for (std::string* file :
       {&config.http.api_keys_file, &config.admin.api_key_file}) {
    // Its readers may have another current directory.
    if (!file->empty()) *file = std::filesystem::absolute(*file).string();
  }
  RETURN_IF_ERROR(CheckConfig(config));
  return config;
}

std::vector<std::string> ConfigFlags::Given() const {
  std::vector<std::string> words;
  const auto add = [&](const std::string& name, const std::string& value) {
    words.push_back(name);
    words.push_back(value);
  };
  if (!file_.empty()) add("--config", file_);
  for (const std::string& pair : sets_) add("--set", pair);
  for (const auto& flag : flags_) {
    if (flag->option->count() == 0) continue;
    // Of a switch the value has to be in the same word.
    if (flag->option->get_items_expected_max() == 0) {
      words.push_back(Cat(flag->name, "=", flag->value));
    } else {
      add(flag->name, flag->value);
    }
  }
  return words;
}

std::string DescribeConfig() {
  std::string text =
      "Keys of a configuration file, by section. --set takes them as "
      "SECTION.KEY=VALUE.\n";
  std::string section;
  for (const ConfigKeyInfo& key : ConfigKeys()) {
    const size_t dot = key.name.find('.');
    if (key.name.substr(0, dot) != section) {
      section = key.name.substr(0, dot);
      text += Cat("\n", section, ":\n");
    }
    text += Cat("  ", key.name.substr(dot + 1), ": ",
                key.default_value.empty() ? "\"\"" : key.default_value, "\n");
    text += Cat("      ", key.help, "\n");
    text += Cat("      Allowed: ", key.allowed, ".\n");
  }
  return text;
}

}  // namespace moebius
