#include "tests/gpu/gpu_ranks.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/copies.h"
#include "kernels/cuda/workspace.h"
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

constexpr int kSlots = 256;  // places of drawn tokens

struct alignas(4096) SignalsPage : std::array<std::byte, 4096> {};

// Runs one function after another.
class RankThread {
 public:
  RankThread() : thread_([this] { Serve(); }) {}
  ~RankThread() {
    {
      const absl::MutexLock lock(&mutex_);
      over_ = true;
    }
    thread_.join();
  }
  absl::Status Run(std::function<absl::Status()> task) {
    absl::MutexLock lock(&mutex_);
    task_ = std::move(task);
    mutex_.Await(absl::Condition(this, &RankThread::idle));
    return status_;
  }

 private:
  bool idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !task_; }
  bool busy() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return over_ || task_;
  }
  void Serve() {
    absl::MutexLock lock(&mutex_);
    for (;;) {
      mutex_.Await(absl::Condition(this, &RankThread::busy));
      if (over_) return;
      const std::function<absl::Status()> task = task_;
      mutex_.Unlock();
      const absl::Status status = task();
      mutex_.Lock();
      status_ = status;
      task_ = nullptr;
    }
  }

  absl::Mutex mutex_;
  std::function<absl::Status()> task_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

std::vector<PageId> OnePage(Rank r, const GroupOptions& options,
                            const ModelShape& shape, int length) {
  const int blocks = (length + kPageTokens - 1) / kPageTokens;
  const int heads = HeadsOf(shape.attention, options.layout, r).num_kv();
  return std::vector<PageId>(static_cast<size_t>(blocks) * heads, 0);
}

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
        device{stream->get(), failure, stream->num_multiprocessors(),
               &workspace} {}

  std::byte* Allocate(Buffer<std::byte, D>& buffer, const char* name,
                      int64_t size_bytes) {
    buffer = {device, name, size_bytes + 1};
    return buffer.data();
  }
  // Zeros: what a region begins with.
  std::byte* AllocateZeros(Buffer<std::byte, D>& buffer, const char* name,
                           int64_t size_bytes) {
    Allocate(buffer, name, size_bytes);
    constexpr int64_t kMostUploaded = int64_t{64} << 20;
    const int64_t uploaded = std::min(size_bytes, kMostUploaded);
    const std::vector<std::byte> zeros(static_cast<size_t>(uploaded));
    UploadToGpu(zeros.data(), uploaded, buffer.data(), device.stream,
                device.failure);
    for (int64_t at = uploaded; at < size_bytes; at += uploaded) {
      Require(LaunchCopies({{buffer.data(), buffer.data() + at,
                             std::min(uploaded, size_bytes - at)}},
                           device.num_multiprocessors, device.stream));
    }
    return buffer.data();
  }

  const std::unique_ptr<GpuStream> stream;
  Workspace workspace;
  const D device;
  SignalsPage signals{};
  Buffer<std::byte, D> dense, experts, kv, exchange;
  std::unique_ptr<SignalsFence> fence;
  std::unique_ptr<Collectives<D>> peers;
  std::unique_ptr<Decoder<D>> decoder;
  std::unique_ptr<GpuPasses<N>> graphs, launches;  // passes that are such
  RankThread thread;
};

