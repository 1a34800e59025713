// The coordinator from its configuration to its end: engine, listeners, drain.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "common/config.h"
#include "common/ids.h"
#include "common/vault_client.h"

namespace moebius {

struct CoordinatorOptions {
  Config config;
  std::string dir;  // the group's private directory
  Term term{1};
  // Fingerprint of the checkpoint that workers have loaded; 0: find out.
  uint64_t checkpoint = 0;
  // For control.transport: tcp, from the launcher: the socket that workers
  // connect to, and our keys (channel_keys.h).
  int control_listener_fd = -1;
  int control_keys_fd = -1;
  // Measure instead of serving (throughput_bench.h); both or none.
  std::string bench_spec;
  std::string bench_result;
};

// Serves until the launcher's SIGTERM, then drains; OK after an orderly end.
// kDeadlineExceeded when the drain took too long: `num_cut` requests in flight,
// 0 otherwise, were cut.
// REQUIRES: SIGTERM is blocked in every thread (it is waited for here).
absl::Status RunCoordinator(const CoordinatorOptions& options,
                            VaultClient& vault, int* num_cut);

// The same for a measurement.
absl::Status RunThroughputBench(const CoordinatorOptions& options,
                                VaultClient& vault);

}  // namespace moebius
