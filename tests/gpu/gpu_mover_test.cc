// A GPU's moves against the processor's, over copies of the same memory.
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "common/layout/experts_state.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/gpu.h"
#include "tests/gpu/device_bytes.h"
#include "tests/status_matchers.h"
#include "worker/memory/region_cuda.h"
#include "worker/switch/gpu_mover_cuda.h"
#include "worker/switch/thread_mover.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int64_t kPageBytes = 8192;

// All ranks in one process, on the host and on the GPU.
class Groups {
 public:
  struct Options {
    int num_ranks = 2;
    int64_t experts_bytes = 0;
    int64_t kv_bytes = 0;
    int64_t page_bytes = kPageBytes;
    bool one_gpu = true;  // or movers take peers for those of other GPUs
  };

  explicit Groups(const Options& options) : options_(options) {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = options.experts_bytes;
    geometry[RegionKind::kKv] = options.kv_bytes;
    auto host = WorkerMemory::CreateInProcess(options.num_ranks, geometry);
    EXPECT_THAT(host, IsOk());
    host_ = *std::move(host);
    WorkerMemoryOptions on_gpu;
    on_gpu.maker = maker_.get();
    auto gpu =
        WorkerMemory::CreateInProcess(options.num_ranks, geometry, on_gpu);
    EXPECT_THAT(gpu, IsOk());
    gpu_ = *std::move(gpu);
    for (Rank rank = 0; rank < options.num_ranks; ++rank) Init(rank);
  }

  Mover& host_mover(Rank rank) { return *host_movers_[rank]; }
  Mover& gpu_mover(Rank rank) { return *gpu_movers_[rank]; }
  const WorkerMemory& gpu(Rank rank) const { return *gpu_[rank]; }

  void ExpectSame(RegionKind kind) const {
    for (Rank rank = 0; rank < options_.num_ranks; ++rank) {
      const int64_t size = host_[rank]->size_bytes(kind);
      const std::byte* const host = host_[rank]->base(kind, rank);
      const auto bytes = FromGpu(gpu_[rank]->base(kind, rank), size);
      EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), host))
          << RegionKindName(kind) << " of rank " << rank;
    }
  }

 private:
  void Init(Rank rank) {
    for (RegionKind kind : {RegionKind::kExperts, RegionKind::kKv}) {
      std::byte* const base = host_[rank]->mutable_base(kind);
      const int64_t size = host_[rank]->size_bytes(kind);
      FillBytes(100 + rank, base, size);
      ToGpu({base, base + size}, gpu_[rank]->mutable_base(kind));
    }
    host_movers_.push_back(std::make_unique<ThreadMover>(
        host_[rank].get(), options_.page_bytes, nullptr));
    GpuMoverOptions options;
    options.page_bytes = options_.page_bytes;
    if (options_.one_gpu) options.gpu_of_rank.assign(options_.num_ranks, 0);
    auto mover = MakeGpuMover(gpu_[rank].get(), options);
    EXPECT_THAT(mover, IsOk());
    gpu_movers_.push_back(*std::move(mover));
  }

  const Options options_;
  const std::unique_ptr<RegionMaker> maker_ = MakeGpuRegionMaker(0);
  std::vector<std::unique_ptr<WorkerMemory>> host_, gpu_;
  std::vector<std::unique_ptr<Mover>> host_movers_, gpu_movers_;
};

// Both movers of a rank, one layer.
void MoveLayer(Groups& groups, Rank rank, const SlotPull& pull,
               const std::vector<CopySegment>& segments) {
  for (Mover* mover : {&groups.host_mover(rank), &groups.gpu_mover(rank)}) {
    ASSERT_THAT(mover->BeginLayer(pull, segments), IsOk());
    const auto moved = mover->Wait();
    ASSERT_THAT(moved, IsOk());
    EXPECT_EQ(moved->bytes, pull.slot_bytes);
  }
}

void Switch(Groups& groups, const ExpertShape& shape,
            const ExpertsState& state) {
  for (int i = 0; i < shape.num_moe_layers; ++i) {
    const int layer = state.LayerAt(shape, i);
    const SlotPull pull{shape.slot_bytes(), state.SourceSlot(shape, layer),
                        state.TargetSlot(shape, layer)};
    for (Rank rank = 0; rank < shape.num_ranks; ++rank) {
      MoveLayer(groups, rank, pull,
                PlanSlot(shape, state.from, state.to, rank));
    }
  }
}

