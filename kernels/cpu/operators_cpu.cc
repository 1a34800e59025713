// The operators of a forward pass on the CPU, out of their small parts.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "kernels/attend.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/routing_cpu.h"
#include "kernels/embed.h"
#include "kernels/experts.h"
#include "kernels/project.h"

namespace moebius {
namespace {

absl::Span<const float> WeightOf(const Norm<Cpu>& norm) {
  return {norm.weight, static_cast<size_t>(norm.size)};
}

// Sums of rows that are in some group begin at zero.
void BeginSums(const Cpu& device, const ExpertGroups& groups,
               std::vector<uint8_t>& begun, FixedRows sums) {
  begun.assign(static_cast<size_t>(sums.rows), 0);
  for (const int32_t row : groups.rows) begun[row] = 1;
  const int tasks = std::min(sums.rows, NumThreads(device.pool));
  ParallelFor(device.pool, tasks, [&](int task) {
    const int end = static_cast<int>(int64_t{sums.rows} * (task + 1) / tasks);
    for (int i = static_cast<int>(int64_t{sums.rows} * task / tasks); i < end;
         ++i) {
      if (begun[i] != 0) std::fill_n(sums.row(i), sums.cols, int64_t{0});
    }
  });
}

void AddBias(const float* bias, Rows x) {
  for (int i = 0; i < x.rows; ++i) {
    float* const row = x.row(i);
    for (int j = 0; j < x.cols; ++j) row[j] += bias[j];
  }
}

struct HeadNorm {
  Norm<Cpu> norm;
  ConstRows squares;
};

// Norm and rotation of queries, or of keys.
void PrepareSome(const Cpu& device, const HeadNorm& how,
                 const RowSet<Cpu>& rows, const Rotary<Cpu>& rotary,
                 Rows heads) {
  const bool whole_row = how.norm.size > rotary.head_dim;
  if (whole_row) WholeRowNorm(heads, how.norm, how.squares, device.pool);
  HeadNormRotary(heads,
                 whole_row ? absl::Span<const float>() : WeightOf(how.norm),
                 how.norm.eps, rows.positions, rotary, device.pool);
}

}  // namespace

void RmsNorm(const Cpu& device, ConstRows x, const Norm<Cpu>& norm, Rows out) {
  RmsNorm(x, WeightOf(norm), norm.eps, out, device.pool);
}

void Embed(const Cpu& device, const PackedMatrix& table, const int32_t* ids,
           Rows out) {
  EmbedRows(table, absl::MakeConstSpan(ids, static_cast<size_t>(out.rows)), out,
            device.pool);
}

void KeepRows(const Cpu&, const int32_t* rows, int count, Rows x) {
  const size_t row_bytes = static_cast<size_t>(x.cols) * sizeof(float);
  for (int j = 0; j < count; ++j) {
    CHECK(j <= rows[j] && rows[j] < x.rows);
    if (rows[j] != j) std::memcpy(x.row(j), x.row(rows[j]), row_bytes);
  }
}

void Project(const Cpu& device, ConstRows x,
             absl::Span<const PackedMatrix> parts, Rows out) {
  Gemm(x, parts, out, device.pool);
}

void ProjectPartial(const Cpu& device, ConstRows x, const RowSlices<Cpu>& w,
                    FixedRows sums) {
  ZeroFixedPoint(sums, device.pool);
  RowParallelGemm(x, w.weights, w.k_begin, w.slice_rows, sums, device.pool);
}

void AddPartials(const Cpu& device, absl::Span<const ConstFixedRows> sources,
                 const ResidualNorm<Cpu>& to) {
  ReduceFixedPoint(sources, to.residual, device.pool);
  if (to.bias != nullptr) AddBias(to.bias, to.residual);
  RmsNorm(device, to.residual, to.norm, to.normed);
}

void PrepareHeads(const Cpu& device, const HeadShape& shape,
                  const HeadPreparation<Cpu>& how, const RowSet<Cpu>& rows,
                  const KvLayer<Cpu>& kv, Rows qkv) {
  CHECK(qkv.rows == rows.size && qkv.cols == shape.cols());
  const int q = shape.q_cols(), k = shape.kv_cols();
  const Rows keys = qkv.ColRange(q, k);
  if (q > 0) PrepareQueries(device, shape, how, rows, qkv.ColRange(0, q));
  PrepareSome(device, {how.k_norm, how.k_squares}, rows, how.rotary, keys);
  WriteKv(keys, qkv.ColRange(q + k, k), rows.chunks, shape.num_kv, kv.layer,
          kv.pool, device.pool);
}

void PrepareQueries(const Cpu& device, const HeadShape& shape,
                    const HeadPreparation<Cpu>& how, const RowSet<Cpu>& rows,
                    Rows queries) {
  CHECK(queries.cols == shape.q_cols());
  PrepareSome(device, {how.q_norm, how.q_squares}, rows, how.rotary, queries);
}

void SquareHeads(const Cpu& device, int head_dim, ConstRows heads,
                 Rows squares) {
  HeadSquares(heads, head_dim, squares, device.pool);
}

void Attend(const Cpu& device, const HeadShape& shape, const RowSet<Cpu>& rows,
            const KvLayer<Cpu>& kv, Rows queries) {
  CHECK(queries.rows == rows.size && queries.cols == shape.q_cols());
  PagedAttention(queries, rows.chunks, shape.num_kv, kv, queries, device.pool);
}

void Route(const Cpu& device, const RouterShape& shape, ConstRows x,
           const PackedMatrix& router, Routing<Cpu>& routing,
           const Assignments<Cpu>& out) {
  CHECK(out.rows == x.rows && out.top_k == shape.top_k);
  routing.logits.resize(static_cast<size_t>(x.rows) * router.n);
  const Rows logits{routing.logits.data(), x.rows, router.n, router.n};
  Project(device, x, absl::MakeConstSpan(&router, 1), logits);
  const size_t count = static_cast<size_t>(x.rows) * shape.top_k;
  RouteTopK(logits, shape.top_k, shape.renormalize,
            absl::MakeSpan(out.experts, count),
            absl::MakeSpan(out.weights, count), device.pool);
}

void Group(const Cpu&, const Assignments<Cpu>& assignments, ExpertRange range,
           Routing<Cpu>& routing) {
  const size_t count =
      static_cast<size_t>(assignments.rows) * assignments.top_k;
  GroupByExpert(absl::MakeConstSpan(assignments.experts, count),
                absl::MakeConstSpan(assignments.weights, count),
                assignments.top_k, range.first, range.count, &routing.groups);
}

void GroupAllRows(const Cpu&, int num_rows, Routing<Cpu>& routing) {
  GroupAllRows(num_rows, &routing.groups);
}

void GroupGatedRows(const Cpu& device, ConstRows x, const float* gate,
                    Routing<Cpu>& routing) {
  GroupAllRows(x.rows, &routing.groups);
  std::vector<float>& weights = routing.groups.weights;
  RowDots(x, gate, absl::MakeSpan(weights), device.pool);
  for (float& weight : weights) weight = 1.0f / (1.0f + std::exp(-weight));
}

void Experts(const Cpu& device, const ExpertSlot<Cpu>& slot, int slice_rows,
             ConstRows x, Routing<Cpu>& routing, FixedRows sums) {
  BeginSums(device, routing.groups, routing.begun, sums);
  routing.experts.clear();
  for (int e = 0; e < slot.num_experts; ++e) {
    routing.experts.push_back(slot.expert(e));
  }
  ExpertsFfn(x, routing.experts, routing.groups, slice_rows, sums,
             &routing.workspace, device.pool);
}

}  // namespace moebius
