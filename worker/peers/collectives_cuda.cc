#include "worker/peers/collectives_cuda.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

bool Aligned(const std::byte* base) {
  return base != nullptr && reinterpret_cast<uintptr_t>(base) % 256 == 0;
}

absl::Status CheckGroup(const ModelShape& shape, Rank rank,
                        absl::Span<std::byte* const> exchange,
                        absl::Span<std::byte* const> signals) {
  const int num_ranks = shape.num_ranks;
  if (rank < 0 || rank >= num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("collectives: rank ", rank, " of ", num_ranks));
  }
  const size_t size = static_cast<size_t>(num_ranks);
  if (exchange.size() != size || signals.size() != size) {
    return absl::InvalidArgumentError(
        "collectives: a group needs every exchange region, and all signals");
  }
  for (Rank r = 0; r < num_ranks; ++r) {
    if (!Aligned(exchange[r]) || signals[r] == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("collectives: exchange region or signals of rank ", r,
                       " are not mapped, or not at a multiple of 256"));
    }
  }
  return absl::OkStatus();
}

// The head's weights are read once a chunk of rows.
constexpr int64_t kLogitChunkBytes = int64_t{160} << 20;

template <Numerics N>
ExchangeLayout PlanOf(const ModelShape& shape, int max_rows) {
  return PlanExchange(
      shape, max_rows,
      {int{sizeof(typename Cuda<N>::Partial)}, kLogitChunkBytes});
}

// Two a layer, or three of a layout between EP and TP; one more where squares
// of heads are shared, and two in the last; one for each chunk of logits, and
// one at the end.
int MostMeetings(const ModelShape& shape, int max_rows, int logit_rows) {
  if (shape.num_ranks == 1) return 0;
  int of_layer = LayoutsOf(shape.attention).size() > 2 ? 3 : 2;
  for (const LayerSpec& layer : shape.spec.layers) {
    if (std::get<GroupedQueryAttention>(layer.attention).qk_norm !=
        GroupedQueryAttention::QkNorm::kWholeRow) {
      continue;
    }
    ++of_layer;
    break;
  }
  return of_layer * shape.spec.num_layers() +
         (max_rows + logit_rows - 1) / logit_rows + 2;
}

// The places of tokens are behind the rest.
int64_t PlacesAt(const ExchangeLayout& place) {
  return (place.size_bytes + 63) / 64 * 64;
}

}  // namespace

template <Numerics N>
int64_t Collectives<Cuda<N>>::ExchangeBytes(const ModelShape& shape,
                                            int max_rows, int max_slots) {
  return kMeetingLinesBytes + PlacesAt(PlanOf<N>(shape, max_rows)) +
         int64_t{max_slots} * int64_t{sizeof(int32_t)};
}

template <Numerics N>
absl::StatusOr<std::unique_ptr<Collectives<Cuda<N>>>>
Collectives<Cuda<N>>::Create(const D& device, const Options& options) {
  RETURN_IF_ERROR(CheckGroup(options.shape, options.rank, options.exchange,
                             options.signals));
  constexpr int kMaxStepRows = 1 << 20;
  if (options.max_rows < 1 || options.max_rows > kMaxStepRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("collectives: max_rows ", options.max_rows,
                     "; allowed: 1 to ", kMaxStepRows));
  }
  if (options.max_slots < 0 || options.max_slots > kMaxStepRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("collectives: max_slots ", options.max_slots,
                     "; allowed: 0 to ", kMaxStepRows));
  }
  if (options.shape.spec.hidden_size > kMaxSumHidden) {
    return absl::InvalidArgumentError(
        absl::StrCat("collectives: rows of ", options.shape.spec.hidden_size,
                     "; allowed: at most ", kMaxSumHidden));
  }
  if (options.shape.num_ranks > 1 && options.fence == nullptr) {
    return absl::InvalidArgumentError("collectives: a group needs a fence");
  }
  std::unique_ptr<Collectives> collectives(new Collectives(device, options));
  GpuMeetings::Options meetings;
  meetings.rank = options.rank;
  meetings.exchange = options.exchange;
  meetings.signals = options.signals;
  meetings.fence = options.fence;
  meetings.timeout = options.timeout;
  ASSIGN_OR_RETURN(
      collectives->meetings_,
      GpuMeetings::Create(meetings, device.stream, device.failure));
  return collectives;
}

template <Numerics N>
Collectives<Cuda<N>>::Collectives(const D& device, const Options& options)
    : device_(device),
      shape_(options.shape),
      rank_(options.rank),
      place_(PlanOf<N>(options.shape, options.max_rows)),
      exchange_(options.exchange),
      most_waiting_blocks_(options.most_waiting_blocks),
      most_meetings_(
          MostMeetings(options.shape, options.max_rows, place_.logit_rows)) {
  const int64_t rows = options.max_rows;
  const int64_t assignments = rows * shape_.top_k;
  rows_ = {device, "entered rows", rows * hidden()};
  weights_ = {device, "entered weights", assignments};
  experts_ = {device, "entered experts", assignments};
  squares_ = {device, "squares of heads", rows * NumHeads(shape_)};
  token_places_.num_ranks = num_ranks();
  token_places_.count = options.max_slots;
  for (Rank r = 0; r < num_ranks(); ++r) {
    token_places_.of_rank[r] =
        reinterpret_cast<int32_t*>(At(r, PlacesAt(place_)));
  }
  token_places_.own = token_places_.of_rank[rank_];
}

