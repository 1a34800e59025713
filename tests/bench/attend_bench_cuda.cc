// Speed on a GPU of attention, routing and the other operators that are not
// products, with the sizes of Qwen3-30B-A3B: 32 query heads, 4 KV heads of 128
// dimensions, BF16 pages, hidden 2048, 128 experts, top 8.
//
// Calls run in a CUDA graph, each on another layer, so that keys and values
// come from memory and not from the cache. "floor" is the time that the bytes
// which a call must read take at the rate of a large copy of the same run.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "common/base/check.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/operators.h"

namespace moebius {
namespace {

constexpr HeadShape kShape{32, 4, 128};
constexpr int kHidden = 2048, kExperts = 128, kTopK = 8;
constexpr int kMaxRows = 2048, kMaxPositions = 8192 + 64;

void Check(cudaError_t error) { CHECK(error == cudaSuccess); }

// Seconds of one of `calls` calls that `record` makes on the stream.
double Time(cudaStream_t stream, int calls,
            const std::function<void()>& record) {
  record();  // buffers grow
  Check(cudaStreamSynchronize(stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record();
  Check(cudaStreamEndCapture(stream, &graph));
  Check(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  Check(cudaGraphLaunch(exec, stream));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    Check(cudaEventRecord(begin, stream));
    Check(cudaGraphLaunch(exec, stream));
    Check(cudaEventRecord(end, stream));
    Check(cudaEventSynchronize(end));
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms);
  }
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  Check(cudaGraphExecDestroy(exec));
  Check(cudaGraphDestroy(graph));
  std::nth_element(times.begin(), times.begin() + 3, times.end());
  return times[3] * 1e-3 / calls;
}

template <Numerics N>
class Bench {
 public:
  using D = Cuda<N>;

  Bench() : stream_(GpuStream::Create(0, &failure_)) {
    device_ = {stream_->get(), &failure_, stream_->num_multiprocessors()};
    x_ = Floats(int64_t{kMaxRows} * kShape.cols());
    weight_ = Floats(kShape.cols());
    angles_ = Floats(int64_t{kMaxPositions} * kShape.head_dim / 2);
    how_.q_norm = how_.k_norm = {weight_.data(), kShape.head_dim, 1e-6f};
    how_.rotary = {angles_.data(), angles_.data(), kMaxPositions,
                   kShape.head_dim};
  }

  void RunAll() {
    MeasureCopy();
    for (const int context : {1024, 8192}) {
      for (const int rows : {1, 8, 32, 128}) Decode(rows, context);
    }
    Prefill(2048, 0);
    Prefill(2048, 6144);
    Prefill(512, 0);
    for (const int rows : {1, 8, 32, 128, 512, 2048}) Others(rows);
    CHECK(stream_->Wait().ok());
  }

 private:
  struct Step {
    RowSet<D> rows;
    std::vector<Buffer<int32_t, D>> memory;
  };

  Buffer<float, D> Floats(int64_t count) {
    std::mt19937 generator(1);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(generator() % 2001) * 1e-3f - 1.0f;
    }
    Buffer<float, D> out(device_, "floats", count);
    Upload(device_, values, out.data());
    return out;
  }
  template <class T>
  const T* Put(const std::vector<T>& values, Step& step) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    step.memory.emplace_back(device_, "rows", bytes / 4);
    UploadToGpu(values.data(), bytes, step.memory.back().data(), device_.stream,
                &failure_);
    return reinterpret_cast<const T*>(step.memory.back().data());
  }

  void Print(const char* what, int rows, int context, double seconds,
             double bytes, double flops) const {
    const double floor = bytes / copy_rate_;
    std::printf("%-7s %-10s %5d rows %5d tokens %9.1f us",
                N == Numerics::kExact ? "exact" : "fast", what, rows, context,
                seconds * 1e6);
    if (bytes > 0) {
      std::printf("  floor %8.1f us  x%.2f", floor * 1e6, seconds / floor);
    }
    if (flops > 0) std::printf("  %.0f TFLOP/s", flops / seconds * 1e-12);
    std::printf("\n");
  }

