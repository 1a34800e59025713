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
  // Assignments whose groups, of all of router_experts experts, the router has
  // made as well. Of no rows: none.
  Assignments<Cuda<N>> grouped;
  int router_experts = 0;

  bool IsGrouped(const Assignments<Cuda<N>>& assignments,
                 ExpertRange range) const {
    return grouped.rows > 0 && grouped.rows == assignments.rows &&
           grouped.experts == assignments.experts && range.first == 0 &&
           range.count == router_experts;
  }

  // Scratch room of the operators: logits of the router, and the intermediate
  // rows of the experts.
  Buffer<float, Cuda<N>> logits;
  int64_t logit_room = 0;
  Buffer<uint32_t, Cuda<N>>
      arrivals;  // of a kernel's blocks, 0 between kernels
  Buffer<float, Cuda<N>> hidden;
  int64_t hidden_room = 0;
};

// Room for `groups` groups of `entries` assignments; false, and noted, without.
template <Numerics N>
bool MakeRoom(const Cuda<N>& device, int groups, int entries,
              Routing<Cuda<N>>& routing) {
  if (routing.group_room < groups + 1) {
    routing.begins =
        Buffer<int32_t, Cuda<N>>(device, "groups of rows", groups + 1);
    routing.group_room = routing.begins.data() == nullptr ? 0 : groups + 1;
  }
  if (routing.entry_room < entries) {
    routing.rows = Buffer<int32_t, Cuda<N>>(device, "rows of experts", entries);
    routing.weights =
        Buffer<float, Cuda<N>>(device, "weights of experts", entries);
    const bool there =
        routing.rows.data() != nullptr && routing.weights.data() != nullptr;
    routing.entry_room = there ? entries : 0;
  }
  return groups < routing.group_room && entries <= routing.entry_room;
}

}  // namespace moebius