template <Numerics N>
void Collectives<Cuda<N>>::Begin(Layout attention) {
  attention_ = attention;
  meeting_ = 0;
  logits_ = 0;
}

template <Numerics N>
void Collectives<Cuda<N>>::End() {
  if (num_ranks() > 1) LaunchMeeting(Behind(most_meetings_ - 1));
}

template <Numerics N>
int Collectives<Cuda<N>>::NextMeeting(int64_t blocks) {
  if (num_ranks() == 1) return kNoMeeting;
  const int meeting = meeting_++;
  if (1 <= blocks && blocks <= most_waiting_blocks_) return meeting;
  LaunchMeeting(Behind(meeting));
  return kNoMeeting;
}

template <Numerics N>
PartialRows<Cuda<N>> Collectives<Cuda<N>>::Sums(int which, int rows) const {
  return {reinterpret_cast<typename D::Partial*>(At(rank_, place_.sums[which])),
          rows, hidden(), hidden()};
}

template <Numerics N>
Assignments<Cuda<N>> Collectives<Cuda<N>>::AssignmentsOf(Rank rank,
                                                         int rows) const {
  return {reinterpret_cast<int32_t*>(At(rank, place_.experts)),
          reinterpret_cast<float*>(At(rank, place_.weights)), rows,
          shape_.top_k};
}

template <Numerics N>
void Collectives<Cuda<N>>::Sum(int meeting, const RowSources& from,
                               const ResidualNorm<D>& to) const {
  LaunchSum<N>(Behind(meeting), from,
               {to.residual.rows, to.residual.data, to.residual.stride,
                to.normed.data, to.normed.stride, to.norm.weight, to.norm.eps,
                to.bias, to.residual.cols});
}

template <Numerics N>
View<float, Cuda<N>> Collectives<Cuda<N>>::HeadSquares(int rows) {
  const int heads = NumHeads(shape_);
  return {reinterpret_cast<float*>(At(rank_, place_.squares)), rows, heads,
          heads};
}

template <Numerics N>
absl::StatusOr<View<const float, Cuda<N>>> Collectives<Cuda<N>>::ShareSquares(
    int rows, IndexRange heads) {
  if (!shared()) return HeadSquares(rows);
  const int meeting = NextMeeting(rows);
  SquareParts parts;
  parts.num_parts = attention_.tp_size;
  for (int i = 0; i < parts.num_parts; ++i) {
    const Rank r = group_begin() + i;
    const auto columns = HeadColumns(shape_, attention_, r);
    parts.squares[i] = reinterpret_cast<const float*>(At(r, place_.squares));
    parts.q_begin[i] = columns[0].begin;
    parts.q_end[i] = columns[0].end;
    parts.k_begin[i] = columns[1].begin;
    parts.k_end[i] = columns[1].end;
  }
  parts.stride = NumHeads(shape_);
  parts.begin = heads.begin;
  parts.end = heads.end;
  parts.rows = rows;
  parts.out = squares_.data();
  if (rows > 0) LaunchSquares(Behind(meeting), parts);
  return View<const float, D>{squares_.data(), rows, parts.stride,
                              parts.stride};
}

template <Numerics N>
PartialRows<Cuda<N>> Collectives<Cuda<N>>::SharedSums(int rows) {
  return {reinterpret_cast<typename D::Partial*>(At(rank_, place_.shared)),
          rows, hidden(), hidden()};
}

template <Numerics N>
void Collectives<Cuda<N>>::SumAll(int which, const ResidualNorm<D>& to) {
  const int rows = to.residual.rows;
  const int meeting = NextMeeting(rows);
  if (rows == 0) return;
  RowSources from;
  from.num_sources = attention_.tp_size;
  for (int i = 0; i < from.num_sources; ++i) {
    from.sums[i] = At(group_begin() + i, place_.sums[which]);
  }
  Sum(meeting, from, to);
}

template <Numerics N>
void Collectives<Cuda<N>>::SumOwn(int which, const ResidualNorm<D>& to) {
  if (to.residual.rows == 0) return;
  RowSources from;
  from.num_sources = 1;
  from.sums[0] = At(rank_, place_.sums[which]);
  Sum(kNoMeeting, from, to);
}

template <Numerics N>
absl::Status Collectives<Cuda<N>>::SumAttention(const D&,
                                                const ResidualNorm<D>& to) {
  if (shared()) {
    SumAll(0, to);
  } else {
    SumOwn(0, to);
  }
  return absl::OkStatus();
}

