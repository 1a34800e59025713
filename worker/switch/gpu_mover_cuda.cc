#include "worker/switch/gpu_mover_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/copies.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/gpu.h"

namespace moebius {
namespace {

// A moment in a stream's work.
class Event {
 public:
  Event() = default;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  absl::Status Init() {
    return CudaStatus(cudaEventCreate(&event_), "an event of the GPU");
  }
  absl::Status Record(const GpuStream& stream) {
    return CudaStatus(cudaEventRecord(event_, stream.get()),
                      "an event of a move");
  }
  // Nothing that is launched later on `stream` begins before this.
  absl::Status HoldBack(const GpuStream& stream) {
    return CudaStatus(cudaStreamWaitEvent(stream.get(), event_, 0),
                      "the order of a move's streams");
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// The plan of a wave: written on the host, copied to the GPU.
class WavePlan {
 public:
  WavePlan() = default;
  ~WavePlan() { Free(); }
  WavePlan(const WavePlan&) = delete;
  WavePlan& operator=(const WavePlan&) = delete;

  GpuPageMove* host() const { return host_; }
  const GpuPageMove* device() const { return device_; }

  // Room for that many moves, whatever it held. On error there is none.
  absl::Status Reserve(int64_t moves) {
    if (moves <= room_) return absl::OkStatus();
    Free();
    const size_t bytes = static_cast<size_t>(moves) * sizeof(GpuPageMove);
    const absl::Status status =
        CudaStatus(cudaHostAlloc(reinterpret_cast<void**>(&host_), bytes,
                                 cudaHostAllocDefault),
                   "host memory for the plan of a wave");
    if (!status.ok()) return status;
    RETURN_IF_ERROR(
        CudaStatus(cudaMalloc(reinterpret_cast<void**>(&device_), bytes),
                   "memory of a GPU for the plan of a wave"));
    room_ = moves;
    return absl::OkStatus();
  }
  absl::Status Upload(int64_t moves, const GpuStream& stream) {
    if (moves == 0) return absl::OkStatus();
    return CudaStatus(
        cudaMemcpyAsync(device_, host_,
                        static_cast<size_t>(moves) * sizeof(GpuPageMove),
                        cudaMemcpyHostToDevice, stream.get()),
        "copying the plan of a wave");
  }

 private:
  void Free() {
    cudaFreeHost(std::exchange(host_, nullptr));
    cudaFree(std::exchange(device_, nullptr));
    room_ = 0;
  }

  GpuPageMove* host_ = nullptr;
  GpuPageMove* device_ = nullptr;
  int64_t room_ = 0;
};

// What is under way, or could be.
struct Move {
  Event begun, beside_done, done;
  int64_t bytes = 0;

  absl::Status Init() {
    for (Event* event : {&begun, &beside_done, &done}) {
      RETURN_IF_ERROR(event->Init());
    }
    return absl::OkStatus();
  }
};

// As copy_choice.h says: 0 is the driver's copies.
absl::Status LaunchBlocks(absl::Span<const GpuCopy> blocks, int grid,
                          const GpuStream& stream) {
  if (grid > 0) return LaunchCopies(blocks, grid, stream.get());
  for (const GpuCopy& block : blocks) {
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyAsync(block.to, block.from,
                                   static_cast<size_t>(block.size_bytes),
                                   cudaMemcpyDeviceToDevice, stream.get()),
                   "a copy between GPUs"));
  }
  return absl::OkStatus();
}

class GpuMover final : public Mover {
 public:
  GpuMover(const WorkerMemory* memory, const GpuMoverOptions& options)
      : memory_(memory), options_(options), pages_(memory, options.page_bytes) {
    shape_.num_ranks = memory->num_ranks();
    shape_.ranks_on_gpu = 0;
    for (Rank rank = 0; rank < memory->num_ranks(); ++rank) {
      if (IsNear(rank)) ++shape_.ranks_on_gpu;
    }
  }
  ~GpuMover() override {
    if (UseGpu(options_.gpu).ok()) EndWork();
  }

  absl::Status Init() {
    RETURN_IF_ERROR(UseGpu(options_.gpu));
    engines_ = GpuStream::Create(options_.gpu, &failure_);
    beside_ = GpuStream::Create(options_.gpu, &failure_);
    RETURN_IF_ERROR(failure_.status());
    shape_.num_multiprocessors = engines_->num_multiprocessors();
    for (Move& move : moves_) RETURN_IF_ERROR(move.Init());
    return plan_.Reserve(kFirstMoves);
  }

  int MostLayers() const override { return kMostLayers; }
  absl::Status BeginLayer(const SlotPull& pull,
                          absl::Span<const CopySegment> segments) override;
  absl::Status BeginWave(absl::Span<const PageMove> wave) override;
  absl::StatusOr<bool> Poll() override;
  absl::StatusOr<Moved> Wait() override;

