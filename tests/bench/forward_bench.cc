// The forward pass of the small checkpoint: threads as ranks, memory of their
// own, the barrier that workers use. Counts tokens a second.
//
//   Decode/<ranks>/<tp>/<sequences>   one token of each sequence, at position
//                                     128, greedy
//   Prefill/<ranks>/<tp>/<tokens>     one sequence in chunks of 512
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "worker/model/decoder.h"
#include "worker/model/families/families.h"
#include "worker/model/kv_layout.h"
#include "worker/model/pass_cpu.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_loader.h"
#include "worker/model/weight_sink_cpu.h"
#include "worker/model/weights.h"
#include "worker/peers/collectives_cpu.h"
#include "worker/peers/exchange.h"
#include "worker/peers/group_barrier.h"

namespace moebius {
namespace {

constexpr int kMaxRows = 512;
constexpr int kDecodePosition = 128;
constexpr absl::Duration kPatience = absl::Seconds(30);

struct FreeBytes {
  void operator()(std::byte* data) const { std::free(data); }
};
using Memory = std::unique_ptr<std::byte, FreeBytes>;
Memory Allocate(int64_t size_bytes) {
  const size_t rounded = (static_cast<size_t>(size_bytes) + 4159) / 4096 * 4096;
  Memory memory(static_cast<std::byte*>(std::aligned_alloc(4096, rounded)));
  CHECK(memory != nullptr);
  std::memset(memory.get(), 0, rounded);
  return memory;
}

class CountingBarrier : public Barrier {
 public:
  explicit CountingBarrier(GroupBarrier* barrier) : barrier_(barrier) {}
  absl::Status Wait() override { return barrier_->Wait(++next_, kPatience); }

 private:
  GroupBarrier* barrier_;
  uint64_t next_ = 0;
};

struct RankState {
  Memory dense, experts, kv, exchange, signals;
  std::unique_ptr<GroupBarrier> group_barrier;
  std::unique_ptr<CountingBarrier> barrier;
  std::unique_ptr<Collectives<Cpu>> peers;
  std::unique_ptr<Decoder<Cpu>> decoder;

  std::vector<int32_t> tokens;
  std::vector<std::vector<PageId>> pages;  // [sequence]
  PassBuilder builder;
};

void LoadInto(const ModelShape& shape, const Model& model,
              const std::string& dir, Rank r, Layout layout, RankState& rank) {
  const auto source = Checkpoint::Open(dir);
  const auto sink = MakeCpuWeightSink(rank.dense.get(), rank.experts.get());
  CHECK(
      LoadWeights({shape, model.names, r, ExpertsState::At(layout, Side::kLow)},
                  *source.value(), *sink)
          .ok());
}

class Group {
 public:
  Group(int num_ranks, bool tp, int num_sequences, int num_blocks)
      : layout_(tp ? TensorParallel(num_ranks) : ExpertParallel()) {
    const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
    const std::string dir =
        std::string(source != nullptr ? source : ".") + "/models/verse-moe";
    const auto model = LoadModel(dir);
    const auto shape = MakeModelShape(model.value().spec, num_ranks);
    CHECK(shape.ok());
    const KvPageFormat kv =
        PageFormatOf(MakeKvLayout(shape->spec, KvType::kFloat32));
    const int num_pages =
        num_sequences * num_blocks * shape->attention.num_kv_heads;
    ranks_.resize(num_ranks);
    std::vector<std::byte*> signals;
    for (Rank r = 0; r < num_ranks; ++r) {
      RankState& rank = ranks_[r];
      rank.dense = Allocate(PlanDense(*shape).size_bytes);
      rank.experts = Allocate(shape->experts.region_bytes());
      rank.kv = Allocate(static_cast<int64_t>(kv.page_bytes()) * num_pages);
      rank.exchange = Allocate(PlanExchange(*shape, kMaxRows).size_bytes);
      rank.signals = Allocate(sizeof(SignalsBlock));
      InitSignals(rank.signals.get(), r, num_ranks, Incarnation{1});
      signals.push_back(rank.signals.get());
      LoadInto(*shape, *model, dir, r, layout_, rank);
    }
    for (Rank r = 0; r < num_ranks; ++r) {
      RankState& rank = ranks_[r];
      BarrierOptions barrier;
      barrier.spin_us = DefaultSpinUs(
          num_ranks, 1, static_cast<int>(std::thread::hardware_concurrency()));
      rank.group_barrier = std::make_unique<GroupBarrier>(r, signals, barrier);
      rank.barrier =
          std::make_unique<CountingBarrier>(rank.group_barrier.get());
      CreateDecoder(*shape, r,
                    {rank.kv.get(), static_cast<uint32_t>(num_pages), kv});
      // Pages of every sequence, whoever owns it: EP uses those of its own.
      const int heads = HeadsOf(shape->attention, layout_, r).num_kv();
      PageId next = 0;
      for (int s = 0; s < num_sequences; ++s) {
        std::vector<PageId>& pages = rank.pages.emplace_back();
        for (int i = 0; i < num_blocks * heads; ++i) pages.push_back(next++);
      }
    }
    for (Rank r = 1; r < num_ranks; ++r) {
      threads_.emplace_back([this, r] { Serve(r); });
    }
  }

  ~Group() {
    stop_ = true;
    if (ranks_.size() > 1) CHECK(ranks_[0].barrier->Wait().ok());
    for (std::thread& thread : threads_) thread.join();
  }

