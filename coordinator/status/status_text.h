// The status of a group as text. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/engine/engine.h"

namespace moebius {

// What a server says of itself.
struct ServerInfo {
  std::string version;
  std::string model;  // the name it is served under
  std::string model_path;
  int max_model_len = 0;
  // Of the group, from the launcher's start to its end: coordinators come and
  // go within it.
  std::string instance_id;
  int num_workers = 0;
  std::vector<Layout> layouts;  // that there are
  int max_queue = 0;
  int token_budget = 0;
  double uptime_seconds = 0;
  double started_unix_s = 0;
  int http_connections = 0;
  int64_t pid = 0;  // of the coordinator
  uint64_t term = 1;
};

// Who reads a status. The API's listener keeps to itself what is of use to an
// operator alone: process ids, paths, and reasons, which may be the last words
// of a worker, with names of files in them.
enum class Audience { kOperators, kClients };

// docs/status.schema.json describes it, and a test compares.
std::string StatusJson(const EngineStatus& status, const ServerInfo& info,
                       Audience audience);

// "definitions/switch" there.
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
