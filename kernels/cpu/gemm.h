// Products with weights, exact in the sense of ARCHITECTURE.md ("Numerics"):
// a result is the same bits whatever the other rows of the batch, the number
// of threads, and the way ranks share the work.
//
//   Gemm             columns shared: every output is one chain
//                    acc = fma(w[k], x[k], acc), k ascending from 0, and then
//                    its bias.
//   RowParallelGemm  the reduced dimension shared: it is cut into slices that
//                    do not depend on the number of ranks; a slice's sum is
//                    such a chain, clamped to +-kFixedPointLimit, rounded to
//                    fixed point and added as an integer. Integer addition has
//                    no order, so any sharing of slices gives the same sum.
//   ReduceFixedPoint adds the ranks' integers and rounds to float once.
//
// Targets without a fused multiply-add round twice a step: results are equal
// across machines only where the instruction set is.
//
// REQUIRES everywhere: shapes agree (else CHECK); outputs overlap nothing else.
// Threading: a null pool means the calling thread alone.
#pragma once

#include "absl/types/span.h"
#include "kernels/formats.h"
#include "kernels/thread_pool.h"

namespace moebius {

// out[:, :] = x * concat(parts)^T + their biases. The parts' outputs stand side
// by side in `out`, in order: a TP rank passes its ranges of Q, K and V at
// once. REQUIRES: part.k == x.cols; out.cols == sum of part.n; out.rows ==
// x.rows.
void Gemm(ConstRows x, absl::Span<const PackedMatrix> parts, Rows out,
          ThreadPool* pool);
inline void Gemm(ConstRows x, PackedMatrix w, Rows out, ThreadPool* pool) {
  Gemm(x, absl::MakeConstSpan(&w, 1), out, pool);
}

// acc[i][j] += sum over slices of fixed(sum over k in slice of
//   x[i][k - k_begin] * W[j][k]), for k in [k_begin, k_begin + x.cols).
//
// Slices are [s * slice_rows, (s + 1) * slice_rows) of the whole k. The weights
// may be a rank's own block (then k_begin = 0 and its k is local) or the full
// matrix with a range of it.
// REQUIRES: slice_rows even; k_begin and x.cols multiples of slice_rows;
//   k_begin + x.cols <= w.k; acc.cols == w.n.
// A NaN in a partial sum becomes some value within the limit.
void RowParallelGemm(ConstRows x, RowParallelMatrix w, int k_begin,
                     int slice_rows, FixedRows acc, ThreadPool* pool);

void ZeroFixedPoint(FixedRows acc, ThreadPool* pool);

// residual[i][j] += float(sum over sources of source[i][j] * 2^-32), the
// integers' sum rounded to float once (to nearest, ties to even).
// REQUIRES: every source has residual's shape; 1 to kMaxSumSources sources.
void ReduceFixedPoint(absl::Span<const ConstFixedRows> sources, Rows residual,
                      ThreadPool* pool);

}  // namespace moebius