  // `count` tokens of each sequence from `position` on; logits of the last one
  // if `logits`.
  void Step(int num_sequences, int count, int position, bool logits) {
    num_sequences_ = num_sequences;
    count_ = count;
    position_ = position;
    logits_ = logits;
    if (ranks_.size() > 1) CHECK(ranks_[0].barrier->Wait().ok());
    Run(0);
    if (ranks_.size() > 1) CHECK(ranks_[0].barrier->Wait().ok());
  }

 private:
  void CreateDecoder(const ModelShape& shape, Rank r, const KvPool& kv) {
    RankState& rank = ranks_[r];
    Collectives<Cpu>::Options peers;
    peers.shape = shape;
    peers.rank = r;
    peers.max_rows = kMaxRows;
    peers.exchange = rank.exchange.get();
    for (const RankState& peer : ranks_) {
      peers.peer_exchange.push_back(peer.exchange.get());
    }
    peers.barrier = rank.barrier.get();
    auto collectives = Collectives<Cpu>::Create(Cpu{}, peers);
    CHECK(collectives.ok());
    rank.peers = *std::move(collectives);
    DecoderOptions<Cpu> options;
    options.shape = shape;
    options.rank = r;
    options.max_rows = kMaxRows;
    options.dense = rank.dense.get();
    options.experts = rank.experts.get();
    options.kv = kv;
    options.peers = rank.peers.get();
    auto decoder = Decoder<Cpu>::Create(Cpu{}, options);
    CHECK(decoder.ok());
    rank.decoder = *std::move(decoder);
  }

  void Run(Rank r) {
    RankState& rank = ranks_[r];
    const int num_ranks = static_cast<int>(ranks_.size());
    rank.tokens.resize(static_cast<size_t>(num_sequences_) * count_);
    rank.builder.Begin({layout_, layout_}, num_ranks, r);
    for (int s = 0; s < num_sequences_; ++s) {
      const int group = s % layout_.num_groups(num_ranks);
      if (group != layout_.group_of(r)) {
        rank.builder.AddOthers(group, count_, logits_ ? 1 : 0);
        continue;
      }
      const absl::Span<int32_t> tokens = absl::MakeSpan(
          rank.tokens.data() + static_cast<size_t>(s) * count_, count_);
      for (int i = 0; i < count_; ++i) {
        tokens[i] = (s * 131 + (position_ + i) * 17) % 4000;
      }
      rank.builder.AddChunk(tokens, position_, rank.pages[s]);
      if (logits_) rank.builder.Want(count_ - 1, {.sampling = &greedy_});
    }
    CHECK(rank.decoder->Run(rank.builder.Build()).ok());
  }

  void Serve(Rank r) {
    for (;;) {
      CHECK(ranks_[r].barrier->Wait().ok());
      if (stop_) return;
      Run(r);
      CHECK(ranks_[r].barrier->Wait().ok());
    }
  }

  const Layout layout_;
  std::vector<RankState> ranks_;
  const SamplingParams greedy_{.temperature = 0.0f};
  // Of the step, for all ranks.
  int num_sequences_ = 0, count_ = 0, position_ = 0;
  bool logits_ = false;
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// The group of a benchmark, kept while Google Benchmark tries iterations.
Group& GroupFor(const std::vector<int>& key) {
  static std::vector<int> last;
  static std::unique_ptr<Group> group;
  if (group == nullptr || last != key) {
    group.reset();
    group = std::make_unique<Group>(key[0], key[1] != 0, key[2], key[3]);
    last = key;
  }
  return *group;
}

void BM_Decode(benchmark::State& state) {
  const int num_sequences = static_cast<int>(state.range(2));
  Group& group = GroupFor({static_cast<int>(state.range(0)),
                           static_cast<int>(state.range(1)), num_sequences,
                           kDecodePosition / kPageTokens + 1});
  for (auto _ : state) group.Step(num_sequences, 1, kDecodePosition, true);
  state.counters["tok/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * num_sequences),
      benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Decode)
    ->ArgNames({"ranks", "tp", "seqs"})
    ->ArgsProduct({{1}, {0}, {1, 4, 8, 32}})
    ->ArgsProduct({{2}, {0, 1}, {1, 4, 8, 32}})
    ->UseRealTime();

void BM_Prefill(benchmark::State& state) {
  const int num_tokens = static_cast<int>(state.range(2));
  Group& group =
      GroupFor({static_cast<int>(state.range(0)),
                static_cast<int>(state.range(1)), 2, num_tokens / kPageTokens});
  // EP shares out sequences: two of half the length, one a rank.
  const bool split = state.range(0) > 1 && state.range(1) == 0;
  const int sequences = split ? 2 : 1;
  const int length = num_tokens / sequences;
  const int chunk = std::min(length, kMaxRows / sequences);
  for (auto _ : state) {
    for (int at = 0; at < length; at += chunk) {
      group.Step(sequences, chunk, at, at + chunk == length);
    }
  }
  state.counters["tok/s"] =
      benchmark::Counter(static_cast<double>(state.iterations() * num_tokens),
                         benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Prefill)
    ->ArgNames({"ranks", "tp", "tokens"})
    ->Args({1, 0, 1024})
    ->Args({2, 0, 1024})
    ->Args({2, 1, 1024})
    ->UseRealTime();

}  // namespace
}  // namespace moebius
