// The experts of a rank, over the rows that are routed to them.
//
// Exactness: with slice_rows independent of the number of ranks, the partial
// sums that EP ranks (whole experts) and TP ranks (slices of every expert) form
// have the same sum.
#pragma once

#include "kernels/formats.h"
#include "kernels/route.h"

namespace moebius {

// For each group e of the routing and each row r of it, with weight w:
//   h = silu(x_r gate_e^T) * (x_r up_e^T) * w;   sums_r += partial(h down_e^T)
// where the last product is cut into slices of slice_rows of the intermediate
// dimension. With biases each product has its own added, that of the last one
// times w, as one partial sum more; the slot's activation may be another one.
// Sums of rows that are in some group begin at zero; those of other rows are
// not touched. An expert of no rows or no pieces is not read. REQUIRES: a group
// for each expert of the slot; hidden == x.cols == sums.cols;
//   slice_rows a multiple of 16 that divides the rows of a piece; rows of the
//   groups inside x and sums.
void Experts(const Cpu& device, const ExpertSlot<Cpu>& slot, int slice_rows,
             ConstRows x, Routing<Cpu>& routing, FixedRows sums);

}  // namespace moebius
