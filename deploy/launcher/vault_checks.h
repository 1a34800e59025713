// What the vault accepts: directories, messages and memory.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/vault/vault_protocol.h"

namespace moebius {

// kPermissionDenied unless it is a directory of ours with mode 0700 (not
// through a symbolic link).
absl::Status CheckVaultDirectory(const std::string& directory);

// What of a message can be checked without knowing who sent it.
absl::Status CheckVaultMessage(const VaultMessage& message,
                               bool has_descriptor);

// The error of a message that no process of the group sends.
absl::Status MalformedMessage(absl::string_view what);

// Whether a descriptor can be kept: memory of the stated size that nobody can
// shrink and that a successor can map for writing.
absl::Status CheckKeepable(int fd, uint64_t size_bytes);

}  // namespace moebius
