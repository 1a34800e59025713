// What ranks on GPUs pay to meet: the sum of all ranks' rows, residual and
// norm, behind a meeting, as TP has it twice a layer. In a graph of 200, each
// rank on a GPU of its own if there are enough, else all on one.
//
//   SumOfRanks/<ranks>/<rows>   rows of 2048 (2 rows would be 8 KiB of BF16);
//                               microseconds each
#include <cuda_runtime_api.h>

#include <array>
#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/memory/signals.h"
#include "worker/model/pass_begin.h"
#include "worker/peers/collectives_cuda.h"

namespace moebius {
namespace {

using D = CudaFast;
constexpr int kHidden = 2048;
constexpr int kLayers = 100;
constexpr int kMaxRows = 128;

void Require(cudaError_t error) { CHECK(error == cudaSuccess); }

ModelShape ShapeOf(int num_ranks) {
  SmallModel model;
  model.hidden_size = kHidden;
  model.num_q_heads = model.num_kv_heads = 16;
  model.head_dim = 128;
  model.intermediate_size = 2048;
  model.vocab_size = 4096;
  model.max_positions = 256;
  model.is_moe_layer.assign(kLayers, false);
  const auto shape = MakeModelShape(SpecOf(model), num_ranks);
  CHECK(shape.ok());
  return *shape;
}

struct alignas(4096) SignalsPage : std::array<std::byte, 4096> {};

struct OneRank {
  explicit OneRank(int on_gpu)
      : gpu(on_gpu), stream(GpuStream::Create(on_gpu, &failure)) {
    device = {stream->get(), &failure, stream->num_multiprocessors()};
  }
  // Zeros.
  template <class T>
  Buffer<T, D> Allocate(int64_t count) {
    Buffer<T, D> buffer(device, "a benchmark", count);
    Require(
        cudaMemset(buffer.data(), 0, static_cast<size_t>(count) * sizeof(T)));
    return buffer;
  }

  const int gpu;
  CudaFailure failure;
  std::unique_ptr<GpuStream> stream;
  D device;
  SignalsPage signals{};
  Buffer<std::byte, D> exchange;
  Buffer<float, D> residual, normed, weight;
  std::unique_ptr<SignalsFence> fence;
  std::unique_ptr<Collectives<D>> peers;
  cudaGraphExec_t graph = nullptr;
};

class Group {
 public:
  Group(int num_ranks, int rows) : shape_(ShapeOf(num_ranks)) {
    const int gpus = NumGpus() >= num_ranks ? num_ranks : 1;
    for (Rank r = 0; r < num_ranks; ++r) {
      ranks_.push_back(std::make_unique<OneRank>(r % gpus));
      for (int other = 0; other < gpus; ++other) {
        if (other == ranks_[r]->gpu) continue;
        cudaDeviceEnablePeerAccess(other, 0);
        cudaGetLastError();  // it was enabled before
      }
      OneRank& rank = *ranks_[r];
      rank.exchange = rank.Allocate<std::byte>(
          Collectives<D>::ExchangeBytes(shape_, kMaxRows, 1));
      rank.residual = rank.Allocate<float>(kMaxRows * kHidden);
      rank.normed = rank.Allocate<float>(kMaxRows * kHidden);
      rank.weight = rank.Allocate<float>(kHidden);
      InitSignals(rank.signals.data(), r, num_ranks, Incarnation{1});
    }
    for (Rank r = 0; r < num_ranks; ++r) Build(r, rows);
  }
  ~Group() {
    for (const auto& rank : ranks_) {
      CHECK(UseGpu(rank->gpu).ok());
      Require(cudaGraphExecDestroy(rank->graph));
      rank->peers.reset();
    }
  }

  // On a thread of the rank's.
  void Run(Rank r) {
    OneRank& rank = *ranks_[r];
    const MeetingStart start = rank.peers->Start();
    LaunchBeginning({.meetings = start}, rank.device.stream, &rank.failure);
    Require(cudaGraphLaunch(rank.graph, rank.device.stream));
    CHECK(rank.stream->Wait().ok());
    CHECK(rank.peers->Outcome(start).ok());
  }
  int gpu_of(Rank r) const { return ranks_[r]->gpu; }

 private:
  void Build(Rank r, int rows) {
    OneRank& rank = *ranks_[r];
    CHECK(UseGpu(rank.gpu).ok());
    Collectives<D>::Options options;
    options.shape = shape_;
    options.rank = r;
    options.max_rows = kMaxRows;
    for (const auto& peer : ranks_) {
      options.exchange.push_back(peer->exchange.data());
      options.signals.push_back(peer->signals.data());
    }
    rank.fence = std::make_unique<SignalsFence>(
        r, options.signals, BarrierOptions{}, absl::Seconds(10));
    options.fence = rank.fence.get();
    options.most_waiting_blocks = kMaxRows;
    auto peers = Collectives<D>::Create(rank.device, options);
    CHECK(peers.ok());
    rank.peers = *std::move(peers);
    Capture(rank, rows);
  }

  void Capture(OneRank& rank, int rows) {
    const auto layout = TensorParallel(shape_.num_ranks);
    const ResidualNorm<D> to{{rank.residual.data(), rows, kHidden, kHidden},
                             {rank.weight.data(), kHidden, 1e-6f},
                             {rank.normed.data(), rows, kHidden, kHidden}};
    rank.peers->Begin(layout);
    CHECK(rank.stream->Wait().ok());
    Require(cudaStreamBeginCapture(rank.device.stream,
                                   cudaStreamCaptureModeThreadLocal));
    for (int l = 0; l < kLayers; ++l) {
      CHECK(rank.peers->SumAttention(rank.device, to).ok());
      CHECK(rank.peers->SumDense(rank.device, to).ok());
    }
    cudaGraph_t graph = nullptr;
    Require(cudaStreamEndCapture(rank.device.stream, &graph));
    Require(cudaGraphInstantiate(&rank.graph, graph, 0));
    Require(cudaGraphDestroy(graph));
  }

  const ModelShape shape_;
  std::vector<std::unique_ptr<OneRank>> ranks_;
};

void SumOfRanks(benchmark::State& state) {
  PrepareForRanksOnOneGpu();
  const int num_ranks = static_cast<int>(state.range(0));
  Group group(num_ranks, static_cast<int>(state.range(1)));
  std::barrier<> meet(num_ranks);
  bool over = false;
  std::vector<std::thread> threads;
  for (Rank r = 1; r < num_ranks; ++r) {
    threads.emplace_back([&, r] {
      CHECK(UseGpu(group.gpu_of(r)).ok());
      for (;;) {
        meet.arrive_and_wait();
        if (over) return;
        group.Run(r);
      }
    });
  }
  CHECK(UseGpu(group.gpu_of(0)).ok());
  for (auto _ : state) {
    meet.arrive_and_wait();
    group.Run(0);
  }
  over = true;
  meet.arrive_and_wait();
  for (std::thread& thread : threads) thread.join();
  state.counters["us_each"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * 2 * kLayers / 1e6,
      benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(SumOfRanks)
    ->ArgsProduct({{1, 2, 4, 8}, {1, 2, 4, 16, 64, 128}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace moebius
