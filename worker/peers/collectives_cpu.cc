#include "worker/peers/collectives_cpu.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

bool Aligned(const std::byte* base) {
  return base != nullptr && reinterpret_cast<uintptr_t>(base) % 64 == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives<Cpu>>> Collectives<Cpu>::Create(
    const Cpu& device, const Options& options) {
  const int num_ranks = options.shape.num_ranks;
  if (options.rank < 0 || options.rank >= num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("collectives: rank ", options.rank, " of ", num_ranks));
  }
  constexpr int kMaxStepRows = 1 << 20;
  if (options.max_rows < 1 || options.max_rows > kMaxStepRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("collectives: max_rows ", options.max_rows,
                     "; allowed: 1 to ", kMaxStepRows));
  }
  if (!Aligned(options.exchange)) {
    return absl::InvalidArgumentError(
        "collectives: the exchange region is missing or not a multiple of 64");
  }
  const bool alone = num_ranks == 1;
  if (!alone &&
      (options.barrier == nullptr ||
       options.peer_exchange.size() != static_cast<size_t>(num_ranks))) {
    return absl::InvalidArgumentError(
        "collectives: a group needs a barrier and every exchange region");
  }
  for (Rank r = 0; !alone && r < num_ranks; ++r) {
    if (r != options.rank && !Aligned(options.peer_exchange[r])) {
      return absl::InvalidArgumentError(absl::StrCat(
          "collectives: exchange region of rank ", r, " is not mapped"));
    }
  }
  return std::unique_ptr<Collectives>(new Collectives(device, options));
}

Collectives<Cpu>::Collectives(const Cpu& device, const Options& options)
    : shape_(options.shape),
      rank_(options.rank),
      place_(PlanExchange(options.shape, options.max_rows)),
      exchange_(options.exchange),
      peers_(options.peer_exchange),
      barrier_(options.barrier) {
  peers_.resize(static_cast<size_t>(shape_.num_ranks));
  peers_[rank_] = exchange_;
  const int64_t rows = options.max_rows;
  const int64_t assignments = rows * shape_.top_k;
  rows_ = {device, "entered rows", rows * hidden()};
  weights_ = {device, "entered weights", assignments};
  experts_ = {device, "entered experts", assignments};
  squares_ = {device, "squares of heads", rows * NumHeads(shape_)};
}

absl::Status Collectives<Cpu>::Wait() {
  return num_ranks() == 1 ? absl::OkStatus() : barrier_->Wait();
}

FixedRows Collectives<Cpu>::Sums(int which, int rows) const {
  return {reinterpret_cast<int64_t*>(exchange_ + place_.sums[which]), rows,
          hidden(), hidden()};
}

ConstFixedRows Collectives<Cpu>::PeerSums(Rank rank, int which, int first,
                                          int rows) const {
  const int64_t* const base =
      reinterpret_cast<const int64_t*>(peers_[rank] + place_.sums[which]);
  return {base + int64_t{first} * hidden(), rows, hidden(), hidden()};
}

Rows Collectives<Cpu>::HeadSquares(int rows) {
  const int heads = NumHeads(shape_);
  return {reinterpret_cast<float*>(exchange_ + place_.squares), rows, heads,
          heads};
}

absl::StatusOr<ConstRows> Collectives<Cpu>::ShareSquares(int rows,
                                                         IndexRange heads) {
  if (!shared()) return HeadSquares(rows);
  RETURN_IF_ERROR(Wait());
  const int num_heads = NumHeads(shape_);
  for (Rank r = group_begin(); r < group_begin() + attention_.tp_size; ++r) {
    const float* const from =
        reinterpret_cast<const float*>(peers_[r] + place_.squares);
    for (const IndexRange& part : HeadColumns(shape_, attention_, r)) {
      const int begin = std::max(part.begin, heads.begin);
      const int count = std::min(part.end, heads.end) - begin;
      for (int64_t i = 0; count > 0 && i < rows; ++i) {
        std::copy_n(from + i * num_heads + begin, count,
                    squares_.data() + i * num_heads + begin);
      }
    }
  }
  return ConstRows{squares_.data(), rows, num_heads, num_heads};
}

