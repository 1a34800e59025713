// A device as tests of its operators need it: values go into its memory and
// come back out. A second device is tested by one more specialisation, and its
// name in operators_test.cc.
#pragma once

#include <cstring>
#include <deque>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attend.h"
#include "kernels/cpu/routing_cpu.h"
#include "kernels/sample.h"
#include "tests/backends/random_tensors.h"

namespace moebius {

// One expert as in a checkpoint: gate and up [rows][hidden], down
// [hidden][rows].
struct PlainExpert {
  std::vector<Bf16> gate, up, down;
};

template <class D>
class DeviceUnderTest;

// Memory lives as long as this.
template <>
class DeviceUnderTest<Cpu> {
 public:
  // Largest error of a sum of products, relative to the size of its terms.
  static constexpr double kTolerance = 2e-5;
  static constexpr Numerics kNumerics = Numerics::kExact;

  const Cpu& device() const { return device_; }
  Routing<Cpu>& routing() { return routing_; }

  template <class T>
  T* Put(absl::Span<const T> values) {
    const size_t bytes = values.size() * sizeof(T);
    AlignedVector<std::byte>& memory = memory_.emplace_back(bytes + 1);
    if (bytes > 0) std::memcpy(memory.data(), values.data(), bytes);
    return reinterpret_cast<T*>(memory.data());
  }
  template <class T>
  std::vector<T> Take(const T* from, size_t count) const {
    return {from, from + count};
  }

  View<float, Cpu> PutRows(const Activations& x) {
    const ConstRows view = x.view();
    return {Put(absl::MakeConstSpan(
                view.data, static_cast<size_t>(view.rows * view.stride))),
            view.rows, view.cols, view.stride};
  }
  Activations TakeRows(const View<float, Cpu>& x) const {
    Activations out(x.rows, x.cols);
    for (int i = 0; i < x.rows; ++i) {
      for (int j = 0; j < x.cols; ++j) out.at(i, j) = x.row(i)[j];
    }
    return out;
  }
  // Not initialised: large numbers.
  PartialRows<Cpu> MakeSums(int rows, int cols) {
    const std::vector<int64_t> values(static_cast<size_t>(rows) * cols,
                                      int64_t{1} << 60);
    return {Put(absl::MakeConstSpan(values)), rows, cols, cols};
  }

  ColumnParallel<Cpu> PutColumnParallel(const std::vector<Bf16>& w, int n,
                                        int k) {
    std::vector<Bf16> packed(ColumnParallel<Cpu>::NumElements(n, k));
    PackMatrix(w.data(), n, k, k, packed.data());
    return {Put(absl::MakeConstSpan(packed)), n, k};
  }
  RowParallel<Cpu> PutRowParallel(const std::vector<Bf16>& w, int n, int k) {
    std::vector<Bf16> packed(RowParallel<Cpu>::NumElements(n, k));
    PackRowParallel(w.data(), n, k, k, packed.data());
    return {Put(absl::MakeConstSpan(packed)), n, k};
  }
  // A slot of one block of owners, each expert in `num_pieces` pieces.
  ExpertSlot<Cpu> PutExperts(const std::vector<PlainExpert>& experts,
                             int hidden, int rows, int num_pieces) {
    const int count = static_cast<int>(experts.size());
    const int piece_rows = rows / num_pieces;
    const size_t piece = ExpertBlock::NumElements(hidden, piece_rows);
    std::vector<Bf16> slot(piece * count * num_pieces);
    for (int p = 0; p < num_pieces; ++p) {
      for (int e = 0; e < count; ++e) {
        PackExpert(experts[e].gate.data(), experts[e].up.data(),
                   experts[e].down.data(), hidden, rows, p * piece_rows,
                   (p + 1) * piece_rows,
                   slot.data() + (static_cast<size_t>(p) * count + e) * piece);
      }
    }
    return {.data = Put(absl::MakeConstSpan(slot)),
            .hidden = hidden,
            .rows = piece_rows,
            .num_pieces = num_pieces,
            .piece_stride = static_cast<ptrdiff_t>(piece * count),
            .num_experts = count,
            .experts_per_block = count};
  }
  PagePool<Cpu> MakePages(const KvPageFormat& format, uint32_t num_pages) {
    const std::vector<std::byte> garbage(format.page_bytes() * num_pages,
                                         std::byte{0x7f});
    return {Put(absl::MakeConstSpan(garbage)), num_pages, format};
  }
  // `chunks` cover the rows; their pages outlive this.
  RowSet<Cpu> PutRowSet(const std::vector<int32_t>& positions,
                        const std::vector<QueryChunk>& chunks) {
    const auto count = static_cast<int>(positions.size());
    const int32_t* const at = Put(absl::MakeConstSpan(positions));
    chunks_.push_back(chunks);
    return {count, absl::MakeConstSpan(at, positions.size()), chunks_.back()};
  }
  // What each row gave.
  std::vector<SampledRow> RunSample(const View<float, Cpu>& logits,
                                    std::vector<SampleRow> wanted) {
    std::vector<SampledRow> results(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i].result = &results[i];
    Sample(device_, logits,
           {wanted.data(), 1, static_cast<int>(wanted.size())});
    return results;
  }

 private:
  ThreadPool pool_{1};
  const Cpu device_{&pool_};
  Routing<Cpu> routing_;
  std::deque<AlignedVector<std::byte>> memory_;
  std::deque<std::vector<QueryChunk>> chunks_;
};

}  // namespace moebius
