#include "common/config/config_keys.h"

#include <utility>

#include "common/base/ids.h"
#include "common/config/config_key_kinds.h"

namespace moebius {
namespace {

constexpr int kDayMs = 24 * 60 * 60 * 1000;

// Of the Host header, without a port.
constexpr std::string_view kHostsAllowed =
    "host names and addresses separated by spaces, without ports, or '*'";

std::vector<ConfigKey> ModelKeys() {
  constexpr auto section = &Config::model;
  return {
      TextKey("model.path",
              "Folder of the checkpoint (config.json, *.safetensors, "
              "tokenizer.json). A relative one is looked for below the current "
              "directory, then below the parent of the configuration file's "
              "folder.",
              "the path of a folder", section, &ModelConfigSection::path,
              IsPath),
      TextKey("model.served_name",
              "Name that requests give; the checkpoint's folder name if empty.",
              "a name of up to 256 bytes", section,
              &ModelConfigSection::served_name, IsOptionalName),
      ChoiceKey("model.load_format",
                "auto reads the checkpoint's weights; dummy makes up random "
                "ones and reads only config.json and the tokenizer.",
                section, &ModelConfigSection::load_format,
                {{"auto", LoadFormat::kAuto}, {"dummy", LoadFormat::kDummy}}),
      WholeNumberKey("model.max_model_len",
                     "Longest prompt and output together, in tokens, no more "
                     "than config.json says; 0 takes what it says.",
                     section, &ModelConfigSection::max_model_len, 0, 1 << 20),
  };
}

std::vector<ConfigKey> WorkersKeys() {
  constexpr auto section = &Config::workers;
  return {
      WholeNumberKey("workers.count", "Worker processes that share the model.",
                     section, &WorkersConfig::count, 1, kMaxRanks),
      WholeNumberKey("workers.threads",
                     "Compute threads of each worker; 0 divides the machine's "
                     "cores among them.",
                     section, &WorkersConfig::threads, 0, 256),
      WholeNumberKey(
          "workers.step_timeout_ms",
          "How long a worker waits for another within a step or a layer of a "
          "switch; beyond it a worker that is late is halted, or else "
          "replaced.",
          section, &WorkersConfig::step_timeout_ms, 10, kDayMs),
      WholeNumberKey("workers.stall_timeout_ms",
                     "How long a step may take in all; beyond it the workers "
                     "are halted, and those that do not answer are replaced.",
                     section, &WorkersConfig::stall_timeout_ms, 10, kDayMs),
      WholeNumberKey("workers.spin_us",
                     "How long a worker spins at a barrier before it sleeps, "
                     "in microseconds; -1 decides by load.",
                     section, &WorkersConfig::spin_us, -1, 1'000'000),
      ChoiceKey(
          "workers.kv_dtype",
          "Type of the KV cache. auto is bfloat16 with the device cuda unless "
          "its numerics are exact, and float32 otherwise.",
          section, &WorkersConfig::kv_dtype,
          {{"auto", KvDtype::kAuto},
           {"float32", KvDtype::kFloat32},
           {"bfloat16", KvDtype::kBfloat16}}),
      BytesKey("workers.kv_bytes",
               "KV memory of each worker, no more than the machine has for "
               "all; 0 makes room for scheduler.max_running sequences, and on "
               "a GPU takes what is left.",
               section, &WorkersConfig::kv_bytes, 0, int64_t{16384} << 30),
  };
}

// What workers compute on.
std::vector<ConfigKey> DeviceKeys() {
  constexpr auto section = &Config::workers;
  return {
      ChoiceKey("workers.device",
                "What workers compute on: cpu, cuda (GPUs, one worker on each "
                "unless workers.per_gpu says more), or auto (GPUs if there are "
                "enough).",
                section, &WorkersConfig::device,
                {{"cpu", DeviceChoice::kCpu},
                 {"cuda", DeviceChoice::kCuda},
                 {"auto", DeviceChoice::kAuto}}),
      ChoiceKey("workers.numerics",
                "exact: the same bits in every layout, for any number of "
                "workers, whatever else is served; fast: usual rounding. auto "
                "is fast on GPUs. The processor is always exact.",
                section, &WorkersConfig::numerics,
                {{"auto", NumericsChoice::kAuto},
                 {"exact", NumericsChoice::kExact},
                 {"fast", NumericsChoice::kFast}}),
      WholeNumberKey("workers.per_gpu", "Workers that share a GPU.", section,
                     &WorkersConfig::per_gpu, 1, kMaxRanks),
      RealKey("workers.gpu_memory_fraction",
              "How much of a GPU's memory the workers on it may take.", section,
              &WorkersConfig::gpu_memory_fraction, 0.01, 1.0),
      ChoiceKey("workers.gpu_sharing",
                "How workers show one another a GPU's memory. descriptor: it "
                "outlives its worker; handle: where the driver exports no "
                "descriptors (cudaIpcMemHandle_t), a worker that died reads "
                "its weights again. auto tries the first.",
                section, &WorkersConfig::gpu_sharing,
                {{"auto", GpuSharing::kAuto},
                 {"descriptor", GpuSharing::kDescriptor},
                 {"handle", GpuSharing::kHandle}}),
  };
}

std::vector<ConfigKey> ControlKeys() {
  constexpr auto section = &Config::control;
  return {
      ChoiceKey(
          "control.transport",
          "What coordinator and workers talk over: ipc (a Unix socket) or tcp, "
          "for workers in other network namespaces. TCP is encrypted, and each "
          "end must show a key that the launcher has made for it.",
          section, &ControlConfig::transport,
          {{"ipc", ControlTransport::kIpc}, {"tcp", ControlTransport::kTcp}}),
      HostKey("control.host",
              "tcp: address of the coordinator, at which the workers reach it.",
              section),
      PortKey("control.port",
              "tcp: port of the coordinator; 0 is any free one.", section),
  };
}

std::vector<ConfigKey> SchedulerKeys() {
  constexpr auto section = &Config::scheduler;
  return {
      WholeNumberKey("scheduler.max_running", "Sequences in flight at once.",
                     section, &SchedulerConfig::max_running, 1, 65536),
      WholeNumberKey("scheduler.max_queue",
                     "Accepted generations that may wait; beyond it the answer "
                     "is 429, and 400 for a request of more.",
                     section, &SchedulerConfig::max_queue, 1, 1'000'000),
      WholeNumberKey("scheduler.token_budget",
                     "Tokens of one step, prefill and decode together.",
                     section, &SchedulerConfig::token_budget, 16, 1 << 20),
      WholeNumberKey(
          "scheduler.steps_ahead",
          "Steps that are planned before the results of the one before are in.",
          section, &SchedulerConfig::steps_ahead, 1, 16),
  };
}

std::vector<ConfigKey> LayoutKeys() {
  constexpr auto section = &Config::layout;
  return {
      LayoutChoiceKey("layout.choice",
                      "Layout to start in, or auto to let the load decide.",
                      &LayoutConfig::choice),
      LayoutsKey("layout.candidates",
                 "auto: the layouts that the load chooses among; /status and "
                 "/metrics tell of each how much KV it would hold.",
                 &LayoutConfig::candidates),
      AscendingKey("layout.thresholds",
                   "auto: for each two neighbours of the candidates, from the "
                   "widest groups on, requests in flight at and above which "
                   "the narrower groups are preferred; none: "
                   "layout.switch_threshold divided by the ranks in a group of "
                   "the narrower.",
                   &LayoutConfig::thresholds, 1'000'000),
      WholeNumberKey("layout.switch_threshold",
                     "auto: requests in flight at and above which EP is "
                     "preferred; 0 is twice the workers.",
                     section, &LayoutConfig::switch_threshold, 0, 1'000'000),
      RealKey("layout.hysteresis",
              "auto: share of the threshold, to each side, in which nothing "
              "changes.",
              section, &LayoutConfig::hysteresis, 0.0, 1.0),
      WholeNumberKey("layout.min_dwell_ms", "auto: shortest stay in a layout.",
                     section, &LayoutConfig::min_dwell_ms, 0, kDayMs),
      WholeNumberKey("layout.smoothing_ms",
                     "auto: time constant of the average of the load.", section,
                     &LayoutConfig::smoothing_ms, 1, kDayMs),
      WholeNumberKey("layout.prepare_timeout_ms",
                     "How long workers may take to answer PREPARE; then the "
                     "switch is refused.",
                     section, &LayoutConfig::prepare_timeout_ms, 1, kDayMs),
      WholeNumberKey("layout.switch_timeout_ms",
                     "How long a committed switch may take before a worker "
                     "counts as lost.",
                     section, &LayoutConfig::switch_timeout_ms, 1, kDayMs),
      WholeNumberKey(
          "layout.spare_slots",
          "Spare slots of expert weights, each of one layer's experts on every "
          "rank. With several a GPU copies layers of a switch while ranks "
          "meet; "
          "0 is two where layers are so small that this counts, and else one.",
          section, &LayoutConfig::spare_slots, 0, 8),
      OptionalLayoutsKey(
          "layout.resident",
          "GPUs: layouts whose passes of decode are captured at start. "
          "Steps in others are slower, but take no memory.",
          "candidates", &LayoutConfig::resident),
  };
}

std::vector<ConfigKey> HttpKeys() {
  constexpr auto section = &Config::http;
  return {
      HostKey("http.host", "Address of the OpenAI API.", section),
      PortKey("http.port", "Port of the OpenAI API; 0 is any free one.",
              section),
      WholeNumberKey("http.threads", "Threads of the HTTP front.", section,
                     &HttpConfig::threads, 1, 64),
      WholeNumberKey(
          "http.write_interval_us",
          "Tokens go to the streams at most this often, and less often (8 ms "
          "at most) where writing takes much of a core; 0 sends each at once.",
          section, &HttpConfig::write_interval_us, 0, 1'000'000),
      TextKey("http.api_keys_file",
              "File of the API keys that clients must show (Authorization: "
              "Bearer KEY), one a line, '#' for comments; only its owner may "
              "have access to it. Without one anybody is served.",
              "the path of a file", section, &HttpConfig::api_keys_file,
              IsOptionalPath),
      YesNoKey("http.allow_unauthenticated",
               "Serve addresses beyond loopback without API keys.", section,
               &HttpConfig::allow_unauthenticated),
      YesNoKey("http.allow_request_templates",
               "Let a chat bring its own template (chat_template).", section,
               &HttpConfig::allow_request_templates),
      TextKey("http.allowed_hosts",
              "Names, beside those of loopback and http.host, under which "
              "clients may reach the API without keys (Host, and the host of a "
              "page's Origin); others get a 403. '*' allows all.",
              kHostsAllowed, section, &HttpConfig::allowed_hosts, AreHosts),
      ChoiceKey("http.not_ready_status",
                "What /ready answers, on both listeners, while the group "
                "starts, drains or takes nothing new.",
                section, &HttpConfig::not_ready_status,
                {{"503", 503}, {"404", 404}}),
      ChoiceKey("http.load_header",
                "Which answers of the API have a header with the group's load "
                "(ORCA, endpoint-load-metrics): those to requests that ask for "
                "it, or all, as text or json.",
                section, &HttpConfig::load_header,
                {{"asked", LoadHeader::kAsked},
                 {"text", LoadHeader::kText},
                 {"json", LoadHeader::kJson}}),
      TextKey("http.allowed_origins",
              "Web pages that may use the API from browsers (CORS). '*' allows "
              "all.",
              "origins separated by spaces, each SCHEME://HOST[:PORT], or '*'",
              section, &HttpConfig::allowed_origins, AreOrigins),
  };
}

std::vector<ConfigKey> HttpLimitKeys() {
  constexpr auto section = &Config::http;
  return {
      WholeNumberKey("http.max_connections",
                     "Connections at once, fewer if file descriptors are few "
                     "(ulimit -n); for one more the longest idle one is "
                     "closed, without any the answer is 503.",
                     section, &HttpConfig::max_connections, 1, 1'000'000),
      WholeNumberKey("http.header_timeout_ms",
                     "How long the headers of a request may take to arrive; "
                     "beyond it the answer is 408. This and the next four hold "
                     "for the admin listener too.",
                     section, &HttpConfig::header_timeout_ms, 10, kDayMs),
      WholeNumberKey("http.body_timeout_ms",
                     "How long a request's body may take to arrive; beyond it "
                     "the answer is 408.",
                     section, &HttpConfig::body_timeout_ms, 10, kDayMs),
      WholeNumberKey("http.write_timeout_ms",
                     "How long a client may take nothing of what there is for "
                     "it; beyond it it is cut off.",
                     section, &HttpConfig::write_timeout_ms, 10, kDayMs),
      BytesKey("http.stream_buffer_bytes",
               "What a client may leave unread of a stream, beyond what the "
               "kernel holds; beyond it it is cut off.",
               section, &HttpConfig::stream_buffer_bytes, 4 << 10,
               int64_t{1} << 30),
      BytesKey("http.max_body_bytes",
               "The largest body of a request; beyond it the answer is 413.",
               section, &HttpConfig::max_body_bytes, 1 << 10,
               int64_t{256} << 20),
      WholeNumberKey(
          "http.waiting_comment_ms",
          "A stream that nothing was sent on for this long, one in the queue "
          "first of all, gets a comment (': waiting'), so that proxies keep "
          "it. 0: none, for clients that know no comments.",
          section, &HttpConfig::waiting_comment_ms, 0, kDayMs),
      WholeNumberKey("http.drain_timeout_ms",
                     "How long a drain waits for requests in flight.", section,
                     &HttpConfig::drain_timeout_ms, 0, kDayMs),
  };
}

std::vector<ConfigKey> AdminKeys() {
  constexpr auto section = &Config::admin;
  return {
      HostKey("admin.host", "Address of control, status and metrics.", section),
      PortKey("admin.port",
              "Port of control, status and metrics; 0 is any free one.",
              section),
      TextKey("admin.api_key_file",
              "File of the keys that clients of the admin listener must show, "
              "as http.api_keys_file. Without one anybody is served.",
              "the path of a file", section, &AdminConfig::api_key_file,
              IsOptionalPath),
      TextKey("admin.allowed_hosts",
              "As http.allowed_hosts, for the admin listener.", kHostsAllowed,
              section, &AdminConfig::allowed_hosts, AreHosts),
      YesNoKey("admin.allow_unauthenticated",
               "Let addresses beyond loopback switch, drain and watch the "
               "group without a key.",
               section, &AdminConfig::allow_unauthenticated),
      WholeNumberKey(
          "admin.agent_port",
          "Port of HAProxy's agent-check, at admin.host; it wants no "
          "key. 0 is any free one, -1: there is none.",
          section, &AdminConfig::agent_port, -1, 65535),
  };
}

std::vector<ConfigKey> JournalKeys() {
  constexpr auto section = &Config::journal;
  return {
      TextKey("journal.dir",
              "Folder of the journal of accepted requests, their tokens and "
              "switches. Empty: in the group's private directory, where it "
              "outlives the coordinator but not the launcher.",
              "the path of a folder", section, &JournalConfig::dir,
              IsOptionalPath),
      ChoiceKey("journal.fsync",
                "When the journal is synced: none (it survives the process, "
                "not a loss of power), step (each step's writes at once), "
                "always (each record).",
                section, &JournalConfig::fsync,
                {{"none", FsyncPolicy::kNone},
                 {"step", FsyncPolicy::kStep},
                 {"always", FsyncPolicy::kAlways}}),
      BytesKey("journal.rotate_bytes",
               "Beyond this much growth the journal is compacted.", section,
               &JournalConfig::rotate_bytes, 0, int64_t{1} << 32),
      WholeNumberKey("journal.keep_results_ms",
                     "How long the result of a request that has ended is kept "
                     "for a client that comes back for it.",
                     section, &JournalConfig::keep_results_ms, 0, kDayMs),
      WholeNumberKey("journal.keep_results",
                     "How many results are kept at most.", section,
                     &JournalConfig::keep_results, 0, 1 << 20),
      BytesKey("journal.keep_results_bytes",
               "How much memory kept results take at most.", section,
               &JournalConfig::keep_results_bytes, 0, int64_t{1} << 40),
      WholeNumberKey("journal.resume_window_ms",
                     "How long a request with an Idempotency-Key, or one that "
                     "outlived its coordinator, goes on without a client.",
                     section, &JournalConfig::resume_window_ms, 0, kDayMs),
  };
}

std::vector<ConfigKey> FaultsKeys() {
  constexpr auto section = &Config::faults;
  return {
      YesNoKey(
          "faults.enabled",
          "Whether faults can be injected, for tests of recovery: through "
          "faults.arm, the admin API's /admin/faults, and `moebius chaos`.",
          section, &FaultsConfig::enabled),
      TextKey(
          "faults.arm",
          "Faults that are armed from the start, if faults.enabled is true.",
          "faults separated by spaces, each "
          "POINT[@RANK|@coordinator]=ACTION[:ARGUMENT][#NTH][*TIMES]; `moebius "
          "chaos --list` tells the points",
          section, &FaultsConfig::arm, AreFaults),
      TextKey("faults.messages",
              "What befalls messages between coordinator and workers, if "
              "faults.enabled is true.",
              "words like lose=0.02 repeat=0.1 reorder=0.1 delay_ms=5 seed=7, "
              "and lose_command=commit@1#2 or delay_report=switched:500 "
              "(lose_, delay_, swap_, echo_)",
              section, &FaultsConfig::messages, AreMessageFaults),
  };
}

std::vector<ConfigKey> LogKeys() {
  constexpr auto section = &Config::log;
  return {
      ChoiceKey("log.level", "Least that is logged.", section,
                &LogConfig::level,
                {{"trace", LogLevel::kTrace},
                 {"debug", LogLevel::kDebug},
                 {"info", LogLevel::kInfo},
                 {"warn", LogLevel::kWarn},
                 {"error", LogLevel::kError},
                 {"off", LogLevel::kOff}}),
      ChoiceKey("log.format", "Lines of text, or a JSON object each.", section,
                &LogConfig::format,
                {{"text", LogFormat::kText}, {"json", LogFormat::kJson}}),
      YesNoKey(
          "log.requests",
          "Whether each HTTP request is logged at info when its answer has "
          "ended: method, path, status, time, bytes, tokens, layout.",
          section, &LogConfig::requests),
  };
}

std::vector<ConfigKey> MakeKeys() {
  std::vector<ConfigKey> keys;
  for (const auto section : {ModelKeys, WorkersKeys, DeviceKeys, ControlKeys,
                             SchedulerKeys, LayoutKeys, HttpKeys, HttpLimitKeys,
                             AdminKeys, JournalKeys, FaultsKeys, LogKeys}) {
    for (ConfigKey& key : section()) keys.push_back(std::move(key));
  }
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
