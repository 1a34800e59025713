#include "common/config/config_yaml.h"

#include <arpa/inet.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "absl/strings/str_replace.h"
#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/near_miss.h"
#include "common/base/status_macros.h"
#include "common/config/config_keys.h"
#include "common/config/layout_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

std::vector<std::string_view> Sections() {
  std::vector<std::string_view> sections;
  for (const ConfigKey& key : ConfigKeyTable()) {
    if (sections.empty() || sections.back() != ConfigSectionOf(key.name)) {
      sections.push_back(ConfigSectionOf(key.name));
    }
  }
  return sections;
}

// A value as a message shows it: printable and short.
std::string Shown(std::string_view value) {
  constexpr size_t kMaxShownBytes = 60;
  const bool cut = value.size() > kMaxShownBytes;
  std::string shown(value.substr(0, kMaxShownBytes));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return Cat("'", shown, cut ? "..." : "", "'");
}

absl::Status NotAllowed(std::string_view where, const ConfigKey& key,
                        std::string_view value) {
  return absl::InvalidArgumentError(Cat(where, ": key '", key.name,
                                        "': allowed is ", key.allowed, ", not ",
                                        Shown(value)));
}

absl::Status UnknownKey(std::string_view where, std::string_view name) {
  std::vector<std::string_view> names;
  std::vector<std::string_view> siblings;
  for (const ConfigKey& key : ConfigKeyTable()) {
    names.push_back(key.name);
    if (ConfigSectionOf(key.name) == ConfigSectionOf(name)) {
      siblings.push_back(key.name.substr(key.name.find('.') + 1));
    }
  }
  std::string near = NearMiss(name, names);
  if (near.empty()) {
    // The right key in the wrong section is a common slip.
    const std::string_view leaf = name.substr(name.rfind('.') + 1);
    for (std::string_view candidate : names) {
      if (candidate.substr(candidate.find('.') + 1) == leaf) {
        near = Cat(" (did you mean '", candidate, "'?)");
        break;
      }
    }
  }
  const std::string allowed =
      siblings.empty() ? JoinWords(names) : JoinWords(siblings);
  return absl::InvalidArgumentError(Cat(where, ": key ", Shown(name),
                                        " is unknown", near, "; allowed is ",
                                        allowed));
}

// Marks count from 0; a null mark (-1) is the file as a whole.
int LineOf(const YAML::Mark& mark) { return std::max(mark.line + 1, 1); }

std::string Where(std::string_view file_name, const YAML::Mark& mark) {
  return Cat(file_name, ":", LineOf(mark));
}

std::string_view TypeName(const YAML::Node& node) {
  if (node.IsMap()) return "a map";
  if (node.IsSequence()) return "a list";
  if (node.IsNull()) return "nothing";
  return "a value";
}

// The words of a list, with spaces between; or a value as it is.
absl::StatusOr<std::string> TextOf(const YAML::Node& value,
                                   const ConfigKey& key,
                                   std::string_view where) {
  if (value.IsScalar()) return value.Scalar();
  std::string words;
  bool is_list = key.is_list && value.IsSequence();
  if (is_list) {
    for (const YAML::Node& word : value) {
      is_list = is_list && word.IsScalar();
      if (is_list) words += Cat(words.empty() ? "" : " ", word.Scalar());
    }
  }
  if (is_list) return words;
  return absl::InvalidArgumentError(Cat(where, ": key '", key.name,
                                        "': allowed is ", key.allowed, ", not ",
                                        TypeName(value)));
}

absl::Status ApplyKey(const YAML::Node& value, const ConfigKey& key,
                      std::string_view where, Config& config) {
  ASSIGN_OR_RETURN(const std::string text, TextOf(value, key, where));
  // yaml-cpp tags a quoted scalar "!": it is text, whatever is in it.
  if (!key.is_text && value.Tag() == "!") {
    return absl::InvalidArgumentError(Cat(where, ": key '", key.name,
                                          "': allowed is ", key.allowed,
                                          ", not the text ", Shown(text)));
  }
  if (!key.set(config, text)) return NotAllowed(where, key, text);
  return absl::OkStatus();
}

