// What a GPU keeps between router and experts.
#pragma once

#include <cstdint>

#include "kernels/cuda/buffer.h"
#include "kernels/route.h"

namespace moebius {

// Grows outside of captures only: the first passes are of the most rows.
template <Numerics N>
class Routing<Cuda<N>> {
 public:
  // The rows of group e are rows[begins[e] .. begins[e + 1]), their weights
  // beside them; a row comes in order of its number.
  int num_groups = 0;
  int max_entries = 0;  // assignments that there may be
  int num_rows = 0;     // of x
  // Of the rows that are routed; one at a position below 0 is padding, and goes
  // to no expert: ids -1, weights 0. Null: all are rows.
  const int32_t* positions = nullptr;
  Buffer<int32_t, Cuda<N>> begins;  // [num_groups + 1]
  Buffer<int32_t, Cuda<N>> rows;    // [max_entries]
  Buffer<float, Cuda<N>> weights;   // [max_entries]
  // Room that the buffers have.
  int group_room = 0;
  int entry_room = 0;

  // Scratch room of the operators: logits of the router, and the intermediate
  // rows of the experts.
  Buffer<float, Cuda<N>> logits;
  int64_t logit_room = 0;
  Buffer<float, Cuda<N>> hidden;
  int64_t hidden_room = 0;
};

}  // namespace moebius
