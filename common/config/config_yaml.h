// Configuration files: YAML to Config and back. One table of keys is behind
// the parser, the writer, the command line's `--set` and the documentation, so
// they cannot disagree.
//
// A file is a map of sections, a section a map of keys:
//
//   model:
//     path: models/verse-moe
//   workers:
//     count: 2
//
// Everything is optional. What is said is checked: an unknown section or key,
// a key said twice, a value of the wrong type or out of its range is an error
// of the form
//
//   FILE:LINE: key 'workers.count': allowed is a whole number from 1 to 16, not
//   'two'
//
// Thread-safe: no state.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/config.h"

namespace moebius {

// Largest configuration file.
inline constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// One key of the file, as documentation shows it.
struct ConfigKeyInfo {
  std::string name;           // "workers.count"
  std::string help;           // one sentence
  std::string allowed;        // "a whole number from 1 to 16"
  std::string default_value;  // as ToYaml writes it
};
// All keys, section by section.
std::vector<ConfigKeyInfo> ConfigKeys();

// Line (from 1) on which a file says a key, for messages about it later on.
using ConfigLines = std::map<std::string, int>;

// Applies `yaml` over `base`. `file_name` is for messages only. A relative
// model path stays as written (see ResolveModelPath). Sets *lines on success.
// Errors: kInvalidArgument.
absl::StatusOr<Config> ParseConfigYaml(std::string_view yaml,
                                       std::string_view file_name,
                                       const Config& base = {},
                                       ConfigLines* lines = nullptr);

// Reads the file and parses it.
// Errors: kInvalidArgument as above and for a file over kMaxConfigBytes;
// kNotFound when it cannot be opened.
absl::StatusOr<Config> LoadConfigYaml(const std::string& path,
                                      const Config& base = {},
                                      ConfigLines* lines = nullptr);

// Sets one key from text, under the same rules as in a file: what command-line
// flags do. Messages name `origin` ("--workers") in the place of FILE:LINE.
absl::Status SetConfigKey(Config& config, std::string_view key,
                          std::string_view value, std::string_view origin);

// What no single key can say: that keys fit each other, and that no listener is
// open to other machines without keys unless that is what somebody wants.
// Messages name the keys.
absl::Status CheckConfig(const Config& config);

// The effective configuration: every key, so that
// ParseConfigYaml(ToYaml(c)) == c for any c that passes CheckConfig.
std::string ToYaml(const Config& config);

// Where a relative model path points: below the current directory if that
// exists, or else below the parent of the configuration file's folder, so that
// `configs/x.yaml` may name `models/y` wherever it is started from. Absolute in
// either case. An empty `config_file` leaves the current directory alone.
// Errors: kNotFound naming the places that were looked at.
absl::StatusOr<std::string> ResolveModelPath(std::string_view model_path,
                                             std::string_view config_file);

// config.model.served_name, or the last folder of the model path.
std::string ServedModelName(const Config& config);

}  // namespace moebius
