// The configuration of a group: what `configs/*.yaml` and the command line may
// say. Plain values, named as the keys are: `workers.kv_bytes` of a file is
// `config.workers.kv_bytes` here. Keys, their limits and their texts are in
// config_keys.cc, parsing is in config_yaml.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/log_level.h"
#include "common/config/layout_choice.h"

namespace moebius {

struct ListenAddress {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free port
};

// kDummy makes up random weights; only config.json and the tokenizer are read.
enum class LoadFormat { kAuto, kDummy };

// How a GPU's memory is shown to other workers.
enum class GpuSharing { kAuto, kDescriptor, kHandle };
enum class KvDtype { kAuto, kFloat32, kBfloat16 };

// What workers compute on. kAuto: on GPUs if there are enough, else on the
// processor.
enum class DeviceChoice { kCpu, kCuda, kAuto };

// How results may depend on layout, ranks and batch (kernels/device.h). kAuto:
// fast on GPUs; the processor is always exact.
enum class NumericsChoice { kAuto, kExact, kFast };

// kIpc is a Unix socket in the group's private directory.
enum class ControlTransport { kIpc, kTcp };

// Which answers say how loaded the group is (coordinator/status/orca.h): those
// to requests that ask for it, or all, in one format.
enum class LoadHeader { kAsked, kText, kJson };

// When commits of the journal are synced. Whatever it says, they survive the
// end of the process, and segments are synced before they take the place of
// others.
//   kNone    never: a loss of power takes the last ones, and can leave holes
//            before later ones, which are found and reported as corruption
//   kStep    once a commit
//   kAlways  after every record of a commit
enum class FsyncPolicy { kNone, kStep, kAlways };

// The checkpoint, and what of it is served. (ModelConfig is what its
// config.json says: model_config.h.)
struct ModelConfigSection {
  std::string path = "models/verse-moe";  // its folder
  std::string served_name;                // empty: the folder's name
  LoadFormat load_format = LoadFormat::kAuto;
  int max_model_len = 0;  // tokens, prompt and output; 0: what config.json says
};

// The workers, and how they wait for one another.
struct WorkersConfig {
  int count = 2;
  int threads = 0;                // of each; 0: cores / count, at least 1
  int step_timeout_ms = 5000;     // a peer that late in a step has failed
  int stall_timeout_ms = 120000;  // without a step's result
  int spin_us = -1;  // spin before sleeping in a barrier; -1: by load
  KvDtype kv_dtype = KvDtype::kAuto;
  int64_t kv_bytes = 0;  // KV memory of each; 0: from scheduler.max_running,
                         // on GPUs what is left
  DeviceChoice device = DeviceChoice::kCpu;
  NumericsChoice numerics = NumericsChoice::kAuto;
  int per_gpu = 1;  // workers that share one GPU
  // Of a GPU's memory, for all workers on it.
  double gpu_memory_fraction = 0.9;
  GpuSharing gpu_sharing = GpuSharing::kAuto;
};

// What coordinator and workers talk over (channel.h).
struct ControlConfig {
  ControlTransport transport = ControlTransport::kIpc;
  // tcp: where the coordinator is reached. Port 0: any free one.
  std::string host = "127.0.0.1";
  int port = 0;
};

// What runs, and how much of it at once.
struct SchedulerConfig {
  int max_running = 256;    // sequences in flight
  int max_queue = 1024;     // generations that wait; beyond it 429
  int token_budget = 2048;  // tokens of one step, prefill and decode
  int steps_ahead = 3;      // plans issued before their predecessor's results
};

// The layout, when it changes, and how long that may take. What it means to a
// group: layout_config.h.
struct LayoutConfig {
  LayoutChoice choice = LayoutChoice::kEp;
  // What the load is to choose among, in any order; none is kAuto.
  std::vector<LayoutChoice> candidates = {LayoutChoice::kEp, LayoutChoice::kTp};
  // Requests in flight at and above which, of two neighbours among the
  // candidates, the one with narrower groups is preferred: ascending, from the
  // widest pair on. Empty: from switch_threshold.
  std::vector<int> thresholds;
  int switch_threshold = 0;  // requests in flight at and above which EP is
                             // preferred; 0: 2 * workers.count
  double hysteresis = 0.25;  // share of the threshold, each side
  int min_dwell_ms = 2000;   // shortest stay in a layout
  int smoothing_ms = 500;    // time constant of the load average
  int prepare_timeout_ms = 2000;
  int switch_timeout_ms = 30000;  // of a committed switch
  int spare_slots = 0;  // slots of expert weights beyond those of the layers;
                        // 0: two where a GPU gains from them, else one
  // Whose passes a GPU has captured; nothing: those of the candidates.
  std::optional<std::vector<LayoutChoice>> resident;
};

// The OpenAI API, and what both listeners hold to (http_server.h).
struct HttpConfig {
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any free one
  int threads = 1;
  int write_interval_us = 2000;  // tokens go to the streams at most this often
  // Keys that clients must show (api_keys.h); empty: none.
  std::string api_keys_file;
  bool allow_unauthenticated = false;    // beyond loopback without keys
  bool allow_request_templates = false;  // a chat may bring its template
  // Without keys: further names under which clients may reach it, and pages
  // that may read its answers, separated by spaces
  // (coordinator/api/admission.h).
  std::string allowed_hosts;
  std::string allowed_origins;
  int max_connections = 8192;  // of this listener
  // Of both listeners.
  int header_timeout_ms = 15'000;
  int body_timeout_ms = 60'000;
  int write_timeout_ms = 30'000;
  int64_t stream_buffer_bytes = int64_t{1} << 20;
  int64_t max_body_bytes = int64_t{4} << 20;
  int not_ready_status = 503;  // of /ready; 404 for balancers that want that
  LoadHeader load_header = LoadHeader::kAsked;
  int waiting_comment_ms = 15000;  // to streams that nothing else goes to; 0:
                                   // none
  int drain_timeout_ms = 30000;

