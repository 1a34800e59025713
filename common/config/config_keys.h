// The keys of a configuration file: the one table behind parser, writer, flags
// and documentation (config_yaml.h).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "common/config/config.h"

namespace moebius {

// A key: how its text is read into a Config and written back.
struct ConfigKey {
  std::string_view name;  // "workers.count"
  std::string_view help;  // one sentence
  std::string allowed;    // "a whole number from 1 to 16"
  bool is_text = false;   // a quoted scalar is legal
  // False, with nothing changed, if the text is not what `allowed` says.
  std::function<bool(Config&, std::string_view)> set;
  std::function<std::string(const Config&)> get;
  // A list is legal as well: it is read as its words with spaces between.
  bool is_list = false;
};

// All keys, section by section.
const std::vector<ConfigKey>& ConfigKeyTable();

// nullptr when there is none of that name.
const ConfigKey* FindConfigKey(std::string_view name);

// "workers" of "workers.count".
std::string_view ConfigSectionOf(std::string_view name);

// "one, two, three".
std::string JoinWords(const std::vector<std::string_view>& words);

}  // namespace moebius