 private:
  static constexpr int64_t kFirstMoves = 65536;  // room at the start
  static constexpr size_t kMostLayers = 4;

  // Whether a rank's memory lies on our GPU.
  bool IsNear(Rank rank) const {
    const auto& gpus = options_.gpu_of_rank;
    return rank == memory_->rank() ||
           (!gpus.empty() && gpus[rank] == gpus[memory_->rank()]);
  }
  // How far on in the ring: 0 is the next rank.
  int RingPlace(Rank rank) const {
    const int n = memory_->num_ranks();
    return (rank - memory_->rank() - 1 + n) % n;
  }

  // Whether as many as `most` moves and no wave are under way.
  absl::Status CheckRoom(size_t most) const;
  Move& first() { return moves_[first_]; }
  Move& next() { return moves_[(first_ + under_way_) % kMostLayers]; }
  CopyChoice ChoiceFor(const CopyShape& shape) const;
  absl::Status LaunchLayer(const SlotPull& pull,
                           absl::Span<const CopySegment> segments, Move& move);
  absl::Status LaunchWave(int64_t count, Move& move);
  int64_t PlanWave(absl::Span<const PageMove> wave);
  // What `launched` says, with next() under way if it is OK and nothing under
  // way if it is not.
  absl::Status Began(const absl::Status& launched, int64_t bytes);
  // OK if `status` is; else nothing is under way any more.
  absl::Status EndedBy(const absl::Status& status);
  void EndWork();

  const WorkerMemory* const memory_;
  const GpuMoverOptions options_;
  PagePuller pages_;
  CopyShape shape_;  // but for block_bytes

  CudaFailure failure_;
  std::unique_ptr<GpuStream> engines_, beside_;
  WavePlan plan_;
  // A ring: the first move under way, and how many.
  std::array<Move, kMostLayers> moves_;
  size_t first_ = 0, under_way_ = 0;
  bool in_wave_ = false;

