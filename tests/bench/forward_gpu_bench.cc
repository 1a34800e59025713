// The forward pass of a model with the sizes of Qwen3-30B-A3B on one GPU, one
// rank, fast numerics, made-up weights; each pass driven by the host.
//
//   Decode/<sequences>/<logits>   one token of each sequence, at position 1024;
//                                 without logits what a device does alone
//   Prefill/<tokens>              one sequence, logits of its last row
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "tests/gpu/gpu_ranks.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/pass_cpu.h"

namespace moebius {
namespace {

constexpr int kMaxRows = 2048;
constexpr int kPosition = 1024;
constexpr int kMaxSequences = 256;
constexpr int kHeads = 4;

DecoderSpec BigSpec() {
  SmallModel model;
  model.hidden_size = 2048;
  model.num_q_heads = 32;
  model.num_kv_heads = kHeads;
  model.head_dim = 128;
  model.moe_intermediate_size = 768;
  model.num_experts = 128;
  model.experts_per_token = 8;
  model.vocab_size = 151936;
  model.max_positions = 4096;
  model.is_moe_layer.assign(48, true);
  return SpecOf(model);
}

class Forward {
 public:
  Forward() {
    options_.spec = BigSpec();
    options_.max_rows = kMaxRows;
    options_.num_pages =
        kMaxSequences * kHeads * (kMaxRows / kPageTokens + 1) / 2;
    options_.kv_type = KvType::kBf16;
    const auto shape = MakeModelShape(options_.spec, 1);
    CHECK(shape.ok());
    ranks_ = std::make_unique<GpuRanks<Numerics::kFast>>(options_, *shape);
  }

  // `rows` tokens of each of the sequences, the last one at `position`.
  void Run(int sequences, int rows, int position, bool logits) {
    const std::vector<int32_t> tokens(static_cast<size_t>(rows), 17);
    const size_t num_pages =
        static_cast<size_t>(position / kPageTokens + 1) * kHeads;
    std::vector<std::vector<PageId>> pages(static_cast<size_t>(sequences));
    PassBuilder builder;
    builder.Begin({options_.layout, options_.experts_state()}, 1, 0);
    PageId next = 0;
    for (std::vector<PageId>& of_sequence : pages) {
      for (size_t i = 0; i < num_pages; ++i) of_sequence.push_back(next++);
      builder.AddChunk(tokens, position - rows + 1, of_sequence);
      if (logits) builder.Want(rows - 1, {.sampling = &greedy_});
    }
    CHECK(next <= static_cast<PageId>(options_.num_pages));
    CHECK(ranks_->Run(0, builder.Build()).ok());
  }

 private:
  GroupOptions options_;
  const SamplingParams greedy_{.temperature = 0.0f};
  std::unique_ptr<GpuRanks<Numerics::kFast>> ranks_;
};

Forward& TheForward() {
  static auto* const forward = new Forward;
  return *forward;
}

void Decode(benchmark::State& state) {
  const int sequences = static_cast<int>(state.range(0));
  Forward& forward = TheForward();
  for (auto _ : state) {
    forward.Run(sequences, 1, kPosition, state.range(1) != 0);
  }
  state.SetItemsProcessed(state.iterations() * sequences);
}
BENCHMARK(Decode)
    ->ArgsProduct({{1, 8, 32, 128}, {0, 1}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void Prefill(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0));
  Forward& forward = TheForward();
  for (auto _ : state) forward.Run(1, rows, rows - 1, true);
  state.SetItemsProcessed(state.iterations() * rows);
}
BENCHMARK(Prefill)->Arg(512)->Arg(2048)->UseRealTime()->Unit(
    benchmark::kMillisecond);

}  // namespace
}  // namespace moebius
