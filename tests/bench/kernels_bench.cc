// Speed of the operators on one thread, beside what the machine can do:
// Peak/Fma (independent multiply-adds in registers) and Peak/Memcpy, measured
// in the same run. Shapes: "verse" is the small checkpoint of models/, "qwen"
// is Qwen3-30B-A3B. M is the number of rows (tokens).
//
// Operands of one iteration after another come from a ring larger than the
// last-level cache where the name says "cold"; else they are in the caches.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "kernels/checksum.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/pull.h"
#include "kernels/sampling.h"
#include "tests/backends/random_tensors.h"

namespace moebius {
namespace {

void Report(benchmark::State& state, double flops, double bytes) {
  using benchmark::Counter;
  const double n = static_cast<double>(state.iterations());
  if (flops > 0) {
    state.counters["GFLOP/s"] = Counter(flops * n / 1e9, Counter::kIsRate);
  }
  if (bytes > 0) {
    state.counters["GB/s"] = Counter(bytes * n / 1e9, Counter::kIsRate);
  }
}

// Small random BF16 values, quickly.
void FillWeights(Bf16* w, size_t n) {
  std::mt19937 generator(1);
  for (size_t i = 0; i < n; ++i) {
    w[i] =
        ToBf16(static_cast<float>(static_cast<int>(generator() % 2001) - 1000) *
               5e-5f);
  }
}

AlignedVector<Bf16> Weights(size_t n) {
  AlignedVector<Bf16> out(n);
  FillWeights(out.data(), n);
  return out;
}

// ---- the machine -----------------------------------------------------------

#if defined(__x86_64__)
#define AVX512 __attribute__((target("avx512f,avx512vl,fma")))
typedef float Floats16 __attribute__((vector_size(64), may_alias));
constexpr int kFmaSteps = 1000;

// 12 independent chains of 16 lanes.
AVX512 void FmaChains(float* data) {
  Floats16 a = Floats16{} + data[0], b = Floats16{} + data[1];
  Floats16 c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a, c6 = a, c7 = a,
           c8 = a, c9 = a, c10 = a, c11 = a;
#define FMA(c) "vfmadd231ps %[a], %[b], %[" #c "]\n\t"
  for (int s = 0; s < kFmaSteps; ++s) {
    asm volatile(
        FMA(c0) FMA(c1) FMA(c2) FMA(c3) FMA(c4) FMA(c5) FMA(c6) FMA(c7) FMA(c8)
            FMA(c9) FMA(c10) FMA(c11)
        : [c0] "+v"(c0), [c1] "+v"(c1), [c2] "+v"(c2), [c3] "+v"(c3),
          [c4] "+v"(c4), [c5] "+v"(c5), [c6] "+v"(c6), [c7] "+v"(c7),
          [c8] "+v"(c8), [c9] "+v"(c9), [c10] "+v"(c10), [c11] "+v"(c11)
        : [a] "v"(a), [b] "v"(b));
  }
#undef FMA
  c0 += c1 + c2 + c3 + c4 + c5 + c6 + c7 + c8 + c9 + c10 + c11;
  std::memcpy(data, &c0, sizeof(c0));
}

void PeakFma(benchmark::State& state) {
  if (!__builtin_cpu_supports("avx512f")) {
    state.SkipWithError("needs AVX-512");
    return;
  }
  AlignedVector<float> data(16, 1e-3f);
  for (auto _ : state) {
    FmaChains(data.data());
    benchmark::ClobberMemory();
  }
  Report(state, 2.0 * 16 * 12 * kFmaSteps, 0);
}
BENCHMARK(PeakFma)->Name("Peak/Fma");

AVX512 float SumOf(const float* from, size_t n) {
  const auto* at = reinterpret_cast<const Floats16*>(from);
  Floats16 a{}, b{}, c{}, d{};
  for (size_t i = 0; i < n / 16; i += 4) {
    a += at[i];
    b += at[i + 1];
    c += at[i + 2];
    d += at[i + 3];
  }
  a += b + c + d;
  return a[0];
}

void PeakRead(benchmark::State& state) {
  if (!__builtin_cpu_supports("avx512f")) {
    state.SkipWithError("needs AVX-512");
    return;
  }
  const size_t size = static_cast<size_t>(state.range(0));
  AlignedVector<float> from(size / 4, 1.0f);
  for (auto _ : state) {
    benchmark::DoNotOptimize(SumOf(from.data(), size / 4));
  }
  Report(state, 0, static_cast<double>(size));
}
BENCHMARK(PeakRead)
    ->Name("Peak/Read")
    ->Arg(16 << 10)
    ->Arg(256 << 10)
    ->Arg(8 << 20)
    ->Arg(256 << 20);
#endif

void PeakMemcpy(benchmark::State& state) {
  const size_t size = static_cast<size_t>(state.range(0));
  AlignedVector<std::byte> from(size, std::byte{1}), to(size, std::byte{2});
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), size);
    benchmark::ClobberMemory();
  }
  Report(state, 0, static_cast<double>(size));
}
BENCHMARK(PeakMemcpy)
    ->Name("Peak/Memcpy")
    ->Arg(256 << 10)
    ->Arg(8 << 20)
    ->Arg(256 << 20);

