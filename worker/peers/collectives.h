// What the ranks of a group do together in a pass, as the model sees it.
//
// A MoE layer enters from attention's layout (every rank gets the rows that its
// experts want), computes the experts of this layer's layout, and leaves for
// attention's again (the sums go where the rows are). The model puts rows and
// sums where it is told to here, and meets no barrier.
//
// The ranks of an attention group share their rows: each computes its heads of
// them, and once these are summed within the group, each has the same rows with
// the same bits. So any of them can show the rows to other groups; rank r takes
// them from the rank of each group that is the same part as r, which spreads
// the reading evenly.
#pragma once

#include "kernels/formats.h"
#include "kernels/route.h"

namespace moebius {

// Where a rank puts its rows of a MoE layer, normalised, and their routing.
template <class D>
struct Entering {
  View<float, D> x;
  Assignments<D> assignments;
};

// The rows that may go to experts of this rank. Only those that do are there;
// their sums belong into `sums`.
template <class D>
struct Entered {
  View<const float, D> x;
  Assignments<D> assignments;
  PartialRows<D> sums;
};

// Collectives
//
// Calls come in the order of the model's layers, the same on every rank, also
// without rows:
//
//   Begin                                     a pass
//   HeadSquares, ShareSquares                 where heads are normed by those
//                                             of all, of queries and of keys
//   AttentionSums, SumAttention               each layer
//   SharedSums                                a MoE layer with an expert that
//                                             all rows go to
//   Entering, Enter, Leave                    a MoE layer
//   DenseSums, SumDense                       a dense layer
//   LogitColumns, ShareLogits                 but in EP, for each chunk of
//                                             rows of the group with most
//
// Errors: of a rank that did not come in time or gave up; the pass is over
// then, and may be run again once the group is in step again. A device that
// does not wait on the host reports them later, and what follows returns at
// once.
template <class D>
class Collectives;

}  // namespace moebius
