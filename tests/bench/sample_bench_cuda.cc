// Sampling on a GPU, with the vocabulary of Qwen3, against the time that
// reading the logits once takes at the rate of a large copy in the same run.
//
// Each benchmark is a CUDA graph of several calls over different logits.
// Counters:
//   us     of a call
//   reads  time over that of reading the logits once
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/sample.h"

namespace moebius {
namespace {

using D = CudaFast;
constexpr int kVocabulary = 151936;
constexpr int kMostRows = 128;
constexpr int kCalls = 8;  // of a graph
constexpr int64_t kFloats = int64_t{kCalls} * kMostRows * kVocabulary;

void Check(cudaError_t error) { CHECK(error == cudaSuccess); }

class Bench {
 public:
  static Bench& Get() {
    static Bench bench;
    return bench;
  }

  void Run(benchmark::State& state, const SamplingParams& params) {
    const int rows = static_cast<int>(state.range(0));
    std::vector<SamplingParams> sampling(static_cast<size_t>(rows), params);
    std::vector<SampledRow> results(sampling.size());
    std::vector<SampleRow> wanted;
    TokenHistory history;
    for (int i = 0; i < 500; ++i) history.AddOutput(300 * i);
    for (size_t i = 0; i < sampling.size(); ++i) {
      sampling[i].seed = i;
      wanted.push_back({.sampling = &sampling[i],
                        .history = &history,
                        .result = &results[i]});
    }
    const Samples<D> samples = sampling_.Begin({wanted.data(), 1, rows}, rows);
    const auto call = [&](int i) {
      Sample(device_,
             {logits_.data() + int64_t{i} * kMostRows * kVocabulary, rows,
              kVocabulary, kVocabulary},
             samples);
    };
    const double time_s = Time(state, call) / kCalls;
    sampling_.Collect();
    state.counters["us"] = time_s * 1e6;
    state.counters["reads"] = time_s * copy_rate_ / (4.0 * rows * kVocabulary);
    state.counters["copy_TB/s"] = copy_rate_ / 1e12;
  }

 private:
  Bench()
      : stream_(GpuStream::Create(0, &failure_)),
        device_{stream_->get(), &failure_, stream_->num_multiprocessors()},
        logits_(device_, "logits", kFloats),
        sampling_(device_, kMostRows, kVocabulary) {
    CHECK(failure_.status().ok());
    Check(cudaEventCreate(&begin_));
    Check(cudaEventCreate(&end_));
    FillLogits();
    MeasureCopy();
  }

  // A bulk, and a few dozen a row that stand out, as of a language model.
  void FillLogits() {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<float> values((size_t{1} << 22) + 1);
    for (float& x : values) {
      x = generator() % 3000 == 0 ? 10.0f + 3.0f * normal(generator)
                                  : 2.5f * normal(generator);
    }
    const int64_t size = static_cast<int64_t>(values.size());
    for (int64_t i = 0; i < kFloats; i += size) {
      UploadToGpu(values.data(), std::min(kFloats - i, size) * 4,
                  logits_.data() + i, device_.stream, &failure_);
    }
  }

  // Bytes a second, read and written.
  void MeasureCopy() {
    const int64_t half = kFloats / 2 * 4;
    for (int i = 0; i < 10; ++i) {
      const Buffer<float, D> copy(device_, "a copy", kFloats / 2);
      Check(cudaEventRecord(begin_, device_.stream));
      Check(cudaMemcpyAsync(copy.data(), logits_.data(), half,
                            cudaMemcpyDeviceToDevice, device_.stream));
      Check(cudaEventRecord(end_, device_.stream));
      copy_rate_ = std::max(copy_rate_, 2.0 * half / Seconds());
    }
  }
  double Seconds() {
    float time_ms = 0.0f;
    Check(cudaEventSynchronize(end_));
    Check(cudaEventElapsedTime(&time_ms, begin_, end_));
    return time_ms / 1e3;
  }

  // The median time of a graph.
  template <class F>
  double Time(benchmark::State& state, const F& call) {
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
      times_s.push_back(Seconds());
      state.SetIterationTime(times_s.back());
    }
    Check(cudaGraphExecDestroy(ready));
    Check(cudaGraphDestroy(graph));
    CHECK(stream_->Wait().ok());
    std::sort(times_s.begin(), times_s.end());
    return times_s[times_s.size() / 2];
  }

  CudaFailure failure_;
  const std::unique_ptr<GpuStream> stream_;
  const D device_;
  Buffer<float, D> logits_;
  GpuSampling<Numerics::kFast> sampling_;
  cudaEvent_t begin_, end_;
  double copy_rate_ = 0.0;
};

void BM_Sample(benchmark::State& state, const SamplingParams& params) {
  Bench::Get().Run(state, params);
}
void Rows(benchmark::internal::Benchmark* bench) {
  bench->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(20);
  for (const int rows : {1, 8, 32, 128}) bench->Arg(rows);
}

BENCHMARK_CAPTURE(BM_Sample, greedy, SamplingParams{.temperature = 0.0f})
    ->Apply(Rows);
BENCHMARK_CAPTURE(BM_Sample, temperature, SamplingParams{})->Apply(Rows);
BENCHMARK_CAPTURE(BM_Sample, top_p, SamplingParams{.top_p = 0.95f})
    ->Apply(Rows);
BENCHMARK_CAPTURE(BM_Sample, top_k_top_p,
                  SamplingParams{
                      .temperature = 0.6f, .top_k = 20, .top_p = 0.95f})
    ->Apply(Rows);
BENCHMARK_CAPTURE(BM_Sample, min_p, SamplingParams{.min_p = 0.05f})
    ->Apply(Rows);
// More candidates than are looked at in shared memory.
BENCHMARK_CAPTURE(BM_Sample, hot,
                  SamplingParams{.temperature = 3.0f, .top_p = 0.95f})
    ->Apply(Rows);
BENCHMARK_CAPTURE(BM_Sample, greedy_logprobs,
                  SamplingParams{.temperature = 0.0f, .num_logprobs = 5})
    ->Apply(Rows);
BENCHMARK_CAPTURE(BM_Sample, penalties,
                  SamplingParams{.presence_penalty = 0.5f, .num_logprobs = 0})
    ->Apply(Rows);

}  // namespace
}  // namespace moebius