// ---- products --------------------------------------------------------------

constexpr int64_t kColdBytes = int64_t{256} << 20;

void GemmBench(benchmark::State& state, int n, int k, bool cold) {
  const int rows = static_cast<int>(state.range(0));
  const size_t size = PackedMatrix::NumElements(n, k);
  const int copies = cold ? static_cast<int>(kColdBytes / (2 * size) + 1) : 1;
  auto w = Weights(size * copies);
  RandomTensors random(1);
  const Activations x = random.Rows(rows, k);
  Activations out(rows, n);
  int i = 0;
  for (auto _ : state) {
    const PackedMatrix matrix{w.data() + size * (i++ % copies), n, k};
    Gemm(x.view(), matrix, out.rows(), nullptr);
    benchmark::ClobberMemory();
  }
  Report(state, 2.0 * rows * n * k, 2.0 * size);
}
#define ROWS ->Arg(1)->Arg(2)->Arg(4)->Arg(8)->Arg(32)->Arg(128)
BENCHMARK_CAPTURE(GemmBench, verse_qkv, 512, 256, false) ROWS;
BENCHMARK_CAPTURE(GemmBench, verse_head, 4096, 256, false) ROWS;
BENCHMARK_CAPTURE(GemmBench, qwen_qkv, 5120, 2048, false) ROWS;
BENCHMARK_CAPTURE(GemmBench, qwen_qkv_cold, 5120, 2048, true) ROWS;

void RowParallelBench(benchmark::State& state, int n, int k, int slice,
                      bool cold) {
  const int rows = static_cast<int>(state.range(0));
  const size_t size = RowParallelMatrix::NumElements(n, k);
  const int copies = cold ? static_cast<int>(kColdBytes / (2 * size) + 1) : 1;
  auto w = Weights(size * copies);
  RandomTensors random(1);
  const Activations x = random.Rows(rows, k);
  FixedSums acc(rows, n);
  int i = 0;
  for (auto _ : state) {
    const RowParallelMatrix matrix{w.data() + size * (i++ % copies), n, k};
    RowParallelGemm(x.view(), matrix, 0, slice, acc.rows(), nullptr);
    benchmark::ClobberMemory();
  }
  Report(state, 2.0 * rows * n * k, 2.0 * size);
}
BENCHMARK_CAPTURE(RowParallelBench, verse_o, 256, 256, 32, false) ROWS;
BENCHMARK_CAPTURE(RowParallelBench, verse_down, 256, 128, 16, false) ROWS;
BENCHMARK_CAPTURE(RowParallelBench, qwen_o, 2048, 4096, 512, false) ROWS;
BENCHMARK_CAPTURE(RowParallelBench, qwen_o_cold, 2048, 4096, 512, true) ROWS;

void ReduceBench(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0));
  FixedSums a(rows, 256), b(rows, 256);
  Activations residual(rows, 256);
  const ConstFixedRows sources[] = {a.view(), b.view()};
  for (auto _ : state) {
    ReduceFixedPoint(sources, residual.rows(), nullptr);
    benchmark::ClobberMemory();
  }
  Report(state, 0, rows * 256.0 * (8 + 8 + 4 + 4));
}
BENCHMARK(ReduceBench)->Arg(1)->Arg(32);

