// A device that computes nothing: it notes which operators are called, on what.
// It has no memory that could be looked into, as devices have not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/layout/layout.h"
#include "kernels/attend.h"
#include "kernels/formats.h"
#include "kernels/project.h"
#include "kernels/route.h"
#include "kernels/sample.h"
#include "worker/model/model_shape.h"
#include "worker/peers/collectives.h"

namespace moebius {

// What was called, a line each, and which addresses have a name.
class CallLog {
 public:
  void Note(const std::string& line) { text_ += line + "\n"; }
  // What was noted since the last call.
  std::string Take();

  // Room that does not exist.
  std::byte* Reserve(const std::string& name, int64_t size_bytes);
  void Name(const void* at, int64_t size_bytes, const std::string& name);

  // name[rows, columns] of a view, a matrix, or a place.
  std::string Show(const void* at, int element_bytes, int rows, int cols,
                   ptrdiff_t stride) const;
  // The name, and how far behind its beginning it is.
  std::string Show(const void* at) const;

 private:
  struct Range {
    std::string name;
    uintptr_t begin = 0, end = 0;
  };
  const Range& Find(const void* at) const;

  std::string text_;
  std::vector<Range> ranges_;
  uintptr_t next_ = 1 << 20;  // nobody's
};

struct Recorder {
  static constexpr bool kHostMemory = false;
  using Partial = int64_t;
  CallLog* log = nullptr;
};

template <class T>
class Buffer<T, Recorder> {
 public:
  Buffer() = default;
  Buffer(const Recorder& device, const char* name, int64_t elements)
      : data_(reinterpret_cast<T*>(device.log->Reserve(
            name, elements * static_cast<int64_t>(sizeof(T))))) {}
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

inline void Upload(const Recorder&, absl::Span<const float>, float*) {}

template <>
class Routing<Recorder> {};

template <>
struct RowSet<Recorder> {
  int size = 0;
  const char* name = "";
};

template <>
struct Samples<Recorder> {
  int first = 0, step = 1, count = 0;
  Samples Each(int begin, int every, int rows) const {
    return {first + begin * step, step * every, rows};
  }
};

// ---- operators
using RecorderView = View<float, Recorder>;
using ConstRecorderView = View<const float, Recorder>;

void RmsNorm(const Recorder& device, ConstRecorderView x,
             const Norm<Recorder>& norm, RecorderView out);
void Embed(const Recorder& device, const ColumnParallel<Recorder>& table,
           const int32_t* ids, RecorderView out);
void KeepRows(const Recorder& device, const int32_t* rows, int count,
              RecorderView x);
void Project(const Recorder& device, ConstRecorderView x,
             absl::Span<const ColumnParallel<Recorder>> parts,
             RecorderView out);
void ProjectPartial(const Recorder& device, ConstRecorderView x,
                    const RowSlices<Recorder>& w, PartialRows<Recorder> sums);
void PrepareHeads(const Recorder& device, const HeadShape& shape,
                  const HeadPreparation<Recorder>& how,
                  const RowSet<Recorder>& rows, const KvLayer<Recorder>& kv,
                  RecorderView qkv);
void PrepareQueries(const Recorder& device, const HeadShape& shape,
                    const HeadPreparation<Recorder>& how,
                    const RowSet<Recorder>& rows, RecorderView queries);
void Attend(const Recorder& device, const HeadShape& shape,
            const RowSet<Recorder>& rows, const KvLayer<Recorder>& kv,
            RecorderView queries);
void Route(const Recorder& device, const RouterShape& shape,
           ConstRecorderView x, const ColumnParallel<Recorder>& router,
           Routing<Recorder>& routing, const Assignments<Recorder>& out);
void Group(const Recorder& device, const Assignments<Recorder>& assignments,
           ExpertRange range, Routing<Recorder>& routing);
void GroupAllRows(const Recorder& device, int num_rows,
                  Routing<Recorder>& routing);
void GroupGatedRows(const Recorder& device, ConstRecorderView x,
                    const float* gate, Routing<Recorder>& routing);
void SquareHeads(const Recorder& device, int head_dim, ConstRecorderView heads,
                 RecorderView squares);
void Experts(const Recorder& device, const ExpertSlot<Recorder>& slot,
             int slice_rows, ConstRecorderView x, Routing<Recorder>& routing,
             PartialRows<Recorder> sums);
void Sample(const Recorder& device, RecorderView logits,
            const Samples<Recorder>& samples);

// ---- collectives
template <>
class Collectives<Recorder> {
 public:
  Collectives(const Recorder& device, const ModelShape& shape, Rank rank,
              int max_rows);

  void Begin(Layout attention) { attention_ = attention; }
  RecorderView HeadSquares(int rows);
  absl::StatusOr<ConstRecorderView> ShareSquares(int rows, IndexRange heads);
  PartialRows<Recorder> AttentionSums(int rows);
  absl::Status SumAttention(const Recorder& device,
                            const ResidualNorm<Recorder>& to);
  PartialRows<Recorder> DenseSums(int rows);
  absl::Status SumDense(const Recorder& device,
                        const ResidualNorm<Recorder>& to);
  Entering<Recorder> EnteringRows(int rows);
  absl::StatusOr<Entered<Recorder>> Enter(int rows,
                                          absl::Span<const int> rows_of_group,
                                          ExpertRange range);
  PartialRows<Recorder> SharedSums(int rows);
  absl::Status Leave(const Recorder& device, Layout experts,
                     const ResidualNorm<Recorder>& to);
  int logit_rows() const { return 16; }
  RecorderView LogitColumns(int rows);
  absl::StatusOr<int> ShareLogits(int rows, RecorderView out);

 private:
  std::string WhoShares() const;
  PartialRows<Recorder> Sums(const Buffer<int64_t, Recorder>& buffer,
                             int rows) const;

  CallLog* const log_;
  const ModelShape shape_;
  const Rank rank_;
  Layout attention_;
  Buffer<int64_t, Recorder> attention_sums_, dense_sums_, expert_sums_,
      shared_sums_;
  Buffer<float, Recorder> squares_, all_squares_;
  Buffer<float, Recorder> rows_, entered_rows_, weights_, entered_weights_,
      logits_;
  Buffer<int32_t, Recorder> experts_, entered_experts_;
};

}  // namespace moebius
