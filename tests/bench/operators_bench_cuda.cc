// The products of a GPU with the sizes of Qwen3-30B-A3B, in decode and prefill,
// against the time that the bytes which must be moved take at the rate of a
// large copy in the same run.
//
// Each benchmark is a CUDA graph of several calls, whose weights differ, so
// that none of them finds its weights in a cache. Counters:
//   us       of a call
//   floor    time over that of the bytes: weights that are named, rows read
//            and written
//   TFLOP/s  useful ones (two for each weight and row)
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/workspace.h"

namespace moebius {
namespace {

constexpr int kHidden = 2048, kQueries = 4096, kKeys = 512;
constexpr int kVocabulary = 151936;
constexpr int kExperts = 128, kExpertRows = 768, kTopK = 8;
constexpr int kMostRows = 16384;
constexpr int kCalls = 8;  // of a graph
// Elements: the logits' weights, and eight times the other dense ones.
constexpr int64_t kDenseElements = int64_t{kVocabulary} * kHidden;
constexpr int64_t kExpertElements =
    int64_t{3} * kExperts * kExpertRows * kHidden;

void Check(cudaError_t error) { CHECK(error == cudaSuccess); }

float Milliseconds(cudaEvent_t from, cudaEvent_t to) {
  float time_ms = 0.0f;
  Check(cudaEventSynchronize(to));
  Check(cudaEventElapsedTime(&time_ms, from, to));
  return time_ms;
}

// Memory and a stream, for all benchmarks.
template <class D>
class Bench {
 public:
  static Bench& Get() {
    static Bench bench;
    return bench;
  }

  const D& device() const { return device_; }
  const Bf16* dense() const { return dense_.data(); }
  const Bf16* experts() const { return experts_.data(); }
  View<float, D> Rows(int rows, int cols) const {
    return {x_.data(), rows, cols, cols};
  }
  View<float, D> Out(int rows, int cols) const {
    return {out_.data(), rows, cols, cols};
  }
  PartialRows<D> Sums(int rows, int source) const {
    return {sums_.data() + int64_t{source} * kMostRows * kHidden, rows, kHidden,
            kHidden};
  }
  const float* ones() const { return ones_.data(); }

  // Bytes a second, read and written.
  double CopyRate() {
    if (copy_rate_ > 0.0) return copy_rate_;
    constexpr int64_t kBytes = kExpertElements * 2;
    const Buffer<Bf16, D> copy(device_, "a copy", kExpertElements);
    float best_ms = 1e9f;
    for (int i = 0; i < 10; ++i) {
      Check(cudaEventRecord(begin_, device_.stream));
      Check(cudaMemcpyAsync(copy.data(), experts_.data(), kBytes,
                            cudaMemcpyDeviceToDevice, device_.stream));
      Check(cudaEventRecord(end_, device_.stream));
      best_ms = std::min(best_ms, Milliseconds(begin_, end_));
    }
    return copy_rate_ = 2.0 * kBytes / best_ms * 1e3;
  }

