// A switch's copies between real processes over real memory: layout plans,
// regions through the vault, barriers and pulls together.
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "common/layout/experts_state.h"
#include "common/vault/vault_client.h"
#include "deploy/launcher/vault.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"
#include "worker/memory/worker_memory.h"
#include "worker/peers/group_barrier.h"
#include "worker/switch/pull.h"

namespace moebius {
namespace {

constexpr absl::Duration kLong = absl::Seconds(20);

ExpertShape Shape(int num_ranks) {
  ExpertShape shape;
  shape.num_ranks = num_ranks;
  shape.num_moe_layers = 3;
  shape.num_experts = 16;
  shape.intermediate_rows = 128;
  shape.row_bytes = 64;
  EXPECT_THAT(Validate(shape), IsOk());
  return shape;
}

// Word `column` of a row of a matrix of an expert, the same in every layout.
uint64_t WordOf(int layer, int expert, int matrix, int row, int column) {
  uint64_t x = layer;
  for (int part : {expert, matrix, row, column}) x = x * 1009 + part;
  x ^= x >> 31;
  return x * 0x9e3779b97f4a7c15ULL;
}

// Calls fn(word of the slot, value it must have) for a slot of `rank`, written
// from the description of the blocks, not through their algebra: block (o, s)
// of N x N has a N-th of the experts and of the rows.
template <typename Fn>
void ForEachWord(const ExpertShape& shape, bool ep, Rank rank, int layer,
                 Fn fn) {
  const int experts = shape.num_experts / shape.num_ranks;
  const int rows = shape.intermediate_rows / shape.num_ranks;
  const int columns = static_cast<int>(shape.row_bytes / 8);
  int64_t word = 0;
  for (int block = 0; block < shape.num_ranks; ++block) {
    const int owner = ep ? rank : block, slice = ep ? block : rank;
    for (int expert = 0; expert < experts; ++expert) {
      for (int matrix = 0; matrix < 3; ++matrix) {
        for (int row = 0; row < rows; ++row) {
          for (int column = 0; column < columns; ++column) {
            fn(word++, WordOf(layer, owner * experts + expert, matrix,
                              slice * rows + row, column));
          }
        }
      }
    }
  }
}

// One worker of the test.
class Worker {
 public:
  Worker(const ExpertShape& shape, WorkerMemory* memory, int threads)
      : shape_(shape),
        memory_(memory),
        barrier_(memory->rank(), memory->all_signals(), {}),
        pool_(threads - 1) {}

  GroupBarrier& barrier() { return barrier_; }

  // EP lies high, TP low.
  void FillEp() {
    for (int layer = 0; layer < shape_.num_moe_layers; ++layer) {
      ForEachWord(shape_, true, memory_->rank(), layer,
                  [slot = Slot(layer + 1)](int64_t word, uint64_t value) {
                    slot[word] = value;
                  });
    }
  }

  // Words that are not as they must be in a layout.
  int64_t CountWrong(bool ep) {
    int64_t wrong = 0;
    for (int layer = 0; layer < shape_.num_moe_layers; ++layer) {
      ForEachWord(shape_, ep, memory_->rank(), layer,
                  [&wrong, slot = Slot(ep ? layer + 1 : layer)](
                      int64_t word, uint64_t value) {
                    if (slot[word] != value) ++wrong;
                  });
    }
    return wrong;
  }

  // The copies of layers [begin, end) of a switch's order, a barrier after
  // each.
  absl::Status SwitchLayers(Layout from, Layout to, int begin, int end,
                            Epoch epoch) {
    const Side side = from.is_ep() ? Side::kHigh : Side::kLow;
    const ExpertsState state{from, to, side, 0};
    const std::vector<CopySegment> segments =
        PlanSlot(shape_, from, to, memory_->rank());
    for (int i = begin; i < end; ++i) {
      const int layer = state.LayerAt(shape_, i);
      const SlotPull pull{shape_.slot_bytes(), state.SourceSlot(shape_, layer),
                          state.TargetSlot(shape_, layer)};
      const auto moved = PullSlot(*memory_, pull, segments, &pool_);
      if (!moved.ok()) return moved.status();
      EXPECT_EQ(*moved, shape_.slot_bytes());
      const absl::Status arrived = barrier_.Wait(barrier_.arrived() + 1, kLong);
      if (!arrived.ok()) return arrived;
      StoreSwitchProgress(memory_->own_signals(), {epoch, side, i + 1, 0});
    }
    return absl::OkStatus();
  }

