#include "coordinator/status/orca.h"

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "coordinator/status/kv_usage.h"

namespace moebius {

std::string_view OrcaFormat(LoadHeader configured, std::string_view asked) {
  for (const std::string_view format : {"text", "json"}) {
    if (absl::EqualsIgnoreCase(AbslView(asked), AbslView(format))) {
      return format;
    }
  }
  switch (configured) {
    case LoadHeader::kAsked:
      return "";
    case LoadHeader::kText:
      return "text";
    case LoadHeader::kJson:
      return "json";
  }
  return "";
}

std::string OrcaValue(std::string_view format, const EngineStatus& status) {
  const double kv = KvUsage(status);
  if (format == "json") {
    return absl::StrFormat(
        R"(JSON {"named_metrics": {"kv_cache_usage_perc": %.4f, )"
        R"("num_requests_waiting": %d, "num_requests_running": %d}})",
        kv, status.waiting, status.running);
  }
  return absl::StrFormat(
      "TEXT named_metrics.kv_cache_usage_perc=%.4f, "
      "named_metrics.num_requests_waiting=%d, "
      "named_metrics.num_requests_running=%d",
      kv, status.waiting, status.running);
}

}  // namespace moebius
