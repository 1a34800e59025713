// Where a piece of the checkpoint goes: what loading asks of a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "worker/model/tensor_source.h"

namespace moebius {

// Regions of a rank's memory that hold weights.
enum class WeightRegion { kDense, kExperts };

// What is handed over, in host memory as in a checkpoint, and what becomes of
// it (kernels/formats.h has the packed formats).

// float32 [size], as it is, and zeros behind it.
struct VectorPacking {
  int size = 0;
  int zeros = 0;
};
// BF16 [n][k] -> the panels of a PackedMatrix.
struct MatrixPacking {
  int n = 0;
  int k = 0;
};
// BF16 [n][k] -> a RowParallelMatrix.
struct RowParallelPacking {
  int n = 0;
  int k = 0;
};
// BF16 gate [rows][hidden], up [rows][hidden] and down [hidden][rows], one
// behind the other -> num_pieces ExpertBlocks of piece_rows rows each, stride
// bytes apart. Rows from `rows` on are zeros; `rows` may be 0.
struct ExpertPacking {
  int hidden = 0;
  int rows = 0;
  int piece_rows = 0;
  int num_pieces = 0;
  int64_t stride_bytes = 0;
};

struct WeightPart {
  WeightRegion region = WeightRegion::kDense;
  int64_t offset = 0;  // bytes from the start of the region
  std::variant<VectorPacking, MatrixPacking, RowParallelPacking, ExpertPacking>
      packing;

  int64_t host_bytes() const;    // of what is handed over
  int64_t packed_bytes() const;  // of what becomes of it, zeros among it
};

// A slice of a tensor of made-up weights; of a vector its one row.
struct MadeUpSlice {
  uint64_t seed = 0;  // MadeUpSeed()
  MatrixSlice slice;
};

// WeightSink
//
// Packs parts into the regions of one rank, in any order and maybe beside the
// caller: on CPU in place; on a device through a ring of pinned memory, which
// is why the sink owns the memory that parts are read into.
//
//   std::byte* host = Stage(part.host_bytes());  // waits for room
//   ... read into host ...
//   Put(part);                                   // `host` is the sink's again
//   ...
//   Finish();                                    // all is where it belongs
//
// A sink may take several parts that are staged together, so that they are read
// at once: then each is put in its turn.
//
// Memory: what is staged and not yet packed is bounded by the sink; it takes
// one part of any size.
// Threading: thread-compatible. After an error nothing but the destructor may
// be called; it waits for what is under way.
class WeightSink {
 public:
  virtual ~WeightSink() = default;

  // Parts that may be staged and not yet put, at least 1.
  virtual int MostStaged() const { return 1; }
  // Host memory for one part, a multiple of 64. May wait for parts before it.
  virtual absl::StatusOr<std::byte*> Stage(int64_t size_bytes) = 0;
  // Takes over the first of what is staged. May return before it is packed; an
  // error may be that of a part before it. REQUIRES: Stage(part.host_bytes())
  // came before it.
  virtual absl::Status Put(const WeightPart& part) = 0;
  // Instead of Stage and Put, for a part of made-up weights: these slices, one
  // behind the other. Nothing is staged. False: the sink cannot, or does not
  // gain by it.
  virtual absl::StatusOr<bool> MakeUp(const WeightPart& /*part*/,
                                      absl::Span<const MadeUpSlice>) {
    return false;
  }
  // Waits until all parts are packed. Their first error, if it has not been
  // returned yet.
  virtual absl::Status Finish() = 0;
};

}  // namespace moebius
