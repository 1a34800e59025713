// The copies of a switch between two workers against memcpy between two shared
// mappings of the same size, and the latency of the barrier between processes.
//
// Copies and memcpy take turns within one benchmark, each case prefaulted and
// warm, and the medians are compared, so that a noisy neighbour meets both.
// Rates are bytes read plus bytes written.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "common/base/core_binding.h"
#include "common/layout/experts_state.h"
#include "worker/memory/worker_memory.h"
#include "worker/peers/group_barrier.h"
#include "worker/switch/pull.h"

namespace moebius {
namespace {

constexpr int kRanks = 2;
constexpr absl::Duration kLong = absl::Seconds(60);

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double Median(std::vector<double> values) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The small checkpoint: segments of 0.75 MiB, 6 MiB a rank.
ExpertShape SmallShape() {
  ExpertShape shape;
  shape.num_ranks = kRanks;
  shape.num_moe_layers = 4;
  shape.num_experts = 16;
  shape.intermediate_rows = 128;
  shape.row_bytes = 512;
  return shape;
}

// Experts of Qwen3-30B-A3B (768 rows of 2048 BF16), 4 layers of 16 of them:
// segments of 38 MB, 302 MB a rank.
ExpertShape LargeShape() {
  ExpertShape shape = SmallShape();
  shape.intermediate_rows = 768;
  shape.row_bytes = 4096;
  return shape;
}

// Two workers' memory, and a place of its own for each to which memcpy copies
// as many bytes as a switch moves.
struct Bench {
  explicit Bench(const ExpertShape& s) : shape(s) {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = shape.region_bytes();
    geometry[RegionKind::kExchange] = bytes();
    auto created = WorkerMemory::CreateInProcess(
        kRanks, geometry, {.region = {.prefault = true}});
    CHECK(created.ok());
    memories = *std::move(created);
    for (Rank rank = 0; rank < kRanks; ++rank) {
      segments[0].push_back(
          PlanSlot(shape, ExpertParallel(), TensorParallel(kRanks), rank));
      segments[1].push_back(
          PlanSlot(shape, TensorParallel(kRanks), ExpertParallel(), rank));
    }
  }

  // Moved by a switch into one rank.
  int64_t bytes() const { return shape.slot_bytes() * shape.num_moe_layers; }

  // One rank's copies of a whole switch, a barrier after each layer if given.
  void Switch(Rank rank, bool to_tp, GroupBarrier* barrier) const {
    const Layout ep = ExpertParallel(), tp = TensorParallel(kRanks);
    // EP lies high, TP low.
    const ExpertsState state = to_tp ? ExpertsState{ep, tp, Side::kHigh, 0}
                                     : ExpertsState{tp, ep, Side::kLow, 0};
    for (int i = 0; i < shape.num_moe_layers; ++i) {
      const int layer = state.LayerAt(shape, i);
      const SlotPull pull{shape.slot_bytes(), state.SourceSlot(shape, layer),
                          state.TargetSlot(shape, layer)};
      CHECK(PullSlot(*memories[rank], pull, segments[to_tp ? 0 : 1][rank],
                     nullptr)
                .ok());
      if (barrier != nullptr) {
        CHECK(barrier->Wait(barrier->arrived() + 1, kLong).ok());
      }
    }
  }

  // As many bytes in one piece, from the peer's mapping into our own.
  void Memcpy(Rank rank) const {
    std::memcpy(memories[rank]->mutable_base(RegionKind::kExchange),
                memories[rank]->base(RegionKind::kExperts, 1 - rank), bytes());
  }

