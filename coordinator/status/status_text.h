// The status of a group as text. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/engine/engine.h"

namespace moebius {

// What a server says of itself.
struct ServerInfo {
  std::string version;
  std::string model;  // the name it is served under
  std::string model_path;
  int max_model_len = 0;
  int num_workers = 0;
  double uptime_seconds = 0;
  double started_unix_s = 0;
  int http_connections = 0;
  int64_t pid = 0;  // of the coordinator
  uint64_t term = 1;
};

// Durations in milliseconds, sizes in bytes. These are all keys (a test
// compares them with what is written):
//   {"version", "model", "model_path", "max_model_len", "uptime_s",
//    "pid": the coordinator's, "term": its number,
//    "ready", "draining", "not_ready_reason",
//    "loaded_share": null or 0 to 1,
//    "layout": "ep" or "tp", "layout_choice": "ep" or "tp" or "auto",
//    "switch_state", "last_step", "running", "waiting",
//    "requests": {"total", "finished", "aborted"},
//    "tokens": {"prompt", "generated"},
//    "preemptions",
//    "dropped_tokens": positions to be computed again,
//    "journal": {"trouble": empty or why nothing new is accepted, "bytes"},
//    "recoveries": {"total", "last_ms": from halt to resume},
//    "switches": {"total", "checked": of those, with weights found right,
//                "refused", "last": null or as SwitchReportJson},
//    "nonfinite_logits": {"rows", "last_step", "last_slot"},
//    "step_ms", "decision_us", "load", "http_connections",
//    "padding_bytes": what dividing the experts over the group costs it,
//    "workers": [{"rank", "pid", "incarnation", "connected", "weight_bytes",
//                 "pages_total", "pages_free"}]}
std::string StatusJson(const EngineStatus& status, const ServerInfo& info);

//   {"epoch", "from", "to", "done", "changed": the same, "reason", "boundary",
//    "weight_bytes", "kv_bytes", "prepare_ms", "pause_ms", "switch_ms",
//    "weight_ms", "kv_ms"}
std::string SwitchReportJson(const SwitchReport& report);

// What the last progress probe saw, to tell standing still from having nothing
// to do.
struct ProgressWatch {
  uint64_t step = 0;
  double advanced_at_s = 0;  // when the step was first seen, or work arrived
  bool idle = true;
};
// The watch after a look at `status`.
ProgressWatch Observe(const ProgressWatch& watch, const EngineStatus& status,
                      double now_s);

}  // namespace moebius