template <Numerics N>
GpuRanks<N>::GpuRanks(const GroupOptions& options, const ModelShape& shape,
                      const GpuRanksOptions& how)
    : how_(how), graphs_(how.graphs) {
  for (Rank r = 0; r < options.num_ranks; ++r) {
    auto rank = std::make_unique<OneRank>(&failure_);
    rank->Allocate(rank->dense, "dense", PlanDense(shape).size_bytes);
    rank->Allocate(rank->experts, "experts", shape.experts.region_bytes());
    rank->AllocateZeros(rank->kv, "kv",
                        MakeKvLayout(shape.spec, options.kv_type).page_bytes() *
                            options.num_pages);
    rank->AllocateZeros(
        rank->exchange, "exchange",
        Collectives<Cuda<N>>::ExchangeBytes(shape, options.max_rows, kSlots));
    Load(*rank, r, options, shape);
    InitSignals(rank->signals.data(), r, options.num_ranks, Incarnation{1});
    ranks_.push_back(std::move(rank));
  }
  for (Rank r = 0; r < options.num_ranks; ++r) {
    Build(r, options, shape);
  }
  uint64_t next = 0;
  for (Rank r = 0; r < options.num_ranks; ++r) {
    Rehearse(r, options, shape);
    next = std::max(next, fence(r).abandoned() + 1);
  }
  for (Rank r = 0; r < options.num_ranks; ++r) fence(r).GoOn(next);
  Require(failure_.status());
}

template <Numerics N>
void GpuRanks<N>::Load(OneRank& rank, Rank r, const GroupOptions& options,
                       const ModelShape& shape) {
  std::vector<ExpertsState> states = how_.more_experts;
  states.push_back(options.experts_state());
  for (const ExpertsState& state : states) {
    std::unique_ptr<TensorSource> source;
    if (options.model_dir.empty()) {
      source = MakeDummyWeights();
    } else {
      source = TensorsOf(options.adapt, shape.spec,
                         Must(Checkpoint::Open(options.model_dir)));
    }
    const auto sink =
        MakeGpuWeightSink(rank.dense.data(), rank.experts.data(), 0);
    Must(LoadWeights({shape, options.names, r, state}, *source, *sink));
  }
}

template <Numerics N>
GpuRanks<N>::~GpuRanks() {
  for (const auto& rank : ranks_) Require(rank->stream->Wait());
}

template <Numerics N>
void GpuRanks<N>::Build(Rank r, const GroupOptions& options,
                        const ModelShape& shape) {
  OneRank& rank = *ranks_[r];
  typename Collectives<Cuda<N>>::Options peers;
  peers.shape = shape;
  peers.rank = r;
  peers.max_rows = options.max_rows;
  peers.max_slots = kSlots;
  for (const auto& peer : ranks_) {
    peers.exchange.push_back(peer->exchange.data());
    peers.signals.push_back(peer->signals.data());
  }
  rank.fence = std::make_unique<SignalsFence>(r, peers.signals,
                                              BarrierOptions{}, how_.timeout);
  peers.fence = rank.fence.get();
  peers.timeout = how_.timeout;
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
  passes.vocabulary = shape.spec.vocab_size;
  passes.page_ids =
      options.num_pages + options.max_rows * shape.attention.num_kv_heads;
  passes.stream = rank.stream.get();
  passes.decoder = rank.decoder.get();
  passes.peers = rank.peers.get();
  passes.max_graphs = how_.max_graphs;
  passes.captured = how_.captured;
  rank.graphs = Must(GpuPasses<N>::Create(rank.device, passes));
  passes.graphs = false;
  rank.launches = Must(GpuPasses<N>::Create(rank.device, passes));
}

template <Numerics N>
void GpuRanks<N>::Rehearse(Rank r, const GroupOptions& options,
                           const ModelShape& shape) {
  if (how_.rehearse) {
    fence(r).Abandon();
    std::vector<GroupOptions> all = {options};
    for (const StepLayout& layout : how_.rehearsed) {
      all.push_back(options);
      all.back().layout = layout.attention;
      all.back().experts = layout.experts;
    }
    for (const bool graphs : {true, false}) {
      SetGraphs(graphs);  // each has room of its own
      for (const GroupOptions& one : all) {
        for (int rows = options.max_rows; rows > 0; rows /= 2) {
          RehearseRows(r, one, shape, rows, true);
          RehearseRows(r, one, shape, rows, false);
        }
        RehearsePositions(r, one, shape);
      }
    }
    SetGraphs(how_.graphs);
  }
  if (!how_.graphs) return;
  const StepLayout own = {options.layout, options.experts_state()};
  std::vector<StepLayout> ahead;
  if (own.experts.steady()) ahead.push_back(own);
  if (how_.ahead.has_value()) ahead = *how_.ahead;
  Require(ranks_[r]->thread.Run(
      [&] { return ranks_[r]->graphs->CaptureAhead(ahead); }));
}