 private:
  uint64_t* Slot(int slot) {
    return reinterpret_cast<uint64_t*>(
        memory_->mutable_base(RegionKind::kExperts) +
        slot * shape_.slot_bytes());
  }

  const ExpertShape shape_;
  WorkerMemory* const memory_;
  GroupBarrier barrier_;
  ThreadPool pool_;
};

class SwitchCopyTest : public testing::Test {
 protected:
  SwitchCopyTest() {
    auto vault = Vault::Start(directory_.path(), [](const VaultReport&) {});
    EXPECT_THAT(vault, IsOk());
    vault_ = *std::move(vault);
  }

  Child Fork(Rank rank, const std::function<int(VaultClient&)>& body) {
    Child child([&] {
      auto client = VaultClient::Connect(directory_.path(), rank, kLong);
      EXPECT_THAT(client, IsOk());
      return body(**client);
    });
    vault_->Allow(child.pid(), rank);
    return child;
  }

  static MemoryGeometry GeometryOf(const ExpertShape& shape) {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = shape.region_bytes();
    return geometry;
  }

  PrivateDirectory directory_;
  std::unique_ptr<Vault> vault_;
};

TEST_F(SwitchCopyTest, NothingIsPulledBeforePeersAreMapped) {
  vault_->Allow(::getpid(), 0);
  auto client = VaultClient::Connect(directory_.path(), 0, kLong);
  ASSERT_THAT(client, IsOk());
  MemoryGeometry geometry = GeometryOf(Shape(2));
  geometry[RegionKind::kKv] = 1 << 20;
  const auto memory = WorkerMemory::Create(0, 2, geometry, **client);
  ASSERT_THAT(memory, IsOk());
  const auto unmapped = StatusIs(absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(PullSlot(**memory, {4096, 0, 1}, {}, nullptr), unmapped);
  EXPECT_THAT(PagePuller(memory->get(), 4096).Pull({}, nullptr), unmapped);
}

class SwitchCopyGroupsTest : public SwitchCopyTest,
                             public testing::WithParamInterface<
                                 std::tuple<int /*ranks*/, int /*threads*/>> {};

TEST_P(SwitchCopyGroupsTest, EpToTpToEpRestoresEveryByteBetweenProcesses) {
  // Named one by one: clang's lambdas do not take structured bindings.
  const int num_ranks = std::get<0>(GetParam());
  const int threads = std::get<1>(GetParam());
  const ExpertShape shape = Shape(num_ranks);
  const Layout ep = ExpertParallel(), tp = TensorParallel(num_ranks);
  const int layers = shape.num_moe_layers;
  std::vector<Child> children;
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    children.push_back(Fork(rank, [&, rank](VaultClient& client) {
      const auto memory = WorkerMemory::Create(rank, shape.num_ranks,
                                               GeometryOf(shape), client);
      EXPECT_THAT(memory, IsOk());
      EXPECT_THAT((*memory)->MapPeers(client, kLong), IsOk());
      Worker worker(shape, memory->get(), threads);
      worker.FillEp();
      EXPECT_THAT(worker.barrier().Wait(1, kLong), IsOk());
      for (uint64_t round = 0; round < 2; ++round) {
        EXPECT_THAT(
            worker.SwitchLayers(ep, tp, 0, layers, Epoch{2 * round + 1}),
            IsOk());
        EXPECT_EQ(worker.CountWrong(/*ep=*/false), 0);
        // Others may still look at their own; nobody overwrites a source
        // before all have passed here.
        EXPECT_THAT(
            worker.SwitchLayers(tp, ep, 0, layers, Epoch{2 * round + 2}),
            IsOk());
        EXPECT_EQ(worker.CountWrong(/*ep=*/true), 0);
      }
      return 0;
    }));
  }
  for (Child& child : children) EXPECT_EQ(child.Join(), 0);
}

INSTANTIATE_TEST_SUITE_P(Groups, SwitchCopyGroupsTest,
                         testing::Values(std::tuple(2, 1), std::tuple(2, 2),
                                         std::tuple(4, 1), std::tuple(8, 1)),
                         [](const auto& info) {
                           return std::to_string(std::get<0>(info.param)) +
                                  "Ranks" +
                                  std::to_string(std::get<1>(info.param)) +
                                  "Threads";
                         });

// A rank is killed after a layer's copy, before the barrier. Its successor
// adopts the memory, does the layer again, and the group finishes.
TEST_F(SwitchCopyTest, RankKilledInALayerIsReplacedAndTheLayerDoneAgain) {
  constexpr int kRanks = 2;
  const ExpertShape shape = Shape(kRanks);
  const Layout ep = ExpertParallel(), tp = TensorParallel(kRanks);
  const int layers = shape.num_moe_layers;
  Event in_second_layer;
  Child survivor = Fork(1, [&](VaultClient& client) {
    const auto memory =
        WorkerMemory::Create(1, kRanks, GeometryOf(shape), client);
    EXPECT_THAT(memory, IsOk());
    EXPECT_THAT((*memory)->MapPeers(client, kLong), IsOk());
    Worker worker(shape, memory->get(), 1);
    worker.FillEp();
    EXPECT_THAT(worker.barrier().Wait(1, kLong), IsOk());
    EXPECT_THAT(worker.SwitchLayers(ep, tp, 0, layers, Epoch{1}), IsOk());
    EXPECT_EQ(worker.CountWrong(/*ep=*/false), 0);
    return 0;
  });
  Child victim = Fork(0, [&](VaultClient& client) {
    const auto memory =
        WorkerMemory::Create(0, kRanks, GeometryOf(shape), client);
    EXPECT_THAT(memory, IsOk());
    EXPECT_THAT((*memory)->MapPeers(client, kLong), IsOk());
    Worker worker(shape, memory->get(), 1);
    worker.FillEp();
    EXPECT_THAT(worker.barrier().Wait(1, kLong), IsOk());
    EXPECT_THAT(worker.SwitchLayers(ep, tp, 0, 1, Epoch{1}), IsOk());
    // Half of the second layer.
    const auto segments = PlanSlot(shape, ep, tp, 0);
    EXPECT_THAT(
        PullSlot(**memory, {shape.slot_bytes(), 2, 1},
                 absl::MakeConstSpan(segments).first(segments.size() / 2),
                 nullptr),
        IsOk());
    in_second_layer.Set();
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(in_second_layer.Wait());
  const pid_t pid = victim.pid();
  victim.Kill();
  vault_->Disallow(pid);
  Child successor = Fork(0, [&](VaultClient& client) {
    const auto memory = WorkerMemory::Adopt(
        0, kRanks, GeometryOf(shape), client, {.incarnation = Incarnation{2}});
    EXPECT_THAT(memory, IsOk());
    EXPECT_THAT((*memory)->MapPeers(client, kLong), IsOk());
    const SwitchProgress progress =
        LoadSwitchProgress(*(*memory)->own_signals());
    EXPECT_EQ(progress, (SwitchProgress{Epoch{1}, Side::kHigh, 1, 0}));
    Worker worker(shape, memory->get(), 1);
    EXPECT_THAT(worker.SwitchLayers(ep, tp, progress.layers_done, layers,
                                    progress.epoch),
                IsOk());
    EXPECT_EQ(worker.CountWrong(/*ep=*/false), 0);
    return 0;
  });
  EXPECT_EQ(survivor.Join(), 0);
  EXPECT_EQ(successor.Join(), 0);
}

}  // namespace
}  // namespace moebius
