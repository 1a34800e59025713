// Weights that a GPU packs are those that the processor packs, in another order
// within each tile.
#include <cstring>
#include <variant>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/tiles.h"
#include "tests/backends/gpu_copies.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/model_shape.h"
#include "worker/model/weight_loader.h"
#include "worker/model/weight_plan.h"
#include "worker/model/weight_sink_cpu.h"
#include "worker/model/weight_sink_cuda.h"
#include "worker/model/weights.h"

namespace moebius {
namespace {

// Dense layers too, rows of experts and of slices that have to be padded, a
// vocabulary of no whole number of panels.
SmallModel OddModel() {
  SmallModel model;
  model.hidden_size = 48;
  model.num_q_heads = 8;
  model.num_kv_heads = 2;
  model.head_dim = 16;
  model.intermediate_size = 80;
  model.moe_intermediate_size = 80;
  model.num_experts = 6;
  model.experts_per_token = 2;
  model.vocab_size = 101;
  model.max_positions = 512;
  model.is_moe_layer = {true, false, true};
  return model;
}

// What a tile of the processor's, 8 lines of 16 outputs by 2 steps, is on a
// GPU.
void TurnTile(const Bf16* lines, Bf16* tile) {
  for (int step = 0; step < kTileRows; ++step) {
    for (int output = 0; output < kTileRows; ++output) {
      tile[TileIndex(output, step)] =
          lines[(step / 2 * kTileRows + output) * 2 + step % 2];
    }
  }
}

// Reports itself as a checkpoint, so that every part is handed over.
class HandedOver final : public TensorSource {
 public:
  absl::Status Check(const std::string& name,
                     absl::Span<const int64_t> shape) override {
    return made_->Check(name, shape);
  }
  absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                        absl::Span<Bf16> out) override {
    return made_->ReadBf16(name, slice, out);
  }
  absl::Status ReadFloat(const std::string& name,
                         absl::Span<float> out) override {
    return made_->ReadFloat(name, out);
  }
  int64_t bytes_read() const override { return 0; }

 private:
  std::unique_ptr<TensorSource> made_ = MakeDummyWeights();
};

class WeightSinkGpuTest : public testing::TestWithParam<Layout> {
 protected:
  static constexpr Rank kRank = 1;
  static constexpr int kRanks = 4;

  WeightSinkGpuTest() {
    auto shape = MakeModelShape(SpecOf(OddModel()), kRanks);
    EXPECT_THAT(shape, IsOk());
    shape_ = *shape;
    dense_bytes_ = PlanDense(shape_).size_bytes;
    experts_bytes_ = shape_.experts.region_bytes();
  }

  LoadOrder Order() const {
    return {shape_, kSmallModelNames, kRank,
            ExpertsState::At(GetParam(), Side::kLow)};
  }

  // What the GPU's regions hold behind the load from `source`.
  struct Regions {
    std::vector<std::byte> dense, experts;
  };
  Regions LoadOnGpu(TensorSource& source) {
    CudaFailure failure;
    const auto stream = GpuStream::Create(0, &failure);
    const CudaExact device{stream->get(), &failure, 1};
    const Buffer<std::byte, CudaExact> dense(device, "dense", dense_bytes_);
    const Buffer<std::byte, CudaExact> experts(device, "experts",
                                               experts_bytes_);
    EXPECT_THAT(
        LoadWeights(Order(), source,
                    *MakeGpuWeightSink(dense.data(), experts.data(), 0)),
        IsOk());
    Regions regions{
        std::vector<std::byte>(static_cast<size_t>(dense_bytes_)),
        std::vector<std::byte>(static_cast<size_t>(experts_bytes_))};
    DownloadFromGpu(*stream, dense.data(), dense_bytes_, regions.dense.data());
    DownloadFromGpu(*stream, experts.data(), experts_bytes_,
                    regions.experts.data());
    EXPECT_THAT(failure.status(), IsOk());
    return regions;
  }

  Regions LoadOnCpu() {
    // Aligned to 64 bytes, as the processor packs.
    std::vector<std::byte> memory(
        static_cast<size_t>(dense_bytes_ + experts_bytes_ + 192));
    std::byte* const dense =
        memory.data() +
        (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    std::byte* const experts = dense + (dense_bytes_ + 63) / 64 * 64;
    EXPECT_THAT(LoadWeights(Order(), *MakeDummyWeights(),
                            *MakeCpuWeightSink(dense, experts)),
                IsOk());
    return {{dense, dense + dense_bytes_}, {experts, experts + experts_bytes_}};
  }

  void ExpectPart(const WeightPart& part, const std::byte* cpu,
                  const std::byte* gpu) {
    const size_t bytes = static_cast<size_t>(part.packed_bytes());
    if (std::holds_alternative<VectorPacking>(part.packing)) {
      EXPECT_EQ(std::memcmp(cpu, gpu, bytes), 0);
      return;
    }
    constexpr size_t kTileBytes = kTileElements * sizeof(Bf16);
    ASSERT_EQ(bytes % kTileBytes, 0u);
    for (size_t at = 0; at < bytes; at += kTileBytes) {
      Bf16 tile[kTileElements];
      TurnTile(reinterpret_cast<const Bf16*>(cpu + at), tile);
      ASSERT_EQ(std::memcmp(tile, gpu + at, kTileBytes), 0)
          << "tile " << at / kTileBytes << " of a part at " << part.offset;
    }
  }

  void ExpectSame(const Regions& cpu, const Regions& gpu) {
    for (const PlannedPart& planned :
         PlanWeights(shape_, kSmallModelNames, kRank, Order().state)) {
      const WeightPart& part = planned.part;
      const bool dense = part.region == WeightRegion::kDense;
      const auto& from = dense ? cpu.dense : cpu.experts;
      const auto& to = dense ? gpu.dense : gpu.experts;
      WeightPart piece = part;
      // Pieces of an expert lie apart.
      if (auto* expert = std::get_if<ExpertPacking>(&piece.packing)) {
        const int pieces = std::exchange(expert->num_pieces, 1);
        for (int p = 0; p < pieces; ++p) {
          const int64_t at = part.offset + p * expert->stride_bytes;
          ExpectPart(piece, from.data() + at, to.data() + at);
        }
        continue;
      }
      ExpectPart(piece, from.data() + part.offset, to.data() + part.offset);
    }
  }

  ModelShape shape_;
  int64_t dense_bytes_ = 0;
  int64_t experts_bytes_ = 0;
};

TEST_P(WeightSinkGpuTest, PartsThatAreHandedOverArePackedInTiles) {
  HandedOver source;
  ExpectSame(LoadOnCpu(), LoadOnGpu(source));
}

TEST_P(WeightSinkGpuTest, MadeUpWeightsAreMadeWhereTheyBelong) {
  ExpectSame(LoadOnCpu(), LoadOnGpu(*MakeDummyWeights()));
}

INSTANTIATE_TEST_SUITE_P(Layouts, WeightSinkGpuTest,
                         testing::Values(ExpertParallel(), Layout{2},
                                         TensorParallel(4)));

}  // namespace
}  // namespace moebius
