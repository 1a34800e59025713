#include "common/config_yaml.h"

#include <arpa/inet.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "common/cat.h"
#include "common/ids.h"
#include "common/status_macros.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

std::string Join(const std::vector<std::string_view>& words) {
  std::string text;
  for (std::string_view word : words) {
    if (!text.empty()) text += ", ";
    text += word;
  }
  return text;
}

// A key: how its text is read into a Config and written back. `set` gets a
// scalar and returns false if it is not what `allowed` says.
struct Key {
  std::string_view name;
  std::string_view help;
  std::string allowed;
  bool is_text = false;  // a quoted scalar is legal
  std::function<bool(Config&, std::string_view)> set;
  std::function<std::string(const Config&)> get;
};

template <typename Int, typename Owner>
Key WholeNumber(std::string_view name, std::string_view help,
                Owner Config::*owner, Int Owner::*field, Int min, Int max) {
  return Key{name,
             help,
             Cat("a whole number from ", min, " to ", max),
             false,
             [=](Config& config, std::string_view text) {
               Int value = 0;
               if (!absl::SimpleAtoi(AbslView(text), &value)) return false;
               if (value < min || value > max) return false;
               config.*owner.*field = value;
               return true;
             },
             [=](const Config& config) { return Cat(config.*owner.*field); }};
}

Key WholeNumber(std::string_view name, std::string_view help,
                int Config::*field, int min, int max) {
  return Key{name,
             help,
             Cat("a whole number from ", min, " to ", max),
             false,
             [=](Config& config, std::string_view text) {
               int value = 0;
               if (!absl::SimpleAtoi(AbslView(text), &value)) return false;
               if (value < min || value > max) return false;
               config.*field = value;
               return true;
             },
             [=](const Config& config) { return Cat(config.*field); }};
}

Key Real(std::string_view name, std::string_view help, double Config::*field,
         double min, double max) {
  return Key{name,
             help,
             Cat("a number from ", min, " to ", max),
             false,
             [=](Config& config, std::string_view text) {
               double value = 0;
               if (!absl::SimpleAtod(AbslView(text), &value)) return false;
               if (!(value >= min && value <= max)) return false;
               config.*field = value;
               return true;
             },
             [=](const Config& config) {
               char text[40];
               std::snprintf(text, sizeof text, "%.17g", config.*field);
               return std::string(text);
             }};
}

// Sizes: a whole number of bytes, or with a suffix KiB, MiB, GiB.
bool ParseBytes(std::string_view text, int64_t max, int64_t* bytes) {
  int shift = 0;
  for (auto [suffix, bits] : {std::pair<std::string_view, int>{"KiB", 10},
                              {"MiB", 20},
                              {"GiB", 30}}) {
    if (text.ends_with(suffix)) {
      text.remove_suffix(suffix.size());
      shift = bits;
      break;
    }
  }
  int64_t value = 0;
  if (!absl::SimpleAtoi(AbslView(text), &value) || value < 0) return false;
  if (value > (max >> shift)) return false;
  *bytes = value << shift;
  return true;
}

Key Bytes(std::string_view name, std::string_view help, int64_t Config::*field,
          int64_t max) {
  return Key{name,
             help,
             "a number of bytes, with KiB, MiB or GiB behind it if wanted, up "
             "to 16384GiB",
             false,
             [=](Config& config, std::string_view text) {
               return ParseBytes(text, max, &(config.*field));
             },
             [=](const Config& config) { return Cat(config.*field); }};
}

Key Text(std::string_view name, std::string_view help, std::string allowed,
         std::string Config::*field, size_t max_bytes, bool may_be_empty) {
  return Key{name,
             help,
             std::move(allowed),
             true,
             [=](Config& config, std::string_view text) {
               if (text.size() > max_bytes) return false;
               if (text.empty() && !may_be_empty) return false;
               for (unsigned char c : text) {
                 if (c < 0x20 || c == 0x7f) return false;
               }
               config.*field = std::string(text);
               return true;
             },
             [=](const Config& config) { return config.*field; }};
}

