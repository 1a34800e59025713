#include "tests/unit/worker/model/recorder.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "kernels/embed.h"
#include "kernels/experts.h"
#include "worker/model/decoder-inl.h"
#include "worker/peers/exchange.h"

namespace moebius {
namespace {

// What may not be there.
std::string ShowMore(const CallLog& log, const char* before, const void* at) {
  return at == nullptr ? "" : absl::StrCat(before, log.Show(at));
}

template <class T>
std::string Show(const CallLog& log, const View<T, Recorder>& view) {
  return log.Show(view.data, sizeof(T), view.rows, view.cols, view.stride);
}
std::string Show(const CallLog& log, const ColumnParallel<Recorder>& w) {
  return log.Show(w.data, 2, w.n, w.k, w.k) + ShowMore(log, " + ", w.bias);
}
std::string Show(const CallLog& log, const ResidualNorm<Recorder>& to) {
  return absl::StrCat(Show(log, to.residual), ShowMore(log, " + ", to.bias),
                      ", ", log.Show(to.norm.weight), " -> ",
                      Show(log, to.normed));
}
std::string Show(const HeadShape& shape) {
  return absl::StrCat(shape.num_q, " q, ", shape.num_kv, " kv of ",
                      shape.head_dim);
}
std::string Show(const CallLog& log, const HeadPreparation<Recorder>& how) {
  return absl::StrCat(log.Show(how.q_norm.weight), ", ",
                      log.Show(how.k_norm.weight),
                      ShowMore(log, " over ", how.q_squares.data),
                      ShowMore(log, " and ", how.k_squares.data));
}
std::string Show(const CallLog& log, const KvLayer<Recorder>& kv) {
  std::string text = absl::StrCat("pages of layer ", kv.layer);
  if (kv.window > 0) absl::StrAppend(&text, ", window ", kv.window);
  return text + ShowMore(log, ", ", kv.sinks);
}

}  // namespace

std::string CallLog::Take() { return std::exchange(text_, ""); }

std::byte* CallLog::Reserve(const std::string& name, int64_t size_bytes) {
  auto* const at = reinterpret_cast<std::byte*>(next_);
  Name(at, size_bytes, name);
  next_ += (static_cast<uintptr_t>(size_bytes) + 4096) / 64 * 64;
  return at;
}

void CallLog::Name(const void* at, int64_t size_bytes,
                   const std::string& name) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at);
  ranges_.push_back({name, begin, begin + static_cast<uintptr_t>(size_bytes)});
}

// The latest: parts are named after what they are parts of.
const CallLog::Range& CallLog::Find(const void* at) const {
  const uintptr_t place = reinterpret_cast<uintptr_t>(at);
  for (size_t i = ranges_.size(); i > 0; --i) {
    const Range& range = ranges_[i - 1];
    if (range.begin <= place && place < range.end) return range;
  }
  CHECK(!"an address that nobody has reserved");
  return ranges_[0];
}

std::string CallLog::Show(const void* at, int element_bytes, int rows, int cols,
                          ptrdiff_t stride) const {
  const Range& range = Find(at);
  const uintptr_t elements =
      (reinterpret_cast<uintptr_t>(at) - range.begin) / element_bytes;
  const uintptr_t row = stride > 0 ? elements / stride : 0;
  const uintptr_t col = stride > 0 ? elements % stride : elements;
  return absl::StrCat(range.name, "[", row, ":", row + rows, ", ", col, ":",
                      col + cols, "]");
}

std::string CallLog::Show(const void* at) const {
  if (at == nullptr) return "none";
  const Range& range = Find(at);
  const uintptr_t offset = reinterpret_cast<uintptr_t>(at) - range.begin;
  return offset == 0 ? range.name : absl::StrCat(range.name, " + ", offset);
}

// ---- operators -------------------------------------------------------------

void RmsNorm(const Recorder& device, ConstRecorderView x,
             const Norm<Recorder>& norm, RecorderView out) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("RmsNorm ", Show(log, x), ", ", log.Show(norm.weight),
                        " -> ", Show(log, out)));
}

void Embed(const Recorder& device, const ColumnParallel<Recorder>& table,
           const int32_t*, RecorderView out) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("Embed ", Show(log, table), " -> ", Show(log, out)));
}

void KeepRows(const Recorder& device, const int32_t*, int count,
              RecorderView x) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("KeepRows ", count, " of ", Show(log, x)));
}

void Project(const Recorder& device, ConstRecorderView x,
             absl::Span<const ColumnParallel<Recorder>> parts,
             RecorderView out) {
  CallLog& log = *device.log;
  const auto show = [&log](std::string* text, const auto& part) {
    text->append(Show(log, part));
  };
  log.Note(absl::StrCat("Project ", Show(log, x), " by ",
                        absl::StrJoin(parts, ", ", show), " -> ",
                        Show(log, out)));
}

