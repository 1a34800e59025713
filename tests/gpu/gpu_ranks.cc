#include "tests/gpu/gpu_ranks.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "kernels/cuda/buffer.h"
#include "worker/memory/signals.h"
#include "worker/model/kv_layout.h"
#include "worker/model/pass_cpu.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_loader.h"
#include "worker/model/weight_sink_cuda.h"

namespace moebius {
namespace {

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

template <typename T>
T Must(absl::StatusOr<T> result) {
  Require(result.status());
  return *std::move(result);
}

struct alignas(4096) SignalsPage : std::array<std::byte, 4096> {};

}  // namespace

void PrepareForRanksOnOneGpu() {
  setenv("CUDA_MODULE_LOADING", "EAGER", 1);
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);  // a queue for each stream
}

template <Numerics N>
struct GpuRanks<N>::OneRank {
  using D = Cuda<N>;
  explicit OneRank(CudaFailure* failure)
      : stream(GpuStream::Create(0, failure)),
        device{stream->get(), failure, stream->num_multiprocessors()} {}

  // Zeros: what a region begins with.
  std::byte* Allocate(Buffer<std::byte, D>& buffer, const char* name,
                      int64_t size_bytes) {
    buffer = {device, name, size_bytes + 1};
    const std::vector<std::byte> zeros(static_cast<size_t>(size_bytes));
    UploadToGpu(zeros.data(), size_bytes, buffer.data(), device.stream,
                device.failure);
    return buffer.data();
  }

  const std::unique_ptr<GpuStream> stream;
  const D device;
  SignalsPage signals{};
  Buffer<std::byte, D> dense, experts, kv, exchange;
  std::unique_ptr<SignalsFence> fence;
  std::unique_ptr<Collectives<D>> peers;
  std::unique_ptr<Decoder<D>> decoder;
  std::unique_ptr<GpuPasses<N>> passes;
};

template <Numerics N>
GpuRanks<N>::GpuRanks(const GroupOptions& options, const ModelShape& shape,
                      absl::Duration timeout) {
  for (Rank r = 0; r < options.num_ranks; ++r) {
    auto rank = std::make_unique<OneRank>(&failure_);
    std::byte* const dense =
        rank->Allocate(rank->dense, "dense", PlanDense(shape).size_bytes);
    std::byte* const experts =
        rank->Allocate(rank->experts, "experts", shape.experts.region_bytes());
    rank->Allocate(rank->kv, "kv",
                   MakeKvLayout(shape.spec, options.kv_type).page_bytes() *
                       options.num_pages);
    rank->Allocate(
        rank->exchange, "exchange",
        Collectives<Cuda<N>>::ExchangeBytes(shape, options.max_rows));
    std::unique_ptr<TensorSource> source;
    if (options.model_dir.empty()) {
      source = MakeDummyWeights();
    } else {
      source = Must(Checkpoint::Open(options.model_dir));
    }
    const auto sink = MakeGpuWeightSink(dense, experts, 0);
    Must(LoadWeights({shape, kSmallModelNames, r, options.experts_state()},
                     *source, *sink));
    InitSignals(rank->signals.data(), r, options.num_ranks, Incarnation{1});
    ranks_.push_back(std::move(rank));
  }
  for (Rank r = 0; r < options.num_ranks; ++r) {
    Build(r, options, shape, timeout);
  }
  for (Rank r = 0; r < options.num_ranks; ++r) Rehearse(r, options, shape);
  Require(failure_.status());
}

template <Numerics N>
GpuRanks<N>::~GpuRanks() {
  for (const auto& rank : ranks_) Require(rank->stream->Wait());
}

template <Numerics N>
void GpuRanks<N>::Build(Rank r, const GroupOptions& options,
                        const ModelShape& shape, absl::Duration timeout) {
  OneRank& rank = *ranks_[r];
  typename Collectives<Cuda<N>>::Options peers;
  peers.shape = shape;
  peers.rank = r;
  peers.max_rows = options.max_rows;
  for (const auto& peer : ranks_) {
    peers.exchange.push_back(peer->exchange.data());
    peers.signals.push_back(peer->signals.data());
  }
  rank.fence = std::make_unique<SignalsFence>(r, peers.signals,
                                              BarrierOptions{}, timeout);
  peers.fence = rank.fence.get();
  peers.timeout = timeout;
  rank.peers = Must(Collectives<Cuda<N>>::Create(rank.device, peers));
  DecoderOptions<Cuda<N>> decoder;
  decoder.shape = shape;
  decoder.rank = r;
  decoder.max_rows = options.max_rows;
  decoder.dense = rank.dense.data();
  decoder.experts = rank.experts.data();
  decoder.kv = {rank.kv.data(), static_cast<uint32_t>(options.num_pages),
                PageFormatOf(MakeKvLayout(shape.spec, options.kv_type))};
  decoder.peers = rank.peers.get();
  rank.decoder = Must(Decoder<Cuda<N>>::Create(rank.device, decoder));
  typename GpuPasses<N>::Options passes;
  passes.max_rows = options.max_rows;
  passes.page_ids =
      options.num_pages + options.max_rows * shape.attention.num_kv_heads;
  passes.stream = rank.stream.get();
  passes.decoder = rank.decoder.get();
  passes.peers = rank.peers.get();
  rank.passes = Must(GpuPasses<N>::Create(rank.device, passes));
}

// As many rows as there may be, over one page that all blocks share.
template <Numerics N>
void GpuRanks<N>::Rehearse(Rank r, const GroupOptions& options,
                           const ModelShape& shape) {
  const SamplingParams greedy{.temperature = 0.0f};
  const int most = std::min(shape.spec.max_positions, options.max_rows);
  const std::vector<int32_t> tokens(static_cast<size_t>(most), 1);
  const std::vector<PageId> pages(
      static_cast<size_t>((most + kPageTokens - 1) / kPageTokens) *
          HeadsOf(shape.attention, options.layout, r).num_kv(),
      0);
  PassBuilder builder;
  builder.Begin({options.layout, options.experts_state()}, options.num_ranks,
                r);
  for (int rows = 0; rows < options.max_rows;) {
    const int count = std::min(most, options.max_rows - rows);
    builder.AddChunk(absl::MakeConstSpan(tokens).first(count), 0, pages);
    for (int i = 0; i < count; ++i) builder.Want(i, {.sampling = &greedy});
    rows += count;
  }
  Require(ranks_[r]->passes->Rehearse(builder.Build()));
}

template <Numerics N>
absl::Status GpuRanks<N>::Run(Rank rank, const Pass<Cpu>& pass) {
  return ranks_[rank]->passes->Run(pass);
}

template <Numerics N>
SignalsFence& GpuRanks<N>::fence(Rank rank) {
  return *ranks_[rank]->fence;
}

template class GpuRanks<Numerics::kExact>;
template class GpuRanks<Numerics::kFast>;

}  // namespace moebius