template <typename Value>
Key Choice(std::string_view name, std::string_view help, Value Config::*field,
           std::vector<std::pair<std::string_view, Value>> choices) {
  std::vector<std::string_view> names;
  for (const auto& choice : choices) names.push_back(choice.first);
  return Key{name,
             help,
             Cat(choices.size() > 1 ? "one of " : "", Join(names)),
             true,
             [=](Config& config, std::string_view text) {
               for (const auto& [choice, value] : choices) {
                 if (choice == text) {
                   config.*field = value;
                   return true;
                 }
               }
               return false;
             },
             [=](const Config& config) {
               for (const auto& [choice, value] : choices) {
                 if (config.*field == value) return std::string(choice);
               }
               return std::string();
             }};
}

Key Host(std::string_view name, std::string_view help,
         ListenAddress Config::*address) {
  return Key{name,
             help,
             "an IPv4 or IPv6 address, or localhost",
             true,
             [=](Config& config, std::string_view text) {
               if (text == "localhost") text = "127.0.0.1";
               const std::string host(text);
               unsigned char bytes[16];
               if (inet_pton(AF_INET, host.c_str(), bytes) != 1 &&
                   inet_pton(AF_INET6, host.c_str(), bytes) != 1) {
                 return false;
               }
               (config.*address).host = host;
               return true;
             },
             [=](const Config& config) { return (config.*address).host; }};
}

