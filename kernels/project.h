// Products with weights, and the sums that ranks share.
//
// Exact numerics: a result is the same bits whatever the other rows of the
// batch, the number of threads, and the way ranks share the work. A
// row-parallel product is cut into slices of its reduced dimension that do not
// depend on the number of ranks, and the slices' sums are added in a way that
// has no order (fixed point on CPU: kernels/cpu/gemm.h).
#pragma once

#include "absl/types/span.h"
#include "common/base/ids.h"
#include "kernels/formats.h"
#include "kernels/norm.h"

namespace moebius {

// out = x * concat(parts)^T + their biases: the parts' outputs stand side by
// side, in order. A rank passes its ranges of Q, K and V at once. REQUIRES:
// part.k == x.cols; out.cols == sum of part.n; out.rows == x.rows.
void Project(const Cpu& device, ConstRows x,
             absl::Span<const PackedMatrix> parts, Rows out);

// A rank's part of a row-parallel product: steps [k_begin, k_begin + x.cols) of
// the reduced dimension, in slices of slice_rows.
template <class D>
struct RowSlices {
  RowParallel<D> weights;
  int k_begin = 0;
  int slice_rows = 0;
};

// sums = partial sums of x * W^T.
// REQUIRES: k_begin and x.cols multiples of slice_rows, inside W; sums is
//   [x.rows][W.n].
void ProjectPartial(const Cpu& device, ConstRows x, const RowSlices<Cpu>& w,
                    FixedRows sums);

// What becomes of partial sums: they are added to the residual stream, and the
// next operator wants that normalised.
template <class D>
struct ResidualNorm {
  View<float, D> residual;
  Norm<D> norm;
  View<float, D> normed;
  const float* bias = nullptr;  // [cols], added with the sums; null: none
};

// Two of each rank: of a layer's experts, and of what every row goes to.
inline constexpr int kMaxSumSources = 2 * kMaxRanks;

// to.residual += sum of the sources, and then to.bias; to.normed =
// RmsNorm(to.residual).
// REQUIRES: equal shapes; 1 to kMaxSumSources sources.
void AddPartials(const Cpu& device, absl::Span<const ConstFixedRows> sources,
                 const ResidualNorm<Cpu>& to);

}  // namespace moebius
