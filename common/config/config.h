// The configuration of a group: what `configs/*.yaml` and the command line may
// say. A plain value; parsing is in config_yaml.h.
#pragma once

#include <cstdint>
#include <string>

#include "common/layout/layout.h"

namespace moebius {

struct ListenAddress {
  std::string host = "127.0.0.1";
  int port = 0;  // 0: any free port
};

enum class LayoutChoice { kEp, kTp, kAuto };

struct Config {
  // model
  std::string model_path = "models/verse-moe";
  std::string served_model_name;  // default: last folder name of model_path
  bool dummy_weights = false;     // load_format: auto | dummy
  int max_model_len = 0;          // 0: what config.json says

  // workers
  int num_workers = 2;
  int threads_per_worker = 0;     // 0: cores / workers, at least 1
  int step_timeout_ms = 5000;     // a peer that late in a step has failed
  int stall_timeout_ms = 120000;  // without a step's result
  int spin_us = -1;          // spin before sleeping in a barrier; -1: by load
  bool kv_bfloat16 = false;  // kv_dtype: float32 | bfloat16
  int64_t kv_bytes = 0;      // KV memory of a worker; 0: from max_running

  // control: between coordinator and workers (channel.h)
  bool control_tcp = false;  // transport: ipc | tcp
  ListenAddress control;     // tcp: the coordinator's

  // scheduler
  int max_running = 256;    // sequences in flight
  int max_queue = 1024;     // accepted and waiting; beyond it 429
  int token_budget = 2048;  // tokens of one step, prefill and decode
  int steps_ahead = 2;      // plans issued before their predecessor's results

  // layout
  LayoutChoice layout = LayoutChoice::kEp;
  int switch_threshold = 0;  // in-flight requests at and above which EP is
                             // preferred; 0: 2 * num_workers
  double hysteresis = 0.25;  // share of the threshold, each side
  int min_dwell_ms = 2000;   // shortest stay in a layout
  int smoothing_ms = 500;    // time constant of the load average
  int prepare_timeout_ms = 2000;
  int switch_timeout_ms = 30000;

  // front
  ListenAddress listen{"127.0.0.1", 8000};
  ListenAddress admin{"127.0.0.1", 8001};
  int http_threads = 1;
  // Keys that clients of a listener must show (api_keys.h); "": none.
  std::string api_keys_file;
  std::string admin_key_file;
  // Beyond loopback without keys all the same.
  bool allow_unauthenticated = false;
  bool admin_allow_unauthenticated = false;
  bool allow_request_templates = false;  // a chat may bring its template
  // Without keys, further names under which clients may reach a listener, and
  // pages that may read the public one's answers (coordinator/api/admission.h).
  std::string allowed_hosts;
  std::string admin_allowed_hosts;
  std::string allowed_origins;
  // Of both listeners (coordinator/http/http_server.h).
  int header_timeout_ms = 15'000;
  int body_timeout_ms = 60'000;
  int write_timeout_ms = 30'000;
  int64_t stream_buffer_bytes = int64_t{1} << 20;
  int64_t max_body_bytes = int64_t{4} << 20;
  int max_connections = 8192;    // of the public listener
  int write_interval_us = 2000;  // tokens go to the streams at most this often
  int waiting_comment_ms = 15000;  // to streams that nothing else goes to
  int drain_timeout_ms = 30000;

  // journal
  std::string journal_dir;  // empty: in the group's private directory
  std::string journal_fsync = "none";  // none | step | always
  int64_t journal_rotate_bytes = int64_t{64} << 20;
  int results_keep_ms = 60000;  // results that ended stay for this long,
  int results_max = 1024;       // no more of them,
  int64_t results_bytes = int64_t{64} << 20;  // nor of their bytes
  int resume_window_ms = 60000;  // a request without a client goes on for

  // faults: see fault_point.h
  bool faults_enabled = false;
  std::string faults;          // armed from the start
  std::string message_faults;  // see message_faults.h

  std::string log_level = "info";
};

// Layout that weights are loaded in. The automatic choice begins with TP, the
// better one when nothing is in flight.
inline Layout InitialLayout(const Config& config) {
  return config.layout == LayoutChoice::kEp
             ? ExpertParallel()
             : TensorParallel(config.num_workers);
}

}  // namespace moebius