std::vector<Key> MakeKeys() {
  constexpr int kDayMs = 24 * 60 * 60 * 1000;
  std::vector<Key> keys;
  // model
  keys.push_back(Text(
      "model.path",
      "Folder of the checkpoint (config.json, *.safetensors, tokenizer.json). "
      "A relative one is looked for below the current directory, then below "
      "the parent of the configuration file's folder.",
      "the path of a folder", &Config::model_path, 4096, false));
  keys.push_back(Text("model.served_name",
                      "Name that requests give; the checkpoint's folder name "
                      "if empty.",
                      "a name of up to 256 bytes", &Config::served_model_name,
                      256, true));
  keys.push_back(Choice<bool>(
      "model.load_format",
      "auto reads the checkpoint's weights; dummy makes up random ones and "
      "reads only config.json and the tokenizer.",
      &Config::dummy_weights, {{"auto", false}, {"dummy", true}}));
  keys.push_back(WholeNumber("model.max_model_len",
                             "Longest prompt and output together, in tokens; 0 "
                             "takes what config.json says.",
                             &Config::max_model_len, 0, 1 << 20));
  // workers
  keys.push_back(WholeNumber("workers.count",
                             "Worker processes that share the model.",
                             &Config::num_workers, 1, kMaxRanks));
  keys.push_back(WholeNumber("workers.threads",
                             "Compute threads of each worker; 0 divides the "
                             "machine's cores among them.",
                             &Config::threads_per_worker, 0, 256));
  keys.push_back(WholeNumber("workers.spin_us",
                             "How long a worker spins at a barrier before it "
                             "sleeps, in microseconds; -1 decides by load.",
                             &Config::spin_us, -1, 1'000'000));
  keys.push_back(Choice<bool>("workers.kv_dtype", "Type of the KV cache.",
                              &Config::kv_bfloat16,
                              {{"float32", false}, {"bfloat16", true}}));
  keys.push_back(Bytes("workers.kv_bytes",
                       "KV memory of each worker; 0 makes room for "
                       "scheduler.max_running sequences.",
                       &Config::kv_bytes, int64_t{16384} << 30));
  keys.push_back(Choice<std::string>(
      "workers.numerics",
      "exact gives bit-equal results in both layouts and for any number of "
      "workers.",
      &Config::numerics, {{"exact", "exact"}}));
  // scheduler
  keys.push_back(WholeNumber("scheduler.max_running",
                             "Sequences in flight at once.",
                             &Config::max_running, 1, 65536));
  keys.push_back(WholeNumber("scheduler.max_queue",
                             "Accepted requests that may wait; beyond it the "
                             "answer is 429.",
                             &Config::max_queue, 1, 1'000'000));
  keys.push_back(WholeNumber("scheduler.token_budget",
                             "Tokens of one step, prefill and decode together.",
                             &Config::token_budget, 16, 1 << 20));
  keys.push_back(WholeNumber("scheduler.steps_ahead",
                             "Steps that are planned before the results of "
                             "the one before are in.",
                             &Config::steps_ahead, 1, 16));
  // layout
  keys.push_back(Choice<LayoutChoice>(
      "layout.choice", "Layout to start in, or auto to let the load decide.",
      &Config::layout,
      {{"ep", LayoutChoice::kEp},
       {"tp", LayoutChoice::kTp},
       {"auto", LayoutChoice::kAuto}}));
  keys.push_back(WholeNumber("layout.switch_threshold",
                             "auto: requests in flight at and above which EP "
                             "is preferred; 0 is twice the workers.",
                             &Config::switch_threshold, 0, 1'000'000));
  keys.push_back(Real("layout.hysteresis",
                      "auto: share of the threshold, to each side, in which "
                      "nothing changes.",
                      &Config::hysteresis, 0.0, 1.0));
  keys.push_back(WholeNumber("layout.min_dwell_ms",
                             "auto: shortest stay in a layout.",
                             &Config::min_dwell_ms, 0, kDayMs));
  keys.push_back(WholeNumber("layout.smoothing_ms",
                             "auto: time constant of the average of the load.",
                             &Config::smoothing_ms, 1, kDayMs));
  keys.push_back(WholeNumber("layout.prepare_timeout_ms",
                             "How long workers may take to answer PREPARE; "
                             "then the switch is refused.",
                             &Config::prepare_timeout_ms, 1, kDayMs));
  keys.push_back(WholeNumber("layout.switch_timeout_ms",
                             "How long a committed switch may take before a "
                             "worker counts as lost.",
                             &Config::switch_timeout_ms, 1, kDayMs));
  // http
  keys.push_back(
      Host("http.host", "Address of the OpenAI API.", &Config::listen));
  keys.push_back(WholeNumber("http.port",
                             "Port of the OpenAI API; 0 is any free one.",
                             &Config::listen, &ListenAddress::port, 0, 65535));
  keys.push_back(WholeNumber("http.threads", "Threads of the HTTP front.",
                             &Config::http_threads, 1, 64));
  keys.push_back(WholeNumber(
      "http.write_interval_us",
      "Tokens go to the streams at most this often; 0 sends each at once.",
      &Config::write_interval_us, 0, 1'000'000));
  keys.push_back(WholeNumber("http.drain_timeout_ms",
                             "How long a drain waits for requests in flight.",
                             &Config::drain_timeout_ms, 0, kDayMs));
  // admin
  keys.push_back(Host("admin.host", "Address of control, status and metrics.",
                      &Config::admin));
  keys.push_back(WholeNumber("admin.port",
                             "Port of control, status and metrics; 0 is any "
                             "free one.",
                             &Config::admin, &ListenAddress::port, 0, 65535));
  // log
  keys.push_back(Choice<std::string>("log.level", "Least that is logged.",
                                     &Config::log_level,
                                     {{"trace", "trace"},
                                      {"debug", "debug"},
                                      {"info", "info"},
                                      {"warn", "warn"},
                                      {"error", "error"},
                                      {"off", "off"}}));
  return keys;
}

const std::vector<Key>& Keys() {
  static const auto* keys = new std::vector<Key>(MakeKeys());
  return *keys;
}

