#include "coordinator/status/agent_check.h"

#include <algorithm>
#include <cmath>

#include "common/base/cat.h"
#include "common/base/printable.h"
#include "coordinator/status/kv_usage.h"

namespace moebius {
namespace {

// HAProxy shows it; its buffer for the whole line is larger.
constexpr size_t kMaxReasonBytes = 100;

double ShareOf(uint64_t part, int whole) {
  return whole > 0 ? static_cast<double>(part) / whole : 0.0;
}

}  // namespace

std::string AgentLine(const EngineStatus& status, const ServerInfo& info) {
  if (status.draining) return "drain\n";
  if (!status.ready) {
    const std::string& reason = status.not_ready_reason;
    return Cat("down#",
               reason.empty() ? "starting" : Printable(reason, kMaxReasonBytes),
               "\n");
  }
  const double use =
      std::max({ShareOf(status.running, status.max_running),
                ShareOf(status.waiting, info.max_queue), KvUsage(status)});
  double weight = 100 * (1 - std::min(1.0, use));
  if (status.switch_under_way.has_value()) weight /= 2;
  return Cat("up ready ", std::max(1, static_cast<int>(std::lround(weight))),
             "%\n");
}

}  // namespace moebius