struct SwitchCase {
  const char* name;
  int num_ranks;
  int64_t row_bytes;  // of 8 experts of 128 rows a rank
  bool one_gpu;
};

class GpuMoverSwitchTest : public testing::TestWithParam<SwitchCase> {};

TEST_P(GpuMoverSwitchTest, EveryByteIsWhereTheProcessorPutsIt) {
  const SwitchCase& param = GetParam();
  const int n = param.num_ranks;
  const ExpertShape shape{n, 3, 8 * n, 128, 16, param.row_bytes, 1};
  ASSERT_THAT(Validate(shape), IsOk());
  Groups groups({n, shape.region_bytes(), 0, kPageBytes, param.one_gpu});
  // From each layout to the next wider one, and back to EP.
  ExpertsState state = ExpertsState::At(ExpertParallel(), Side::kHigh);
  const auto go = [&](Layout to) {
    state = state.Towards(to);
    Switch(groups, shape, state);
    groups.ExpectSame(RegionKind::kExperts);
    state = state.Finished();
  };
  for (int t = 2; t <= n; ++t) {
    if (Layout{t}.divides(n)) go(Layout{t});
  }
  go(ExpertParallel());
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GpuMoverSwitchTest,
    testing::Values(SwitchCase{"TwoRanksOnOneGpu", 2, 512, true},
                    SwitchCase{"FourRanksOnOneGpu", 4, 512, true},
                    SwitchCase{"RowsThatAreNoWholeVectors", 2, 10, true},
                    SwitchCase{"SmallBlocksOfOtherGpusByKernel", 4, 512, false},
                    // Of 48 MiB.
                    SwitchCase{"LargeBlocksOfOtherGpusByEngines", 2, 32 << 10,
                               false}),
    [](const auto& info) { return std::string(info.param.name); });

// Pages of everyone to free ones of everyone, each free one once.
std::vector<PageMove> RandomWave(int num_ranks, uint32_t num_pages,
                                 std::mt19937& random) {
  std::vector<PageMove> wave;
  for (Rank dst = 0; dst < num_ranks; ++dst) {
    std::vector<uint32_t> free(num_pages / 2);
    std::iota(free.begin(), free.end(), num_pages / 2);
    std::shuffle(free.begin(), free.end(), random);
    for (const uint32_t page : free) {
      wave.push_back({static_cast<Rank>(random() % num_ranks),
                      static_cast<PageId>(random() % (num_pages / 2)), dst,
                      page});
    }
  }
  std::shuffle(wave.begin(), wave.end(), random);
  return wave;
}

struct WaveCase {
  const char* name;
  int num_ranks;
  int64_t page_bytes;
  uint32_t num_pages;
  bool one_gpu;
};

class GpuMoverWaveTest : public testing::TestWithParam<WaveCase> {};

TEST_P(GpuMoverWaveTest, EveryPageIsWhereTheProcessorPutsIt) {
  const WaveCase& param = GetParam();
  Groups groups({param.num_ranks, 0, param.page_bytes * param.num_pages,
                 param.page_bytes, param.one_gpu});
  std::mt19937 random(7);
  const auto wave = RandomWave(param.num_ranks, param.num_pages, random);
  for (Rank rank = 0; rank < param.num_ranks; ++rank) {
    for (Mover* mover : {&groups.host_mover(rank), &groups.gpu_mover(rank)}) {
      ASSERT_THAT(mover->BeginWave(wave), IsOk());
      for (;;) {
        const auto ended = mover->Poll();
        ASSERT_THAT(ended, IsOk());
        if (*ended) break;
      }
      const auto moved = mover->Wait();
      ASSERT_THAT(moved, IsOk());
      EXPECT_EQ(moved->bytes, param.num_pages / 2 * param.page_bytes);
    }
  }
  groups.ExpectSame(RegionKind::kKv);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, GpuMoverWaveTest,
    testing::Values(WaveCase{"TinyPages", 2, 48, 50000, true},
                    WaveCase{"SmallPages", 4, 8192, 2000, true},
                    WaveCase{"LargePages", 2, 393216, 200, true},
                    WaveCase{"OfOtherGpus", 4, 65536, 300, false}),
    [](const auto& info) { return std::string(info.param.name); });

constexpr int64_t kSlotBytes = 4096;
const SlotPull kPull{kSlotBytes, 0, 1};

