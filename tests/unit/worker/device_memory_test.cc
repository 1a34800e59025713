#include "worker/device_memory.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int64_t kMib = int64_t{1} << 20;

WorkerPlan Plan() {
  WorkerPlan plan;
  plan.shape.attention = {8, 8, 4};
  plan.shape.experts.num_ranks = 8;
  plan.shape.experts.num_moe_layers = 4;
  plan.shape.experts.num_experts = 8;
  plan.shape.experts.intermediate_rows = 64;
  plan.shape.experts.row_bytes = 1 << 14;
  plan.shape.experts.spare_slots = 2;
  plan.kv.num_heads = 4;
  plan.num_pages = 1000;
  plan.geometry[RegionKind::kDense] = 10 * kMib;
  plan.geometry[RegionKind::kExperts] = plan.shape.experts.region_bytes();
  plan.geometry[RegionKind::kKv] = 30 * kMib;
  plan.geometry[RegionKind::kExchange] = 5 * kMib;
  return plan;
}

TEST(DeviceMemory, NamesWhatEachRegionIsFor) {
  const DeviceMemory memory = RegionsOf(Plan());
  EXPECT_EQ(memory.dense_bytes, 10 * kMib);
  EXPECT_EQ(memory.spare_slots, 2);
  EXPECT_EQ(memory.spare_bytes, memory.experts_bytes / 2);
  EXPECT_EQ(memory.kv_bytes, 30 * kMib);
  EXPECT_EQ(memory.kv_pages, 1000);
  EXPECT_EQ(memory.exchange_bytes, 5 * kMib);
}

TEST(DeviceMemory, WhatIsLeftIsTheContexts) {
  DeviceMemory memory = RegionsOf(Plan());
  memory.workspace_bytes = 7 * kMib;
  memory.graph_bytes = 3 * kMib;
  memory.total_bytes = 1000 * kMib;
  memory.free_bytes = 600 * kMib;
  EXPECT_EQ(memory.dense_bytes + memory.experts_bytes + memory.spare_bytes +
                memory.kv_bytes + memory.exchange_bytes +
                memory.workspace_bytes + memory.graph_bytes +
                memory.other_bytes() + memory.free_bytes,
            memory.total_bytes);
  EXPECT_EQ(memory.layouts_bytes(), memory.spare_bytes + 3 * kMib);
  EXPECT_THAT(ToText(memory), HasSubstr("free 600 of 1000"));
  EXPECT_THAT(ToText(memory),
              HasSubstr("KV 30 (1000 pages, of all workers 32000 tokens in "
                        "ep, 32000 tokens in tp2, 32000 tokens in tp4, 16000 "
                        "tokens in tp)"));
}

TEST(DeviceMemory, ADenseModelHasNoSpareSlots) {
  WorkerPlan plan = Plan();
  plan.shape.experts.num_moe_layers = 0;
  plan.geometry[RegionKind::kExperts] = 0;
  EXPECT_EQ(RegionsOf(plan).spare_bytes, 0);
  EXPECT_EQ(RegionsOf(plan).experts_bytes, 0);
}

}  // namespace
}  // namespace moebius