void ProjectPartial(const Recorder& device, ConstRecorderView x,
                    const RowSlices<Recorder>& w, PartialRows<Recorder> sums) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("ProjectPartial ", Show(log, x), " by ",
                        log.Show(w.weights.data), ", steps ", w.k_begin, ":",
                        w.k_begin + x.cols, " in slices of ", w.slice_rows,
                        " -> ", Show(log, sums)));
}

void PrepareHeads(const Recorder& device, const HeadShape& shape,
                  const HeadPreparation<Recorder>& how,
                  const RowSet<Recorder>& rows, const KvLayer<Recorder>& kv,
                  RecorderView qkv) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("PrepareHeads ", rows.name, ", ", Show(shape), ", ",
                        Show(log, how), ", ", Show(log, qkv),
                        " -> pages of layer ", kv.layer));
}

void PrepareQueries(const Recorder& device, const HeadShape& shape,
                    const HeadPreparation<Recorder>& how,
                    const RowSet<Recorder>& rows, RecorderView queries) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("PrepareQueries ", rows.name, ", ", Show(shape), ", ",
                        Show(log, how), ", ", Show(log, queries)));
}

void Attend(const Recorder& device, const HeadShape& shape,
            const RowSet<Recorder>& rows, const KvLayer<Recorder>& kv,
            RecorderView queries) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("Attend ", rows.name, ", ", Show(shape), ", ",
                        Show(log, kv), " -> ", Show(log, queries)));
}

void Route(const Recorder& device, const RouterShape& shape,
           ConstRecorderView x, const ColumnParallel<Recorder>& router,
           Routing<Recorder>&, const Assignments<Recorder>& out) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("Route ", Show(log, x), " by ", Show(log, router),
                        ", top ", shape.top_k,
                        shape.renormalize ? ", renormalised" : "", " -> ",
                        log.Show(out.experts), ", ", log.Show(out.weights)));
}

void Group(const Recorder& device, const Assignments<Recorder>& assignments,
           ExpertRange range, Routing<Recorder>&) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("Group ", assignments.rows, " rows of ",
                        log.Show(assignments.experts), " by experts ",
                        range.first, ":", range.first + range.count));
}

void GroupAllRows(const Recorder& device, int num_rows, Routing<Recorder>&) {
  device.log->Note(absl::StrCat("GroupAllRows ", num_rows));
}

void GroupGatedRows(const Recorder& device, ConstRecorderView x,
                    const float* gate, Routing<Recorder>&) {
  CallLog& log = *device.log;
  log.Note(
      absl::StrCat("GroupGatedRows ", Show(log, x), " by ", log.Show(gate)));
}

void SquareHeads(const Recorder& device, int head_dim, ConstRecorderView heads,
                 RecorderView squares) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("SquareHeads of ", head_dim, ", ", Show(log, heads),
                        " -> ", Show(log, squares)));
}

void Experts(const Recorder& device, const ExpertSlot<Recorder>& slot,
             int slice_rows, ConstRecorderView x, Routing<Recorder>&,
             PartialRows<Recorder> sums) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat(
      "Experts ", Show(log, x), " by ", slot.num_experts, " of ",
      log.Show(slot.data), ", ", slot.num_pieces, " pieces of ", slot.rows,
      " rows, slices of ", slice_rows, ShowMore(log, ", ", slot.bias.gate),
      ShowMore(log, ", ", slot.bias.up), ShowMore(log, ", ", slot.bias.down),
      " -> ", Show(log, sums)));
}

void Sample(const Recorder& device, RecorderView logits,
            const Samples<Recorder>& samples) {
  CallLog& log = *device.log;
  log.Note(absl::StrCat("Sample ", Show(log, logits), ": ", samples.count,
                        " from ", samples.first, " on, every ", samples.step));
}

// ---- collectives -----------------------------------------------------------

Collectives<Recorder>::Collectives(const Recorder& device,
                                   const ModelShape& shape, Rank rank,
                                   int max_rows)
    : log_(device.log), shape_(shape), rank_(rank) {
  const int64_t cells = int64_t{max_rows} * shape.spec.hidden_size;
  const int64_t assignments = int64_t{max_rows} * shape.top_k;
  attention_sums_ = {device, "attention sums", cells};
  dense_sums_ = {device, "dense sums", cells};
  expert_sums_ = {device, "expert sums", cells};
  shared_sums_ = {device, "shared sums", cells};
  squares_ = {device, "squares", int64_t{max_rows} * NumHeads(shape)};
  all_squares_ = {device, "all squares", int64_t{max_rows} * NumHeads(shape)};
  rows_ = {device, "entering rows", cells};
  experts_ = {device, "entering experts", assignments};
  weights_ = {device, "entering weights", assignments};
  entered_rows_ = {device, "entered rows", cells};
  entered_experts_ = {device, "entered experts", assignments};
  entered_weights_ = {device, "entered weights", assignments};
  logits_ = {device, "logit columns",
             int64_t{logit_rows()} * shape.spec.vocab_size};
}

