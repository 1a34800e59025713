// Decode with passes launched behind one another, as a worker does it: one rank
// on one GPU, the sizes of Qwen3-30B-A3B, fast numerics, made-up weights.
//
//   DecodeAhead/<sequences>/<under way>  time of a step; tokens stay on the GPU
//
// Counters: the time of a pass that nobody waits to launch, and medians over
// the steps of what the GPU is without work between two of them, and of what
// the host takes to launch one, microseconds.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/pass_cpu.h"

namespace moebius {
namespace {

constexpr int kMaxRows = 128;
constexpr int kPosition = 1024;
constexpr int kHeads = 4;
constexpr int kVocabulary = 151936;
constexpr int kSteps = 40;  // of a measurement

using Ranks = GpuRanks<Numerics::kFast>;
using Passes = GpuPasses<Numerics::kFast>;

void Require(cudaError_t error) { CHECK(error == cudaSuccess); }

DecoderSpec BigSpec() {
  SmallModel model;
  model.hidden_size = 2048;
  model.num_q_heads = 32;
  model.num_kv_heads = kHeads;
  model.head_dim = 128;
  model.moe_intermediate_size = 768;
  model.num_experts = 128;
  model.experts_per_token = 8;
  model.vocab_size = kVocabulary;
  model.max_positions = 4096;
  model.is_moe_layer.assign(48, true);
  return SpecOf(model);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

class Decoding {
 public:
  Decoding() {
    options_.spec = BigSpec();
    options_.max_rows = kMaxRows;
    options_.num_pages = kMaxRows * kHeads * (kPosition / kPageTokens + 8);
    options_.kv_type = KvType::kBf16;
    const auto shape = MakeModelShape(options_.spec, 1);
    CHECK(shape.ok());
    ranks_ = std::make_unique<Ranks>(options_, *shape,
                                     GpuRanksOptions{.rehearse = false});
    for (auto& of_step : events_) {
      for (cudaEvent_t& event : of_step) Require(cudaEventCreate(&event));
    }
  }

  // Steps, of which so many are under way.
  void Run(int sequences, int under_way) {
    CHECK(ranks_
              ->Do(0,
                   [&](Passes& passes) {
                     for (int step = 0; step < kSteps; ++step) {
                       if (step >= under_way) Finish(passes, step - under_way);
                       Launch(passes, sequences, step);
                     }
                     for (int step = kSteps - under_way; step < kSteps;
                          ++step) {
                       Finish(passes, step);
                     }
                     return absl::OkStatus();
                   })
              .ok());
  }

  // Medians of the last Run, microseconds.
  double gap_us() const {
    std::vector<double> gaps;
    for (int step = 1; step < kSteps; ++step) {
      gaps.push_back(Elapsed(events_[step - 1][1], events_[step][0]));
    }
    return Median(gaps);
  }
  double launch_us() const { return Median(launch_us_); }
  // All of the GPU's work between begin and end of a pass.
  double pass_us() const {
    std::vector<double> passes;
    for (int step = 2; step < kSteps; ++step) {
      passes.push_back(Elapsed(events_[step][0], events_[step][1]));
    }
    return Median(passes);
  }

 private:
  static double Elapsed(cudaEvent_t begin, cudaEvent_t end) {
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin, end));
    return 1e3 * ms;
  }

  void Launch(Passes& passes, int sequences, int step) {
    builder_.Begin({options_.layout, options_.experts_state()}, 1, 0);
    const size_t num_pages =
        static_cast<size_t>(kPosition / kPageTokens + 8) * kHeads;
    tokens_.resize(static_cast<size_t>(sequences));
    pages_.resize(static_cast<size_t>(sequences));
    PageId next = 0;
    for (int s = 0; s < sequences; ++s) {
      pages_[s].resize(num_pages);
      for (PageId& page : pages_[s]) page = next++;
      tokens_[s] = step == 0 ? s * 7919 % kVocabulary : TokenAtPlace(s);
      builder_.AddChunk(absl::MakeConstSpan(&tokens_[s], 1), kPosition + step,
                        pages_[s]);
      builder_.Want(0, {.sampling = &greedy_, .place = s});
    }
    const Pass<Cpu> pass = builder_.Build();
    const absl::Time begin = absl::Now();
    Require(cudaEventRecord(events_[step][0], stream()));
    CHECK(passes.Launch(pass, static_cast<uint64_t>(step)).ok());
    Require(cudaEventRecord(events_[step][1], stream()));
    launch_us_[step] = absl::ToDoubleMicroseconds(absl::Now() - begin);
  }
  static void Finish(Passes& passes, int step) {
    const auto number = static_cast<uint64_t>(step);
    passes.AwaitEnd(number);
    CHECK(passes.Finish(number).ok());
  }
  cudaStream_t stream() const { return ranks_->stream(0); }

  GroupOptions options_;
  const SamplingParams greedy_{.temperature = 0.0f};
  std::unique_ptr<Ranks> ranks_;
  PassBuilder builder_;
  std::vector<int32_t> tokens_;
  std::vector<std::vector<PageId>> pages_;
  std::array<std::array<cudaEvent_t, 2>, kSteps> events_{};
  std::vector<double> launch_us_ = std::vector<double>(kSteps);
};

void DecodeAhead(benchmark::State& state) {
  static auto* const decoding = new Decoding;
  const int sequences = static_cast<int>(state.range(0));
  const int under_way = static_cast<int>(state.range(1));
  decoding->Run(sequences, under_way);
  for (auto _ : state) {
    const absl::Time begin = absl::Now();
    decoding->Run(sequences, under_way);
    state.SetIterationTime(absl::ToDoubleSeconds(absl::Now() - begin) / kSteps);
  }
  state.counters["pass_us"] = decoding->pass_us();
  state.counters["gap_us"] = decoding->gap_us();
  state.counters["launch_us"] = decoding->launch_us();
}
BENCHMARK(DecodeAhead)
    ->ArgsProduct({{1, 8, 32, 128}, {2, 1}})
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace moebius
