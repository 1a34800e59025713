#include <cuda_runtime_api.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/copies.h"
#include "kernels/cuda/gpu.h"
#include "worker/bench/peer_copies.h"
#include "worker/peers/nccl.h"

namespace moebius {
namespace {

constexpr int64_t kBytes = int64_t{1} << 30;  // that a GPU holds of each thing
constexpr int kRepeats = 10;
constexpr int kBlocksOfMultiprocessor = 4;

using Clock = std::chrono::steady_clock;

// What the threads of a measurement share, one for each GPU. They meet between
// its parts; one that has failed says so and goes on meeting.
struct Ring {
  explicit Ring(int num_gpus)
      : num_gpus(num_gpus),
        meeting(num_gpus),
        from(static_cast<size_t>(num_gpus)),
        seconds(static_cast<size_t>(num_gpus)),
        failures(static_cast<size_t>(num_gpus)) {}

  const int num_gpus;
  std::barrier<> meeting;
  std::vector<const std::byte*> from;  // [GPU] kBytes
  std::vector<double> seconds;         // [GPU] of the part
  std::vector<absl::Status> failures;  // [GPU]
  absl::StatusOr<NcclId> nccl_id;

  int64_t block_bytes() const { return kBytes / num_gpus / 256 * 256; }
  int64_t taken_bytes() const { return block_bytes() * (num_gpus - 1); }
  absl::Status Failure() const {
    for (const absl::Status& failure : failures) RETURN_IF_ERROR(failure);
    return absl::OkStatus();
  }
};

// One GPU's part of it.
class RingGpu {
 public:
  RingGpu(Ring& ring, int gpu) : ring_(ring), gpu_(gpu) {}

  // On a thread of its own; all of them call it.
  void Measure(PeerRates& rates) {
    Note(Prepare());
    Time(rates.driver, [&] { return ByDriver(); });
    Time(rates.kernel, [&] { return ByKernel(); });
    if (ring_.nccl_id.ok() && AllWell()) {
      Note(MakeNccl());  // NCCL itself waits for all ranks
      Time(rates.nccl, [&] { return ByNccl(from_->data(), to_->data()); });
      Time(rates.nccl_packed, [&] { return ByNcclPacked(); });
    }
    // Nobody reads what is freed behind this.
    if (stream_ != nullptr) Note(stream_->Wait());
    ring_.meeting.arrive_and_wait();
  }

 private:
  void Note(const absl::Status& status) {
    absl::Status& failure = ring_.failures[static_cast<size_t>(gpu_)];
    if (failure.ok()) failure = status;
  }
  // The same on all of them: nobody notes anything between the two meetings.
  bool AllWell() {
    ring_.meeting.arrive_and_wait();
    const bool well = ring_.Failure().ok();
    ring_.meeting.arrive_and_wait();
    return well;
  }
  const std::byte* FromPeer(int peer, int block) const {
    return ring_.from[static_cast<size_t>(peer)] + block * ring_.block_bytes();
  }
  // The k-th peer in ring order, 1 <= k < num_gpus.
  int Peer(int k) const { return (gpu_ + k) % ring_.num_gpus; }

  absl::Status Prepare();
  absl::Status MakeNccl() {
    ASSIGN_OR_RETURN(nccl_,
                     NcclGroup::Create(*ring_.nccl_id, ring_.num_gpus, gpu_));
    return absl::OkStatus();
  }
  void Time(double& bytes_per_s, absl::FunctionRef<absl::Status()> launch);
  absl::Status ByDriver();
  absl::Status ByKernel();
  absl::Status ByNccl(const std::byte* from, std::byte* to);
  absl::Status ByNcclPacked();