  const ExpertShape shape;
  std::vector<std::unique_ptr<WorkerMemory>> memories;
  std::vector<std::vector<CopySegment>> segments[2];  // [to EP][rank]
};

void Report(benchmark::State& state, const Bench& bench,
            const std::vector<double>& switches,
            const std::vector<double>& copies) {
  const double moved = 2.0 * static_cast<double>(bench.bytes());
  const double switch_s = Median(switches), copy_s = Median(copies);
  state.counters["switch_GB/s"] = moved / switch_s / 1e9;
  state.counters["memcpy_GB/s"] = moved / copy_s / 1e9;
  state.counters["share_of_memcpy"] = copy_s / switch_s;
}

// One worker copies, the other is still.
void BM_OneWorker(benchmark::State& state, const ExpertShape& shape) {
  const Bench bench(shape);
  std::vector<double> switches, copies;
  bool to_tp = true;
  for (int warm = 0; warm < 2; ++warm, to_tp = !to_tp) {
    bench.Switch(0, to_tp, nullptr);
    bench.Memcpy(0);
  }
  for (auto _ : state) {
    const double start = Seconds();
    bench.Switch(0, to_tp, nullptr);
    const double middle = Seconds();
    bench.Memcpy(0);
    const double end = Seconds();
    to_tp = !to_tp;
    switches.push_back(middle - start);
    copies.push_back(end - middle);
    state.SetIterationTime(middle - start);
  }
  Report(state, bench, switches, copies);
}

// A forked worker that runs `body` and is waited for.
template <typename Body>
pid_t Fork(Body body) {
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() == parent) body();
  ::_exit(0);
}

// Two processes switch at the same time, each on a core of its own as workers
// are, with the barriers that belong to it; against both of them in memcpy
// between two barriers.
void BM_TwoWorkers(benchmark::State& state, const ExpertShape& shape) {
  const Bench bench(shape);
  const int spin_us = DefaultSpinUs(
      kRanks, 1, static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)));
  const auto barrier_of = [&](Rank rank) {
    return GroupBarrier(rank, bench.memories[rank]->all_signals(),
                        {.spin_us = spin_us});
  };
  const auto arrive = [](GroupBarrier& barrier) {
    CHECK(barrier.Wait(barrier.arrived() + 1, kLong).ok());
  };
  const int64_t rounds = static_cast<int64_t>(state.max_iterations) + 2;
  const pid_t pid = Fork([&] {
    const CoreBinding binding({pthread_self()}, 1, kRanks);
    GroupBarrier barrier = barrier_of(1);
    for (int64_t i = 0; i < rounds; ++i) {
      arrive(barrier);
      bench.Switch(1, i % 2 == 0, &barrier);
      arrive(barrier);
      bench.Memcpy(1);
      arrive(barrier);
    }
  });
  const CoreBinding binding({pthread_self()}, 0, kRanks);
  GroupBarrier barrier = barrier_of(0);
  std::vector<double> switches, copies;
  int64_t i = 0;
  const auto round = [&] {
    arrive(barrier);
    const double start = Seconds();
    bench.Switch(0, i % 2 == 0, &barrier);
    switches.push_back(Seconds() - start);
    arrive(barrier);
    const double restart = Seconds();
    bench.Memcpy(0);
    arrive(barrier);
    copies.push_back(Seconds() - restart);
    ++i;
  };
  round();
  round();
  switches.clear();
  copies.clear();
  for (auto _ : state) {
    round();
    state.SetIterationTime(switches.back());
  }
  ::waitpid(pid, nullptr, 0);
  Report(state, bench, switches, copies);
}