// ---- experts ---------------------------------------------------------------

// A layer's experts. `stored` of them have memory, the others share it.
struct ExpertSizes {
  int hidden, intermediate, slice_rows, num_experts, top_k;
  int num_pieces = 1;
  int stored = num_experts;
};

// One layer: every row goes to top_k random experts.
void ExpertsBench(benchmark::State& state, ExpertSizes sizes) {
  const auto [hidden, intermediate, slice_rows, num_experts, top_k, num_pieces,
              stored] = sizes;
  const int rows = static_cast<int>(state.range(0));
  const size_t size = ExpertBlock::NumElements(hidden, intermediate);
  const size_t piece_size = size / num_pieces;
  auto slot = Weights(size * stored);
  std::vector<ExpertView> views;
  for (int e = 0; e < num_experts; ++e) {
    views.push_back({slot.data() + piece_size * (e % stored), hidden,
                     intermediate / num_pieces, num_pieces,
                     static_cast<ptrdiff_t>(piece_size * stored)});
  }
  RandomTensors random(1);
  const Activations x = random.Rows(rows, hidden);
  // A ring of routings, so that few rows do not always meet the same experts.
  constexpr int kRoutings = 16;
  std::vector<ExpertGroups> groups(kRoutings);
  double used = 0;
  std::vector<int32_t> experts(size_t(rows) * top_k);
  std::vector<float> weights(experts.size());
  for (ExpertGroups& group : groups) {
    const Activations logits = random.Rows(rows, num_experts);
    RouteTopK(logits.view(), top_k, true, absl::MakeSpan(experts),
              absl::MakeSpan(weights), nullptr);
    GroupByExpert(experts, weights, top_k, 0, num_experts, &group);
    for (int e = 0; e < num_experts; ++e) {
      used += group.offsets[e + 1] > group.offsets[e];
    }
  }
  FixedSums acc(rows, hidden);
  ExpertWorkspace workspace;
  int i = 0;
  for (auto _ : state) {
    ExpertsFfn(x.view(), views, groups[i++ % kRoutings], slice_rows, acc.rows(),
               &workspace, nullptr);
    benchmark::ClobberMemory();
  }
  Report(state, 2.0 * rows * top_k * size, 2.0 * size * used / kRoutings);
}
constexpr ExpertSizes kVerseExperts{256, 128, 16, 16, 4},
    kVerseTp2Experts{256, 64, 16, 16, 4}, kQwen64Experts{2048, 768, 96, 64, 8};
BENCHMARK_CAPTURE(ExpertsBench, verse, kVerseExperts) ROWS;
BENCHMARK_CAPTURE(ExpertsBench, verse_tp2, kVerseTp2Experts) ROWS;
BENCHMARK_CAPTURE(ExpertsBench, qwen_64_experts, kQwen64Experts) ROWS;

// All 128 experts in the memory of 16.
void PiecesBench(benchmark::State& state) {
  const int num_pieces = static_cast<int>(state.range(1));
  ExpertsBench(state, {2048, 768, 96, 128, 8, num_pieces, 16});
}
BENCHMARK(PiecesBench)
    ->ArgNames({"rows", "pieces"})
    ->ArgsProduct({{1, 8, 32}, {1, 4, 8}});

// A dense MLP is one expert that every row goes to.
void DenseMlpBench(benchmark::State& state) {
  ExpertsBench(state, {2048, 6144, 768, 1, 1, 8});
}
BENCHMARK(DenseMlpBench) ROWS->Arg(512);

void RouteBench(benchmark::State& state, int num_experts, int top_k) {
  const int rows = static_cast<int>(state.range(0));
  RandomTensors random(1);
  const Activations logits = random.Rows(rows, num_experts);
  std::vector<int32_t> experts(size_t(rows) * top_k);
  std::vector<float> weights(experts.size());
  ExpertGroups groups;
  for (auto _ : state) {
    RouteTopK(logits.view(), top_k, true, absl::MakeSpan(experts),
              absl::MakeSpan(weights), nullptr);
    GroupByExpert(experts, weights, top_k, 0, num_experts, &groups);
    benchmark::ClobberMemory();
  }
}
BENCHMARK_CAPTURE(RouteBench, verse, 16, 4)->Arg(1)->Arg(32);
BENCHMARK_CAPTURE(RouteBench, qwen, 128, 8)->Arg(1)->Arg(32);

