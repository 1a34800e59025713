#include "worker/model/pass_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/routing.h"

namespace moebius {
namespace {

constexpr int64_t kAlign = 16;
constexpr int64_t kMaxPageIds = int64_t{1} << 30;
// Of a pass as a graph: beyond, launches are few beside what they do.
constexpr int kMaxGraphRows = 512;
// The smallest number that highest positions are rounded up to.
constexpr int kLeastPositions = 256;

int64_t RoundUp(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Most bytes of a pass: tokens, and of rows and wanted rows their places,
// positions, chunks and which of these they belong to; then the page ids.
int64_t RoomFor(int64_t rows, int64_t page_ids) {
  const int64_t arrays = 10;
  return rows * (6 * int64_t{sizeof(int32_t)} + 2 * int64_t{sizeof(GpuChunk)}) +
         page_ids * int64_t{sizeof(uint32_t)} + arrays * kAlign;
}

// A block of memory that is filled here for the GPU.
class BlockWriter {
 public:
  BlockWriter(std::byte* host, std::byte* gpu, int64_t room_bytes)
      : host_(host), gpu_(gpu), room_bytes_(room_bytes) {}

  // Room for `count` elements: here.
  template <class T>
  T* Reserve(size_t count) {
    at_ = used_bytes_;
    used_bytes_ += RoundUp(static_cast<int64_t>(count * sizeof(T)));
    CHECK(used_bytes_ <= room_bytes_);
    return reinterpret_cast<T*>(host_ + at_);
  }
  // What was reserved last: there.
  template <class T>
  const T* there() const {
    return reinterpret_cast<const T*>(gpu_ + at_);
  }
  const int32_t* Put(absl::Span<const int32_t> values) {
    std::copy(values.begin(), values.end(), Reserve<int32_t>(values.size()));
    return there<int32_t>();
  }
  int64_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* const host_;
  std::byte* const gpu_;
  const int64_t room_bytes_;
  int64_t at_ = 0;
  int64_t used_bytes_ = 0;
};

template <Numerics N>
RowSet<Cuda<N>> PutRows(const RowSet<Cpu>& rows, BlockWriter& block) {
  RowSet<Cuda<N>> out;
  out.size = rows.size;
  out.positions = block.Put(rows.positions);
  int32_t* chunk_of = block.Reserve<int32_t>(static_cast<size_t>(rows.size));
  out.chunk_of = block.there<int32_t>();
  GpuChunk* const chunks = block.Reserve<GpuChunk>(rows.chunks.size());
  out.chunks = block.there<GpuChunk>();
  for (const QueryChunk& chunk : rows.chunks) {
    chunk_of = std::fill_n(chunk_of, chunk.num_rows, out.num_chunks);
    chunks[out.num_chunks++] = {chunk.first_row, chunk.num_rows,
                                chunk.first_position, 0};
    out.max_chunk_rows = std::max(out.max_chunk_rows, chunk.num_rows);
    out.max_position =
        std::max(out.max_position, chunk.first_position + chunk.num_rows - 1);
  }
  // So that single rows are a graph for a while.
  if (out.max_chunk_rows <= 1) {
    const int positions = std::max(kLeastPositions, out.max_position + 1);
    out.max_position =
        static_cast<int>(std::bit_ceil(static_cast<unsigned>(positions))) - 1;
  }
  return out;
}

int64_t PageIdsOf(absl::Span<const QueryChunk> chunks) {
  int64_t count = 0;
  for (const QueryChunk& chunk : chunks) {
    count += static_cast<int64_t>(chunk.pages.size());
  }
  return count;
}

template <Numerics N>
void AddRows(const RowSet<Cuda<N>>& rows, PassGraphs::Key& key) {
  for (const int number :
       {rows.size, rows.num_chunks, rows.max_chunk_rows, rows.max_position}) {
    key.push_back(number);
  }
}

// Every number that the decoder looks at, and what decides where the pass's own
// numbers lie.
template <Numerics N>
PassGraphs::Key KeyOf(const Pass<Cuda<N>>& pass) {
  const ExpertsState& experts = pass.layout.experts;
  PassGraphs::Key key = {pass.layout.attention.tp_size, experts.from.tp_size,
                         experts.to.tp_size, static_cast<int>(experts.side),
                         experts.layers_done};
  AddRows<N>(pass.rows, key);
  AddRows<N>(pass.wanted, key);
  key.insert(key.end(), pass.rows_of_rank.begin(), pass.rows_of_rank.end());
  key.insert(key.end(), pass.wanted_of_rank.begin(), pass.wanted_of_rank.end());
  return key;
}

// Where chunks were put here, to be told where their pages are.
GpuChunk* ChunksHere(const GpuChunk* there, const std::byte* gpu,
                     std::byte* host) {
  return reinterpret_cast<GpuChunk*>(
      host + (reinterpret_cast<const std::byte*>(there) - gpu));
}

}  // namespace

template <Numerics N>
absl::StatusOr<std::unique_ptr<GpuPasses<N>>> GpuPasses<N>::Create(
    const Cuda<N>& device, const Options& options) {
  if (options.max_rows < 1 || options.vocabulary < 1 || options.page_ids < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("passes: ", options.max_rows, " rows, a vocabulary of ",
                     options.vocabulary, ", ", options.page_ids, " page ids"));
  }
  std::unique_ptr<GpuPasses> passes(new GpuPasses(device, options));
  RETURN_IF_ERROR(device.failure->status());
  return passes;
}

template <Numerics N>
GpuPasses<N>::GpuPasses(const Cuda<N>& device, const Options& options)
    : device_(device),
      options_(options),
      sampling_(device, options.max_rows, options.vocabulary) {
  Reserve(RoomFor(options.max_rows, options.page_ids));
  DropGraphs();
}

// All of them were told places that hold no longer.
template <Numerics N>
void GpuPasses<N>::DropGraphs() {
  graphs_ = std::make_unique<PassGraphs>(device_.stream, device_.failure);
}

template <Numerics N>
typename GpuPasses<N>::Rooms GpuPasses<N>::RoomsNow() const {
  const Routing<Cuda<N>>& routing = options_.decoder->routing();
  return {block_.data(),        scratch_.partials.data(), routing.begins.data(),
          routing.rows.data(),  routing.weights.data(),   routing.logits.data(),
          routing.hidden.data()};
}

template <Numerics N>
GpuPasses<N>::~GpuPasses() {
  cudaStreamSynchronize(device_.stream);
  cudaFreeHost(host_);
}

// REQUIRES: the stream is done with the block.
template <Numerics N>
void GpuPasses<N>::Reserve(int64_t size_bytes) {
  cudaFreeHost(host_);
  block_ = {};
  room_bytes_ = size_bytes;
  void* host = nullptr;
  device_.failure->Note(
      CudaStatus(cudaHostAlloc(&host, static_cast<size_t>(room_bytes_),
                               cudaHostAllocPortable),
                 "pinned memory for the numbers of a pass"));
  host_ = static_cast<std::byte*>(host);
  block_ = {device_, "numbers of a pass", room_bytes_};
}

template <Numerics N>
absl::Status GpuPasses<N>::MakeRoom(const Pass<Cpu>& pass) {
  const int64_t page_ids = PageIdsOf(pass.rows.chunks);
  if (pass.rows.size > options_.max_rows || page_ids > kMaxPageIds) {
    return absl::InvalidArgumentError(
        absl::StrCat("step: ", pass.rows.size, " rows and ", page_ids,
                     " pages of their sequences; allowed: at most ",
                     options_.max_rows, " and ", kMaxPageIds));
  }
  const int64_t needed = RoomFor(options_.max_rows, page_ids);
  if (needed > room_bytes_) Reserve(needed + needed / 2);
  return device_.failure->status();
}

template <Numerics N>
Pass<Cuda<N>> GpuPasses<N>::Put(const Pass<Cpu>& pass) {
  BlockWriter block(host_, block_.data(), room_bytes_);
  const size_t rows = static_cast<size_t>(pass.rows.size);
  const size_t wanted = static_cast<size_t>(pass.wanted.size);
  Pass<Cuda<N>> out;
  out.layout = pass.layout;
  out.rows_of_rank = pass.rows_of_rank;
  out.wanted_of_rank = pass.wanted_of_rank;
  out.samples = sampling_.Begin(pass.samples, pass.samples.count);
  out.tokens = block.Put({pass.tokens, rows});
  out.wanted_rows = block.Put({pass.wanted_rows, wanted});
  out.rows = PutRows<N>(pass.rows, block);
  out.wanted = PutRows<N>(pass.wanted, block);
  out.rows.scratch = out.wanted.scratch = &scratch_;

  GpuChunk* const chunks = ChunksHere(out.rows.chunks, block_.data(), host_);
  uint32_t* const ids =
      block.Reserve<uint32_t>(static_cast<size_t>(PageIdsOf(pass.rows.chunks)));
  out.rows.pages = out.wanted.pages = block.there<uint32_t>();
  int32_t at = 0;
  for (size_t c = 0; c < pass.rows.chunks.size(); ++c) {
    const absl::Span<const uint32_t> pages = pass.rows.chunks[c].pages;
    chunks[c].pages_at = at;
    std::copy(pages.begin(), pages.end(), ids + at);
    at += static_cast<int32_t>(pages.size());
  }
  // Wanted rows are some of the rows, in their order: each has the pages of
  // the chunk that it comes from.
  GpuChunk* const of_wanted =
      ChunksHere(out.wanted.chunks, block_.data(), host_);
  size_t c = 0;
  for (int w = 0; w < out.wanted.num_chunks; ++w) {
    const int row = pass.wanted_rows[of_wanted[w].first_row];
    while (chunks[c].first_row + chunks[c].num_rows <= row) ++c;
    of_wanted[w].pages_at = chunks[c].pages_at;
  }
  used_bytes_ = block.used_bytes();
  return out;
}

template <Numerics N>
absl::Status GpuPasses<N>::Launch(const Pass<Cuda<N>>& pass) {
  Decoder<Cuda<N>>& decoder = *options_.decoder;
  if (!options_.graphs || pass.rows.size > kMaxGraphRows ||
      pass.rows.max_chunk_rows > 1 || pass.wanted.size > decoder.logit_rows()) {
    return decoder.Run(pass);
  }
  // Which work sampling takes differs from pass to pass: it follows the graph.
  Pass<Cuda<N>> silent = pass;
  silent.samples.sampling = nullptr;
  RETURN_IF_ERROR(graphs_->Launch(
      KeyOf<N>(silent), [&] { return decoder.Run(silent); },
      [&] { options_.peers->Renew(); }));
  decoder.SampleLogits(pass);
  return absl::OkStatus();
}

template <Numerics N>
absl::Status GpuPasses<N>::Run(const Pass<Cpu>& pass) {
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  RETURN_IF_ERROR(device_.failure->status());
  RETURN_IF_ERROR(MakeRoom(pass));
  const Rooms rooms = RoomsNow();
  if (options_.peers->FollowMemories() || rooms != rooms_) DropGraphs();
  rooms_ = rooms;
  const Pass<Cuda<N>> on_gpu = Put(pass);
  device_.failure->Note(CudaStatus(
      cudaMemcpyAsync(block_.data(), host_, static_cast<size_t>(used_bytes_),
                      cudaMemcpyHostToDevice, device_.stream),
      "a copy of a pass to the GPU"));
  const absl::Status launched = Launch(on_gpu);
  RETURN_IF_ERROR(options_.stream->Wait());
  sampling_.Collect();
  RETURN_IF_ERROR(launched);
  return options_.peers->Outcome();
}

template class GpuPasses<Numerics::kExact>;
template class GpuPasses<Numerics::kFast>;

}  // namespace moebius
