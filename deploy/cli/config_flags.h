// Command-line flags that set configuration keys. Flags win over the file, the
// file over defaults; all of them are checked by the one table of
// common/config/config_yaml.h.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "common/config/config.h"

namespace moebius {

// ConfigFlags
//
// Registers the flags with a command; after parsing, Load() gives the effective
// configuration.
class ConfigFlags {
 public:
  // `listeners`: also the flags of the HTTP front (--port, ...).
  void AddTo(CLI::App& command, bool listeners);

  // Defaults, file and flags, checked, with an absolute model path.
  // Errors: kInvalidArgument, kNotFound; the message names file and line, or
  // the flag.
  // `defaults`: what holds where neither file nor flags say.
  absl::StatusOr<Config> Load(const Config& defaults = {}) const;

  // The flags that were given, as words of a command line.
  std::vector<std::string> Given() const;

 private:
  struct Flag {
    std::string name;  // "--workers"
    std::string key;   // "workers.count"
    std::string help;
    CLI::Option* option = nullptr;
    std::string value;
  };
  void Add(CLI::App& command, const char* name, const char* key,
           const char* value_name);
  // A flag that needs no value.
  void AddSwitch(CLI::App& command, const char* name, const char* key);
  Flag& Describe(const char* name, const char* key);

  std::string file_;
  std::vector<std::unique_ptr<Flag>> flags_;  // CLI11 keeps pointers into them
  std::vector<std::string> sets_;             // "KEY=VALUE"
};

// The documentation of every key, for --help-config.
std::string DescribeConfig();

}  // namespace moebius
