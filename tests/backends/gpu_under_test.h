// A GPU as tests of its operators need it.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "common/base/check.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/tiles.h"
#include "kernels/cuda/workspace.h"
#include "tests/backends/device_under_test.h"
#include "tests/backends/gpu_copies.h"
#include "tests/backends/pack_tiles.h"

namespace moebius {

// Memory lives as long as this. Everything waits for the GPU.
template <Numerics N>
class DeviceUnderTest<Cuda<N>> {
 public:
  using D = Cuda<N>;
  // Exact: activations have 16 bits. Fast: 8.
  static constexpr Numerics kNumerics = N;
  static constexpr double kTolerance = N == Numerics::kExact ? 1e-4 : 3e-2;

  DeviceUnderTest() : stream_(GpuStream::Create(0, &failure_)) {
    device_ = {stream_->get(), &failure_, stream_->num_multiprocessors(),
               &workspace_};
  }
  ~DeviceUnderTest() { CHECK(failure_.status().ok()); }

  const D& device() const { return device_; }
  Routing<D>& routing() { return routing_; }

  template <class T>
  T* Put(absl::Span<const T> values) {
    const int64_t bytes = static_cast<int64_t>(values.size() * sizeof(T));
    memory_.emplace_back(device_, "a tensor of a test", bytes + 1);
    UploadToGpu(values.data(), bytes, memory_.back().data(), device_.stream,
                &failure_);
    return reinterpret_cast<T*>(memory_.back().data());
  }
  template <class T>
  std::vector<T> Take(const T* from, size_t count) const {
    std::vector<T> values(count);
    DownloadFromGpu(*stream_, from, static_cast<int64_t>(count * sizeof(T)),
                    values.data());
    CHECK(failure_.status().ok());
    return values;
  }

  View<float, D> PutRows(const Activations& x) {
    const ConstRows view = x.view();
    return {Put(absl::MakeConstSpan(
                view.data, static_cast<size_t>(view.rows * view.stride))),
            view.rows, view.cols, view.stride};
  }
  Activations TakeRows(const View<float, D>& x) const {
    Activations out(x.rows, x.cols);
    if (x.rows == 0) return out;
    const size_t count = static_cast<size_t>((x.rows - 1) * x.stride + x.cols);
    const std::vector<float> values = Take(x.data, count);
    for (int i = 0; i < x.rows; ++i) {
      for (int j = 0; j < x.cols; ++j) out.at(i, j) = values[i * x.stride + j];
    }
    return out;
  }
  // Not initialised: large numbers.
  PartialRows<D> MakeSums(int rows, int cols) {
    using Partial = typename D::Partial;
    const std::vector<Partial> values(static_cast<size_t>(rows) * cols,
                                      static_cast<Partial>(int64_t{1} << 60));
    return {Put(absl::MakeConstSpan(values)), rows, cols, cols};
  }

  ColumnParallel<D> PutColumnParallel(const std::vector<Bf16>& w, int n,
                                      int k) {
    std::vector<Bf16> packed(ColumnParallel<D>::NumElements(n, k));
    PackTiles(w.data(), n, k, k, packed.data());
    return {Put(absl::MakeConstSpan(packed)), n, k};
  }
  RowParallel<D> PutRowParallel(const std::vector<Bf16>& w, int n, int k) {
    std::vector<Bf16> packed(RowParallel<D>::NumElements(n, k));
    PackRowParallelTiles(w.data(), n, k, k, packed.data());
    return {Put(absl::MakeConstSpan(packed)), n, k};
  }
  // A slot of one block of owners, each expert in `num_pieces` pieces.
  ExpertSlot<D> PutExperts(const std::vector<PlainExpert>& experts, int hidden,
                           int rows, int num_pieces) {
    const int count = static_cast<int>(experts.size());
    const int piece_rows = rows / num_pieces;
    const size_t piece = ExpertBlock::NumElements(hidden, piece_rows);
    std::vector<Bf16> slot(piece * count * num_pieces);
    for (int p = 0; p < num_pieces; ++p) {
      for (int e = 0; e < count; ++e) {
        PackPiece(experts[e], hidden, rows, p * piece_rows, piece_rows,
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
  PagePool<D> MakePages(const KvPageFormat& format, uint32_t num_pages) {
    const std::vector<std::byte> garbage(format.page_bytes() * num_pages,
                                         std::byte{0x7f});
    return {Put(absl::MakeConstSpan(garbage)), num_pages, format};
  }
  RowSet<D> PutRowSet(const std::vector<int32_t>& positions,
                      const std::vector<QueryChunk>& chunks) {
    RowSet<D> rows;
    rows.size = static_cast<int>(positions.size());
    std::vector<GpuChunk> on_gpu;
    std::vector<int32_t> chunk_of;
    std::vector<uint32_t> pages;
    for (const QueryChunk& chunk : chunks) {
      chunk_of.insert(chunk_of.end(), static_cast<size_t>(chunk.num_rows),
                      static_cast<int32_t>(on_gpu.size()));
      on_gpu.push_back({chunk.first_row, chunk.num_rows, chunk.first_position,
                        static_cast<int32_t>(pages.size())});
      pages.insert(pages.end(), chunk.pages.begin(), chunk.pages.end());
      rows.max_chunk_rows = std::max(rows.max_chunk_rows, chunk.num_rows);
    }
    for (const int32_t position : positions) {
      rows.max_position = std::max(rows.max_position, position);
    }
    rows.positions = Put(absl::MakeConstSpan(positions));
    rows.chunk_of = Put(absl::MakeConstSpan(chunk_of));
    rows.chunks = Put(absl::MakeConstSpan(on_gpu));
    rows.num_chunks = static_cast<int>(on_gpu.size());
    rows.pages = Put(absl::MakeConstSpan(pages));
    rows.scratch = &scratch_;
    return rows;
  }
  // What each row gave.
  std::vector<SampledRow> RunSample(const View<float, D>& logits,
                                    std::vector<SampleRow> wanted) {
    std::vector<SampledRow> results(wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i].result = &results[i];
    const int count = static_cast<int>(wanted.size());
    GpuSampling<N> sampling(device_, count, logits.cols);
    Sample(device_, logits, sampling.Begin({wanted.data(), 1, count}, count));
    CHECK(stream_->Wait().ok());
    sampling.Collect();
    return results;
  }

 private:
  // Rows [first, first + count) of the intermediate dimension.
  static void PackPiece(const PlainExpert& expert, int hidden, int rows,
                        int first, int count, Bf16* out) {
    const size_t matrix = static_cast<size_t>(count) * hidden;
    const ptrdiff_t at = ptrdiff_t{first} * hidden;
    PackTiles(expert.gate.data() + at, count, hidden, hidden, out);
    PackTiles(expert.up.data() + at, count, hidden, hidden, out + matrix);
    PackRowParallelTiles(expert.down.data() + first, hidden, count, rows,
                         out + 2 * matrix);
  }

  CudaFailure failure_;
  const std::unique_ptr<GpuStream> stream_;
  D device_;
  Routing<D> routing_;
  Workspace workspace_;
  AttentionScratch<N> scratch_;
  std::vector<Buffer<std::byte, D>> memory_;
};

}  // namespace moebius
