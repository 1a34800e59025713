// A worker as a process of its own.
#pragma once

#include <csignal>
#include <string>

#include "absl/status/status.h"
#include "common/vault_client.h"
#include "worker/worker.h"

namespace moebius {

// RunWorker with the group's private directory `dir` around it. `vault`
// outlives the call.
absl::Status RunWorkerProcess(const WorkerOptions& options,
                              const std::string& dir, VaultClient& vault,
                              const volatile std::sig_atomic_t* stop);

}  // namespace moebius
