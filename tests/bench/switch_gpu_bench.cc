// What a switch of Qwen3-30B-A3B costs on GPUs: 58 GB of experts and 100,000
// tokens of KV, between real processes, beside plain copies in the same run.
//
//   switch_gpu_bench [RANKS [ROUNDS [SPARE_SLOTS [GRID]]]]
//
// GRID is the thread blocks of a rank's copies, 0 the driver's copies, and -1,
// the default, what the mover chooses. With several spare slots a layer is
// copied while ranks meet behind the one before.
//
// Rank r works on GPU r modulo their number. For several ranks on one GPU start
// MPS first: without it processes take turns.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "common/base/check.h"
#include "common/layout/experts_state.h"
#include "common/vault/vault_client.h"
#include "deploy/launcher/vault.h"
#include "kernels/cuda/copies.h"
#include "kernels/cuda/gpu.h"
#include "tests/unit/worker/memory/processes.h"
#include "worker/memory/region_cuda.h"
#include "worker/memory/worker_memory.h"
#include "worker/peers/group_barrier.h"
#include "worker/switch/gpu_mover_cuda.h"
#include "worker/switch/gpu_weight_check.h"

namespace moebius {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);
constexpr int kLayers = 48;
constexpr int kKvHeads = 4;
constexpr int kBlocks = 100000 / 16;  // of tokens
constexpr int64_t kPageBytes = int64_t{kLayers} * 16 * 2 * 128 * 2;
constexpr int64_t kPlainBytes = int64_t{8} << 30;

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void Ok(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}
template <typename T>
T Ok(absl::StatusOr<T> value) {
  Ok(value.status());
  return *std::move(value);
}
void Ok(cudaError_t error) { Ok(CudaStatus(error, "the benchmark")); }

// Numbers of all ranks, in memory that they share.
struct Board {
  std::atomic<uint64_t> checksum[2] = {};  // before a round, after it
};

struct BenchOptions {
  int num_ranks = 0;
  int num_gpus = 0;
  int rounds = 3;
  int spare_slots = 1;
  int grid = -1;
};

// One rank, in a process of its own.
class Bench {
 public:
  Bench(Rank rank, const BenchOptions& how, Board* board, VaultClient& client)
      : rank_(rank),
        num_ranks_(how.num_ranks),
        gpu_(rank % how.num_gpus),
        board_(board),
        shape_{how.num_ranks, kLayers, 128, 768, 16, 4096, how.spare_slots},
        maker_(MakeGpuRegionMaker(gpu_)) {
    const int num_ranks = how.num_ranks, num_gpus = how.num_gpus;
    pages_a_pair_ = kBlocks * kKvHeads / (num_ranks * num_ranks);
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = shape_.region_bytes();
    geometry[RegionKind::kKv] = kPageBytes * 2 * num_ranks * pages_a_pair_;
    WorkerMemoryOptions options;
    options.maker = maker_.get();
    const auto begin = Clock::now();
    memory_ =
        Ok(WorkerMemory::Create(rank, num_ranks, geometry, client, options));
    const double created = SecondsSince(begin);
    Ok(memory_->MapPeers(client, kLong));
    barrier_ = std::make_unique<GroupBarrier>(rank, memory_->all_signals(),
                                              BarrierOptions{.spin_us = 2000});
    GpuMoverOptions mover;
    mover.gpu = gpu_;
    mover.page_bytes = kPageBytes;
    for (Rank r = 0; r < num_ranks; ++r) {
      mover.gpu_of_rank.push_back(r % num_gpus);
      if (r % num_gpus == gpu_) ++ranks_here_;
    }
    if (how.grid >= 0) mover.choice = CopyChoice{how.grid, how.grid, how.grid};
    mover_ = Ok(MakeGpuMover(memory_.get(), mover));
    stream_ = GpuStream::Create(gpu_, &failure_);
    Ok(failure_.status());
    if (rank == 0) {
      std::printf(
          "%d ranks on %d GPUs, %d spare slots; regions of %.1f GB created in "
          "%.2f s, with peers mapped in %.2f s\n",
          num_ranks, num_gpus, how.spare_slots,
          (geometry[RegionKind::kExperts] + geometry[RegionKind::kKv]) * 1e-9,
          created, SecondsSince(begin));
    }
  }

  void Run(int rounds) {
    FillExperts();
    MeasurePlainCopies();
    ExpertsState state = ExpertsState::At(ExpertParallel(), Side::kHigh);
    AddChecksum(state, 0);
    for (int round = 0; round < rounds; ++round) {
      for (const Layout to : {TensorParallel(num_ranks_), ExpertParallel()}) {
        const ExpertsState towards = state.Towards(to);
        MeasureLayers(towards);
        state = towards.Finished();
      }
      MeasurePages();
    }
    AddChecksum(state, 1);
    Meet();
    if (rank_ == 0) {
      std::printf("checksum of all weights afterwards: %s\n",
                  board_->checksum[0] == board_->checksum[1] ? "as before"
                                                             : "DIFFERENT");
    }
    Meet();
  }

