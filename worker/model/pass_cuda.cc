#include "worker/model/pass_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/routing.h"
#include "kernels/cuda/workspace.h"
#include "worker/model/pass_begin.h"

namespace moebius {
namespace {

constexpr int64_t kAlign = 16;
constexpr int64_t kMaxPageIds = int64_t{1} << 30;
constexpr std::chrono::seconds kProgressInterval{2};

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

}  // namespace

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
  // With `padding` times -1 behind them.
  const int32_t* Put(absl::Span<const int32_t> values, int padding = 0) {
    const size_t more = static_cast<size_t>(padding);
    int32_t* const here = Reserve<int32_t>(values.size() + more);
    std::copy(values.begin(), values.end(), here);
    std::fill_n(here + values.size(), more, -1);
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

namespace {

// And `padding` rows more, each with a chunk that has none.
template <Numerics N>
RowSet<Cuda<N>> PutRows(const RowSet<Cpu>& rows, int padding,
                        BlockWriter& block) {
  RowSet<Cuda<N>> out;
  out.size = rows.size + padding;
  out.positions = block.Put(rows.positions, padding);
  int32_t* chunk_of = block.Reserve<int32_t>(static_cast<size_t>(out.size));
  out.chunk_of = block.there<int32_t>();
  GpuChunk* const chunks = block.Reserve<GpuChunk>(
      rows.chunks.size() + static_cast<size_t>(padding));
  out.chunks = block.there<GpuChunk>();
  for (const QueryChunk& chunk : rows.chunks) {
    chunk_of = std::fill_n(chunk_of, chunk.num_rows, out.num_chunks);
    chunks[out.num_chunks++] = {chunk.first_row, chunk.num_rows,
                                chunk.first_position, 0};
    out.max_chunk_rows = std::max(out.max_chunk_rows, chunk.num_rows);
    out.max_position =
        std::max(out.max_position, chunk.first_position + chunk.num_rows - 1);
  }
  for (int i = 0; i < padding; ++i) {
    *chunk_of++ = out.num_chunks;
    chunks[out.num_chunks++] = {rows.size + i, 0, 0, 0};
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
      sampling_(device, options.max_rows, options.vocabulary, options.results,
                options.peers->token_places()),
      graphs_(options.max_graphs, device.stream, device.failure) {
  for (Copy& copy : copies_) {
    device_.failure->Note(CudaStatus(
        cudaEventCreateWithFlags(
            &copy.end, cudaEventBlockingSync | cudaEventDisableTiming),
        "an event for the end of a pass"));
  }
  Reserve(RoomFor(options.max_rows, options.page_ids));
}

template <Numerics N>
GpuPasses<N>::~GpuPasses() {
  cudaStreamSynchronize(device_.stream);
  for (const Copy& copy : copies_) {
    cudaFreeHost(copy.numbers);
    if (copy.end != nullptr) cudaEventDestroy(copy.end);
  }
}

template <Numerics N>
void GpuPasses<N>::Reserve(int64_t size_bytes) {
  cudaStreamSynchronize(device_.stream);
  block_ = {};
  room_bytes_ = RoundUp(size_bytes);
  for (Copy& copy : copies_) {
    cudaFreeHost(copy.numbers);
    void* host = nullptr;
    device_.failure->Note(
        CudaStatus(cudaHostAlloc(&host, static_cast<size_t>(room_bytes_),
                                 cudaHostAllocPortable | cudaHostAllocMapped),
                   "pinned memory for the numbers of a pass"));
    copy.numbers = static_cast<std::byte*>(host);
  }
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
PadLimits GpuPasses<N>::Limits() const {
  // Logits of a captured pass stay where they are until they are drawn of.
  return {options_.max_rows, options_.decoder->logit_rows()};
}

template <Numerics N>
typename GpuPasses<N>::Padding GpuPasses<N>::PaddingOf(
    const Pass<Cpu>& pass) const {
  if (!options_.graphs || pass.wanted.size != pass.rows.size) return {};
  const int num_ranks = options_.peers->num_ranks();
  // What the decoder refuses.
  if (!HeadsDivide(options_.decoder->attention(), pass.layout.attention) ||
      pass.rows_of_group.size() != NumGroups(pass.layout)) {
    return {};
  }
  const PassSizes sizes{pass.layout, num_ranks, pass.rows_of_group,
                        pass.wanted_of_group};
  Padding padding;
  padding.rows = PaddedRows(sizes, Limits());
  if (padding.rows < pass.rows.size) return {};
  int positions = 0;
  for (const QueryChunk& chunk : pass.rows.chunks) {
    positions = std::max(positions, chunk.first_position + chunk.num_rows);
  }
  const int context = options_.decoder->max_positions();
  if (positions > context) return {};
  padding.positions = PositionBucket(positions, context,
                                     PositionsAlike(pass.layout, padding.rows));
  return padding;
}

template <Numerics N>
int GpuPasses<N>::PositionsAlike(const StepLayout& layout, int rows) const {
  const HeadRange heads = HeadsOf(options_.decoder->attention(),
                                  layout.attention, options_.peers->rank());
  return PositionsAttendedAlike(device_, rows, heads.num_kv());
}

template <Numerics N>
Pass<Cuda<N>> GpuPasses<N>::Put(const Pass<Cpu>& pass, const Padding& padding,
                                int copy) {
  host_ = copies_[copy].numbers;
  BlockWriter block(host_, block_.data(), room_bytes_);
  const bool padded = padding.rows > 0;
  const int more = padded ? padding.rows - pass.rows.size : 0;
  Pass<D> out;
  out.layout = pass.layout;
  out.rows_of_group = pass.rows_of_group;
  out.wanted_of_group = pass.wanted_of_group;
  out.samples = sampling_.Fill(pass.samples, pass.samples.count, copy);
  num_tokens_ = pass.rows.size;
  out.tokens =
      block.Put({pass.tokens, static_cast<size_t>(pass.rows.size)}, more);
  out.rows = PutRows<N>(pass.rows, more, block);
  if (padded) {
    out.rows.max_position = padding.positions - 1;
    out.wanted = out.rows;
    padded_of_group_.assign(NumGroups(pass.layout), padding.rows);
    out.rows_of_group = out.wanted_of_group = padded_of_group_;
  } else {
    out.wanted_rows =
        block.Put({pass.wanted_rows, static_cast<size_t>(pass.wanted.size)});
    out.wanted = PutRows<N>(pass.wanted, 0, block);
  }
  PutPages(pass, block, out);
  out.rows.scratch = out.wanted.scratch = &scratch_;
  options_.decoder->routing().positions = padded ? out.rows.positions : nullptr;
  used_bytes_ = block.used_bytes();
  return out;
}

template <Numerics N>
void GpuPasses<N>::PutPages(const Pass<Cpu>& pass, BlockWriter& block,
                            Pass<D>& out) {
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
  if (out.wanted.chunks == out.rows.chunks) return;
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
}

template <Numerics N>
void GpuPasses<N>::Begin(const MeetingStart& meetings) {
  PassBeginning beginning;
  beginning.copies[0] = {host_, block_.data(), used_bytes_};
  std::copy(sampling_.copies().begin(), sampling_.copies().end(),
            beginning.copies.begin() + 1);
  beginning.num_tokens = num_tokens_;
  beginning.places = sampling_.places();
  beginning.meetings = meetings;
  LaunchBeginning(beginning, device_.stream, device_.failure);
}

template <Numerics N>
typename GpuPasses<N>::Rooms GpuPasses<N>::RoomsNow() const {
  const Routing<D>& routing = options_.decoder->routing();
  return {block_.data(),
          scratch_.partials.data(),
          routing.begins.data(),
          routing.rows.data(),
          routing.weights.data(),
          routing.logits.data(),
          routing.hidden.data(),
          device_.workspace == nullptr ? nullptr : device_.workspace->data()};
}

template <Numerics N>
void GpuPasses<N>::ForgetIfMoved() {
  const Rooms now = RoomsNow();
  if (now == rooms_) return;
  graphs_.Clear();
  rooms_ = now;
}

template <Numerics N>
absl::Status GpuPasses<N>::Capture(const PassKey& key, const Pass<D>& pass) {
  Pass<D> silent = pass;
  // Which work sampling takes differs from pass to pass: it follows the graph.
  silent.samples.sampling = nullptr;
  RETURN_IF_ERROR(
      graphs_.Capture(key, [&] { return options_.decoder->Run(silent); }));
  return device_.failure->status();
}

template <Numerics N>
bool GpuPasses<N>::MayCapture(const StepLayout& layout) {
  const auto named = [this](Layout one) {
    return !options_.captured.has_value() ||
           std::find(options_.captured->begin(), options_.captured->end(),
                     one) != options_.captured->end();
  };
  if (named(layout.attention) && named(layout.experts.to)) return can_capture_;
  if (!std::exchange(told_of_uncaptured_, true)) {
    LogInfo("passes of ",
            LayoutName(layout.experts.to, options_.peers->num_ranks()),
            " are launched kernel by kernel: layout.resident does not name it");
  }
  return false;
}

template <Numerics N>
absl::Status GpuPasses<N>::LaunchOrReplay(const Pass<D>& pass) {
  const PassKey key =
      KeyOf(pass.layout, pass.rows.size, pass.rows.max_position + 1);
  ForgetIfMoved();
  if (!graphs_.Replay(key)) {
    if (!MayCapture(pass.layout) || !graphs_.WasSeen(key)) {
      return options_.decoder->Run(pass);
    }
    if (const absl::Status captured = Capture(key, pass); !captured.ok()) {
      LogWarn("passes are no longer captured: ", captured.ToString());
      can_capture_ = false;
      return options_.decoder->Run(pass);
    }
    graphs_.Replay(key);
  }
  options_.decoder->SampleLogits(pass);
  return absl::OkStatus();
}

template <Numerics N>
absl::Status GpuPasses<N>::Launch(const Pass<Cpu>& pass, uint64_t number) {
  CHECK(under_way_ < kMostUnderWay);
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  RETURN_IF_ERROR(device_.failure->status());
  RETURN_IF_ERROR(MakeRoom(pass));
  if (under_way_ == 0 && options_.peers->Restart()) graphs_.Clear();
  const int at = static_cast<int>(number % kPassCopies);
  Copy& copy = copies_[at];
  const Padding padding = PaddingOf(pass);
  const Pass<D> on_gpu = Put(pass, padding, at);
  copy.meetings = options_.peers->Start();
  Begin(copy.meetings);
  const bool captured = padding.rows > 0 && on_gpu.rows.max_chunk_rows <= 1 &&
                        !options_.decoder->observed();
  RETURN_IF_ERROR(captured ? LaunchOrReplay(on_gpu)
                           : options_.decoder->Run(on_gpu));
  options_.peers->End();
  device_.failure->Note(CudaStatus(cudaEventRecord(copy.end, device_.stream),
                                   "the end of a pass"));
  ++under_way_;
  return absl::OkStatus();
}

template <Numerics N>
void GpuPasses<N>::AwaitEnd(uint64_t number) {
  device_.failure->Note(UseGpu(options_.gpu));
  device_.failure->Note(CudaStatus(
      cudaEventSynchronize(copies_[number % kPassCopies].end), "a pass"));
}

template <Numerics N>
absl::Status GpuPasses<N>::Finish(uint64_t number) {
  CHECK(under_way_ > 0);
  --under_way_;
  RETURN_IF_ERROR(device_.failure->status());
  return options_.peers->Outcome(copies_[number % kPassCopies].meetings);
}

template <Numerics N>
void GpuPasses<N>::Drain() {
  options_.stream->Wait().IgnoreError();  // it is noted, and stays
  under_way_ = 0;
}

template <Numerics N>
absl::Status GpuPasses<N>::Run(const Pass<Cpu>& pass) {
  const uint64_t number = next_++;
  if (const absl::Status launched = Launch(pass, number); !launched.ok()) {
    Drain();
    return launched;
  }
  AwaitEnd(number);
  sampling_.Collect();
  return Finish(number);
}

template <Numerics N>
Pass<Cuda<N>> GpuPasses<N>::PutNothing(const StepLayout& layout,
                                       const Padding& padding) {
  Pass<Cpu> nothing;
  nothing.layout = layout;
  return Put(nothing, padding, 0);
}

template <Numerics N>
absl::Status GpuPasses<N>::RunNothing(const Pass<D>& pass) {
  Begin(options_.peers->StartAlone());
  const absl::Status launched = options_.decoder->Run(pass);
  RETURN_IF_ERROR(options_.stream->Wait());
  return launched;
}

template <Numerics N>
absl::Status GpuPasses<N>::MakeAllRoom(const StepLayout& layout) {
  const Collectives<D>& peers = *options_.peers;
  const int context = options_.decoder->max_positions();
  for (const int rows :
       RowBuckets(layout.attention, peers.num_ranks(), Limits())) {
    RETURN_IF_ERROR(RunNothing(PutNothing(layout, {rows, context})));
  }
  // All rows of a step are our group's.
  Pass<D> largest = PutNothing(layout, {options_.max_rows, context});
  std::fill(padded_of_group_.begin(), padded_of_group_.end(), 0);
  padded_of_group_[static_cast<size_t>(
      layout.attention.group_of(peers.rank()))] = options_.max_rows;
  return RunNothing(largest);
}

template <Numerics N>
std::vector<typename GpuPasses<N>::Padding> GpuPasses<N>::Foreseen(
    const StepLayout& layout) const {
  std::vector<Padding> all;
  const int num_ranks = options_.peers->num_ranks();
  for (const int rows : RowBuckets(layout.attention, num_ranks, Limits())) {
    for (const int positions : PositionBuckets(
             options_.decoder->max_positions(), PositionsAlike(layout, rows))) {
      all.push_back({rows, positions});
    }
  }
  return all;
}

template <Numerics N>
absl::Status GpuPasses<N>::CaptureForeseen() {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  int total = 0;
  for (const StepLayout& layout : ahead_) {
    total += static_cast<int>(Foreseen(layout).size());
  }
  graphs_.AllowUpTo(total + options_.max_graphs);
  ASSIGN_OR_RETURN(const GpuMemory before, MemoryOfGpu());
  std::vector<std::string> names;
  auto told = begin;
  for (const StepLayout& layout : ahead_) {
    names.emplace_back(
        LayoutName(layout.experts.to, options_.peers->num_ranks()));
    for (const Padding& padding : Foreseen(layout)) {
      RETURN_IF_ERROR(Capture(KeyOf(layout, padding.rows, padding.positions),
                              PutNothing(layout, padding)));
      if (Clock::now() - told < kProgressInterval) continue;
      told = Clock::now();
      LogInfo("captured ", num_graphs(), " of ", total, " passes");
    }
  }
  RETURN_IF_ERROR(options_.stream->Wait());
  ASSIGN_OR_RETURN(const GpuMemory after, MemoryOfGpu());
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      Clock::now() - begin);
  graph_bytes_ = before.free_bytes - after.free_bytes;
  LogInfo("captured ", num_graphs(), " passes of ",
          absl::StrJoin(names, " and "), " in ", took.count(), " ms, ",
          graph_bytes_ >> 20, " MiB of the GPU");
  return absl::OkStatus();
}

template <Numerics N>
absl::Status GpuPasses<N>::CaptureAhead(absl::Span<const StepLayout> layouts) {
  if (!options_.graphs || layouts.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  ahead_.assign(layouts.begin(), layouts.end());
  for (const StepLayout& layout : layouts) {
    RETURN_IF_ERROR(MakeAllRoom(layout));
  }
  ForgetIfMoved();
  return CaptureForeseen();
}

template <Numerics N>
absl::Status GpuPasses<N>::FollowPeers() {
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  if (!options_.peers->Restart()) return absl::OkStatus();
  graphs_.Clear();
  return ahead_.empty() ? absl::OkStatus() : CaptureForeseen();
}

template class GpuPasses<Numerics::kExact>;
template class GpuPasses<Numerics::kFast>;

}  // namespace moebius