  void MeasureCopy() {
    const int64_t bytes = int64_t{1} << 30;
    const Buffer<std::byte, D> from(device_, "copy", bytes),
        to(device_, "copy", bytes);
    // Not in a graph, whose copies are made by an engine.
    cudaEvent_t begin = nullptr, end = nullptr;
    Check(cudaEventCreate(&begin));
    Check(cudaEventCreate(&end));
    constexpr int kCopies = 8;
    for (int i = 0; i <= kCopies; ++i) {
      if (i == 1) Check(cudaEventRecord(begin, device_.stream));
      Check(cudaMemcpyAsync(to.data(), from.data(), size_t{1} << 30,
                            cudaMemcpyDeviceToDevice, device_.stream));
    }
    Check(cudaEventRecord(end, device_.stream));
    Check(cudaEventSynchronize(end));
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin, end));
    const double seconds = ms * 1e-3 / kCopies;
    copy_rate_ = 2.0 * static_cast<double>(bytes) / seconds;
    std::printf("copy %.0f GB/s, read and write together\n", copy_rate_ * 1e-9);
  }

  // Chunks of `rows` rows each, whose first position is `first`.
  Step MakeStep(int chunks, int rows, int first) {
    Step step;
    const int blocks = (first + rows + kPageTokens - 1) / kPageTokens;
    std::vector<int32_t> positions, chunk_of;
    std::vector<GpuChunk> on_gpu;
    std::vector<uint32_t> pages(static_cast<size_t>(chunks) * blocks *
                                kShape.num_kv);
    for (size_t i = 0; i < pages.size(); ++i) {
      pages[i] = static_cast<uint32_t>(i);
    }
    std::shuffle(pages.begin(), pages.end(), std::mt19937(2));
    for (int c = 0; c < chunks; ++c) {
      on_gpu.push_back({c * rows, rows, first, c * blocks * kShape.num_kv});
      for (int i = 0; i < rows; ++i) {
        positions.push_back(first + i);
        chunk_of.push_back(c);
      }
    }
    step.rows = {.size = chunks * rows,
                 .positions = Put(positions, step),
                 .chunk_of = Put(chunk_of, step),
                 .chunks = Put(on_gpu, step),
                 .num_chunks = chunks,
                 .max_chunk_rows = rows,
                 .max_position = first + rows - 1,
                 .pages = Put(pages, step),
                 .scratch = &scratch_};
    num_pages_ = static_cast<int64_t>(pages.size());
    return step;
  }

  // Seconds of attention over one layer.
  double TimeAttend(const Step& step, int layers) {
    const KvPageFormat format{layers, kShape.head_dim, KvType::kBf16};
    const auto bytes = static_cast<int64_t>(format.page_bytes()) * num_pages_;
    const Buffer<std::byte, D> pages(device_, "pages", bytes);
    CHECK(pages.data() != nullptr);
    Check(cudaMemsetAsync(pages.data(), 0x3c, static_cast<size_t>(bytes),
                          device_.stream));
    const View<float, D> queries{x_.data(), step.rows.size, kShape.q_cols(),
                                 kShape.cols()};
    return Time(device_.stream, layers, [&] {
      for (int layer = 0; layer < layers; ++layer) {
        const KvLayer<D> kv{
            {pages.data(), static_cast<uint32_t>(num_pages_), format}, layer};
        Attend(device_, kShape, step.rows, kv, queries);
      }
    });
  }

  void Decode(int rows, int context) {
    const Step step = MakeStep(rows, 1, context - 1);
    const double bytes = 4.0 * rows * context * kShape.kv_cols();
    const int layers = std::clamp(static_cast<int>(5e8 / bytes), 2, 48);
    Print("decode", rows, context, TimeAttend(step, layers), bytes, 0);
  }

  void Prefill(int rows, int first) {
    const Step step = MakeStep(1, rows, first);
    const double pairs = rows * (first + (rows + 1) / 2.0);
    Print("prefill", rows, first + rows, TimeAttend(step, 4), 0,
          4.0 * pairs * kShape.q_cols());
  }

  void Others(int rows) {
    const Step step = MakeStep(rows, 1, 100);
    const KvPageFormat format{1, kShape.head_dim, KvType::kBf16};
    const Buffer<std::byte, D> pages(
        device_, "pages",
        static_cast<int64_t>(format.page_bytes()) * num_pages_);
    const View<float, D> qkv{x_.data(), rows, kShape.cols(), kShape.cols()};
    const View<float, D> x{x_.data(), rows, kHidden, kHidden};
    const Buffer<Bf16, D> router(device_, "router", kExperts * kHidden);
    Check(cudaMemsetAsync(router.data(), 0x3c, kExperts * kHidden * 2,
                          device_.stream));
    const Buffer<int32_t, D> experts(device_, "experts", rows * kTopK);
    const Buffer<float, D> weights(device_, "weights", rows * kTopK);
    const Assignments<D> out{experts.data(), weights.data(), rows, kTopK};
    const ColumnParallel<D> w{router.data(), kExperts, kHidden};
    const auto each = [&](const char* what, double bytes,
                          const std::function<void()>& call) {
      constexpr int kCalls = 20;
      const double seconds = Time(device_.stream, kCalls, [&] {
        for (int i = 0; i < kCalls; ++i) call();
      });
      Print(what, rows, 0, seconds, bytes, 0);
    };
    each("heads", 12.0 * rows * kShape.cols(), [&] {
      PrepareHeads(
          device_, kShape, how_, step.rows,
          KvLayer<D>{{pages.data(), static_cast<uint32_t>(num_pages_), format},
                     0},
          qkv);
    });
    each("norm", 8.0 * rows * kHidden, [&] {
      RmsNorm(device_, x, Norm<D>{weight_.data(), kHidden, 1e-6f}, x);
    });
    each("route", 2.0 * kExperts * kHidden + 4.0 * rows * kHidden, [&] {
      Route(device_, RouterShape{kTopK, true}, x, w, routing_, out);
    });
    each("group", 16.0 * rows * kTopK, [&] {
      Group(device_, out, ExpertRange{0, kExperts}, routing_);
    });
  }

  CudaFailure failure_;
  const std::unique_ptr<GpuStream> stream_;
  D device_;
  Buffer<float, D> x_, weight_, angles_;
  HeadPreparation<D> how_;
  Routing<D> routing_;
  AttentionScratch<N> scratch_;
  int64_t num_pages_ = 0;
  double copy_rate_ = 1.0;
};

}  // namespace
}  // namespace moebius

int main() {
  moebius::Bench<moebius::Numerics::kFast>().RunAll();
  moebius::Bench<moebius::Numerics::kExact>().RunAll();
}