  Ring& ring_;
  const int gpu_;
  CudaFailure failure_;
  std::unique_ptr<GpuStream> stream_;
  std::unique_ptr<Buffer<std::byte, CudaFast>> from_, to_, packed_;
  std::unique_ptr<NcclGroup> nccl_;
};

absl::Status RingGpu::Prepare() {
  RETURN_IF_ERROR(UseGpu(gpu_));
  for (int k = 1; k < ring_.num_gpus; ++k) {
    const cudaError_t error = cudaDeviceEnablePeerAccess(Peer(k), 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) continue;
    if (error != cudaSuccess) {
      return absl::UnavailableError(
          absl::StrCat("GPU ", gpu_, " does not reach GPU ", Peer(k), ": ",
                       cudaGetErrorString(error)));
    }
  }
  stream_ = GpuStream::Create(gpu_, &failure_);
  const CudaFast device{stream_->get(), &failure_,
                        stream_->num_multiprocessors()};
  for (auto* buffer : {&from_, &to_, &packed_}) {
    *buffer = std::make_unique<Buffer<std::byte, CudaFast>>(
        device, "copies between GPUs", kBytes);
  }
  RETURN_IF_ERROR(failure_.status());
  ring_.from[static_cast<size_t>(gpu_)] = from_->data();
  return absl::OkStatus();
}

// Once before it counts, so that clocks are up and connections are there.
void RingGpu::Time(double& bytes_per_s,
                   absl::FunctionRef<absl::Status()> launch) {
  if (!AllWell()) return;
  Note(launch());
  Note(stream_->Wait());
  ring_.meeting.arrive_and_wait();
  const Clock::time_point begin = Clock::now();
  for (int i = 0; i < kRepeats; ++i) Note(launch());
  Note(stream_->Wait());
  ring_.seconds[static_cast<size_t>(gpu_)] =
      std::chrono::duration<double>(Clock::now() - begin).count();
  ring_.meeting.arrive_and_wait();
  if (gpu_ == 0) {
    const double slowest =
        *std::max_element(ring_.seconds.begin(), ring_.seconds.end());
    bytes_per_s = static_cast<double>(kRepeats * ring_.taken_bytes()) / slowest;
  }
  ring_.meeting.arrive_and_wait();
}

absl::Status RingGpu::ByDriver() {
  for (int k = 1; k < ring_.num_gpus; ++k) {
    const int peer = Peer(k);
    RETURN_IF_ERROR(
        CudaStatus(cudaMemcpyPeerAsync(to_->data() + peer * ring_.block_bytes(),
                                       gpu_, FromPeer(peer, gpu_), peer,
                                       static_cast<size_t>(ring_.block_bytes()),
                                       stream_->get()),
                   "a copy of another GPU's"));
  }
  return absl::OkStatus();
}

absl::Status RingGpu::ByKernel() {
  std::vector<GpuCopy> copies;
  for (int k = 1; k < ring_.num_gpus; ++k) {
    const int peer = Peer(k);
    copies.push_back({FromPeer(peer, gpu_),
                      to_->data() + peer * ring_.block_bytes(),
                      ring_.block_bytes()});
  }
  return LaunchCopies(copies,
                      kBlocksOfMultiprocessor * stream_->num_multiprocessors(),
                      stream_->get());
}

absl::Status RingGpu::ByNccl(const std::byte* from, std::byte* to) {
  RETURN_IF_ERROR(nccl_->Begin());
  absl::Status status;
  for (int k = 1; k < ring_.num_gpus && status.ok(); ++k) {
    const int64_t block = Peer(k) * ring_.block_bytes();
    status =
        nccl_->Send(from + block, ring_.block_bytes(), Peer(k), stream_->get());
    if (status.ok()) {
      status = nccl_->Receive(to + block, ring_.block_bytes(), Peer(k),
                              stream_->get());
    }
  }
  const absl::Status end = nccl_->End();
  return status.ok() ? end : status;
}

absl::Status RingGpu::ByNcclPacked() {
  const int grid = kBlocksOfMultiprocessor * stream_->num_multiprocessors();
  const GpuCopy pack = {from_->data(), packed_->data(), ring_.taken_bytes()};
  const GpuCopy unpack = {packed_->data(), to_->data(), ring_.taken_bytes()};
  RETURN_IF_ERROR(LaunchCopies({pack}, grid, stream_->get()));
  RETURN_IF_ERROR(ByNccl(packed_->data(), to_->data()));
  return LaunchCopies({unpack}, grid, stream_->get());
}

}  // namespace

absl::StatusOr<PeerRates> MeasurePeerCopies(int num_gpus) {
  if (num_gpus < 2) {
    return absl::InvalidArgumentError("copies between GPUs need two of them");
  }
  Ring ring(num_gpus);
  ring.nccl_id = NcclGroup::MakeId();
  PeerRates rates;
  std::vector<std::unique_ptr<RingGpu>> gpus;
  for (int g = 0; g < num_gpus; ++g) {
    gpus.push_back(std::make_unique<RingGpu>(ring, g));
  }
  std::vector<std::thread> threads;
  for (const auto& gpu : gpus) {
    threads.emplace_back([&rates, gpu = gpu.get()] { gpu->Measure(rates); });
  }
  for (std::thread& thread : threads) thread.join();
  RETURN_IF_ERROR(ring.Failure());
  if (!ring.nccl_id.ok()) {
    rates.no_nccl = std::string(ring.nccl_id.status().message());
  }
  return rates;
}

}  // namespace moebius
