#include "worker/device_memory.h"

#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/layout/kv_room.h"
#include "common/layout/layout.h"
#include "worker/memory/region.h"

namespace moebius {
namespace {

int64_t Mib(int64_t bytes) { return (bytes + (int64_t{1} << 19)) >> 20; }

void AppendRoom(std::string* text, const DeviceMemory::KvRoom& room) {
  absl::StrAppend(text, room.tokens, " tokens in ", room.layout);
}

}  // namespace

int64_t DeviceMemory::other_bytes() const {
  return total_bytes - free_bytes - dense_bytes - experts_bytes - spare_bytes -
         kv_bytes - exchange_bytes - workspace_bytes - graph_bytes;
}

DeviceMemory RegionsOf(const WorkerPlan& plan) {
  const ExpertShape& experts = plan.shape.experts;
  DeviceMemory memory;
  memory.dense_bytes = plan.geometry[RegionKind::kDense];
  memory.spare_slots = experts.num_moe_layers > 0 ? experts.spare_slots : 0;
  memory.spare_bytes = memory.spare_slots * experts.slot_bytes();
  memory.experts_bytes =
      plan.geometry[RegionKind::kExperts] - memory.spare_bytes;
  memory.kv_bytes = plan.geometry[RegionKind::kKv];
  memory.kv_pages = plan.num_pages;
  const AttentionShape& attention = plan.shape.attention;
  const std::vector<uint32_t> pages(static_cast<size_t>(attention.num_ranks),
                                    plan.num_pages);
  for (const Layout layout : LayoutsOf(attention)) {
    memory.kv_rooms.push_back(
        {std::string(LayoutName(layout, attention.num_ranks)),
         static_cast<int64_t>(KvRoomTokens(attention, layout, pages))});
  }
  memory.exchange_bytes = plan.geometry[RegionKind::kExchange];
  return memory;
}

std::string ToText(const DeviceMemory& memory) {
  const double share = memory.total_bytes > 0
                           ? 100.0 * memory.layouts_bytes() / memory.total_bytes
                           : 0;
  char percent[32];
  std::snprintf(percent, sizeof(percent), "%.2f %%", share);
  return absl::StrCat(
      "memory in MiB: dense weights ", Mib(memory.dense_bytes), ", experts ",
      Mib(memory.experts_bytes), ", spare slots ", Mib(memory.spare_bytes),
      " (", memory.spare_slots, "), KV ", Mib(memory.kv_bytes), " (",
      memory.kv_pages, " pages, of all workers ",
      absl::StrJoin(memory.kv_rooms, ", ", AppendRoom), "), exchange ",
      Mib(memory.exchange_bytes), ", workspaces ", Mib(memory.workspace_bytes),
      ", captured passes ", Mib(memory.graph_bytes), " (", memory.num_graphs,
      "), context and others ", Mib(memory.other_bytes()), ", free ",
      Mib(memory.free_bytes), " of ", Mib(memory.total_bytes),
      "; to have layouts at hand: ", Mib(memory.layouts_bytes()), ", ",
      percent);
}

}  // namespace moebius
