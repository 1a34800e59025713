// A worker from its configuration to its end: memory, weights, peers, loop.
#pragma once

#include <csignal>
#include <string>

#include "absl/status/status.h"
#include "common/config.h"
#include "common/ids.h"
#include "common/vault_client.h"

namespace moebius {

struct WorkerOptions {
  Config config;
  std::string dir;  // the group's private directory
  Rank rank = 0;
  Incarnation incarnation{1};
  // Go on with the memory of this rank's former life, which the vault keeps.
  bool adopt = false;
};

// Runs the worker until it is shut down or `*stop` is set; then OK. Errors name
// what failed; the caller reports them to the launcher.
absl::Status RunWorker(const WorkerOptions& options, VaultClient& vault,
                       const volatile std::sig_atomic_t* stop);

}  // namespace moebius
