// The operators of kernels/*.h for GPUs: the same contracts, whose texts are
// there. None waits for the device.
//
// Exact numerics: a row's results do not depend on what else is in a step. All
// products are of tensor cores, which add the products of a tile in a fixed
// order; activations are split into two BF16 numbers, whose sum has 16 bits.
// Fast: activations are rounded to BF16. The router takes them whole in either.
//
// What an operator needs beyond its arguments:
//   - bases of packed weights are multiples of 256 bytes, and reduced
//     dimensions multiples of 16;
//   - views' rows begin at multiples of 16 bytes;
//   - attention has heads of at most 256 dimensions, and at most 16 query heads
//     a KV head; a router at most 512 experts. More is noted as a failure.
//
// Rows that are padding (rows.h), and what they cost: Embed makes zeros of an
// id that the table has not; products and norms of zeros are zeros;
// PrepareHeads and Attend leave them as they are; Route gives them no expert
// (routing.h), so that Group leaves them out.
#pragma once

#include <cstdint>
#include <type_traits>

#include "absl/types/span.h"
#include "kernels/attend.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/routing.h"
#include "kernels/cuda/rows.h"
#include "kernels/experts.h"
#include "kernels/project.h"
#include "kernels/route.h"
#include "kernels/sample.h"

namespace moebius {

// The device says which numerics; everything else converts as it does where
// there are no templates.
template <class T>
using Given = std::type_identity_t<T>;
template <Numerics N>
using GpuRows = Given<View<float, Cuda<N>>>;
template <Numerics N>
using ConstGpuRows = Given<View<const float, Cuda<N>>>;

// embed.h. `ids` and `rows` are in memory of the GPU.
template <Numerics N>
void Embed(const Cuda<N>& device, Given<const ColumnParallel<Cuda<N>>&> table,
           const int32_t* ids, GpuRows<N> out);
template <Numerics N>
void KeepRows(const Cuda<N>& device, const int32_t* rows, int count,
              GpuRows<N> x);

// norm.h
template <Numerics N>
void RmsNorm(const Cuda<N>& device, ConstGpuRows<N> x,
             Given<const Norm<Cuda<N>>&> norm, GpuRows<N> out);

// project.h. At most 4 parts.
template <Numerics N>
void Project(const Cuda<N>& device, ConstGpuRows<N> x,
             Given<absl::Span<const ColumnParallel<Cuda<N>>>> parts,
             GpuRows<N> out);
template <Numerics N>
void ProjectPartial(const Cuda<N>& device, ConstGpuRows<N> x,
                    Given<const RowSlices<Cuda<N>>&> w,
                    Given<PartialRows<Cuda<N>>> sums);
// The sources may be memory of peers.
template <Numerics N>
void AddPartials(const Cuda<N>& device,
                 Given<absl::Span<const ConstPartialRows<Cuda<N>>>> sources,
                 Given<const ResidualNorm<Cuda<N>>&> to);

// attend.h
template <Numerics N>
void PrepareHeads(const Cuda<N>& device, const HeadShape& shape,
                  Given<const HeadPreparation<Cuda<N>>&> how,
                  Given<const RowSet<Cuda<N>>&> rows,
                  Given<const KvLayer<Cuda<N>>&> kv, GpuRows<N> qkv);
template <Numerics N>
void PrepareQueries(const Cuda<N>& device, const HeadShape& shape,
                    Given<const HeadPreparation<Cuda<N>>&> how,
                    Given<const RowSet<Cuda<N>>&> rows, GpuRows<N> queries);
template <Numerics N>
void SquareHeads(const Cuda<N>& device, int head_dim, ConstGpuRows<N> heads,
                 GpuRows<N> squares);
template <Numerics N>
void Attend(const Cuda<N>& device, const HeadShape& shape,
            Given<const RowSet<Cuda<N>>&> rows,
            Given<const KvLayer<Cuda<N>>&> kv, GpuRows<N> queries);
// The `max_position` from which on it launches the same for `rows` rows, each
// of a sequence of its own, whatever their positions.
template <Numerics N>
int PositionsAttendedAlike(const Cuda<N>& device, int rows, int num_kv);

// route.h
template <Numerics N>
void Route(const Cuda<N>& device, const RouterShape& shape, ConstGpuRows<N> x,
           Given<const ColumnParallel<Cuda<N>>&> router,
           Given<Routing<Cuda<N>>&> routing,
           Given<const Assignments<Cuda<N>>&> out);
template <Numerics N>
void Group(const Cuda<N>& device,
           Given<const Assignments<Cuda<N>>&> assignments, ExpertRange range,
           Given<Routing<Cuda<N>>&> routing);
template <Numerics N>
void GroupAllRows(const Cuda<N>& device, int num_rows,
                  Given<Routing<Cuda<N>>&> routing);

template <Numerics N>
void GroupGatedRows(const Cuda<N>& device, ConstGpuRows<N> x, const float* gate,
                    Given<Routing<Cuda<N>>&> routing);

// experts.h
template <Numerics N>
void Experts(const Cuda<N>& device, Given<const ExpertSlot<Cuda<N>>&> slot,
             int slice_rows, ConstGpuRows<N> x,
             Given<Routing<Cuda<N>>&> routing,
             Given<PartialRows<Cuda<N>>> sums);

// sample.h. The results are there when GpuSampling (cuda/sample.h) has
// collected them.
template <Numerics N>
void Sample(const Cuda<N>& device, GpuRows<N> logits,
            Given<const Samples<Cuda<N>>&> samples);

}  // namespace moebius
