// The copies of a switch: pulls from the peers' regions into our own, as the
// plans of common/layout/layout.h and common/layout/kv_plan.h say. Glue between
// those, the regions and the copies of kernels/cpu/pull.h.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/layout/blocks.h"
#include "common/layout/kv_plan.h"
#include "kernels/thread_pool.h"
#include "worker/memory/worker_memory.h"

namespace moebius {

// Slots of `slot_bytes` in the experts regions, one of the old layout to read
// and one of the new to write (common/layout/layout.h SlotOf).
struct SlotPull {
  int64_t slot_bytes = 0;
  int src_slot = 0;
  int dst_slot = 0;
};

// Builds our slot `pull.dst_slot` from everyone's `pull.src_slot`; the bytes
// moved. `segments` are PlanSlot's, or anything: kInvalidArgument, before a
// byte is written, when a slot or a segment reaches beyond its place, or source
// and destination are one slot. kFailedPrecondition before MapPeers.
//
// Ordering: returns when our slot is complete. Nobody may write a slot that we
// read before the barrier that follows on every rank.
absl::StatusOr<int64_t> PullSlot(const WorkerMemory& memory,
                                 const SlotPull& pull,
                                 absl::Span<const CopySegment> segments,
                                 ThreadPool* pool);

// What of a slot's pull can be wrong before its segments are looked at: errors
// of PullSlot.
absl::Status CheckSlotPull(const WorkerMemory& memory, const SlotPull& pull);

// What of its segments can be wrong. REQUIRES: CheckSlotPull() is OK.
absl::Status CheckSegments(const WorkerMemory& memory, const SlotPull& pull,
                           absl::Span<const CopySegment> segments);

// Executes our share of a wave: the moves whose dst_rank we are; the bytes
// moved. Page p of a rank is at p * page_bytes of its kv region. A move within
// our own rank is a copy. kInvalidArgument, before a byte is written, when a
// rank is none, a page is outside the region, a page is the destination of two
// moves, or one of our destinations is also a source of the wave.
//
// Threading: one call at a time of a PagePuller, which keeps its scratch room
// between calls.
class PagePuller {
 public:
  // REQUIRES: page_bytes > 0.
  PagePuller(const WorkerMemory* memory, int64_t page_bytes);

  absl::StatusOr<int64_t> Pull(absl::Span<const PageMove> wave,
                               ThreadPool* pool);
  // Pull's errors, without a pull.
  absl::Status Check(absl::Span<const PageMove> wave);

 private:
  absl::Status Note(const PageMove& move);

  const WorkerMemory* const memory_;
  const int64_t page_bytes_;
  const int64_t num_pages_;
  std::vector<uint8_t> uses_;  // [page] of ours, in this wave
  std::vector<PageId> noted_;  // those that have any
  std::vector<CopySegment> segments_;
};

// Checksum of one of our slots (kernels/checksum.h), to compare what a
// switch built with what loading the layout afresh would.
// REQUIRES: the slot is inside the experts region.
uint64_t SlotChecksum(const WorkerMemory& memory, int64_t slot_bytes, int slot,
                      ThreadPool* pool);

}  // namespace moebius
