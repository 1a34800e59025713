// What the vault accepts: directories, messages and memory.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/unique_fd.h"
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

// What the vault keeps of one region of a rank.
struct KeptRegion {
  UniqueFd fd;
  uint64_t size_bytes = 0;
  RegionClass region_class = RegionClass::kMemfd;
};
// [RegionKind] of one rank; without a descriptor: nothing.
using KeptRegions = std::array<KeptRegion, kNumRegionKinds>;

// Makes a descriptor fit to be kept beside what its rank has deposited already.
// The error says why it cannot be.
//
// kMemfd: memory of the stated size that nobody can shrink and that a successor
// can map for writing. From now on whoever opens it anew can only read.
//
// kDevice: to a process without the driver an exported descriptor is a
// character device, the same one for every allocation: it has neither size nor
// seals nor an identity. So what can be checked is that it is one, and the
// order: regions come in the order of their kinds. The signals, which are host
// memory always and say whose memory all of it is, so come last, and a rank
// cannot put other memory under signals that peers have seen.
//
// kHandle: a memfd as above, but of a handle's size; the order is that of
// kDevice.
absl::Status AdmitRegion(const KeptRegions& kept, RegionKind kind,
                         RegionClass region_class, int fd, uint64_t size_bytes);

// Closes what is of no use without its process: handles.
void DropHandles(KeptRegions& kept);

// What a peer gets: memory opened anew for reading only, but signals as they
// are. Of a device what is kept, since the driver does not import a descriptor
// that was opened anew; that it is only read is for the peer's mapping to see
// to. `opened` holds the descriptor if it is a new one.
absl::StatusOr<int> DescriptorForPeer(const KeptRegion& kept, RegionKind kind,
                                      UniqueFd& opened);

}  // namespace moebius
