// How a worker and the coordinator talk to the launcher, which is the vault:
// it keeps a descriptor of every memory region so that memory outlives its
// worker. A SOCK_SEQPACKET Unix socket in the group's private directory
// (mode 0700); the launcher checks the peer's uid and pid (SO_PEERCRED) against
// the processes it started. One message is one packet: a fixed struct, with at
// most one descriptor attached (SCM_RIGHTS).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "common/base/ids.h"

namespace moebius {

inline constexpr std::string_view kVaultSocketName = "vault.sock";

enum class RegionKind : uint8_t {
  kExperts = 0,   // peers: read-only
  kDense = 1,     // peers: not at all
  kKv = 2,        // peers: read-only
  kExchange = 3,  // peers: read-only; of a device read and write
  kSignals = 4,   // peers: read and write
};
inline constexpr int kNumRegionKinds = 5;

constexpr std::string_view RegionKindName(RegionKind kind) {
  switch (kind) {
    case RegionKind::kExperts:
      return "experts";
    case RegionKind::kDense:
      return "dense";
    case RegionKind::kKv:
      return "kv";
    case RegionKind::kExchange:
      return "exchange";
    case RegionKind::kSignals:
      return "signals";
  }
  return "unknown";
}

// What the descriptor of a region is. Each class has rules of its own for what
// is kept and what peers get (deploy/launcher/vault_checks.h).
enum class RegionClass : uint8_t {
  kMemfd = 0,   // host memory
  kDevice = 1,  // memory of a device, exported by its driver
  // A memfd of kMemoryHandleBytes that tells how to find memory of a device,
  // which ends with the process that made it.
  kHandle = 2,
};
inline constexpr int kNumRegionClasses = 3;
inline constexpr int64_t kMemoryHandleBytes = 128;

enum class VaultMessageType : uint8_t {
  kDeposit = 1,   // worker: keep this descriptor (rank, region, region_class,
                  // size_bytes, fd)
                  // -> kDescriptor without one: it is kept
  kWithdraw = 2,  // worker: give me mine (its successor adopts) -> kDescriptor
  kBorrow = 3,    // worker: a peer's (rank, region); waits until deposited
                  // -> kDescriptor, opened read-only except kSignals and
                  // what is of a device
  kDescriptor = 4,  // launcher: the answer to a request (same rank and
                    // region, size_bytes of the memory), fd attached when `ok`;
                    // otherwise `text` says why not
  kProgress = 5,    // worker: done_bytes of size_bytes loaded (weights)
  kReady = 6,     // worker: serving; coordinator: listening (port, admin_port,
                  // checkpoint)
  kFailed = 7,    // either: `text` says why, `lasting` whether a successor
                  // would fail in the same way; the process ends next
  kReplace = 8,   // coordinator: worker `rank` of that `incarnation` makes no
                  // progress: end it, so that a successor takes over
  kWhoIs = 9,     // coordinator: for which rank does process `pid` speak?
                  // -> kDescriptor without one: `ok`, and `speaks_for`
  kTrouble = 10,  // coordinator: what keeps worker `rank`?
                  // -> kDescriptor without one: `ok`; the `incarnation`
                  // that there is now, 0 for none; `text` says why it does not
                  // stay up, or nothing; done_bytes of size_bytes of its
                  // weights are loaded
  kStrayStop = 11,  // coordinator: somebody else sent us SIGTERM
  kAlive = 12,      // coordinator: its engine gets on
};

struct VaultMessage {
  VaultMessageType type = VaultMessageType::kProgress;
  RegionKind region = RegionKind::kExperts;
  uint8_t ok = 0;
  uint8_t answers = 0;  // kDescriptor: the type of the request; else 0
  int32_t rank = 0;     // owner of the region; -1: the coordinator speaks
  uint64_t size_bytes = 0;
  uint64_t done_bytes = 0;
  int32_t port = 0;
  int32_t admin_port = 0;
  uint64_t incarnation = 0;  // kReplace; answer to kTrouble
  int32_t pid = 0;           // kWhoIs
  int32_t speaks_for = -1;   // its answer; -1: for no worker
  uint64_t checkpoint = 0;   // kReady of the coordinator: its fingerprint
  uint8_t lasting = 0;       // kFailed
  RegionClass region_class = RegionClass::kMemfd;  // of the descriptor
  char text[454] = {};                             // NUL-terminated
};
static_assert(sizeof(VaultMessage) == 512);

// Cut to what there is room for.
inline void SetText(std::string_view text, VaultMessage* message) {
  const size_t size = std::min(text.size(), sizeof(message->text) - 1);
  std::memcpy(message->text, text.data(), size);
  message->text[size] = '\0';
}

}  // namespace moebius
