// A worker's memory, and its view of every other worker's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/vault/memory_vault.h"
#include "common/vault/vault_protocol.h"
#include "worker/memory/region.h"
#include "worker/memory/region_maker.h"
#include "worker/memory/signals.h"

namespace moebius {

// Sizes of the regions of a rank, the same on every rank of a group. 0 is
// allowed; the signals region is never smaller than a SignalsBlock.
struct MemoryGeometry {
  std::array<int64_t, kNumRegionKinds> bytes{};

  int64_t& operator[](RegionKind kind) {
    return bytes[static_cast<size_t>(kind)];
  }
  int64_t operator[](RegionKind kind) const {
    return bytes[static_cast<size_t>(kind)];
  }
};

struct WorkerMemoryOptions {
  RegionOptions region;
  // Makes all regions but the signals; outlives the memory.
  const RegionMaker* maker = &MemfdMaker();
  // Allocates our experts region and enters the pages of our peers' at once,
  // whatever region.prefault says, so that no switch meets a page fault.
  bool prefault_experts = true;
  Incarnation incarnation{1};
  absl::Duration vault_timeout = absl::Seconds(10);  // of one request
};

// WorkerMemory
//
// The five regions of one rank, each at a fixed address, and the mappings of
// its peers' experts, kv and exchange (read-only) and signals (read-write).
// A device's exchange regions are mapped read-write: peers push into inboxes
// and flags there, whose contents count for one step alone. Nobody maps
// another's dense region.
//
// Owns: its regions and mappings. The vault's descriptors keep the bytes beyond
// its death; Adopt takes them over.
// Threading: Create, Adopt and MapPeers from one thread; afterwards immutable
// but for MapAnew, so accessors may be called from any. What happens in the
// bytes is for the GroupBarrier to order.
class WorkerMemory {
 public:
  // New, zeroed regions, all deposited in the vault. kInvalidArgument for a
  // rank or sizes that cannot be, kResourceExhausted without memory, and the
  // errors of MemoryVault.
  static absl::StatusOr<std::unique_ptr<WorkerMemory>> Create(
      Rank rank, int num_ranks, const MemoryGeometry& geometry,
      MemoryVault& vault, const WorkerMemoryOptions& options = {});

  // Takes over the regions that a predecessor of this rank deposited, bytes
  // untouched but for its incarnation. REQUIRES: the predecessor was killed and
  // reaped. kFailedPrecondition when what the vault keeps is of another
  // geometry or class, kNotFound when it keeps nothing.
  static absl::StatusOr<std::unique_ptr<WorkerMemory>> Adopt(
      Rank rank, int num_ranks, const MemoryGeometry& geometry,
      MemoryVault& vault, const WorkerMemoryOptions& options = {});

  // The memories of all ranks in this one process, peers mapped (as strictly as
  // between processes), without a vault.
  static absl::StatusOr<std::vector<std::unique_ptr<WorkerMemory>>>
  CreateInProcess(int num_ranks, const MemoryGeometry& geometry,
                  const WorkerMemoryOptions& options = {});

  ~WorkerMemory();
  WorkerMemory(const WorkerMemory&) = delete;
  WorkerMemory& operator=(const WorkerMemory&) = delete;

  // Borrows and maps the regions of every peer, waiting until they are
  // deposited. Errors name rank and region; kFailedPrecondition when a peer has
  // another geometry. After an error nothing is mapped; call it again.
  absl::Status MapPeers(MemoryVault& vault, absl::Duration timeout);

  // Maps a peer's memory anew, at the addresses where it is, if it is not that
  // which the peer's incarnation `memory` made. kAborted when the vault keeps
  // yet another one; after any error the peer's addresses are not to be used.
  // REQUIRES: peers_mapped(); nobody uses the peer's regions meanwhile.
  absl::Status MapAnew(Rank peer, Incarnation memory, MemoryVault& vault);

  // The incarnation that made the signals that we see as a rank's.
  Incarnation memory_of(Rank rank) const {
    return Incarnation{SignalsAt(signals_[rank])->identity.memory};
  }

  Rank rank() const { return rank_; }
  int num_ranks() const { return num_ranks_; }
  bool peers_mapped() const { return peers_mapped_; }

  // Bytes usable in a region of that kind: the geometry's, rounded up.
  int64_t size_bytes(RegionKind kind) const { return own(kind).size_bytes(); }

  // Where this process sees a region of `rank`. Constant once mapped; nullptr
  // for a peer's dense region, or before MapPeers.
  const std::byte* base(RegionKind kind, Rank rank) const {
    return bases_[static_cast<size_t>(kind)][rank];
  }
  // The same for all ranks, as the copy kernels take them.
  absl::Span<const std::byte* const> bases(RegionKind kind) const {
    return {bases_[static_cast<size_t>(kind)].data(),
            static_cast<size_t>(num_ranks_)};
  }
  // Our own region.
  std::byte* mutable_base(RegionKind kind) const {
    return own(kind).mutable_base();
  }
  // The exchange region of any rank to push into; nullptr where it can only be
  // read (a peer's on the processor), or before MapPeers.
  std::byte* mutable_exchange(Rank rank) const {
    if (rank == rank_) return mutable_base(RegionKind::kExchange);
    const auto& region =
        peers_[rank][static_cast<size_t>(RegionKind::kExchange)];
    return region == nullptr ? nullptr : region->mutable_base();
  }
  // The signals region of any rank, for GroupBarrier; nullptr before MapPeers.
  std::byte* signals(Rank rank) const { return signals_[rank]; }
  absl::Span<std::byte* const> all_signals() const {
    return {signals_.data(), static_cast<size_t>(num_ranks_)};
  }
  SignalsBlock* own_signals() const { return SignalsAt(signals_[rank_]); }

 private:
  WorkerMemory(Rank rank, int num_ranks, const WorkerMemoryOptions& options);

  static absl::StatusOr<std::unique_ptr<WorkerMemory>> New(
      Rank rank, int num_ranks, const WorkerMemoryOptions& options);
  absl::Status CreateRegions(const MemoryGeometry& geometry);
  absl::Status CheckClass(RegionKind kind, const RegionDescriptor& from) const;
  absl::StatusOr<std::unique_ptr<Region>> MapPeer(RegionKind kind, Rank peer,
                                                  UniqueFd fd) const;
  RegionOptions OptionsOf(RegionKind kind) const;
  const RegionMaker& MakerOf(RegionKind kind) const;
  absl::Status ShareInProcess(const WorkerMemory& peer);
  void Show(RegionKind kind, Rank rank, const Region& region);
  const Region& own(RegionKind kind) const {
    return *own_[static_cast<size_t>(kind)];
  }

  const Rank rank_;
  const int num_ranks_;
  const WorkerMemoryOptions options_;
  std::array<std::unique_ptr<Region>, kNumRegionKinds> own_;
  // [rank][RegionKind]; null: our own, or not mapped.
  std::array<std::array<std::unique_ptr<Region>, kNumRegionKinds>, kMaxRanks>
      peers_;
  bool peers_mapped_ = false;
  // [rank] The incarnation whose memory all our mappings of a peer are; 0
  // where they may be of several, since it was replaced while we mapped it.
  std::array<Incarnation, kMaxRanks> whole_{};
  // What accessors give: our view of each region of each rank.
  std::array<std::array<const std::byte*, kMaxRanks>, kNumRegionKinds> bases_{};
  std::array<std::byte*, kMaxRanks> signals_{};
};

}  // namespace moebius