absl::Status ApplySection(const YAML::Node& section, std::string_view name,
                          std::string_view file_name, Config& config,
                          ConfigLines& lines) {
  for (const auto& entry : section) {
    const std::string where = Where(file_name, entry.first.Mark());
    if (!entry.first.IsScalar()) {
      return absl::InvalidArgumentError(Cat(where, ": section '", name,
                                            "': a key is a word, not ",
                                            TypeName(entry.first)));
    }
    const std::string full = Cat(name, ".", entry.first.Scalar());
    const ConfigKey* key = FindConfigKey(full);
    if (key == nullptr) return UnknownKey(where, full);
    if (!lines.emplace(full, LineOf(entry.first.Mark())).second) {
      return absl::InvalidArgumentError(
          Cat(where, ": key '", full, "' is said twice"));
    }
    RETURN_IF_ERROR(ApplyKey(entry.second, *key, where, config));
  }
  return absl::OkStatus();
}

absl::Status ApplyDocument(const YAML::Node& root, std::string_view file_name,
                           Config& config, ConfigLines& lines) {
  if (root.IsNull()) return absl::OkStatus();
  const std::string all_sections = JoinWords(Sections());
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(
        Cat(Where(file_name, root.Mark()),
            ": a configuration is a map of the sections ", all_sections,
            ", not ", TypeName(root)));
  }
  std::set<std::string> seen;
  for (const auto& entry : root) {
    const std::string where = Where(file_name, entry.first.Mark());
    const std::string name =
        entry.first.IsScalar() ? entry.first.Scalar() : std::string();
    const std::vector<std::string_view> sections = Sections();
    if (std::find(sections.begin(), sections.end(), name) == sections.end()) {
      return absl::InvalidArgumentError(
          Cat(where, ": section ", Shown(name), " is unknown",
              NearMiss(name, sections), "; allowed is ", all_sections));
    }
    if (!seen.insert(name).second) {
      return absl::InvalidArgumentError(
          Cat(where, ": section '", name, "' is said twice"));
    }
    if (entry.second.IsNull()) continue;  // an empty section
    if (!entry.second.IsMap()) {
      return absl::InvalidArgumentError(Cat(where, ": section '", name,
                                            "': allowed is a map of keys, not ",
                                            TypeName(entry.second)));
    }
    RETURN_IF_ERROR(ApplySection(entry.second, name, file_name, config, lines));
  }
  return absl::OkStatus();
}

// Text in double quotes, safe to read back as YAML.
std::string Quoted(std::string_view text) {
  return Cat(
      "\"",
      absl::StrReplaceAll(AbslView(text), {{"\\", "\\\\"}, {"\"", "\\\""}}),
      "\"");
}

bool IsFolder(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

// 127.0.0.0/8, ::1, and the former as IPv6.
bool IsLoopback(const std::string& host) {
  unsigned char bytes[16];
  if (inet_pton(AF_INET, host.c_str(), bytes) == 1) return bytes[0] == 127;
  if (inet_pton(AF_INET6, host.c_str(), bytes) != 1) return false;
  const auto zeros = [&](int end) {
    return std::all_of(bytes, bytes + end, [](int b) { return b == 0; });
  };
  if (zeros(15)) return bytes[15] == 1;
  return zeros(10) && bytes[10] == 0xff && bytes[11] == 0xff &&
         bytes[12] == 127;
}

// A listener that other machines may reach needs keys, or a word that it needs
// none. `keys_file` and `allow` are the keys of the configuration for these.
absl::Status CheckExposure(const std::string& host, bool has_keys, bool allowed,
                           std::string_view section, std::string_view keys_file,
                           std::string_view flags) {
  if (has_keys || allowed || IsLoopback(host)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat("key '", section, ".host' is ", host,
          ", which other machines may reach, and nobody would have to show a "
          "key: allowed is a loopback address (127.0.0.1, ::1), or a file of "
          "keys in '",
          section, ".", keys_file, "', or '", section,
          ".allow_unauthenticated: true' (", flags, ")"));
}

}  // namespace

std::vector<ConfigKeyInfo> ConfigKeys() {
  const Config defaults;
  std::vector<ConfigKeyInfo> infos;
  for (const ConfigKey& key : ConfigKeyTable()) {
    infos.push_back({std::string(key.name), std::string(key.help), key.allowed,
                     key.get(defaults)});
  }
  return infos;
}

absl::StatusOr<Config> ParseConfigYaml(std::string_view yaml,
                                       std::string_view file_name,
                                       const Config& base, ConfigLines* lines) {
  if (yaml.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(Cat(file_name, ": ", yaml.size(),
                                          " bytes; allowed are at most ",
                                          kMaxConfigBytes));
  }
  Config config = base;
  ConfigLines said;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(yaml));
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          Cat(Where(file_name, documents[1].Mark()),
              ": a second document; allowed is one"));
    }
    if (!documents.empty()) {
      RETURN_IF_ERROR(ApplyDocument(documents[0], file_name, config, said));
    }
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        Cat(Where(file_name, e.mark), ": not a YAML document: ", e.msg));
  }
  if (lines != nullptr) *lines = std::move(said);
  return config;
}