 private:
  void Meet() { Ok(barrier_->Wait(barrier_->arrived() + 1, kLong)); }
  std::byte* experts() const {
    return memory_->mutable_base(RegionKind::kExperts);
  }

  // Random bytes, which are others in every layer and rank.
  void FillExperts() {
    constexpr int64_t kChunk = int64_t{64} << 20;
    std::mt19937_64 random(rank_);
    std::vector<uint64_t> words(2 * kChunk / 8);
    std::generate(words.begin(), words.end(), random);
    std::byte* source = nullptr;
    Ok(cudaMalloc(reinterpret_cast<void**>(&source), 2 * kChunk));
    Ok(cudaMemcpy(source, words.data(), 2 * kChunk, cudaMemcpyHostToDevice));
    for (int64_t at = 0, i = 0; at < shape_.region_bytes(); at += kChunk, ++i) {
      Ok(cudaMemcpyAsync(experts() + at, source + i * 4096 * 37 % kChunk,
                         std::min(kChunk, shape_.region_bytes() - at),
                         cudaMemcpyDeviceToDevice, stream_->get()));
    }
    Ok(stream_->Wait());
    Ok(cudaFree(source));
  }

  void AddChecksum(const ExpertsState& state, int which) {
    GpuWeightCheckOptions options;
    options.gpu = gpu_;
    options.shape = shape_;
    options.rank = rank_;
    options.experts = experts();
    options.failure = &failure_;
    const auto begin = Clock::now();
    board_->checksum[which] += Ok(GpuWeightChecksum(options, state));
    if (rank_ == 0) {
      std::printf("checksum of %.1f GB: %.1f ms\n",
                  kLayers * shape_.slot_bytes() * 1e-9,
                  SecondsSince(begin) * 1e3);
    }
  }

  // From the next rank, all ranks at once; bytes that arrive a second.
  double PlainRate(bool engine, int grid) {
    const std::byte* const from =
        memory_->base(RegionKind::kExperts, (rank_ + 1) % num_ranks_);
    const int64_t bytes = std::min(kPlainBytes, shape_.region_bytes() / 4);
    const GpuCopy copy{from,
                       experts() + shape_.region_bytes() / 2 /
                                       kRegionAlignment * kRegionAlignment,
                       bytes};
    double best = 0;
    for (int i = 0; i < 3; ++i) {
      Meet();
      const auto begin = Clock::now();
      if (engine) {
        Ok(cudaMemcpyAsync(copy.to, copy.from, bytes, cudaMemcpyDeviceToDevice,
                           stream_->get()));
      } else {
        Ok(LaunchCopies({&copy, 1}, grid, stream_->get()));
      }
      Ok(stream_->Wait());
      Meet();
      best = std::max(best, bytes / SecondsSince(begin));
    }
    return best;
  }

  void MeasurePlainCopies() {
    const double engine = PlainRate(true, 0);
    plain_rate_ = engine;
    std::vector<std::pair<int, double>> kernels;
    const int share = 4 * stream_->num_multiprocessors() / ranks_here_;
    for (const int grid : {16, 24, 32, share}) {
      kernels.emplace_back(grid, PlainRate(false, grid));
    }
    if (rank_ != 0) return;
    std::printf(
        "plain copies, all ranks at once, GB/s that arrive a rank: "
        "cudaMemcpyAsync %.0f; kernel",
        engine * 1e-9);
    for (const auto& [grid, rate] : kernels) {
      std::printf(" %.0f (%d blocks)", rate * 1e-9, grid);
    }
    std::printf("\n");
  }