  // Times graphs of kCalls calls; bytes and multiply-adds of all of them.
  void Run(benchmark::State& state, double bytes, double products,
           const std::function<void(int)>& call) {
    for (int i = 0; i < kCalls; ++i) call(i);
    CHECK(stream_->Wait().ok());
    cudaGraph_t graph;
    cudaGraphExec_t ready;
    Check(cudaStreamBeginCapture(device_.stream,
                                 cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kCalls; ++i) call(i);
    Check(cudaStreamEndCapture(device_.stream, &graph));
    Check(cudaGraphInstantiate(&ready, graph, 0));
    Check(cudaGraphLaunch(ready, device_.stream));
    std::vector<double> times_s;
    for (auto _ : state) {
      Check(cudaEventRecord(begin_, device_.stream));
      Check(cudaGraphLaunch(ready, device_.stream));
      Check(cudaEventRecord(end_, device_.stream));
      times_s.push_back(Milliseconds(begin_, end_) / 1e3);
      state.SetIterationTime(times_s.back());
    }
    Check(cudaGraphExecDestroy(ready));
    Check(cudaGraphDestroy(graph));
    CHECK(stream_->Wait().ok());
    std::sort(times_s.begin(), times_s.end());
    const double median_s = times_s[times_s.size() / 2];
    state.counters["us"] = median_s * 1e6 / kCalls;
    state.counters["floor"] = median_s * CopyRate() / bytes;
    state.counters["TFLOP/s"] = 2.0 * products / median_s / 1e12;
    state.counters["copy_TB/s"] = CopyRate() / 1e12;
  }

 private:
  Bench() : stream_(GpuStream::Create(0, &failure_)) {
    device_ = {stream_->get(), &failure_, stream_->num_multiprocessors(),
               &workspace_};
    dense_ = {device_, "dense weights", kDenseElements};
    experts_ = {device_, "experts", kExpertElements};
    x_ = {device_, "rows", int64_t{kMostRows} * kQueries};
    out_ = {device_, "results", int64_t{kMostRows} * (kQueries + 2 * kKeys)};
    sums_ = {device_, "sums", int64_t{4} * kMostRows * kHidden};
    ones_ = {device_, "a norm", kHidden};
    CHECK(failure_.status().ok());
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<Bf16> weights(size_t{1} << 22);
    for (Bf16& w : weights) w = ToBf16(0.02f * normal(generator));
    Fill(weights, kDenseElements, dense_.data());
    Fill(weights, kExpertElements, experts_.data());
    std::vector<float> rows(size_t{1} << 22);
    for (float& x : rows) x = normal(generator);
    Fill(rows, int64_t{kMostRows} * kQueries, x_.data());
    Fill(std::vector<float>(kHidden, 1.0f), kHidden, ones_.data());
    Check(cudaMemset(
        sums_.data(), 0,
        size_t{4} * kMostRows * kHidden * sizeof(typename D::Partial)));
    Check(cudaEventCreate(&begin_));
    Check(cudaEventCreate(&end_));
  }

  // Again and again the same values.
  template <class T>
  void Fill(const std::vector<T>& values, int64_t count, T* to) {
    for (int64_t i = 0; i < count; i += static_cast<int64_t>(values.size())) {
      const int64_t now =
          std::min(count - i, static_cast<int64_t>(values.size()));
      UploadToGpu(values.data(), now * int64_t{sizeof(T)}, to + i,
                  device_.stream, &failure_);
    }
  }

  CudaFailure failure_;
  Workspace workspace_;
  const std::unique_ptr<GpuStream> stream_;
  D device_;
  Buffer<Bf16, D> dense_, experts_;
  Buffer<float, D> x_, out_, ones_;
  Buffer<typename D::Partial, D> sums_;
  cudaEvent_t begin_, end_;
  double copy_rate_ = 0.0;
};

// Bytes of `rows` rows of `cols` numbers.
template <class T>
double RowBytes(int rows, int cols) {
  return double{sizeof(T)} * rows * cols;
}

template <class D>
void BM_Qkv(benchmark::State& state) {
  Bench<D>& bench = Bench<D>::Get();
  const int rows = static_cast<int>(state.range(0));
  const int outputs = kQueries + 2 * kKeys;
  const double weights = double{outputs} * kHidden;
  const double bytes = 2.0 * weights + RowBytes<float>(rows, kHidden) +
                       RowBytes<float>(rows, outputs);
  bench.Run(state, kCalls * bytes, kCalls * weights * rows, [&](int i) {
    const ColumnParallel<D> all{bench.dense() + int64_t{i} * outputs * kHidden,
                                outputs, kHidden};
    const ColumnParallel<D> parts[] = {
        all.OutputRange(0, kQueries),
        all.OutputRange(kQueries, kQueries + kKeys),
        all.OutputRange(kQueries + kKeys, outputs)};
    Project(bench.device(), bench.Rows(rows, kHidden), parts,
            bench.Out(rows, outputs));
  });
}

template <class D>
void BM_Output(benchmark::State& state) {
  Bench<D>& bench = Bench<D>::Get();
  const int rows = static_cast<int>(state.range(0));
  const double weights = double{kQueries} * kHidden;
  const double bytes = 2.0 * weights + RowBytes<float>(rows, kQueries) +
                       RowBytes<typename D::Partial>(rows, kHidden);
  bench.Run(state, kCalls * bytes, kCalls * weights * rows, [&](int i) {
    ProjectPartial(
        bench.device(), bench.Rows(rows, kQueries),
        RowSlices<D>{{bench.dense() + int64_t{i} * kQueries * kHidden, kHidden,
                      kQueries},
                     0,
                     512},
        bench.Sums(rows, 0));
  });
}

template <class D>
void BM_Logits(benchmark::State& state) {
  Bench<D>& bench = Bench<D>::Get();
  const int rows = static_cast<int>(state.range(0));
  const double weights = double{kVocabulary} * kHidden;
  const double bytes = 2.0 * weights + RowBytes<float>(rows, kHidden) +
                       RowBytes<float>(rows, kVocabulary);
  const ColumnParallel<D> parts[] = {{bench.dense(), kVocabulary, kHidden}};
  bench.Run(state, kCalls * bytes, kCalls * weights * rows, [&](int) {
    Project(bench.device(), bench.Rows(rows, kHidden), parts,
            bench.Out(rows, kVocabulary));
  });
}

template <class D>
void BM_AddPartials(benchmark::State& state) {
  Bench<D>& bench = Bench<D>::Get();
  const int rows = static_cast<int>(state.range(0));
  const int count = static_cast<int>(state.range(1));
  std::vector<ConstPartialRows<D>> sources;
  for (int s = 0; s < count; ++s) sources.push_back(bench.Sums(rows, s));
  const double bytes = count * RowBytes<typename D::Partial>(rows, kHidden) +
                       3 * RowBytes<float>(rows, kHidden);
  bench.Run(state, kCalls * bytes, 0.0, [&](int) {
    AddPartials(bench.device(), sources,
                {bench.Rows(rows, kHidden),
                 {bench.ones(), kHidden, 1e-6f},
                 bench.Out(rows, kHidden)});
  });
}

// Each row has kTopK experts of `groups`, drawn at random. Returns how many
// groups are not empty.
template <class D>
int PutGroups(const D& device, int groups, int rows, std::mt19937& generator,
              Routing<D>& routing) {
  std::vector<std::vector<int32_t>> members(groups);
  std::vector<int> order(groups);
  std::iota(order.begin(), order.end(), 0);
  for (int32_t i = 0; i < rows; ++i) {
    for (int t = 0; t < kTopK; ++t) {
      std::swap(order[t], order[t + generator() % (groups - t)]);
      members[order[t]].push_back(i);
    }
  }
  std::vector<int32_t> begins = {0}, entries;
  int used = 0;
  for (const std::vector<int32_t>& group : members) {
    entries.insert(entries.end(), group.begin(), group.end());
    begins.push_back(static_cast<int32_t>(entries.size()));
    used += group.empty() ? 0 : 1;
  }
  routing.num_groups = groups;
  routing.max_entries = rows * kTopK;
  routing.num_rows = rows;
  const auto put = [&]<class T>(const std::vector<T>& from, Buffer<T, D>& to) {
    const int64_t count = static_cast<int64_t>(from.size());
    to = {device, "groups", count};
    UploadToGpu(from.data(), count * int64_t{sizeof(T)}, to.data(),
                device.stream, device.failure);
  };
  put(begins, routing.begins);
  put(entries, routing.rows);
  put(std::vector<float>(entries.size(), 1.0f / kTopK), routing.weights);
  return used;
}

// The experts of all ranks where `share` is 1, else a rank's slices of them.
template <class D>
void BM_Experts(benchmark::State& state) {
  Bench<D>& bench = Bench<D>::Get();
  const int rows = static_cast<int>(state.range(0));
  const int expert_rows = kExpertRows / static_cast<int>(state.range(1));
  std::mt19937 generator(rows);
  std::vector<Routing<D>> routings(kCalls);
  int used = 0;
  for (Routing<D>& routing : routings) {
    used += PutGroups(bench.device(), kExperts, rows, generator, routing);
  }
  const double expert = 3.0 * expert_rows * kHidden;
  const double bytes = 2.0 * used * expert +
                       kCalls * (RowBytes<float>(rows, kHidden) +
                                 RowBytes<typename D::Partial>(rows, kHidden));
  const ExpertSlot<D> slot{bench.experts(), kHidden, expert_rows, 1, 0,
                           kExperts,        kExperts};
  bench.Run(state, bytes, double{kCalls} * rows * kTopK * expert, [&](int i) {
    Experts(bench.device(), slot, 96, bench.Rows(rows, kHidden), routings[i],
            bench.Sums(rows, 0));
  });
}

void Common(benchmark::internal::Benchmark* bench) {
  bench->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(20);
}
void Rows(benchmark::internal::Benchmark* bench) {
  Common(bench);
  for (const int rows : {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 16384}) {
    bench->Arg(rows);
  }
}
void FewRowsOfLogits(benchmark::internal::Benchmark* bench) {
  Common(bench);
  for (const int rows : {1, 8, 32, 128}) bench->Arg(rows);
}
void RowsAndSources(benchmark::internal::Benchmark* bench) {
  Common(bench);
  for (const int rows : {1, 32, 2048}) bench->Args({rows, 1})->Args({rows, 4});
}
void RowsAndShares(benchmark::internal::Benchmark* bench) {
  Common(bench);
  for (const int rows :
       {1, 2, 4, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384}) {
    bench->Args({rows, 1});
  }
  for (const int rows : {1, 8, 32, 128, 2048}) bench->Args({rows, 4});
}

BENCHMARK(BM_Qkv<CudaFast>)->Apply(Rows);
BENCHMARK(BM_Qkv<CudaExact>)->Apply(Rows);
BENCHMARK(BM_Output<CudaFast>)->Apply(Rows);
BENCHMARK(BM_Output<CudaExact>)->Apply(Rows);
BENCHMARK(BM_Logits<CudaFast>)->Apply(FewRowsOfLogits);
BENCHMARK(BM_Logits<CudaExact>)->Apply(FewRowsOfLogits);
BENCHMARK(BM_AddPartials<CudaFast>)->Apply(RowsAndSources);
BENCHMARK(BM_AddPartials<CudaExact>)->Apply(RowsAndSources);
BENCHMARK(BM_Experts<CudaFast>)->Apply(RowsAndShares);
BENCHMARK(BM_Experts<CudaExact>)->Apply(RowsAndShares);

}  // namespace
}  // namespace moebius