class GpuMoverTest : public testing::Test {
 protected:
  void ExpectPrecondition(const absl::Status& status, const char* why) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition,
                                 HasSubstr(why)));
  }

  const std::vector<CopySegment> segments_ = {
      {1, 0, 0, 1024}, {1, 1024, 1024, 1024}, {0, 2048, 2048, 2048}};
  const std::vector<PageMove> wave_ = {{1, 0, 0, 100}, {1, 1, 0, 101}};
  Groups groups_{{2, 8 * kSlotBytes, 256 * kPageBytes}};
  Mover& mover_ = groups_.gpu_mover(0);
};

TEST_F(GpuMoverTest, LayersFollowOneAnotherAndAWaveIsAlone) {
  ExpectPrecondition(mover_.Wait().status(), "no move");
  EXPECT_TRUE(*mover_.Poll());
  ASSERT_GE(mover_.MostLayers(), 2);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < mover_.MostLayers(); ++i) {
      ASSERT_THAT(mover_.BeginLayer({kSlotBytes, 0, 1 + i}, segments_), IsOk());
    }
    ExpectPrecondition(mover_.BeginLayer(kPull, segments_), "under way");
    ExpectPrecondition(mover_.BeginWave(wave_), "under way");
    for (int i = 0; i < mover_.MostLayers(); ++i) {
      EXPECT_THAT(mover_.Wait(), IsOk());
    }
    ExpectPrecondition(mover_.Wait().status(), "no move");
  }
  ASSERT_THAT(mover_.BeginWave(wave_), IsOk());
  ExpectPrecondition(mover_.BeginLayer(kPull, segments_), "under way");
  ExpectPrecondition(mover_.BeginWave(wave_), "under way");
  EXPECT_THAT(mover_.Wait(), IsOk());
  ExpectPrecondition(mover_.Wait().status(), "no move");
}

TEST_F(GpuMoverTest, WhatCannotBeIsRefusedAndNothingIsUnderWay) {
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  const auto slot = [&] {
    return FromGpu(groups_.gpu(0).base(RegionKind::kExperts, 0) + kSlotBytes,
                   kSlotBytes);
  };
  const auto before = slot();
  EXPECT_THAT(mover_.BeginLayer({kSlotBytes, 0, -1}, segments_), invalid);
  EXPECT_THAT(mover_.BeginLayer({kSlotBytes, 1, 1}, segments_), invalid);
  const CopySegment wrong[] = {{1, 0, 0, kSlotBytes + 1},
                               {1, 1, 0, kSlotBytes},
                               {2, 0, 0, 16},
                               {-1, 0, 0, 16},
                               {1, -16, 0, 16},
                               {1, 0, 0, -16}};
  for (const CopySegment& segment : wrong) {
    EXPECT_THAT(mover_.BeginLayer(kPull, {{0, 0, 0, 16}, segment}), invalid);
  }
  std::vector<PageMove> twice = wave_;
  twice.push_back(wave_.front());
  EXPECT_THAT(mover_.BeginWave(twice), invalid);
  EXPECT_THAT(mover_.BeginWave({{{1, 1u << 30, 0, 3}}}), invalid);
  EXPECT_TRUE(*mover_.Poll());
  EXPECT_EQ(slot(), before);
  EXPECT_THAT(mover_.BeginLayer(kPull, segments_), IsOk());
  EXPECT_EQ(mover_.Wait()->bytes, kSlotBytes);
  EXPECT_NE(slot(), before);
}

TEST_F(GpuMoverTest, WhatHasNothingToMoveEnds) {
  ASSERT_THAT(mover_.BeginWave({}), IsOk());
  EXPECT_EQ(mover_.Wait()->bytes, 0);
  ASSERT_THAT(mover_.BeginLayer(kPull, {}), IsOk());
  EXPECT_EQ(mover_.Wait()->bytes, 0);
}

TEST_F(GpuMoverTest, OptionsThatCannotBeAreRefused) {
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  const WorkerMemory* const memory = &groups_.gpu(0);
  for (const int64_t page_bytes :
       {int64_t{0}, int64_t{-16}, int64_t{100}, int64_t{1} << 31}) {
    GpuMoverOptions options;
    options.page_bytes = page_bytes;
    EXPECT_THAT(MakeGpuMover(memory, options), invalid) << page_bytes;
  }
  GpuMoverOptions options;
  options.page_bytes = kPageBytes;
  options.gpu_of_rank = {0};
  EXPECT_THAT(MakeGpuMover(memory, options), invalid);
  options.gpu_of_rank.clear();
  options.gpu = NumGpus();
  EXPECT_THAT(MakeGpuMover(memory, options),
              StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace moebius