  void MeasureLayers(const ExpertsState& state) {
    const auto segments = PlanSlot(shape_, state.from, state.to, rank_);
    const int ahead = std::min(shape_.spare_slots, mover_->MostLayers());
    double beginning = 0, waiting = 0, meeting = 0;
    const auto timed = [](double& sum, const auto& what) {
      const auto begin = Clock::now();
      what();
      sum += SecondsSince(begin);
    };
    Meet();
    const auto begin = Clock::now();
    int begun = 0;
    for (int done = 0; done < kLayers; ++done) {
      for (; begun < std::min(kLayers, done + ahead); ++begun) {
        const int layer = state.LayerAt(shape_, begun);
        timed(beginning, [&] {
          Ok(mover_->BeginLayer(
              {shape_.slot_bytes(), state.SourceSlot(shape_, layer),
               state.TargetSlot(shape_, layer)},
              segments));
        });
      }
      timed(waiting, [&] { Ok(mover_->Wait().status()); });
      timed(meeting, [&] { Meet(); });
    }
    const double seconds = SecondsSince(begin);
    if (rank_ != 0) return;
    const double slots = 1.0 * kLayers * shape_.slot_bytes();
    std::printf(
        "%s: %.1f ms (%.1f to begin, %.1f waiting, %.1f meeting); from others "
        "%.0f GB/s a rank, in all %.2f TB/s a GPU read and written, %.1f %% of "
        "the plain copy\n",
        state.to.is_ep() ? "TP to EP" : "EP to TP", seconds * 1e3,
        beginning * 1e3, waiting * 1e3, meeting * 1e3,
        slots * (num_ranks_ - 1) / num_ranks_ / seconds * 1e-9,
        2 * slots * ranks_here_ / seconds * 1e-12,
        slots / seconds / plain_rate_ * 100);
  }

  // Half of a rank's pool is in use, and every rank gets as many pages of it.
  std::vector<PageMove> Wave() const {
    std::vector<PageMove> wave;
    const int pages = num_ranks_ * pages_a_pair_;
    std::mt19937 random(1);  // the same on all ranks
    for (Rank src = 0; src < num_ranks_; ++src) {
      std::vector<PageId> ids(pages);
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), random);
      for (int i = 0; i < pages; ++i) {
        const Rank dst = i % num_ranks_;
        if (dst == src) continue;
        wave.push_back({src, ids[i], dst,
                        static_cast<PageId>(pages + src * pages_a_pair_ +
                                            i / num_ranks_)});
      }
    }
    return wave;
  }

  void MeasurePages() {
    const auto wave = Wave();
    Meet();
    const auto begin = Clock::now();
    Ok(mover_->BeginWave(wave));
    const double begun = SecondsSince(begin);
    const Moved moved = Ok(mover_->Wait());
    Meet();
    const double seconds = SecondsSince(begin);
    if (rank_ != 0) return;
    const double on_gpu = moved.time.count() * 1e-6;
    std::printf(
        "100,000 tokens of KV: %.2f ms (%.2f to begin, %.2f on the GPU); %.0f "
        "GB/s a rank on the GPU, %.1f %% of the plain copy, %.1f %% in all\n",
        seconds * 1e3, begun * 1e3, moved.time.count() * 1e-3,
        moved.bytes / on_gpu * 1e-9, moved.bytes / on_gpu / plain_rate_ * 100,
        moved.bytes / seconds / plain_rate_ * 100);
  }

  const Rank rank_;
  const int num_ranks_, gpu_;
  int ranks_here_ = 0;  // on our GPU
  int pages_a_pair_ = 0;
  double plain_rate_ = 0;  // of the driver, bytes a second that arrive a rank
  Board* const board_;
  const ExpertShape shape_;
  const std::unique_ptr<RegionMaker> maker_;
  std::unique_ptr<WorkerMemory> memory_;
  std::unique_ptr<GroupBarrier> barrier_;
  CudaFailure failure_;
  std::unique_ptr<GpuStream> stream_;
  std::unique_ptr<Mover> mover_;
};

// This process never uses the driver: it forks.
int Main(BenchOptions how) {
  how.num_gpus = Child([] { return NumGpus(); }).Join();
  if (how.num_gpus < 1) {
    std::fprintf(stderr, "no GPU\n");
    return 1;
  }
  if (how.num_ranks == 0) how.num_ranks = std::max(2, how.num_gpus);
  how.num_gpus = std::min(how.num_gpus, how.num_ranks);
  void* const shared = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(shared != MAP_FAILED);
  Board* const board = new (shared) Board;
  const PrivateDirectory directory;
  const auto vault = Ok(Vault::Start(directory.path(), [](const auto&) {}));
  std::vector<Child> ranks;
  for (Rank rank = 0; rank < how.num_ranks; ++rank) {
    ranks.emplace_back([&, rank] {
      const auto client =
          Ok(VaultClient::Connect(directory.path(), rank, kLong));
      Bench(rank, how, board, *client).Run(how.rounds);
      return 0;
    });
    vault->Allow(ranks.back().pid(), rank);
  }
  int failed = 0;
  for (Child& rank : ranks) failed |= rank.Join();
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace moebius

int main(int argc, char** argv) {
  const auto argument = [&](int i, int otherwise) {
    return argc > i ? std::atoi(argv[i]) : otherwise;
  };
  moebius::BenchOptions how;
  how.num_ranks = argument(1, how.num_ranks);
  how.rounds = argument(2, how.rounds);
  how.spare_slots = argument(3, how.spare_slots);
  how.grid = argument(4, how.grid);
  return moebius::Main(how);
}