  ListenAddress address() const { return {host, port}; }
};

// Control, status and metrics. Fields as in HttpConfig.
struct AdminConfig {
  std::string host = "127.0.0.1";
  int port = 8001;
  std::string api_key_file;
  std::string allowed_hosts;
  bool allow_unauthenticated = false;
  // Of HAProxy's agent-check, at the same address; -1: none, 0: any free one.
  int agent_port = -1;

  ListenAddress address() const { return {host, port}; }
  ListenAddress agent_address() const { return {host, agent_port}; }
};

// What the coordinator writes down, and for how long it keeps it.
struct JournalConfig {
  std::string dir;  // empty: in the group's private directory
  FsyncPolicy fsync = FsyncPolicy::kNone;
  int64_t rotate_bytes = int64_t{64} << 20;  // growth before it is compacted
  int keep_results_ms = 60000;  // results that ended stay for this long,
  int keep_results = 1024;      // no more of them,
  int64_t keep_results_bytes = int64_t{64} << 20;  // nor of their bytes
  int resume_window_ms = 60000;  // a request without a client goes on for
};

// Faults on purpose.
struct FaultsConfig {
  bool enabled = false;
  std::string arm;       // from the start, separated by spaces (fault_point.h)
  std::string messages;  // what befalls messages (message_faults.h)
};

struct LogConfig {
  LogLevel level = LogLevel::kInfo;  // the least that is written
  LogFormat format = LogFormat::kText;
  bool requests = false;  // a line for each request, at info
};

struct Config {
  ModelConfigSection model;
  WorkersConfig workers;
  ControlConfig control;
  SchedulerConfig scheduler;
  LayoutConfig layout;
  HttpConfig http;
  AdminConfig admin;
  JournalConfig journal;
  FaultsConfig faults;
  LogConfig log;
};

// Whether the KV cache is BF16. By itself it is where GPUs compute fast: there
// reading it takes up to a third of a step.
inline bool HasBfloat16Kv(const WorkersConfig& workers) {
  if (workers.kv_dtype != KvDtype::kAuto) {
    return workers.kv_dtype == KvDtype::kBfloat16;
  }
  return workers.device == DeviceChoice::kCuda &&
         workers.numerics != NumericsChoice::kExact;
}

}  // namespace moebius
