// Checksums of expert weights in memory of a GPU: the value of checksum.h, of
// many units of rows at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

struct CUstream_st;

namespace moebius {

// The units of rows in a slot (common/layout/blocks.h), and the places in the
// model that they have (worker/switch/weight_checksum.h).
struct SlotUnits {
  const std::byte* slot = nullptr;  // aligned to 8 bytes
  int64_t unit_bytes = 0;           // a multiple of 8
  int64_t block_bytes = 0;          // from an expert's piece to its next
  int experts_per_block = 0;
  int num_experts = 0;  // in the slot
  int num_pieces = 0;   // of an expert
  int piece_units = 0;  // of one of the three matrices in a piece
  // Of the model: the first expert, counted through all layers; units of a
  // whole matrix, and the first that lies here.
  int64_t first_expert = 0;
  int64_t matrix_units = 0;
  int64_t first_unit = 0;
};

// Thread blocks that a multiprocessor has room for.
inline constexpr int kChecksumBlocksAMultiprocessor = 5;

// Adds to *sum, modulo 2^64, the hash of each unit: SplitMix of Checksum(unit)
// + SplitMix(place + 1). Each warp takes a unit at a time.
//   grid   thread blocks of 256 threads at most
//   stop   nothing more is read once it is not 0, within one unit, and the sum
//          is any number. In memory of the GPU: a million looks a second at a
//          word of the host's are all that there can be. Null: all is read.
//   sum    in memory of the GPU
// Ordering: asynchronous; returns at once. Errors are those of the launch.
absl::Status LaunchUnitChecksums(const SlotUnits& units, int grid,
                                 const uint32_t* stop, uint64_t* sum,
                                 CUstream_st* stream);

}  // namespace moebius