FixedRows Collectives<Cpu>::SharedSums(int rows) {
  return {reinterpret_cast<int64_t*>(exchange_ + place_.shared), rows, hidden(),
          hidden()};
}

absl::Status Collectives<Cpu>::SumAll(const Cpu& device, int which,
                                      const ResidualNorm<Cpu>& to) {
  RETURN_IF_ERROR(Wait());
  ConstFixedRows sources[kMaxRanks];
  const size_t num_sources = static_cast<size_t>(attention_.tp_size);
  for (size_t i = 0; i < num_sources; ++i) {
    sources[i] = PeerSums(group_begin() + static_cast<Rank>(i), which, 0,
                          to.residual.rows);
  }
  AddPartials(device, absl::MakeConstSpan(sources, num_sources), to);
  return absl::OkStatus();
}

void Collectives<Cpu>::SumOwn(const Cpu& device, int which,
                              const ResidualNorm<Cpu>& to) {
  const ConstFixedRows own = Sums(which, to.residual.rows);
  AddPartials(device, absl::MakeConstSpan(&own, 1), to);
}

// In EP a rank has computed all of its rows' attention, and dense MLPs, itself.
absl::Status Collectives<Cpu>::SumAttention(const Cpu& device,
                                            const ResidualNorm<Cpu>& to) {
  if (shared()) return SumAll(device, 0, to);
  SumOwn(device, 0, to);
  return absl::OkStatus();
}

absl::Status Collectives<Cpu>::SumDense(const Cpu& device,
                                        const ResidualNorm<Cpu>& to) {
  if (shared()) return SumAll(device, 1, to);
  SumOwn(device, 0, to);
  return absl::OkStatus();
}

Assignments<Cpu> Collectives<Cpu>::AssignmentsAt(const std::byte* exchange,
                                                 int rows) const {
  // Of a peer they are only read.
  std::byte* const base = const_cast<std::byte*>(exchange);
  return {reinterpret_cast<int32_t*>(base + place_.experts),
          reinterpret_cast<float*>(base + place_.weights), rows, shape_.top_k};
}

Entering<Cpu> Collectives<Cpu>::EnteringRows(int rows) {
  // Every rank routes its group's rows itself; one group has all there are.
  if (!several_groups()) {
    return {{rows_.data(), rows, hidden(), hidden()},
            {experts_.data(), weights_.data(), rows, shape_.top_k}};
  }
  return {{reinterpret_cast<float*>(exchange_ + place_.rows), rows, hidden(),
           hidden()},
          AssignmentsAt(exchange_, rows)};
}

// Pulls the assignments of a rank's rows, and those of the rows that some
// expert here wants.
void Collectives<Cpu>::Gather(Rank rank, int at, int rows, ExpertRange range) {
  const Assignments<Cpu> shown = AssignmentsAt(peers_[rank], rows);
  const int top_k = shown.top_k;
  const size_t count = static_cast<size_t>(rows) * top_k;
  int32_t* const experts = experts_.data() + int64_t{at} * top_k;
  std::memcpy(experts, shown.experts, count * sizeof(int32_t));
  std::memcpy(weights_.data() + int64_t{at} * top_k, shown.weights,
              count * sizeof(float));
  const float* const from =
      reinterpret_cast<const float*>(peers_[rank] + place_.rows);
  const size_t row_bytes = static_cast<size_t>(hidden()) * sizeof(float);
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t* const of_row = experts + i * top_k;
    const bool here = std::any_of(of_row, of_row + top_k, [&](int32_t e) {
      return range.first <= e && e < range.first + range.count;
    });
    if (!here) continue;
    std::memcpy(rows_.data() + (at + i) * hidden(), from + i * hidden(),
                row_bytes);
  }
}

