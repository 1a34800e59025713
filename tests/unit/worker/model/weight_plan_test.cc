#include "worker/model/weight_plan.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/weights.h"

namespace moebius {
namespace {

// A dense layer between MoE layers; experts and rows that do not divide.
SmallModel Padded() {
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

ModelShape Shape(const SmallModel& model, int num_ranks) {
  const auto shape = MakeModelShape(SpecOf(model), num_ranks);
  EXPECT_THAT(shape, IsOk());
  return *shape;
}

// How often each byte of a region is written.
using Writes = std::vector<int>;

void Write(Writes& writes, int64_t offset, int64_t size_bytes) {
  ASSERT_GE(offset, 0);
  ASSERT_LE(offset + size_bytes, static_cast<int64_t>(writes.size()));
  for (int64_t i = 0; i < size_bytes; ++i) ++writes[offset + i];
}

void Write(Writes& writes, const WeightPart& part) {
  const auto* expert = std::get_if<ExpertPacking>(&part.packing);
  if (expert == nullptr) return Write(writes, part.offset, part.packed_bytes());
  const int64_t piece = part.packed_bytes() / expert->num_pieces;
  for (int p = 0; p < expert->num_pieces; ++p) {
    Write(writes, part.offset + p * expert->stride_bytes, piece);
  }
}

// Once, but for what fills up to the next multiple of 64.
void ExpectWrittenOnce(const Writes& writes) {
  for (size_t begin = 0; begin < writes.size(); begin += 64) {
    const size_t end = std::min(writes.size(), begin + 64);
    EXPECT_EQ(writes[begin], 1) << begin;
    bool ended = false;
    for (size_t i = begin; i < end; ++i) {
      ASSERT_LE(writes[i], 1) << i;
      ASSERT_FALSE(ended && writes[i] == 1) << i;
      ended = writes[i] == 0;
    }
  }
}

TEST(WeightPlan, EveryByteOfARankIsWrittenOnceAndFreeSlotsNever) {
  for (const int n : {1, 2, 4}) {
    const ModelShape shape = Shape(Padded(), n);
    std::vector<ExpertsState> states;
    for (const Layout from : LayoutsOf(shape.attention)) {
      states.push_back(ExpertsState::At(from, Side::kLow));
      for (const Layout to : LayoutsOf(shape.attention)) {
        if (from == to) continue;
        states.push_back({from, to, Side::kHigh, 1});
      }
    }
    for (const ExpertsState& state : states) {
      for (Rank rank = 0; rank < n; ++rank) {
        Writes dense(PlanDense(shape).size_bytes);
        Writes experts(shape.experts.region_bytes());
        for (const PlannedPart& planned :
             PlanWeights(shape, kSmallModelNames, rank, state)) {
          const bool of_dense = planned.part.region == WeightRegion::kDense;
          Write(of_dense ? dense : experts, planned.part);
        }
        ExpectWrittenOnce(dense);
        Writes expected(experts.size());
        for (int l = 0; l < shape.experts.num_moe_layers; ++l) {
          const int64_t bytes = shape.experts.slot_bytes();
          Write(expected, state.SlotOf(shape.experts, l) * bytes, bytes);
        }
        EXPECT_EQ(experts, expected);
      }
    }
  }
}

TEST(WeightPlan, APartIsHandedOverAsItsSlicesOneBehindTheOther) {
  const ModelShape shape = Shape(Padded(), 4);
  for (const Layout layout : LayoutsOf(shape.attention)) {
    for (Rank rank = 0; rank < 4; ++rank) {
      for (const auto& [part, sources] :
           PlanWeights(shape, kSmallModelNames, rank,
                       ExpertsState::At(layout, Side::kLow))) {
        const bool is_vector =
            std::holds_alternative<VectorPacking>(part.packing);
        int64_t bytes = 0;
        for (const TensorSlice& source : sources) {
          bytes += source.slice.num_elements() * (is_vector ? 4 : 2);
        }
        EXPECT_EQ(part.host_bytes(), bytes);
      }
    }
  }
}

// Together the ranks read each tensor of an expert once, and those of the dense
// region on every rank.
TEST(WeightPlan, EveryElementIsReadByThoseWhoHoldIt) {
  const int n = 4;
  const ModelShape shape = Shape(Padded(), n);
  for (const Layout layout : LayoutsOf(shape.attention)) {
    std::vector<TensorSlice> read;
    for (Rank rank = 0; rank < n; ++rank) {
      for (const PlannedPart& planned :
           PlanWeights(shape, kSmallModelNames, rank,
                       ExpertsState::At(layout, Side::kLow))) {
        read.insert(read.end(), planned.sources.begin(), planned.sources.end());
      }
    }
    for (const ExpectedTensor& tensor :
         ExpectedTensors(shape, kSmallModelNames)) {
      int64_t elements = 0, size = 1;
      for (const TensorSlice& slice : read) {
        if (slice.name == tensor.name) elements += slice.slice.num_elements();
      }
      for (const int64_t s : tensor.sizes) size *= s;
      const bool of_expert = tensor.name.find(".experts.") != std::string::npos;
      EXPECT_EQ(elements, of_expert ? size : n * size) << tensor.name;
    }
  }
}

// Qwen3-235B-A22B: what is read at once does not grow with the vocabulary or
// the number of experts.
TEST(WeightPlan, HostMemoryOfAPartIsBounded) {
  SmallModel model;
  model.hidden_size = 4096;
  model.num_q_heads = 64;
  model.num_kv_heads = 4;
  model.head_dim = 128;
  model.moe_intermediate_size = 1536;
  model.num_experts = 128;
  model.experts_per_token = 8;
  model.vocab_size = 151936;
  model.max_positions = 40960;
  model.is_moe_layer = std::vector<bool>(94, true);
  const ModelShape shape = Shape(model, 8);
  const int64_t output = int64_t{4096} * 64 * 128 * 2;
  int64_t largest = 0, largest_run = 0;
  for (const PlannedPart& planned :
       PlanWeights(shape, kSmallModelNames, 3,
                   ExpertsState::At(ExpertParallel(), Side::kLow))) {
    const WeightPart& part = planned.part;
    largest = std::max(largest, part.host_bytes());
    if (std::holds_alternative<MatrixPacking>(part.packing)) {
      largest_run = std::max(largest_run, part.host_bytes());
    }
  }
  EXPECT_EQ(largest, output);
  EXPECT_EQ(largest_run, 8 << 20);
}

}  // namespace
}  // namespace moebius