template <Numerics N>
absl::Status Collectives<Cuda<N>>::SumDense(const D&,
                                            const ResidualNorm<D>& to) {
  if (shared()) {
    SumAll(1, to);
  } else {
    SumOwn(0, to);
  }
  return absl::OkStatus();
}

template <Numerics N>
Entering<Cuda<N>> Collectives<Cuda<N>>::EnteringRows(int rows) {
  // Every rank routes its group's rows itself; one group has all there are.
  if (!several_groups()) {
    return {{rows_.data(), rows, hidden(), hidden()},
            {experts_.data(), weights_.data(), rows, shape_.top_k}};
  }
  return {{reinterpret_cast<float*>(At(rank_, place_.rows)), rows, hidden(),
           hidden()},
          AssignmentsOf(rank_, rows)};
}

template <Numerics N>
absl::StatusOr<Entered<Cuda<N>>> Collectives<Cuda<N>>::Enter(
    int rows, absl::Span<const int> rows_of_group, ExpertRange range) {
  first_row_ = 0;
  if (several_groups()) {
    ShownRows from;
    from.num_groups = attention_.num_groups(num_ranks());
    rows = 0;
    for (int g = 0; g < from.num_groups; ++g) {
      const Rank r = attention_.first_rank(g) + attention_.part_of(rank_);
      if (r == rank_) first_row_ = rows;
      from.first_row[g] = rows;
      from.rows[g] = reinterpret_cast<const float*>(At(r, place_.rows));
      const Assignments<D> shown = AssignmentsOf(r, rows_of_group[g]);
      from.experts[g] = shown.experts;
      from.weights[g] = shown.weights;
      rows += rows_of_group[g];
    }
    const int meeting = NextMeeting(rows);
    if (rows > 0) {
      LaunchGather(Behind(meeting), from,
                   {rows, rows_.data(), experts_.data(), weights_.data(),
                    hidden(), shape_.top_k, range});
    }
  }
  return Entered<D>{{rows_.data(), rows, hidden(), hidden()},
                    {experts_.data(), weights_.data(), rows, shape_.top_k},
                    Sums(1, rows)};
}

template <Numerics N>
absl::Status Collectives<Cuda<N>>::Leave(const D&, Layout experts,
                                         const ResidualNorm<D>& to) {
  const int rows = to.residual.rows;
  const int meeting = NextMeeting(rows);
  if (rows == 0) return absl::OkStatus();
  RowSources from;
  from.num_sources = num_ranks();
  for (Rank r = 0; r < num_ranks(); ++r) {
    from.sums[r] =
        reinterpret_cast<const typename D::Partial*>(At(r, place_.sums[1])) +
        int64_t{first_row_} * hidden();
  }
  if (shape_.num_shared_slices > 0) {
    from.num_shared = attention_.tp_size;
    for (int i = 0; i < from.num_shared; ++i) {
      from.shared[i] = At(group_begin() + i, place_.shared);
    }
  }
  from.experts = experts_.data() + int64_t{first_row_} * shape_.top_k;
  from.top_k = shape_.top_k;
  from.tp_size = experts.tp_size;
  from.group_experts = experts.tp_size * shape_.experts.experts_per_block();
  Sum(meeting, from, to);
  return absl::OkStatus();
}

template <Numerics N>
View<float, Cuda<N>> Collectives<Cuda<N>>::LogitColumns(int rows) {
  return {reinterpret_cast<float*>(At(rank_, place_.logits[logits_])), rows,
          LogitShare(shape_, attention_, rank_).size(),
          static_cast<ptrdiff_t>(place_.logit_cols)};
}

template <Numerics N>
absl::StatusOr<int> Collectives<Cuda<N>>::ShareLogits(int rows,
                                                      View<float, D> out) {
  LogitParts parts;
  const int t = attention_.tp_size, part = attention_.part_of(rank_);
  parts.num_parts = t;
  for (int i = 0; i < t; ++i) {
    const Rank r = group_begin() + i;
    const IndexRange share = LogitShare(shape_, attention_, r);
    parts.columns[i] =
        reinterpret_cast<const float*>(At(r, place_.logits[logits_]));
    parts.begin[i] = share.begin;
    parts.size[i] = share.size();
  }
  logits_ ^= 1;
  parts.stride = static_cast<int>(place_.logit_cols);
  // A chunk but the last is a multiple of the ranks long, so that its first row
  // is part 0's.
  parts.first_row = part;
  parts.every = t;
  parts.rows = rows > part ? (rows - part + t - 1) / t : 0;
  parts.out = out.data;
  parts.out_stride = out.stride;
  const int meeting = NextMeeting(LogitBlocks(parts));
  if (parts.rows > 0) LaunchLogits(Behind(meeting), parts);
  return parts.rows;
}

template class Collectives<CudaExact>;
template class Collectives<CudaFast>;

}  // namespace moebius