absl::StatusOr<Config> LoadConfigYaml(const std::string& path,
                                      const Config& base, ConfigLines* lines) {
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(
        Cat(path, ": there is no such configuration file"));
  }
  RETURN_IF_ERROR(text.status());
  return ParseConfigYaml(*text, path, base, lines);
}

absl::Status SetConfigKey(Config& config, std::string_view key_name,
                          std::string_view value, std::string_view origin) {
  const ConfigKey* key = FindConfigKey(key_name);
  if (key == nullptr) return UnknownKey(origin, key_name);
  if (!key->set(config, value)) return NotAllowed(origin, *key, value);
  return absl::OkStatus();
}

absl::Status CheckConfig(const Config& config) {
  if (config.http.port != 0 && config.http.port == config.admin.port &&
      config.http.host == config.admin.host) {
    return absl::InvalidArgumentError(
        Cat("keys 'http.port' and 'admin.port' are both ", config.http.port,
            ": allowed are two different ports (or 0)"));
  }
  RETURN_IF_ERROR(
      CheckExposure(config.http.host, !config.http.api_keys_file.empty(),
                    config.http.allow_unauthenticated, "http", "api_keys_file",
                    "--api-keys-file, --allow-unauthenticated"));
  RETURN_IF_ERROR(
      CheckExposure(config.admin.host, !config.admin.api_key_file.empty(),
                    config.admin.allow_unauthenticated, "admin", "api_key_file",
                    "--admin-api-key-file, --admin-allow-unauthenticated"));
  if (config.control.transport == ControlTransport::kTcp &&
      (config.control.host == "0.0.0.0" || config.control.host == "::")) {
    return absl::InvalidArgumentError(
        Cat("key 'control.host' is ", config.control.host,
            ": allowed is one address, at which the workers reach the "
            "coordinator"));
  }
  // Of the divisors; the model's heads may have less to offer.
  RETURN_IF_ERROR(CheckLayouts(
      config,
      LayoutsOf({config.workers.count, config.workers.count, /*kv heads*/ 1})));
  if (config.scheduler.token_budget < config.scheduler.max_running) {
    return absl::InvalidArgumentError(
        Cat("key 'scheduler.token_budget' is ", config.scheduler.token_budget,
            ": allowed is at least 'scheduler.max_running' (",
            config.scheduler.max_running,
            "), a token for each sequence in flight"));
  }
  return absl::OkStatus();
}

std::string ToYaml(const Config& config) {
  std::string yaml;
  std::string_view section;
  for (const ConfigKey& key : ConfigKeyTable()) {
    if (ConfigSectionOf(key.name) != section) {
      section = ConfigSectionOf(key.name);
      yaml += Cat(section, ":\n");
    }
    const std::string value = key.get(config);
    yaml += Cat("  ", key.name.substr(section.size() + 1), ": ",
                key.is_text ? Quoted(value) : value, "\n");
  }
  return yaml;
}

absl::StatusOr<std::string> ResolveModelPath(std::string_view model_path,
                                             std::string_view config_file) {
  const fs::path path{std::string(model_path)};
  std::error_code error;
  const fs::path here = fs::current_path(error);
  if (error) {
    return absl::NotFoundError("the current directory does not exist");
  }
  std::vector<fs::path> places = {(here / path).lexically_normal()};
  if (path.is_relative() && !config_file.empty()) {
    const fs::path folder = (here / fs::path(std::string(config_file)))
                                .lexically_normal()
                                .parent_path();
    const fs::path other = (folder.parent_path() / path).lexically_normal();
    if (other != places[0]) places.push_back(other);
  }
  for (const fs::path& place : places) {
    if (!IsFolder(place)) continue;
    std::string found = place.string();
    if (found.size() > 1 && found.back() == '/') found.pop_back();
    return found;
  }
  std::string looked;
  for (const fs::path& place : places) {
    looked += Cat(looked.empty() ? "" : " or ", place.string());
  }
  return absl::NotFoundError(Cat("no folder ", looked));
}

std::string ServedModelName(const Config& config) {
  if (!config.model.served_name.empty()) return config.model.served_name;
  const fs::path path = fs::path(config.model.path).lexically_normal();
  return path.has_filename() ? path.filename().string()
                             : path.parent_path().filename().string();
}

}  // namespace moebius