// ---- rows ------------------------------------------------------------------

void NormBench(benchmark::State& state) {
  const int cols = static_cast<int>(state.range(0));
  RandomTensors random(1);
  const Activations x = random.Rows(32, cols);
  const auto weight = random.Floats(cols);
  Activations out(32, cols);
  for (auto _ : state) {
    RmsNorm(x.view(), weight, 1e-6f, out.rows(), nullptr);
    benchmark::ClobberMemory();
  }
  Report(state, 0, 32.0 * cols * 8);
}
BENCHMARK(NormBench)->Arg(256)->Arg(2048);

void RotaryBench(benchmark::State& state, int heads, int head_dim) {
  RandomTensors random(1);
  Activations x = random.Rows(32, heads * head_dim);
  const auto weight = random.Floats(head_dim);
  const auto table = RotaryTable::Create(4096, PlainAngles(head_dim, 1e4));
  std::vector<int32_t> positions(32);
  for (int i = 0; i < 32; ++i) positions[i] = 100 * i;
  for (auto _ : state) {
    HeadNormRotary(x.rows(), weight, 1e-6f, positions, ViewOf(*table), nullptr);
    benchmark::ClobberMemory();
  }
  Report(state, 0, 32.0 * heads * head_dim * 8);
}
BENCHMARK_CAPTURE(RotaryBench, verse, 8, 32);
BENCHMARK_CAPTURE(RotaryBench, qwen, 32, 128);

// ---- attention -------------------------------------------------------------

struct Heads {
  int q, kv, dim;
};
constexpr Heads kVerse{8, 4, 32}, kQwen{32, 4, 128};

// `sequences` sequences of `context` tokens; each computes its last `rows`
// tokens.
void AttentionBench(benchmark::State& state, Heads heads, KvType type, int rows,
                    bool write) {
  const int sequences = static_cast<int>(state.range(0));
  const int context = static_cast<int>(state.range(1));
  const int blocks = (context + kPageTokens - 1) / kPageTokens;
  const KvPageFormat format{1, heads.dim, type};
  const uint32_t num_pages = sequences * blocks * heads.kv;
  AlignedVector<std::byte> bytes(format.page_bytes() * num_pages);
  const KvPool pool{bytes.data(), num_pages, format};
  std::vector<uint32_t> pages(num_pages);
  for (uint32_t p = 0; p < num_pages; ++p) pages[p] = p;
  std::shuffle(pages.begin(), pages.end(), std::mt19937(1));
  std::vector<QueryChunk> chunks;
  for (int s = 0; s < sequences; ++s) {
    chunks.push_back(
        {s * rows, rows, context - rows,
         absl::MakeConstSpan(pages).subspan(size_t(s) * blocks * heads.kv,
                                            size_t(blocks) * heads.kv)});
  }
  RandomTensors random(1);
  const Activations q = random.Rows(sequences * rows, heads.q * heads.dim);
  const Activations kv = random.Rows(sequences * rows, heads.kv * heads.dim);
  Activations out(sequences * rows, heads.q * heads.dim);
  for (auto _ : state) {
    if (write) {
      WriteKv(kv.view(), kv.view(), chunks, heads.kv, 0, pool, nullptr);
    } else {
      PagedAttention(q.view(), chunks, heads.kv, {pool, 0}, out.rows(),
                     nullptr);
    }
    benchmark::ClobberMemory();
  }
  const double tokens = context - (rows - 1) / 2.0;
  if (write) {
    Report(state, 0,
           2.0 * sequences * rows * heads.kv * heads.dim *
               static_cast<double>(format.element_bytes()));
  } else {
    Report(state, 4.0 * sequences * rows * heads.q * heads.dim * tokens,
           static_cast<double>(bytes.size()));
  }
}
#define DECODE                                                              \
  ->Args({1, 128})->Args({1, 1024})->Args({8, 128})->Args({8, 1024})->Args( \
      {32, 1024})
