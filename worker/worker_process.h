// A worker as a process of its own.
#pragma once

#include <csignal>
#include <string>

#include "absl/status/status.h"
#include "common/vault/vault_client.h"
#include "worker/worker.h"

namespace moebius {

// What the launcher gave us.
struct WorkerPlace {
  std::string dir;           // the group's private directory
  int control_keys_fd = -1;  // for control.transport: tcp (channel_keys.h)
};

// RunWorker in that place. `vault` outlives the call.
absl::Status RunWorkerProcess(const WorkerOptions& options,
                              const WorkerPlace& place, VaultClient& vault,
                              const volatile std::sig_atomic_t* stop);

}  // namespace moebius
