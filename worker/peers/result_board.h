// Where each rank's device puts what the rows of its passes gave, for the hosts
// of all ranks. Part of the signals region.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "kernels/cuda/results.h"

namespace moebius {

// ResultBoard
//
// Of each of the last kPassCopies passes, the rows in their order: pass p at
// p % kPassCopies. Which rows there are, every host knows from the plan.
//
// A device writes before the meeting that ends a pass, so that a host which has
// seen the pass's end sees every rank's results. Nobody waits before they are
// overwritten. It is late enough: a rank has no more than kPassCopies / 2
// passes under way, and reads a pass when it ends. Let some rank prepare pass
// p + 4. It has seen the end of p + 2, which all ranks have thus launched; so
// each of them had finished pass p.
//
//   rank A    p  p+1  p+2        (p+2 has ended: p+4 may be prepared)
//   rank B    p  p+1  p+2        (p+2 is launched: p was read)
//
// Threading: thread-compatible.
class ResultBoard {
 public:
  static int64_t SizeBytes(int max_rows) {
    return int64_t{kPassCopies} * max_rows *
           static_cast<int64_t>(sizeof(GpuSampledRow));
  }

  // `boards[r]`: that of rank r as mapped here.
  ResultBoard(std::vector<const std::byte*> boards, int max_rows)
      : boards_(std::move(boards)), max_rows_(max_rows) {}

  // What it shows is a peer's, and to be checked.
  GpuSampledRow At(Rank rank, uint64_t pass, int row) const {
    const auto* const rows =
        reinterpret_cast<const GpuSampledRow*>(boards_[rank]);
    return rows[static_cast<int64_t>(pass % kPassCopies) * max_rows_ + row];
  }
  int max_rows() const { return max_rows_; }

 private:
  const std::vector<const std::byte*> boards_;
  const int max_rows_;
};

}  // namespace moebius