PartialRows<Recorder> Collectives<Recorder>::Sums(
    const Buffer<int64_t, Recorder>& buffer, int rows) const {
  const int hidden = shape_.spec.hidden_size;
  return {buffer.data(), rows, hidden, hidden};
}

std::string Collectives<Recorder>::WhoShares() const {
  if (attention_.is_ep()) return "own";
  if (attention_.tp_size == shape_.num_ranks) return "all ranks";
  const Rank first = attention_.first_rank(attention_.group_of(rank_));
  return absl::StrCat("ranks ", first, ":", first + attention_.tp_size);
}

PartialRows<Recorder> Collectives<Recorder>::AttentionSums(int rows) {
  return Sums(attention_sums_, rows);
}

absl::Status Collectives<Recorder>::SumAttention(
    const Recorder&, const ResidualNorm<Recorder>& to) {
  log_->Note(
      absl::StrCat("SumAttention, ", WhoShares(), ", ", Show(*log_, to)));
  return absl::OkStatus();
}

RecorderView Collectives<Recorder>::HeadSquares(int rows) {
  const int heads = NumHeads(shape_);
  return {squares_.data(), rows, heads, heads};
}

absl::StatusOr<ConstRecorderView> Collectives<Recorder>::ShareSquares(
    int rows, IndexRange heads) {
  log_->Note(absl::StrCat("ShareSquares of ", rows, " rows, heads ",
                          heads.begin, ":", heads.end, ", ", WhoShares()));
  const int all = NumHeads(shape_);
  return ConstRecorderView{all_squares_.data(), rows, all, all};
}

PartialRows<Recorder> Collectives<Recorder>::SharedSums(int rows) {
  return Sums(shared_sums_, rows);
}

PartialRows<Recorder> Collectives<Recorder>::DenseSums(int rows) {
  return Sums(dense_sums_, rows);
}

absl::Status Collectives<Recorder>::SumDense(const Recorder&,
                                             const ResidualNorm<Recorder>& to) {
  log_->Note(absl::StrCat("SumDense, ", WhoShares(), ", ", Show(*log_, to)));
  return absl::OkStatus();
}

Entering<Recorder> Collectives<Recorder>::EnteringRows(int rows) {
  const int hidden = shape_.spec.hidden_size;
  return {{rows_.data(), rows, hidden, hidden},
          {experts_.data(), weights_.data(), rows, shape_.top_k}};
}

absl::StatusOr<Entered<Recorder>> Collectives<Recorder>::Enter(
    int rows, absl::Span<const int> rows_of_group, ExpertRange range) {
  const int own = rows;
  const bool all_are_ours = rows_of_group.size() == 1 && !attention_.is_ep();
  if (!all_are_ours) {
    rows = 0;
    for (const int of_group : rows_of_group) rows += of_group;
  }
  log_->Note(absl::StrCat(
      "Enter ", own, " own rows",
      all_are_ours ? ""
                   : absl::StrCat(" of ", absl::StrJoin(rows_of_group, " + ")),
      ", for experts ", range.first, ":", range.first + range.count));
  const int hidden = shape_.spec.hidden_size;
  return Entered<Recorder>{
      {entered_rows_.data(), rows, hidden, hidden},
      {entered_experts_.data(), entered_weights_.data(), rows, shape_.top_k},
      Sums(expert_sums_, rows)};
}

absl::Status Collectives<Recorder>::Leave(const Recorder&, Layout experts,
                                          const ResidualNorm<Recorder>& to) {
  log_->Note(absl::StrCat("Leave experts of tp_size ", experts.tp_size, ", ",
                          Show(*log_, to)));
  return absl::OkStatus();
}

RecorderView Collectives<Recorder>::LogitColumns(int rows) {
  const int columns = LogitShare(shape_, attention_, rank_).size();
  return {logits_.data(), rows, columns, columns};
}

absl::StatusOr<int> Collectives<Recorder>::ShareLogits(int rows,
                                                       RecorderView out) {
  const int t = attention_.tp_size, part = attention_.part_of(rank_);
  const int taken = rows > part ? (rows - part + t - 1) / t : 0;
  log_->Note(absl::StrCat("ShareLogits of ", rows, " rows -> ", taken, " in ",
                          Show(*log_, out)));
  return taken;
}

template class Decoder<Recorder>;

}  // namespace moebius
