#include "worker/model/weight_sink_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/tiles.h"

namespace moebius {
namespace {

// Parts that are read at once, and as many that are copied and packed
// meanwhile. A thread copies some 5 GB/s out of the page cache.
constexpr int kAtOnce = 8;
constexpr int kRing = 2 * kAtOnce;
// Smallest room of one: most parts are of experts, or pieces of tables of 8
// MiB.
constexpr int64_t kMinRoomBytes = int64_t{8} << 20;

// Room for a part on both sides.
struct Room {
  std::byte* host = nullptr;  // pinned
  std::byte* gpu = nullptr;
  int64_t size_bytes = 0;
  cudaEvent_t free = nullptr;  // when what was put last has been packed
};

int TilesOf(int size) { return (size + kTileRows - 1) / kTileRows; }

class GpuWeightSink final : public WeightSink {
 public:
  GpuWeightSink(std::byte* dense, std::byte* experts, int gpu)
      : dense_(dense),
        experts_(experts),
        gpu_(gpu),
        stream_(GpuStream::Create(gpu, &failure_)) {
    for (Room& room : ring_) {
      failure_.Note(CudaStatus(
          cudaEventCreateWithFlags(&room.free, cudaEventDisableTiming),
          "an event of the GPU"));
    }
  }

  ~GpuWeightSink() override {
    cudaStreamSynchronize(stream_->get());
    for (Room& room : ring_) {
      Free(room);
      if (room.free != nullptr) cudaEventDestroy(room.free);
    }
  }

  int MostStaged() const override { return kAtOnce; }

  absl::StatusOr<std::byte*> Stage(int64_t size_bytes) override {
    CHECK(size_bytes >= 0 && staged_ - put_ < kAtOnce);
    RETURN_IF_ERROR(UseGpu(gpu_));
    Room& room = ring_[staged_++ % kRing];
    RETURN_IF_ERROR(MakeRoom(size_bytes, room));
    return room.host;
  }

  absl::Status Put(const WeightPart& part) override {
    CHECK(put_ < staged_);
    const Room& room = ring_[put_++ % kRing];
    const int64_t bytes = part.host_bytes();
    CHECK(bytes <= room.size_bytes);
    failure_.Note(CudaStatus(
        cudaMemcpyAsync(room.gpu, room.host, static_cast<size_t>(bytes),
                        cudaMemcpyHostToDevice, stream_->get()),
        "a copy of weights to the GPU"));
    return PackRoom(part, room);
  }

  absl::StatusOr<bool> MakeUp(const WeightPart& part,
                              absl::Span<const MadeUpSlice> slices) override {
    RETURN_IF_ERROR(UseGpu(gpu_));
    CHECK(put_ == staged_);
    Room& room = ring_[staged_++ % kRing];
    ++put_;
    RETURN_IF_ERROR(MakeRoom(part.host_bytes(), room));
    if (const auto* vector = std::get_if<VectorPacking>(&part.packing)) {
      MakeUpOnGpu(slices[0].seed, vector->size,
                  reinterpret_cast<float*>(room.gpu), stream_->get(),
                  &failure_);
    } else {
      Bf16* next = reinterpret_cast<Bf16*>(room.gpu);
      for (const auto& [seed, slice] : slices) {
        MakeUpOnGpu({seed, slice.cols, slice.row_begin, slice.col_begin,
                     slice.num_rows(), slice.num_cols()},
                    next, stream_->get(), &failure_);
        next += slice.num_elements();
      }
    }
    RETURN_IF_ERROR(PackRoom(part, room));
    return true;
  }

  absl::Status Finish() override { return stream_->Wait(); }

 private:
  void Free(Room& room) {
    cudaFreeHost(room.host);
    cudaFree(room.gpu);
    room.host = room.gpu = nullptr;
    room.size_bytes = 0;
  }

