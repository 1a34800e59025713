// The coordinator from its configuration to its end: engine, listeners, drain.
#pragma once

#include "absl/status/status.h"
#include "common/vault/vault_client.h"
#include "coordinator/coordinator_setup.h"

namespace moebius {

// Serves until the launcher's SIGTERM, then drains; OK after an orderly end.
// kDeadlineExceeded when the drain took too long: `num_cut` requests in flight,
// 0 otherwise, were cut.
// REQUIRES: SIGTERM is blocked in every thread (it is waited for here).
absl::Status RunCoordinator(const CoordinatorOptions& options,
                            VaultClient& vault, int* num_cut);

}  // namespace moebius