  // Scratch room, kept between moves.
  std::vector<CopySegment> ring_;
  std::vector<GpuCopy> near_, far_;
  std::array<std::vector<GpuPageMove>, kMaxRanks> by_source_;
};

absl::Status GpuMover::CheckRoom(size_t most) const {
  if (under_way_ < most && !in_wave_) return absl::OkStatus();
  return absl::FailedPreconditionError("another move is under way");
}

CopyChoice GpuMover::ChoiceFor(const CopyShape& shape) const {
  return options_.choice.value_or(ChooseCopies(shape));
}

void GpuMover::EndWork() {
  for (const auto* stream : {&engines_, &beside_}) {
    if (*stream != nullptr) cudaStreamSynchronize((*stream)->get());
  }
}

absl::Status GpuMover::EndedBy(const absl::Status& status) {
  if (!status.ok()) {
    EndWork();
    under_way_ = 0;
    in_wave_ = false;
  }
  return status;
}

absl::Status GpuMover::Began(const absl::Status& launched, int64_t bytes) {
  RETURN_IF_ERROR(EndedBy(launched));
  next().bytes = bytes;
  ++under_way_;
  return absl::OkStatus();
}

absl::Status GpuMover::LaunchLayer(const SlotPull& pull,
                                   absl::Span<const CopySegment> segments,
                                   Move& move) {
  ring_.assign(segments.begin(), segments.end());
  std::stable_sort(ring_.begin(), ring_.end(),
                   [this](const CopySegment& a, const CopySegment& b) {
                     return RingPlace(a.src_rank) < RingPlace(b.src_rank);
                   });
  near_.clear();
  far_.clear();
  CopyShape shape = shape_;
  for (const CopySegment& segment : ring_) {
    const GpuCopy copy{memory_->base(RegionKind::kExperts, segment.src_rank) +
                           pull.src_slot * pull.slot_bytes + segment.src_offset,
                       memory_->mutable_base(RegionKind::kExperts) +
                           pull.dst_slot * pull.slot_bytes + segment.dst_offset,
                       segment.size_bytes};
    (IsNear(segment.src_rank) ? near_ : far_).push_back(copy);
    shape.block_bytes = std::max(shape.block_bytes, segment.size_bytes);
  }
  const CopyChoice choice = ChoiceFor(shape);
  RETURN_IF_ERROR(move.begun.Record(*engines_));
  if (!near_.empty()) {
    RETURN_IF_ERROR(move.begun.HoldBack(*beside_));
    RETURN_IF_ERROR(LaunchBlocks(near_, choice.own_grid, *beside_));
    RETURN_IF_ERROR(move.beside_done.Record(*beside_));
  }
  RETURN_IF_ERROR(LaunchBlocks(far_, choice.peer_grid, *engines_));
  if (!near_.empty()) RETURN_IF_ERROR(move.beside_done.HoldBack(*engines_));
  return move.done.Record(*engines_);
}

absl::Status GpuMover::BeginLayer(const SlotPull& pull,
                                  absl::Span<const CopySegment> segments) {
  RETURN_IF_ERROR(CheckSlotPull(*memory_, pull));
  RETURN_IF_ERROR(CheckRoom(kMostLayers));
  RETURN_IF_ERROR(CheckSegments(*memory_, pull, segments));
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  int64_t bytes = 0;
  for (const CopySegment& segment : segments) bytes += segment.size_bytes;
  return Began(LaunchLayer(pull, segments, next()), bytes);
}

// Puts our moves into plan_, which has room, sources in turn, the next in the
// ring first. How many there are.
int64_t GpuMover::PlanWave(absl::Span<const PageMove> wave) {
  for (auto& moves : by_source_) moves.clear();
  size_t longest = 0;
  for (const PageMove& move : wave) {
    if (move.dst_rank != memory_->rank()) continue;
    auto& moves = by_source_[RingPlace(move.src_rank)];
    moves.push_back(
        {static_cast<uint32_t>(move.src_rank), move.src_page, move.dst_page});
    longest = std::max(longest, moves.size());
  }
  int64_t count = 0;
  for (size_t i = 0; i < longest; ++i) {
    for (const auto& moves : by_source_) {
      if (i < moves.size()) plan_.host()[count++] = moves[i];
    }
  }
  return count;
}

absl::Status GpuMover::LaunchWave(int64_t count, Move& move) {
  GpuPagePools pools;
  for (Rank rank = 0; rank < memory_->num_ranks(); ++rank) {
    pools.sources[rank] = memory_->base(RegionKind::kKv, rank);
  }
  pools.own = memory_->mutable_base(RegionKind::kKv);
  pools.page_bytes = options_.page_bytes;
  RETURN_IF_ERROR(move.begun.Record(*engines_));
  RETURN_IF_ERROR(plan_.Upload(count, *engines_));
  RETURN_IF_ERROR(LaunchPageMoves(pools, plan_.device(), count,
                                  ChoiceFor(shape_).page_grid,
                                  engines_->get()));
  return move.done.Record(*engines_);
}

absl::Status GpuMover::BeginWave(absl::Span<const PageMove> wave) {
  RETURN_IF_ERROR(pages_.Check(wave));
  RETURN_IF_ERROR(CheckRoom(1));
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  RETURN_IF_ERROR(plan_.Reserve(static_cast<int64_t>(wave.size())));
  const int64_t count = PlanWave(wave);
  RETURN_IF_ERROR(
      Began(LaunchWave(count, next()), count * options_.page_bytes));
  in_wave_ = true;
  return absl::OkStatus();
}

absl::StatusOr<bool> GpuMover::Poll() {
  if (under_way_ == 0) return true;
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  const cudaError_t error = cudaEventQuery(first().done.get());
  if (error == cudaErrorNotReady) return false;
  RETURN_IF_ERROR(EndedBy(CudaStatus(error, "a move on the GPU")));
  return true;
}

absl::StatusOr<Moved> GpuMover::Wait() {
  if (under_way_ == 0) {
    return absl::FailedPreconditionError("no move was begun");
  }
  RETURN_IF_ERROR(UseGpu(options_.gpu));
  RETURN_IF_ERROR(EndedBy(CudaStatus(cudaEventSynchronize(first().done.get()),
                                     "a move on the GPU")));
  const Move& move = first();
  first_ = (first_ + 1) % kMostLayers;
  --under_way_;
  in_wave_ = false;
  float milliseconds = 0;
  RETURN_IF_ERROR(CudaStatus(
      cudaEventElapsedTime(&milliseconds, move.begun.get(), move.done.get()),
      "the time of a move"));
  return Moved{move.bytes, std::chrono::microseconds(
                               static_cast<int64_t>(milliseconds * 1000))};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Mover>> MakeGpuMover(
    const WorkerMemory* memory, const GpuMoverOptions& options) {
  if (options.page_bytes <= 0 || options.page_bytes % 16 != 0 ||
      options.page_bytes >= int64_t{1} << 31) {
    return absl::InvalidArgumentError(
        absl::StrCat("pages of ", options.page_bytes,
                     " bytes; a GPU moves multiples of 16 below 2^31"));
  }
  if (!options.gpu_of_rank.empty() &&
      options.gpu_of_rank.size() != static_cast<size_t>(memory->num_ranks())) {
    return absl::InvalidArgumentError(
        absl::StrCat("the GPUs of ", options.gpu_of_rank.size(), " of ",
                     memory->num_ranks(), " ranks"));
  }
  auto mover = std::make_unique<GpuMover>(memory, options);
  RETURN_IF_ERROR(mover->Init());
  return mover;
}

}  // namespace moebius
