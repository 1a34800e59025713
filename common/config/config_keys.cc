#include "common/config/config_keys.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/base/cat.h"
#include "common/base/ids.h"
#include "common/faults/fault_point.h"
#include "common/faults/message_faults.h"

namespace moebius {
namespace {

template <typename Int, typename Owner>
ConfigKey WholeNumber(std::string_view name, std::string_view help,
                      Owner Config::*owner, Int Owner::*field, Int min,
                      Int max) {
  return ConfigKey{
      name,
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

ConfigKey WholeNumber(std::string_view name, std::string_view help,
                      int Config::*field, int min, int max) {
  return ConfigKey{name,
                   help,
                   Cat("a whole number from ", min, " to ", max),
                   false,
                   [=](Config& config, std::string_view text) {
                     int value = 0;
                     if (!absl::SimpleAtoi(AbslView(text), &value))
                       return false;
                     if (value < min || value > max) return false;
                     config.*field = value;
                     return true;
                   },
                   [=](const Config& config) { return Cat(config.*field); }};
}

ConfigKey Real(std::string_view name, std::string_view help,
               double Config::*field, double min, double max) {
  return ConfigKey{name,
                   help,
                   Cat("a number from ", min, " to ", max),
                   false,
                   [=](Config& config, std::string_view text) {
                     double value = 0;
                     if (!absl::SimpleAtod(AbslView(text), &value))
                       return false;
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

// `min` is a whole number of KiB, `max` one of MiB.
ConfigKey Bytes(std::string_view name, std::string_view help,
                int64_t Config::*field, int64_t min, int64_t max) {
  const bool in_gib = max % (int64_t{1} << 30) == 0;
  return ConfigKey{
      name,
      help,
      Cat("a number of bytes, with KiB, MiB or GiB behind it if wanted, from ",
          min >> 10, min > 0 ? "KiB to " : " to ", max >> (in_gib ? 30 : 20),
          in_gib ? "GiB" : "MiB"),
      false,
      [=](Config& config, std::string_view text) {
        int64_t value = 0;
        if (!ParseBytes(text, max, &value) || value < min) return false;
        config.*field = value;
        return true;
      },
      [=](const Config& config) { return Cat(config.*field); }};
}

ConfigKey Text(std::string_view name, std::string_view help,
               std::string allowed, std::string Config::*field,
               size_t max_bytes, bool may_be_empty) {
  return ConfigKey{name,
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
ConfigKey Choice(std::string_view name, std::string_view help,
                 Value Config::*field,
                 std::vector<std::pair<std::string_view, Value>> choices) {
  std::vector<std::string_view> names;
  for (const auto& choice : choices) names.push_back(choice.first);
  return ConfigKey{name,
                   help,
                   Cat("one of ", JoinWords(names)),
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

ConfigKey Host(std::string_view name, std::string_view help,
               ListenAddress Config::*address) {
  return ConfigKey{
      name,
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

// Of the Host header, without a port.
constexpr std::string_view kHostsAllowed =
    "host names and addresses separated by spaces, without ports, or '*'";
constexpr size_t kMaxWordsBytes = 4096;

bool IsHostWord(std::string_view word) {
  if (word == "*") return true;
  const bool bracketed = word.starts_with('[') && word.ends_with(']');
  if (bracketed) word = word.substr(1, word.size() - 2);
  unsigned char bytes[16];
  if (inet_pton(AF_INET6, std::string(word).c_str(), bytes) == 1) return true;
  if (bracketed || word.empty()) return false;
  return std::all_of(word.begin(), word.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '.' || c == '_';
  });
}

bool IsOriginWord(std::string_view word) {
  if (word == "*") return true;
  const size_t scheme = word.find("://");
  if (scheme == word.npos || scheme == 0) return false;
  return word.find_first_of("/?#@*", scheme + 3) == word.npos &&
         word.size() > scheme + 3 &&
         std::all_of(word.begin(), word.end(),
                     [](unsigned char c) { return absl::ascii_isgraph(c); });
}

ConfigKey Words(std::string_view name, std::string_view help,
                std::string_view allowed, std::string Config::*field,
                bool (*is_word)(std::string_view)) {
  return ConfigKey{name,
                   help,
                   std::string(allowed),
                   true,
                   [=](Config& config, std::string_view text) {
                     if (text.size() > kMaxWordsBytes) return false;
                     for (absl::string_view one : absl::StrSplit(
                              AbslView(text), ' ', absl::SkipEmpty())) {
                       if (!is_word(StdView(one))) return false;
                     }
                     config.*field = std::string(text);
                     return true;
                   },
                   [=](const Config& config) { return config.*field; }};
}

ConfigKey Faults(std::string_view name, std::string_view help,
                 std::string Config::*field) {
  return ConfigKey{name,
                   help,
                   "faults separated by spaces, each "
                   "POINT[@RANK|@coordinator]=ACTION[:ARGUMENT][#NTH][*TIMES]; "
                   "`moebius chaos --list` tells the points",
                   true,
                   [=](Config& config, std::string_view text) {
                     for (absl::string_view one : absl::StrSplit(
                              AbslView(text), ' ', absl::SkipEmpty())) {
                       if (!ParseFault(StdView(one)).ok()) return false;
                     }
                     config.*field = std::string(text);
                     return true;
                   },
                   [=](const Config& config) { return config.*field; }};
}

ConfigKey YesNo(std::string_view name, std::string_view help,
                bool Config::*field) {
  return Choice<bool>(name, help, field, {{"false", false}, {"true", true}});
}

ConfigKey FaultsOfMessages(std::string_view name, std::string_view help,
                           std::string Config::*field) {
  return ConfigKey{
      name,
      help,
      "words like lose=0.02 repeat=0.1 reorder=0.1 delay_ms=5 seed=7, and "
      "lose_command=commit@1#2 or delay_report=switched:500 (lose_, delay_, "
      "swap_, echo_)",
      true,
      [=](Config& config, std::string_view text) {
        if (!ParseMessageFaults(text).ok()) return false;
        config.*field = std::string(text);
        return true;
      },
      [=](const Config& config) { return config.*field; }};
}

std::vector<ConfigKey> MakeKeys() {
  constexpr int kDayMs = 24 * 60 * 60 * 1000;
  std::vector<ConfigKey> keys;
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
  keys.push_back(
      WholeNumber("model.max_model_len",
                  "Longest prompt and output together, in tokens, no "
                  "more than config.json says; 0 takes what it says.",
                  &Config::max_model_len, 0, 1 << 20));
  // workers
  keys.push_back(WholeNumber("workers.count",
                             "Worker processes that share the model.",
                             &Config::num_workers, 1, kMaxRanks));
  keys.push_back(WholeNumber("workers.threads",
                             "Compute threads of each worker; 0 divides the "
                             "machine's cores among them.",
                             &Config::threads_per_worker, 0, 256));
  keys.push_back(WholeNumber(
      "workers.step_timeout_ms",
      "How long a worker waits for another within a step or a layer of a "
      "switch; beyond it whoever is late is halted, or else replaced.",
      &Config::step_timeout_ms, 10, kDayMs));
  keys.push_back(WholeNumber(
      "workers.stall_timeout_ms",
      "How long a step may take in all; beyond it the workers are halted, and "
      "those that do not answer are replaced.",
      &Config::stall_timeout_ms, 10, kDayMs));
  keys.push_back(WholeNumber("workers.spin_us",
                             "How long a worker spins at a barrier before it "
                             "sleeps, in microseconds; -1 decides by load.",
                             &Config::spin_us, -1, 1'000'000));
  keys.push_back(Choice<bool>("workers.kv_dtype", "Type of the KV cache.",
                              &Config::kv_bfloat16,
                              {{"float32", false}, {"bfloat16", true}}));
  keys.push_back(Bytes("workers.kv_bytes",
                       "KV memory of each worker, no more than the machine "
                       "has for all; 0 makes room for scheduler.max_running "
                       "sequences.",
                       &Config::kv_bytes, 0, int64_t{16384} << 30));
  // control
  keys.push_back(Choice<bool>(
      "control.transport",
      "What coordinator and workers talk over: ipc (a Unix socket) or tcp, for "
      "workers in other network namespaces. TCP is encrypted, and each end "
      "must show a key that the launcher has made for it.",
      &Config::control_tcp, {{"ipc", false}, {"tcp", true}}));
  keys.push_back(Host("control.host",
                      "tcp: address of the coordinator, at which the workers "
                      "reach it.",
                      &Config::control));
  keys.push_back(WholeNumber("control.port",
                             "tcp: port of the coordinator; 0 is any free one.",
                             &Config::control, &ListenAddress::port, 0, 65535));
  // scheduler
  keys.push_back(WholeNumber("scheduler.max_running",
                             "Sequences in flight at once.",
                             &Config::max_running, 1, 65536));
  keys.push_back(
      WholeNumber("scheduler.max_queue",
                  "Accepted generations that may wait; beyond it the "
                  "answer is 429, and 400 for a request of more.",
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
      "Tokens go to the streams at most this often, and less often (8 ms at "
      "most) where writing takes much of a core; 0 sends each at once.",
      &Config::write_interval_us, 0, 1'000'000));
  keys.push_back(Text(
      "http.api_keys_file",
      "File of the API keys that clients must show (Authorization: Bearer "
      "KEY), one a line, '#' for comments; only its owner may have access to "
      "it. Without one anybody is served.",
      "the path of a file", &Config::api_keys_file, 4096, true));
  keys.push_back(YesNo("http.allow_unauthenticated",
                       "Serve addresses beyond loopback without API keys.",
                       &Config::allow_unauthenticated));
  keys.push_back(YesNo("http.allow_request_templates",
                       "Let a chat bring its own template (chat_template).",
                       &Config::allow_request_templates));
  keys.push_back(Words(
      "http.allowed_hosts",
      "Names, beside those of loopback and http.host, under which clients may "
      "reach the API without keys (Host, and the host of a page's Origin); "
      "others get a 403. '*' allows all.",
      kHostsAllowed, &Config::allowed_hosts, IsHostWord));
  keys.push_back(Words(
      "http.allowed_origins",
      "Web pages that may use the API from browsers (CORS). '*' allows all.",
      "origins separated by spaces, each SCHEME://HOST[:PORT], or '*'",
      &Config::allowed_origins, IsOriginWord));
  keys.push_back(
      WholeNumber("http.max_connections",
                  "Connections at once, fewer if file descriptors are "
                  "few (ulimit -n); for one more the longest idle "
                  "one is closed, without any the answer is 503.",
                  &Config::max_connections, 1, 1'000'000));
  keys.push_back(WholeNumber(
      "http.header_timeout_ms",
      "How long the headers of a request may take to arrive; beyond it the "
      "answer is 408. This and the next four hold for the admin listener too.",
      &Config::header_timeout_ms, 10, kDayMs));
  keys.push_back(WholeNumber("http.body_timeout_ms",
                             "How long a request's body may take to arrive; "
                             "beyond it the answer is 408.",
                             &Config::body_timeout_ms, 10, kDayMs));
  keys.push_back(WholeNumber("http.write_timeout_ms",
                             "How long a client may take nothing of what there "
                             "is for it; beyond it it is cut off.",
                             &Config::write_timeout_ms, 10, kDayMs));
  keys.push_back(Bytes("http.stream_buffer_bytes",
                       "What a client may leave unread of a stream, beyond "
                       "what the kernel holds; beyond it it is cut off.",
                       &Config::stream_buffer_bytes, 4 << 10,
                       int64_t{1} << 30));
  keys.push_back(Bytes("http.max_body_bytes",
                       "The largest body of a request; beyond it the answer is "
                       "413.",
                       &Config::max_body_bytes, 1 << 10, int64_t{256} << 20));
  keys.push_back(WholeNumber(
      "http.waiting_comment_ms",
      "A stream that nothing was sent on for this long, one in the queue first "
      "of all, gets a comment (': waiting'), so that proxies keep it. 0: none, "
      "for clients that know no comments.",
      &Config::waiting_comment_ms, 0, kDayMs));
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
  keys.push_back(
      Text("admin.api_key_file",
           "File of the keys that clients of the admin listener must show, as "
           "http.api_keys_file. Without one anybody is served.",
           "the path of a file", &Config::admin_key_file, 4096, true));
  keys.push_back(Words(
      "admin.allowed_hosts", "As http.allowed_hosts, for the admin listener.",
      kHostsAllowed, &Config::admin_allowed_hosts, IsHostWord));
  keys.push_back(YesNo("admin.allow_unauthenticated",
                       "Let addresses beyond loopback switch, drain and watch "
                       "the group without a key.",
                       &Config::admin_allow_unauthenticated));
  // journal
  keys.push_back(Text(
      "journal.dir",
      "Folder of the journal of accepted requests, their tokens and switches. "
      "Empty: in the group's private directory, where it outlives the "
      "coordinator but not the launcher.",
      "the path of a folder", &Config::journal_dir, 4096, true));
  keys.push_back(Choice<std::string>(
      "journal.fsync",
      "When the journal is synced: none (it survives the process, not a loss "
      "of power), step (each step's writes at once), always (each record).",
      &Config::journal_fsync,
      {{"none", "none"}, {"step", "step"}, {"always", "always"}}));
  keys.push_back(Bytes("journal.rotate_bytes",
                       "Beyond this much growth the journal is compacted.",
                       &Config::journal_rotate_bytes, 0, int64_t{1} << 32));
  keys.push_back(WholeNumber(
      "journal.keep_results_ms",
      "How long the result of a request that has ended is kept for a client "
      "that comes back for it.",
      &Config::results_keep_ms, 0, kDayMs));
  keys.push_back(WholeNumber("journal.keep_results",
                             "How many results are kept at most.",
                             &Config::results_max, 0, 1 << 20));
  keys.push_back(Bytes("journal.keep_results_bytes",
                       "How much memory kept results take at most.",
                       &Config::results_bytes, 0, int64_t{1} << 40));
  keys.push_back(WholeNumber(
      "journal.resume_window_ms",
      "How long a request with an Idempotency-Key, or one that outlived its "
      "coordinator, goes on without a client.",
      &Config::resume_window_ms, 0, kDayMs));
  // faults
  keys.push_back(Choice<bool>(
      "faults.enabled",
      "Whether faults can be injected, for tests of recovery: through "
      "faults.arm, the admin API's /admin/faults, and `moebius chaos`.",
      &Config::faults_enabled, {{"false", false}, {"true", true}}));
  keys.push_back(Faults("faults.arm",
                        "Faults that are armed from the start, if "
                        "faults.enabled is true.",
                        &Config::faults));
  keys.push_back(FaultsOfMessages(
      "faults.messages",
      "What befalls messages between coordinator and workers, if "
      "faults.enabled is true.",
      &Config::message_faults));
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

}  // namespace

const std::vector<ConfigKey>& ConfigKeyTable() {
  static const auto* keys = new std::vector<ConfigKey>(MakeKeys());
  return *keys;
}

const ConfigKey* FindConfigKey(std::string_view name) {
  for (const ConfigKey& key : ConfigKeyTable()) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

std::string_view ConfigSectionOf(std::string_view name) {
  return name.substr(0, name.find('.'));
}

std::string JoinWords(const std::vector<std::string_view>& words) {
  std::string text;
  for (std::string_view word : words) {
    if (!text.empty()) text += ", ";
    text += word;
  }
  return text;
}

}  // namespace moebius
