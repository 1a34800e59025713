// What a coordinator needs before it has an engine: what it was told, its
// group's lock, its way to the workers, the engine's options.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/base/unique_fd.h"
#include "common/channel/channel.h"
#include "common/config/config.h"
#include "common/faults/fault_table.h"
#include "common/vault/vault_client.h"
#include "coordinator/engine/engine_host.h"
#include "coordinator/text/tokenizer.h"

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
};

// A group has one coordinator at a time. To bind takes the control socket from
// whoever has it, so this comes first; held as long as the descriptor is.
// kFailedPrecondition when another one holds it.
absl::StatusOr<UniqueFd> LockGroup(const std::string& dir);

// Nothing if faults are off.
absl::StatusOr<std::unique_ptr<FaultTable>> OpenFaults(
    const CoordinatorOptions& options);

// Bound to be spoken on by workers of the group alone. `vault` outlives it, and
// so does `faults` (null: off).
absl::StatusOr<std::unique_ptr<Hub>> BindHub(const CoordinatorOptions& options,
                                             FaultTable* faults,
                                             VaultClient& vault);

// `tokenizer` and `vault` outlive the engine.
absl::StatusOr<EngineOptions> MakeEngineOptions(
    const CoordinatorOptions& options, const Tokenizer& tokenizer,
    VaultClient& vault);

}  // namespace moebius
