#include "worker/switch/pull.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/checksum.h"
#include "kernels/cpu/pull.h"

namespace moebius {
namespace {

absl::Status CheckMapped(const WorkerMemory& memory) {
  if (memory.peers_mapped()) return absl::OkStatus();
  return absl::FailedPreconditionError("peers are not mapped");
}

// Slots that fit: the product cannot overflow.
int64_t NumSlots(const WorkerMemory& memory, int64_t slot_bytes) {
  return slot_bytes <= 0 ? 0
                         : memory.size_bytes(RegionKind::kExperts) / slot_bytes;
}

}  // namespace

absl::Status CheckSlotPull(const WorkerMemory& memory, const SlotPull& pull) {
  RETURN_IF_ERROR(CheckMapped(memory));
  const int64_t num_slots = NumSlots(memory, pull.slot_bytes);
  for (int slot : {pull.src_slot, pull.dst_slot}) {
    if (slot < 0 || slot >= num_slots) {
      return absl::InvalidArgumentError(
          absl::StrCat("slot ", slot, " of ", num_slots));
    }
  }
  if (pull.src_slot == pull.dst_slot) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", pull.src_slot, " onto itself"));
  }
  return absl::OkStatus();
}

absl::Status CheckSegments(const WorkerMemory& memory, const SlotPull& pull,
                           absl::Span<const CopySegment> segments) {
  return CheckSegments(memory.bases(RegionKind::kExperts), pull.slot_bytes,
                       segments, pull.slot_bytes);
}

absl::StatusOr<int64_t> PullSlot(const WorkerMemory& memory,
                                 const SlotPull& pull,
                                 absl::Span<const CopySegment> segments,
                                 ThreadPool* pool) {
  RETURN_IF_ERROR(CheckSlotPull(memory, pull));
  std::array<const std::byte*, kMaxRanks> sources;
  for (Rank rank = 0; rank < memory.num_ranks(); ++rank) {
    sources[rank] = memory.base(RegionKind::kExperts, rank) +
                    pull.src_slot * pull.slot_bytes;
  }
  RETURN_IF_ERROR(
      PullSegments(absl::MakeConstSpan(sources.data(), memory.num_ranks()),
                   pull.slot_bytes, segments,
                   memory.mutable_base(RegionKind::kExperts) +
                       pull.dst_slot * pull.slot_bytes,
                   pull.slot_bytes, pool));
  int64_t moved = 0;
  for (const CopySegment& segment : segments) moved += segment.size_bytes;
  return moved;
}

PagePuller::PagePuller(const WorkerMemory* memory, int64_t page_bytes)
    : memory_(memory),
      page_bytes_(page_bytes),
      num_pages_(page_bytes > 0
                     ? memory->size_bytes(RegionKind::kKv) / page_bytes
                     : 0),
      uses_(num_pages_, 0) {
  CHECK(page_bytes > 0);
}

// What is wrong with a move, given those before it.
absl::Status PagePuller::Note(const PageMove& move) {
  const Rank own = memory_->rank();
  const int num_ranks = memory_->num_ranks();
  if (move.src_rank < 0 || move.src_rank >= num_ranks || move.dst_rank < 0 ||
      move.dst_rank >= num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("a page from rank ", move.src_rank, " to rank ",
                     move.dst_rank, " of ", num_ranks));
  }
  if (move.src_page >= num_pages_ || move.dst_page >= num_pages_) {
    return absl::InvalidArgumentError(absl::StrCat("page ", move.src_page,
                                                   " to page ", move.dst_page,
                                                   " of ", num_pages_));
  }
  const auto use = [this](PageId page, uint8_t how) {
    noted_.push_back(page);
    return uses_[page] |= how;
  };
  constexpr uint8_t kRead = 1, kWritten = 2;
  if (move.dst_rank == own) {
    if ((uses_[move.dst_page] & kWritten) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("page ", move.dst_page, " is written twice"));
    }
    if (use(move.dst_page, kWritten) == (kRead | kWritten)) {
      return absl::InvalidArgumentError(
          absl::StrCat("page ", move.dst_page, " is read and written"));
    }
  }
  if (move.src_rank == own && use(move.src_page, kRead) == (kRead | kWritten)) {
    return absl::InvalidArgumentError(
        absl::StrCat("page ", move.src_page, " is read and written"));
  }
  return absl::OkStatus();
}

// Leaves uses_ clear whatever it finds.
absl::Status PagePuller::Check(absl::Span<const PageMove> wave) {
  RETURN_IF_ERROR(CheckMapped(*memory_));
  absl::Status status;
  for (const PageMove& move : wave) {
    status = Note(move);
    if (!status.ok()) break;
  }
  for (const PageId page : noted_) uses_[page] = 0;
  noted_.clear();
  return status;
}

absl::StatusOr<int64_t> PagePuller::Pull(absl::Span<const PageMove> wave,
                                         ThreadPool* pool) {
  RETURN_IF_ERROR(Check(wave));
  segments_.clear();
  for (const PageMove& move : wave) {
    if (move.dst_rank != memory_->rank()) continue;
    segments_.push_back({move.src_rank, move.src_page * page_bytes_,
                         move.dst_page * page_bytes_, page_bytes_});
  }
  const int64_t bytes = memory_->size_bytes(RegionKind::kKv);
  RETURN_IF_ERROR(
      PullSegments(memory_->bases(RegionKind::kKv), bytes, segments_,
                   memory_->mutable_base(RegionKind::kKv), bytes, pool));
  return static_cast<int64_t>(segments_.size()) * page_bytes_;
}

uint64_t SlotChecksum(const WorkerMemory& memory, int64_t slot_bytes, int slot,
                      ThreadPool* pool) {
  CHECK(slot >= 0 && slot < NumSlots(memory, slot_bytes));
  return Checksum(Cpu{pool}, {memory.base(RegionKind::kExperts, memory.rank()) +
                                  slot * slot_bytes,
                              static_cast<size_t>(slot_bytes)});
}

}  // namespace moebius
