// Rows of a step and samples as operators of a GPU take them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/base/ids.h"
#include "kernels/attend.h"
#include "kernels/cuda/buffer.h"
#include "kernels/sample.h"

namespace moebius {

// A QueryChunk in memory of the GPU.
struct GpuChunk {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t first_position = 0;
  int32_t pages_at = 0;  // of its pages in RowSet::pages
};

// What attention keeps between passes: results of parts of a row's positions.
// Grows outside of captures only: the first passes are of the most rows at the
// highest positions.
template <Numerics N>
struct AttentionScratch {
  Buffer<float, Cuda<N>> partials;
  int64_t room = 0;  // floats
};

// All pointers but `scratch` are to memory of the GPU. Sizes and `max_` may be
// larger than what is there, as those of a captured pass are:
//   - rows behind the last one are padding: position -1, token -1, and a chunk
//     that has no rows. Their activations are zeros from the embedding to the
//     logits, nothing of them is stored, and they go to no expert.
//   - chunks behind the last one have no rows.
template <Numerics N>
struct RowSet<Cuda<N>> {
  int size = 0;
  const int32_t* positions = nullptr;  // [size]
  const int32_t* chunk_of = nullptr;   // [size] index of the row's chunk
  const GpuChunk* chunks = nullptr;    // [num_chunks] of all of the rows
  int num_chunks = 0;
  int max_chunk_rows = 0;
  int max_position = 0;             // of any row
  const uint32_t* pages = nullptr;  // QueryChunk::pages of all chunks
  // Null: no two blocks of threads share a row and KV head, which takes long
  // where rows are few and positions are high.
  AttentionScratch<N>* scratch = nullptr;
};

// Where tokens that are drawn are kept for passes behind, by place. A pass
// whose host does not know a token yet names the place instead, as
// TokenAtPlace.
struct TokenPlaces {
  int32_t* own = nullptr;
  int32_t* of_rank[kMaxRanks] = {};  // own among them
  int num_ranks = 0;
  int count = 0;
};

template <Numerics N>
class GpuSampling;

// Places of a pass (cuda/sample.h).
template <Numerics N>
struct Samples<Cuda<N>> {
  // Work that only some rows need. What is not named here is not launched.
  enum : uint32_t {
    kEdits = 1,      // logits are changed first
    kTruncated = 2,  // draws with top-k, top-p or min-p
    kLogprobs = 4,
    kAllStages = 7,
  };
  GpuSampling<N>* sampling = nullptr;  // null: the logits stay where they are
  int first = 0;
  int step = 1;  // to the next one
  int count = 0;
  uint32_t stages = kAllStages;
  // Of row `begin`, and every `every` rows on.
  Samples Each(int begin, int every, int rows) const {
    return {sampling, first + begin * step, step * every, rows, stages};
  }
};

}  // namespace moebius
