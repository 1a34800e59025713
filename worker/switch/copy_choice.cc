#include "worker/switch/copy_choice.h"

#include <algorithm>

#include "common/base/check.h"

namespace moebius {
namespace {

// Thread blocks that keep the links to other GPUs busy; with 132 or 264 they
// are no faster (330, 334, 323, 322 GB/s by 12, 24, 132, 264).
constexpr int kLinkGrid = 24;
// As many as copy the own block while engines fetch another's of its size.
constexpr int kBesideGrid = 32;
// Within a GPU, of all ranks together. A rank needs 32 at least.
constexpr int kBlocksAMultiprocessor = 4;
constexpr int kLeastGrid = 32;

// Above it one spare slot is within 8 % of the copies' own time, and a second
// one of 8 ranks would be 0.25 % of an H200 and more.
constexpr int64_t kOneSlotBlockBytes = int64_t{44} << 20;

}  // namespace

int SpareSlotsByDefault(int num_ranks, int64_t block_bytes) {
  return num_ranks > 1 && block_bytes < kOneSlotBlockBytes ? 2 : 1;
}

CopyChoice ChooseCopies(const CopyShape& shape) {
  CHECK(shape.ranks_on_gpu >= 1 && shape.ranks_on_gpu <= shape.num_ranks);
  if (shape.ranks_on_gpu == shape.num_ranks) {
    const int grid =
        std::max(kLeastGrid, kBlocksAMultiprocessor *
                                 shape.num_multiprocessors / shape.num_ranks);
    return {.peer_grid = 0,
            .own_grid = shape.block_bytes >= kDriverBlockBytes ? 0 : grid,
            .page_grid = grid};
  }
  return {.peer_grid = shape.block_bytes >= kEngineBlockBytes ? 0 : kLinkGrid,
          .own_grid = kBesideGrid,
          .page_grid = kLinkGrid};
}

}  // namespace moebius
