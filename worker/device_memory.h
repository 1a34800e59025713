// Where a device's memory goes. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "worker/worker_plan.h"

namespace moebius {

// Bytes of a worker on its device.
struct DeviceMemory {
  int64_t total_bytes = 0;  // of the device
  int64_t free_bytes = 0;
  int64_t dense_bytes = 0;
  int64_t experts_bytes = 0;  // of all layers
  int64_t spare_bytes = 0;    // slots beside those
  int spare_slots = 0;
  int64_t kv_bytes = 0;
  int64_t kv_pages = 0;
  // What a group of such workers holds in each layout: less where a head is
  // held more than once.
  struct KvRoom {
    std::string layout;
    int64_t tokens = 0;
  };
  std::vector<KvRoom> kv_rooms;
  int64_t exchange_bytes = 0;
  int64_t workspace_bytes = 0;  // buffers of operators and passes
  int64_t graph_bytes = 0;      // captured passes
  int num_graphs = 0;

  // Neither free nor ours by the above: the driver's context with the code of
  // kernels, and whoever else is on the device.
  int64_t other_bytes() const;
  // What it costs to have several layouts at hand, graphs of the first among
  // it.
  int64_t layouts_bytes() const { return spare_bytes + graph_bytes; }
};

// The regions of a plan.
DeviceMemory RegionsOf(const WorkerPlan& plan);

// One line, in MiB.
std::string ToText(const DeviceMemory& memory);

}  // namespace moebius