const Key* FindKey(std::string_view name) {
  for (const Key& key : Keys()) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

std::string_view SectionOf(std::string_view name) {
  return name.substr(0, name.find('.'));
}

std::vector<std::string_view> Sections() {
  std::vector<std::string_view> sections;
  for (const Key& key : Keys()) {
    if (sections.empty() || sections.back() != SectionOf(key.name)) {
      sections.push_back(SectionOf(key.name));
    }
  }
  return sections;
}

// Levenshtein distance; both words are short (a key, or cut to 64 bytes).
int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int above = row[j];
      row[j] = std::min({above + 1, row[j - 1] + 1,
                         diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// " (did you mean 'workers.count'?)", or nothing when no name is near.
std::string NearMiss(std::string_view name,
                     const std::vector<std::string_view>& names) {
  name = name.substr(0, 64);
  int best = 3;  // more than two slips is another word
  std::string_view nearest;
  for (std::string_view candidate : names) {
    const int distance = EditDistance(name, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  if (nearest.empty()) return "";
  return Cat(" (did you mean '", nearest, "'?)");
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

absl::Status NotAllowed(std::string_view where, const Key& key,
                        std::string_view value) {
  return absl::InvalidArgumentError(Cat(where, ": key '", key.name,
                                        "': allowed is ", key.allowed, ", not ",
                                        Shown(value)));
}

absl::Status UnknownKey(std::string_view where, std::string_view name) {
  std::vector<std::string_view> names;
  std::vector<std::string_view> siblings;
  for (const Key& key : Keys()) {
    names.push_back(key.name);
    if (SectionOf(key.name) == SectionOf(name)) {
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
  const std::string allowed = siblings.empty() ? Join(names) : Join(siblings);
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

absl::Status ApplyKey(const YAML::Node& value, const Key& key,
                      std::string_view where, Config& config) {
  if (!value.IsScalar()) {
    return absl::InvalidArgumentError(Cat(where, ": key '", key.name,
                                          "': allowed is ", key.allowed,
                                          ", not ", TypeName(value)));
  }
  const std::string& text = value.Scalar();
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
    const Key* key = FindKey(full);
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
  const std::string all_sections = Join(Sections());
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

}  // namespace

std::vector<ConfigKeyInfo> ConfigKeys() {
  const Config defaults;
  std::vector<ConfigKeyInfo> infos;
  for (const Key& key : Keys()) {
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
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    return absl::NotFoundError(
        Cat(path, ": there is no such configuration file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(Cat(path, ": cannot be opened"));
  }
  std::string text(kMaxConfigBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        Cat(path, ": allowed are at most ", kMaxConfigBytes, " bytes"));
  }
  return ParseConfigYaml(text, path, base, lines);
}

absl::Status SetConfigKey(Config& config, std::string_view key_name,
                          std::string_view value, std::string_view origin) {
  const Key* key = FindKey(key_name);
  if (key == nullptr) return UnknownKey(origin, key_name);
  if (!key->set(config, value)) return NotAllowed(origin, *key, value);
  return absl::OkStatus();
}

absl::Status CheckConfig(const Config& config) {
  if (config.listen.port != 0 && config.listen.port == config.admin.port &&
      config.listen.host == config.admin.host) {
    return absl::InvalidArgumentError(
        Cat("keys 'http.port' and 'admin.port' are both ", config.listen.port,
            ": allowed are two different ports (or 0)"));
  }
  if (config.token_budget < config.max_running) {
    return absl::InvalidArgumentError(
        Cat("key 'scheduler.token_budget' is ", config.token_budget,
            ": allowed is at least 'scheduler.max_running' (",
            config.max_running, "), a token for each sequence in flight"));
  }
  return absl::OkStatus();
}

std::string ToYaml(const Config& config) {
  std::string yaml;
  std::string_view section;
  for (const Key& key : Keys()) {
    if (SectionOf(key.name) != section) {
      section = SectionOf(key.name);
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
  if (!config.served_model_name.empty()) return config.served_model_name;
  const fs::path path = fs::path(config.model_path).lexically_normal();
  return path.has_filename() ? path.filename().string()
                             : path.parent_path().filename().string();
}

}  // namespace moebius