absl::StatusOr<Entered<Cpu>> Collectives<Cpu>::Enter(
    int rows, absl::Span<const int> rows_of_group, ExpertRange range) {
  first_row_ = 0;
  if (several_groups()) {
    RETURN_IF_ERROR(Wait());
    rows = 0;
    for (int g = 0; g < attention_.num_groups(num_ranks()); ++g) {
      if (g == attention_.group_of(rank_)) first_row_ = rows;
      Gather(attention_.first_rank(g) + attention_.part_of(rank_), rows,
             rows_of_group[g], range);
      rows += rows_of_group[g];
    }
  }
  return Entered<Cpu>{{rows_.data(), rows, hidden(), hidden()},
                      {experts_.data(), weights_.data(), rows, shape_.top_k},
                      Sums(1, rows)};
}

absl::Status Collectives<Cpu>::Leave(const Cpu& device, Layout experts,
                                     const ResidualNorm<Cpu>& to) {
  RETURN_IF_ERROR(Wait());
  const int top_k = shape_.top_k;
  const int32_t* const own = experts_.data() + int64_t{first_row_} * top_k;
  const auto ranks_of = [&](int row) {
    uint32_t ranks = 0;
    for (int t = 0; t < top_k; ++t) {
      const RankRange range =
          RanksOfExpert(shape_.experts, experts, own[int64_t{row} * top_k + t]);
      for (Rank r = range.first; r < range.end; ++r) ranks |= 1u << r;
    }
    return ranks;
  };
  // Runs of rows with the same ranks.
  const int rows = to.residual.rows;
  for (int row = 0, end = 0; row < rows; row = end) {
    const uint32_t ranks = ranks_of(row);
    for (end = row + 1; end < rows && ranks_of(end) == ranks;) ++end;
    ConstFixedRows sources[kMaxSumSources];
    size_t num_sources = 0;
    for (Rank r = 0; r < num_ranks(); ++r) {
      if ((ranks >> r & 1) == 0) continue;
      sources[num_sources++] = PeerSums(r, 1, first_row_ + row, end - row);
    }
    for (int i = 0; shape_.num_shared_slices > 0 && i < attention_.tp_size;
         ++i) {
      const int64_t* const base = reinterpret_cast<const int64_t*>(
          peers_[group_begin() + i] + place_.shared);
      sources[num_sources++] = {base + int64_t{row} * hidden(), end - row,
                                hidden(), hidden()};
    }
    AddPartials(device, absl::MakeConstSpan(sources, num_sources),
                {to.residual.RowRange(row, end - row), to.norm,
                 to.normed.RowRange(row, end - row)});
  }
  return absl::OkStatus();
}

Rows Collectives<Cpu>::LogitColumns(int rows) {
  const int columns = LogitShare(shape_, attention_, rank_).size();
  return {reinterpret_cast<float*>(exchange_ + place_.logits[logits_]), rows,
          columns, columns};
}

absl::StatusOr<int> Collectives<Cpu>::ShareLogits(int rows, Rows out) {
  const int64_t at = place_.logits[logits_];
  logits_ ^= 1;
  RETURN_IF_ERROR(Wait());
  const int t = attention_.tp_size;
  int taken = 0;
  // A chunk but the last is a multiple of the ranks long, so that its first row
  // is part 0's.
  for (int i = attention_.part_of(rank_); i < rows; i += t, ++taken) {
    for (Rank r = group_begin(); r < group_begin() + t; ++r) {
      const IndexRange share = LogitShare(shape_, attention_, r);
      const float* const columns =
          reinterpret_cast<const float*>(peers_[r] + at);
      std::memcpy(out.row(taken) + share.begin,
                  columns + int64_t{i} * share.size(),
                  static_cast<size_t>(share.size()) * sizeof(float));
    }
  }
  return taken;
}

}  // namespace moebius