template <Numerics N>
void GpuRanks<N>::RunAlone(Rank r, const Pass<Cpu>& pass) {
  const absl::Status status = Run(r, pass);
  if (!absl::IsAborted(status)) Require(status);
}

// So many rows, over one page that all blocks share. Where all are wanted their
// logits are too, for which the sampling makes room on the host.
template <Numerics N>
void GpuRanks<N>::RehearseRows(Rank r, const GroupOptions& options,
                               const ModelShape& shape, int rows,
                               bool all_wanted) {
  const SamplingParams greedy{.temperature = 0.0f};
  const int most = std::min(shape.spec.max_positions, rows);
  const std::vector<int32_t> tokens(static_cast<size_t>(most), 1);
  const std::vector<PageId> pages = OnePage(r, options, shape, most);
  std::vector<float> logits(static_cast<size_t>(shape.spec.vocab_size));
  PassBuilder builder;
  builder.Begin({options.layout, options.experts_state()}, options.num_ranks,
                r);
  for (int begin = 0; begin < rows; begin += most) {
    const int count = std::min(most, rows - begin);
    builder.AddChunk(absl::MakeConstSpan(tokens).first(count), 0, pages);
    for (int i = all_wanted ? 0 : count - 1; i < count; ++i) {
      builder.Want(i, {.sampling = &greedy, .logits = logits.data()});
    }
  }
  RunAlone(r, builder.Build());
}

// Rows far behind, which several blocks of threads share.
template <Numerics N>
void GpuRanks<N>::RehearsePositions(Rank r, const GroupOptions& options,
                                    const ModelShape& shape) {
  constexpr int kFarBehind = 2048, kMostShared = 132;  // rows times heads
  const SamplingParams greedy{.temperature = 0.0f};
  const int length = std::min(shape.spec.max_positions, kFarBehind);
  const int heads = HeadsOf(shape.attention, options.layout, r).num_kv();
  const int chunks = std::min(options.max_rows, kMostShared / heads);
  const std::vector<int32_t> tokens = {1};
  const std::vector<PageId> pages = OnePage(r, options, shape, length);
  PassBuilder builder;
  builder.Begin({options.layout, options.experts_state()}, options.num_ranks,
                r);
  for (int i = 0; i < chunks; ++i) {
    builder.AddChunk(tokens, length - 1, pages);
    builder.Want(0, {.sampling = &greedy});
  }
  RunAlone(r, builder.Build());
}

template <Numerics N>
absl::Status GpuRanks<N>::Run(Rank rank, const Pass<Cpu>& pass) {
  return Do(rank, [&](GpuPasses<N>& passes) { return passes.Run(pass); });
}

template <Numerics N>
absl::Status GpuRanks<N>::Do(Rank rank, Task task) {
  OneRank& one = *ranks_[rank];
  return one.thread.Run(
      [&] { return task(graphs_ ? *one.graphs : *one.launches); });
}

template <Numerics N>
int GpuRanks<N>::num_graphs(Rank rank) const {
  return ranks_[rank]->graphs->num_graphs();
}

template <Numerics N>
CUstream_st* GpuRanks<N>::stream(Rank rank) const {
  return ranks_[rank]->device.stream;
}

template <Numerics N>
const Routing<Cuda<N>>& GpuRanks<N>::routing(Rank rank) const {
  return ranks_[rank]->decoder->routing();
}

template <Numerics N>
SignalsFence& GpuRanks<N>::fence(Rank rank) {
  return *ranks_[rank]->fence;
}

template class GpuRanks<Numerics::kExact>;
template class GpuRanks<Numerics::kFast>;

}  // namespace moebius