  // Once what was in it is packed.
  absl::Status MakeRoom(int64_t size_bytes, Room& room) {
    failure_.Note(CudaStatus(cudaEventSynchronize(room.free),
                             "packing of weights on the GPU"));
    RETURN_IF_ERROR(failure_.status());
    if (size_bytes <= room.size_bytes) return absl::OkStatus();
    Free(room);
    const int64_t size = std::max(size_bytes, kMinRoomBytes);
    RETURN_IF_ERROR(
        CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&room.host),
                                  static_cast<size_t>(size)),
                   "pinned memory to read weights into"));
    RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&room.gpu),
                                          static_cast<size_t>(size)),
                               "memory of the GPU to pack weights from"));
    room.size_bytes = size;
    return absl::OkStatus();
  }

  absl::Status PackRoom(const WeightPart& part, const Room& room) {
    std::byte* const base =
        part.region == WeightRegion::kDense ? dense_ : experts_;
    CHECK(base != nullptr);
    std::byte* const out = base + part.offset;
    RETURN_IF_ERROR(std::visit(
        [&](const auto& packing) { return Pack(packing, room, out); },
        part.packing));
    failure_.Note(
        CudaStatus(cudaEventRecord(room.free, stream_->get()), "an event"));
    return failure_.status();
  }

  absl::Status Pack(const VectorPacking& part, const Room& room,
                    std::byte* out) {
    const size_t bytes = static_cast<size_t>(part.size) * sizeof(float);
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(out, room.gpu, bytes,
                                   cudaMemcpyDeviceToDevice, stream_->get()),
                   "a copy of a vector on the GPU"));
    if (part.zeros == 0) return absl::OkStatus();
    return CudaStatus(
        cudaMemsetAsync(out + bytes, 0,
                        static_cast<size_t>(part.zeros) * sizeof(float),
                        stream_->get()),
        "zeros behind a vector on the GPU");
  }

  absl::Status Pack(const MatrixPacking& part, const Room& room,
                    std::byte* out) {
    RETURN_IF_ERROR(CheckSteps(part.k));
    PackOnGpu({.w = Matrix(room),
               .n = part.n,
               .k = part.k,
               .stride = part.k,
               .n_tiles = TilesOf(part.n),
               .k_tiles = TilesOf(part.k),
               .out = reinterpret_cast<Bf16*>(out)},
              stream_->get(), &failure_);
    return failure_.status();
  }

  absl::Status Pack(const RowParallelPacking& part, const Room& room,
                    std::byte* out) {
    RETURN_IF_ERROR(CheckSteps(part.k));
    PackOnGpu({.w = Matrix(room),
               .n = part.n,
               .k = part.k,
               .stride = part.k,
               .n_tiles = TilesOf(part.n),
               .k_tiles = TilesOf(part.k),
               .by_units = true,
               .out = reinterpret_cast<Bf16*>(out)},
              stream_->get(), &failure_);
    return failure_.status();
  }

  absl::Status Pack(const ExpertPacking& part, const Room& room,
                    std::byte* out) {
    RETURN_IF_ERROR(CheckSteps(part.hidden));
    const ptrdiff_t matrix = ptrdiff_t{part.rows} * part.hidden;
    const int units = part.piece_rows / kTileRows;
    const int hidden_tiles = TilesOf(part.hidden);
    for (int p = 0; p < part.num_pieces; ++p, out += part.stride_bytes) {
      const int first = std::min(p * part.piece_rows, part.rows);
      const int count = std::min(part.rows - first, part.piece_rows);
      Bf16* const block = reinterpret_cast<Bf16*>(out);
      const ptrdiff_t packed = ptrdiff_t{part.piece_rows} * part.hidden;
      for (int up = 0; up < 2; ++up) {
        PackOnGpu(
            {.w = Matrix(room) + up * matrix + ptrdiff_t{first} * part.hidden,
             .n = count,
             .k = part.hidden,
             .stride = part.hidden,
             .n_tiles = units,
             .k_tiles = hidden_tiles,
             .out = block + up * packed},
            stream_->get(), &failure_);
      }
      PackOnGpu({.w = Matrix(room) + 2 * matrix + first,
                 .n = part.hidden,
                 .k = count,
                 .stride = part.rows,
                 .n_tiles = hidden_tiles,
                 .k_tiles = units,
                 .by_units = true,
                 .out = block + 2 * packed},
                stream_->get(), &failure_);
    }
    return failure_.status();
  }

  static absl::Status CheckSteps(int k) {
    if (k % kTileRows == 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "a matrix with ", k, " inputs: a GPU takes multiples of ", kTileRows));
  }

  static const Bf16* Matrix(const Room& room) {
    return reinterpret_cast<const Bf16*>(room.gpu);
  }

  std::byte* const dense_;
  std::byte* const experts_;
  const int gpu_;
  CudaFailure failure_;
  const std::unique_ptr<GpuStream> stream_;
  std::array<Room, kRing> ring_;
  int64_t staged_ = 0, put_ = 0;  // parts so far
};

}  // namespace

std::unique_ptr<WeightSink> MakeGpuWeightSink(std::byte* dense,
                                              std::byte* experts, int gpu) {
  return std::make_unique<GpuWeightSink>(dense, experts, gpu);
}

}  // namespace moebius
