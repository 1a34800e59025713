// The forward pass of a model with the sizes of Qwen3-30B-A3B on one GPU, one
// rank, fast numerics, made-up weights, keys and values in BF16.
//
//   Decode/<sequences>/<captured>/<draws>
//                     one token of each sequence, at position 1024, all logits;
//                     the pass replayed, or each kernel launched by the host;
//                     without draws what the GPU does alone
//   Prefill/<sequences>/<tokens>
//                     all tokens of each sequence, logits of their last rows;
//                     counts the operations that they take at least
//
// Counters: experts that some row went to in the last layer; the bytes that a
// step must move if they are as many in every layer (worker/bench/step_case.h),
// in GB; and the step's time over that of a copy that reads and writes as many
// in all, at the rate of the same run.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/bench/probe_cuda.h"
#include "worker/bench/step_case.h"
#include "worker/model/pass_cpu.h"

namespace moebius {
namespace {

constexpr int kMaxRows = 16384;
constexpr int kMaxTokens = 2048;  // of a sequence
constexpr int kPosition = 1024;
constexpr int kMaxSequences = 256;
constexpr int kHeads = 4, kQueryHeads = 32, kHeadDim = 128;
constexpr int kHidden = 2048, kIntermediate = 768, kExperts = 128;
constexpr int kLayers = 48, kVocabulary = 151936;

DecoderSpec BigSpec() {
  SmallModel model;
  model.hidden_size = kHidden;
  model.num_q_heads = kQueryHeads;
  model.num_kv_heads = kHeads;
  model.head_dim = kHeadDim;
  model.moe_intermediate_size = kIntermediate;
  model.num_experts = kExperts;
  model.experts_per_token = 8;
  model.vocab_size = kVocabulary;
  model.max_positions = 4096;
  model.is_moe_layer.assign(kLayers, true);
  return SpecOf(model);
}

// Experts to which rows of the last pass went in its last MoE layer.
int NumExpertsNamed(const Routing<CudaFast>& routing) {
  std::vector<int32_t> begins(static_cast<size_t>(routing.num_groups) + 1);
  CHECK(cudaMemcpy(begins.data(), routing.begins.data(),
                   begins.size() * sizeof(int32_t),
                   cudaMemcpyDeviceToHost) == cudaSuccess);
  int named = 0;
  for (size_t i = 1; i < begins.size(); ++i) {
    if (begins[i] > begins[i - 1]) ++named;
  }
  return named;
}

class Forward {
 public:
  Forward() {
    options_.spec = BigSpec();
    options_.max_rows = kMaxRows;
    options_.num_pages =
        kMaxSequences * kHeads * (kMaxTokens / kPageTokens + 1) / 2;
    options_.kv_type = KvType::kBf16;
    const auto shape = MakeModelShape(options_.spec, 1);
    CHECK(shape.ok());
    shape_ = *shape;
    ranks_ = std::make_unique<GpuRanks<Numerics::kFast>>(
        options_, shape_, GpuRanksOptions{.rehearse = false});
  }

  // Of the pass that ran last, if as many experts were named in every layer as
  // in the last one.
  StepWork Work(StepCase::Kind kind, int sequences, int tokens) {
    const StepCase one{options_.layout, kind, sequences, tokens};
    const std::vector<double> named(kLayers,
                                    NumExpertsNamed(ranks_->routing(0)));
    return WorkOf(one, shape_, options_.kv_type, {{named}}, kPosition);
  }

  // `rows` tokens of each of the sequences, the last one at `position`.
  void Run(int sequences, int rows, int position, bool draws) {
    std::vector<int32_t> tokens(static_cast<size_t>(sequences) * rows);
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(i * 7919 % kVocabulary);
    }
    const size_t num_pages =
        static_cast<size_t>(position / kPageTokens + 1) * kHeads;
    std::vector<std::vector<PageId>> pages(static_cast<size_t>(sequences));
    PassBuilder builder;
    builder.Begin({options_.layout, options_.experts_state()}, 1, 0);
    PageId next = 0;
    for (std::vector<PageId>& of_sequence : pages) {
      for (size_t i = 0; i < num_pages; ++i) of_sequence.push_back(next++);
      const size_t sequence = static_cast<size_t>(&of_sequence - pages.data());
      builder.AddChunk(
          absl::MakeConstSpan(tokens).subspan(sequence * rows, rows),
          position - rows + 1, of_sequence);
      builder.Want(rows - 1, {.sampling = &greedy_});
    }
    CHECK(next <= static_cast<PageId>(options_.num_pages));
    Pass<Cpu> pass = builder.Build();
    if (!draws) pass.samples.count = 0;
    CHECK(ranks_->Run(0, pass).ok());
  }
  GpuRanks<Numerics::kFast>& ranks() { return *ranks_; }

 private:
  GroupOptions options_;
  ModelShape shape_;
  const SamplingParams greedy_{.temperature = 0.0f};
  std::unique_ptr<GpuRanks<Numerics::kFast>> ranks_;
};

// Bytes a second, read and written together.
double CopyRate() {
  const absl::StatusOr<CopyRates> rates = MeasureGpuCopies(0);
  CHECK(rates.ok());
  return std::max(rates->kernel, rates->driver);
}

Forward& TheForward() {
  static auto* const forward = new Forward;
  return *forward;
}

void Decode(benchmark::State& state) {
  const int sequences = static_cast<int>(state.range(0));
  Forward& forward = TheForward();
  static const double copy_rate = CopyRate();
  forward.ranks().SetGraphs(state.range(1) != 0);
  const bool draws = state.range(2) != 0;
  forward.Run(sequences, 1, kPosition, draws);
  const absl::Time begin = absl::Now();
  for (auto _ : state) forward.Run(sequences, 1, kPosition, draws);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin) /
                         static_cast<double>(state.iterations());
  const int experts = NumExpertsNamed(forward.ranks().routing(0));
  const double bytes =
      forward.Work(StepCase::Kind::kDecode, sequences, kPosition).bytes;
  state.counters["experts"] = experts;
  state.counters["GB"] = bytes * 1e-9;
  state.counters["copy_GB/s"] = copy_rate * 1e-9;
  state.counters["times"] = seconds * copy_rate / bytes;
  state.SetItemsProcessed(state.iterations() * sequences);
}
BENCHMARK(Decode)
    ->ArgsProduct({{1, 8, 32, 128}, {1, 0}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void Prefill(benchmark::State& state) {
  const int sequences = static_cast<int>(state.range(0));
  const int tokens = static_cast<int>(state.range(1));
  Forward& forward = TheForward();
  forward.Run(sequences, tokens, tokens - 1, true);
  const absl::Time begin = absl::Now();
  for (auto _ : state) forward.Run(sequences, tokens, tokens - 1, true);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin) /
                         static_cast<double>(state.iterations());
  state.counters["TFLOP/s"] =
      forward.Work(StepCase::Kind::kPrefill, sequences, tokens).operations /
      seconds * 1e-12;
  state.SetItemsProcessed(state.iterations() * sequences * tokens);
}
BENCHMARK(Prefill)
    ->Args({1, 512})
    ->Args({1, 2048})
    ->Args({8, 2048})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace moebius
