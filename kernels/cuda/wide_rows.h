// Products of many rows on Hopper, by its warpgroup products (wgmma). Fast
// numerics alone: how such a product adds is the instruction's own.
//
// Weights go from memory into registers, as they lie (tiles.h); rows are
// rounded to BF16 once, in the workspace, and go through shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"
#include "kernels/cuda/operators.h"

namespace moebius::wide {

// Whether the calling thread's GPU has such products.
bool HasWarpgroups();
// And the device a workspace.
bool CanMultiply(const CudaFast& device);

// And products of so many rows and panels of 16 outputs are quicker than by the
// general kernels, as follows from an H200's times at 32 to 128 rows.
bool ShouldMultiply(const CudaFast& device, int rows, int panels);

inline constexpr int kMaxParts = 4;
inline constexpr int kMaxGroups = 1024;

// Where tiles lie, in words of 16 bytes: from a panel to the next one, and from
// 16 steps of the reduced dimension to the next ones, which are in pieces of
// piece_tiles.
struct TilePlaces {
  ptrdiff_t panel = 0;
  ptrdiff_t tile = 0;
  ptrdiff_t piece = 0;
  int piece_tiles = 0;
  int num_tiles = 0;
};

// out = x * W^T and the parts' biases for all rows. Parts stand side by side;
// part i ends before panel panel_ends[i].
struct DenseProduct {
  const Bf16* parts[kMaxParts] = {};
  const float* biases[kMaxParts] = {};  // null: none
  int panel_ends[kMaxParts] = {};
  int num_parts = 0;
  TilePlaces places;
  View<const float, CudaFast> x;
  View<float, CudaFast> out;
};
// REQUIRES: rows, panels and a reduced dimension.
void Multiply(const CudaFast& device, const char* what,
              const DenseProduct& product);

// As Experts (experts.h), of at most kMaxGroups groups. `hidden` is of
// [max_entries][intermediate].
struct ExpertProducts {
  ExpertSlot<CudaFast> slot;
  View<const float, CudaFast> x;
  const Routing<CudaFast>* routing = nullptr;
  Bf16* hidden = nullptr;
  PartialRows<CudaFast> sums;
};
void MultiplyExperts(const CudaFast& device, const ExpertProducts& products);

}  // namespace moebius::wide