// Time of a barrier among `ranks` processes that do nothing else.
void BM_Barrier(benchmark::State& state) {
  const int ranks = static_cast<int>(state.range(0));
  const BarrierOptions options{.spin_us = static_cast<int>(state.range(1))};
  const auto memories = WorkerMemory::CreateInProcess(ranks, MemoryGeometry{});
  CHECK(memories.ok());
  const uint64_t rounds = static_cast<uint64_t>(state.max_iterations) + 1;
  std::vector<pid_t> pids;
  for (Rank rank = 1; rank < ranks; ++rank) {
    pids.push_back(Fork([&] {
      GroupBarrier barrier(rank, (*memories)[rank]->all_signals(), options);
      for (uint64_t s = 1; s <= rounds; ++s) CHECK(barrier.Wait(s, kLong).ok());
    }));
  }
  GroupBarrier barrier(0, (*memories)[0]->all_signals(), options);
  uint64_t sequence = 0;
  CHECK(barrier.Wait(++sequence, kLong).ok());
  std::vector<double> times;
  times.reserve(rounds);
  double before = Seconds();
  for (auto _ : state) {
    CHECK(barrier.Wait(++sequence, kLong).ok());
    const double now = Seconds();
    times.push_back(now - before);
    before = now;
  }
  for (pid_t pid : pids) ::waitpid(pid, nullptr, 0);
  state.counters["median_us"] = Median(times) * 1e6;
}

// Time of a step of `work_us` of computing a rank, in eight pieces with a
// barrier after each, as a decode step has them. What it takes beyond the work
// (work * ranks / cores, when they share cores) is the barrier's price.
void BM_StepWithBarriers(benchmark::State& state) {
  constexpr int kPieces = 8;
  const int ranks = static_cast<int>(state.range(0));
  const double piece_s = static_cast<double>(state.range(2)) / kPieces / 1e6;
  const BarrierOptions options{.spin_us = static_cast<int>(state.range(1))};
  // Work that takes processor time, not time: counted once, alone.
  const auto work = [](int64_t loops) {
    uint64_t x = 1;
    for (int64_t i = 0; i < loops; ++i) {
      x = x * 6364136223846793005ULL + 1;
      benchmark::DoNotOptimize(x);
    }
  };
  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double start = Seconds();
    work(100000);
    best = std::min(best, Seconds() - start);
  }
  const int64_t loops = static_cast<int64_t>(100000 * piece_s / best);
  const auto memories = WorkerMemory::CreateInProcess(ranks, MemoryGeometry{});
  CHECK(memories.ok());
  const auto step = [&](GroupBarrier& barrier) {
    for (int piece = 0; piece < kPieces; ++piece) {
      work(loops);
      CHECK(barrier.Wait(barrier.arrived() + 1, kLong).ok());
    }
  };
  const int64_t rounds = static_cast<int64_t>(state.max_iterations) + 1;
  std::vector<pid_t> pids;
  for (Rank rank = 1; rank < ranks; ++rank) {
    pids.push_back(Fork([&] {
      GroupBarrier barrier(rank, (*memories)[rank]->all_signals(), options);
      for (int64_t i = 0; i < rounds; ++i) step(barrier);
    }));
  }
  GroupBarrier barrier(0, (*memories)[0]->all_signals(), options);
  step(barrier);
  std::vector<double> times;
  for (auto _ : state) {
    const double start = Seconds();
    step(barrier);
    times.push_back(Seconds() - start);
  }
  for (pid_t pid : pids) ::waitpid(pid, nullptr, 0);
  state.counters["median_us"] = Median(times) * 1e6;
}

BENCHMARK_CAPTURE(BM_OneWorker, small, SmallShape())
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(400);
BENCHMARK_CAPTURE(BM_OneWorker, large, LargeShape())
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(10);
BENCHMARK_CAPTURE(BM_TwoWorkers, small, SmallShape())
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(400);
BENCHMARK_CAPTURE(BM_TwoWorkers, large, LargeShape())
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(10);

BENCHMARK(BM_Barrier)
    ->ArgNames({"ranks", "spin_us"})
    ->ArgsProduct({{2, 4, 8}, {0, 100}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(3000);

BENCHMARK(BM_StepWithBarriers)
    ->ArgNames({"ranks", "spin_us", "work_us"})
    ->ArgsProduct({{2}, {0, 2, 50, 100, 200}, {200}})
    ->ArgsProduct({{8}, {0, 2, 50, 100, 200}, {50}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(1000);

}  // namespace
}  // namespace moebius