BENCHMARK_CAPTURE(AttentionBench, verse_decode, kVerse, KvType::kFloat32, 1,
                  false)
DECODE;
BENCHMARK_CAPTURE(AttentionBench, verse_decode_bf16, kVerse, KvType::kBf16, 1,
                  false)
DECODE;
BENCHMARK_CAPTURE(AttentionBench, verse_prefill_128, kVerse, KvType::kFloat32,
                  128, false)
    ->Args({1, 128})
    ->Args({1, 1024});
BENCHMARK_CAPTURE(AttentionBench, qwen_decode, kQwen, KvType::kFloat32, 1,
                  false)
DECODE;
BENCHMARK_CAPTURE(AttentionBench, qwen_decode_bf16, kQwen, KvType::kBf16, 1,
                  false)
DECODE;
BENCHMARK_CAPTURE(AttentionBench, qwen_prefill_128, kQwen, KvType::kFloat32,
                  128, false)
    ->Args({1, 128})
    ->Args({1, 1024});
BENCHMARK_CAPTURE(AttentionBench, verse_write, kVerse, KvType::kFloat32, 128,
                  true)
    ->Args({1, 128});

// ---- sampling --------------------------------------------------------------

void SampleBench(benchmark::State& state, SamplingParams params) {
  RandomTensors random(1);
  auto logits = random.Floats(state.range(0), 3.0f);
  Sampler sampler;
  uint64_t i = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        sampler.Sample(absl::MakeSpan(logits), params, nullptr, i++));
  }
}
SamplingParams Params(float temperature, int top_k, float top_p,
                      int num_logprobs) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.num_logprobs = num_logprobs;
  return params;
}
#define VOCABULARIES ->Arg(4096)->Arg(151936)
BENCHMARK_CAPTURE(SampleBench, greedy, Params(0, 0, 1, -1)) VOCABULARIES;
BENCHMARK_CAPTURE(SampleBench, temperature, Params(1, 0, 1, -1)) VOCABULARIES;
BENCHMARK_CAPTURE(SampleBench, top_p, Params(1, 0, .9f, -1)) VOCABULARIES;
BENCHMARK_CAPTURE(SampleBench, top_k, Params(1, 40, 1, -1)) VOCABULARIES;
BENCHMARK_CAPTURE(SampleBench, top_k_p, Params(1, 40, .9f, -1)) VOCABULARIES;
BENCHMARK_CAPTURE(SampleBench, logprobs_20, Params(0, 0, 1, 20)) VOCABULARIES;

// ---- copies ----------------------------------------------------------------

// Segments of `segment_bytes` that together are a slot of 64 MiB.
void PullBench(benchmark::State& state) {
  const int64_t segment_bytes = state.range(0);
  constexpr int64_t kTotal = int64_t{64} << 20;
  AlignedVector<std::byte> a(kTotal, std::byte{1}), b(kTotal, std::byte{2}),
      dst(kTotal);
  const std::byte* const sources[] = {a.data(), b.data()};
  std::vector<CopySegment> segments;
  for (int64_t at = 0; at < kTotal; at += segment_bytes) {
    const int64_t i = at / segment_bytes;
    segments.push_back({static_cast<Rank>(i % 2), at, at, segment_bytes});
  }
  for (auto _ : state) {
    const absl::Status status =
        PullSegments(sources, kTotal, segments, dst.data(), kTotal, nullptr);
    if (!status.ok()) state.SkipWithError("refused");
    benchmark::ClobberMemory();
  }
  Report(state, 0, static_cast<double>(kTotal));
}
BENCHMARK(PullBench)->Arg(8 << 10)->Arg(32 << 10)->Arg(1 << 20)->Arg(64 << 20);

void ChecksumBench(benchmark::State& state) {
  const size_t size = static_cast<size_t>(state.range(0));
  AlignedVector<std::byte> bytes(size, std::byte{3});
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        Checksum(Cpu{}, absl::MakeConstSpan(bytes.data(), size)));
  }
  Report(state, 0, static_cast<double>(size));
}
BENCHMARK(ChecksumBench)->Arg(64 << 10)->Arg(64 << 20);

}  // namespace
}  // namespace moebius
