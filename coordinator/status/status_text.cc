#include "coordinator/status/status_text.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/layout/layout.h"
#include "coordinator/status/kv_usage.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

// Goes up when a key goes or changes its meaning, not when one comes.
constexpr int kStatusSchemaVersion = 1;

// Reasons and names come from files and peers: never let a stray byte throw.
std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json Name(Layout layout, int num_ranks) {
  return std::string(LayoutName(layout, num_ranks));
}

std::string_view CauseName(SwitchCause cause) {
  switch (cause) {
    case SwitchCause::kOperator:
      return "operator";
    case SwitchCause::kPolicy:
      return "policy";
    case SwitchCause::kEarlierCoordinator:
      break;
  }
  return "earlier coordinator";
}

Json ToJson(const SwitchReport& report) {
  return {{"epoch", report.epoch.value},
          {"from", Name(report.from, report.num_ranks)},
          {"to", Name(report.to, report.num_ranks)},
          {"cause", CauseName(report.cause)},
          {"done", report.done},
          {"changed", report.done},
          {"reason", report.reason},
          {"began_unix_ms", report.began_unix_ms},
          {"ended_unix_ms", report.ended_unix_ms},
          {"boundary", report.boundary.value},
          {"weight_bytes", report.weight_bytes},
          {"kv_bytes", report.kv_bytes},
          {"prepare_ms", report.prepare_ms},
          {"pause_ms", report.pause_ms},
          {"switch_ms", report.switch_ms},
          {"weight_ms", report.weight_ms},
          {"kv_ms", report.kv_ms}};
}

Json ToJson(const std::optional<SwitchUnderWay>& one, int num_ranks) {
  if (!one.has_value()) return nullptr;
  return {{"epoch", one->epoch.value},
          {"from", Name(one->from, num_ranks)},
          {"to", Name(one->to, num_ranks)},
          {"cause", CauseName(one->cause)},
          {"began_unix_ms", one->began_unix_ms},
          {"expected_end_unix_ms", one->expected_end_unix_ms.has_value()
                                       ? Json(*one->expected_end_unix_ms)
                                       : Json(nullptr)}};
}

Json LimitsOf(const EngineStatus& status, const ServerInfo& info) {
  return {{"max_running", status.max_running},
          {"max_queue", info.max_queue},
          {"token_budget", info.token_budget},
          {"max_model_len", info.max_model_len}};
}

double ShareOf(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / whole;
}

// How full the group is, against its limits.
Json UseOf(const EngineStatus& status, const ServerInfo& info) {
  return {{"running", ShareOf(status.running, status.max_running)},
          {"queue", ShareOf(status.waiting, info.max_queue)},
          {"kv", KvUsage(status)}};
}

Json KvOf(const EngineStatus& status, int num_ranks) {
  Json out = Json::array();
  for (const KvStatus& kv : status.kv) {
    out.push_back({{"layout", Name(kv.layout, num_ranks)},
                   {"tokens", kv.tokens},
                   {"tokens_free", kv.tokens_free},
                   {"head_copies", kv.copies}});
  }
  return out;
}

// How the load stands to the edges of the layout that steps run in.
std::string WhyOf(const EngineStatus& status, int num_ranks) {
  if (num_ranks == 1) return "one rank has one layout";
  const std::string_view name = LayoutName(status.layout, num_ranks);
  std::string why;
  for (const PolicyEdge& edge : status.policy.edges) {
    if (edge.wide != status.layout && edge.narrow != status.layout) continue;
    const bool wide = edge.wide == status.layout;
    const double at = wide ? edge.leave_wide_at : edge.leave_narrow_at;
    const bool left = wide ? status.load >= at : status.load <= at;
    why += absl::StrFormat(
        "%s %s%s %.1f, where %s is left for %s", why.empty() ? "" : " and",
        left ? "" : "not ", wide ? "at or above" : "at or below", at, name,
        LayoutName(wide ? edge.narrow : edge.wide, num_ranks));
  }
  return absl::StrFormat("the load of %.1f is", status.load) +
         (why.empty()
              ? absl::StrFormat(" of no account: %s is no candidate, or "
                                "the only one",
                                name)
              : why);
}

Json PolicyOf(const EngineStatus& status, const ServerInfo& info) {
  const PolicyStatus& policy = status.policy;
  const int n = info.num_workers;
  Json edges = Json::array();
  for (const PolicyEdge& edge : policy.edges) {
    edges.push_back({{"wide", Name(edge.wide, n)},
                     {"narrow", Name(edge.narrow, n)},
                     {"leave_wide_at", edge.leave_wide_at},
                     {"leave_narrow_at", edge.leave_narrow_at}});
  }
  const bool any = !policy.edges.empty();
  return {{"automatic", policy.automatic},
          {"load", status.load},
          {"leave_ep_at", any ? policy.edges.back().leave_narrow_at : 0},
          {"leave_tp_at", any ? policy.edges.front().leave_wide_at : 0},
          {"edges", std::move(edges)},
          {"wants",
           policy.wants.has_value() ? Name(*policy.wants, n) : Json(nullptr)},
          {"dwell_left_ms", policy.dwell_left_ms},
          {"why", WhyOf(status, n)}};
}

Json WorkersOf(const EngineStatus& status) {
  Json out = Json::array();
  for (const WorkerStatus& worker : status.workers) {
    out.push_back({{"rank", worker.rank},
                   {"pid", worker.pid},
                   {"incarnation", worker.incarnation},
                   {"connected", worker.connected},
                   {"weight_bytes", worker.weight_bytes},
                   {"pages_total", worker.pages_total},
                   {"pages_free", worker.pages_free},
                   {"kv_use", ShareOf(worker.pages_total - worker.pages_free,
                                      worker.pages_total)}});
  }
  return out;
}

Json SwitchesOf(const EngineStatus& status) {
  Json recent = Json::array();
  if (status.recent_switches != nullptr) {
    for (const SwitchReport& report : *status.recent_switches) {
      recent.push_back(ToJson(report));
    }
  }
  return {{"total", status.switches_total},
          {"checked", status.switches_checked_total},
          {"refused", status.switches_refused_total},
          {"last",
           status.last_switch ? ToJson(*status.last_switch) : Json(nullptr)},
          {"recent", std::move(recent)}};
}

// What happened since the coordinator started.
Json CountsOf(const EngineStatus& status) {
  return {
      {"requests",
       {{"total", status.requests_total},
        {"finished", status.requests_finished},
        {"aborted", status.requests_aborted}}},
      {"tokens",
       {{"prompt", status.prompt_tokens_total},
        {"generated", status.generated_tokens_total}}},
      {"preemptions", status.preemptions_total},
      {"dropped_tokens", status.dropped_tokens_total},
      {"journal",
       {{"trouble", status.journal_trouble}, {"bytes", status.journal_bytes}}},
      {"recoveries",
       {{"total", status.recoveries_total},
        {"last_ms", status.last_recovery_ms}}},
      {"nonfinite_logits",
       {{"rows", status.nonfinite_rows_total},
        {"last_step", status.nonfinite_step},
        {"last_slot", status.nonfinite_slot}}}};
}

Json StateOf(const EngineStatus& status, const ServerInfo& info) {
  return {{"version", info.version},
          {"schema_version", kStatusSchemaVersion},
          {"instance_id", info.instance_id},
          {"model", info.model},
          {"model_path", info.model_path},
          {"max_model_len", info.max_model_len},
          {"uptime_s", info.uptime_seconds},
          {"now_unix_ms", static_cast<int64_t>(1e3 * (info.started_unix_s +
                                                      info.uptime_seconds))},
          {"pid", info.pid},
          {"term", info.term},
          {"ready", status.ready},
          {"draining", status.draining},
          {"not_ready_reason", status.not_ready_reason},
          {"loaded_share",
           status.loaded_share ? Json(*status.loaded_share) : Json(nullptr)},
          {"layout", Name(status.layout, info.num_workers)},
          {"layout_choice", LayoutChoiceName(status.choice)},
          {"switch_state", status.switch_state},
          {"switch", ToJson(status.switch_under_way, info.num_workers)},
          {"policy", PolicyOf(status, info)},
          {"last_step", status.last_step},
          {"running", status.running},
          {"waiting", status.waiting},
          {"limits", LimitsOf(status, info)},
          {"use", UseOf(status, info)},
          {"kv", KvOf(status, info.num_workers)},
          {"switches", SwitchesOf(status)},
          {"step_ms", status.step_ms},
          {"steps_per_s", status.steps_per_s},
          {"tokens_per_s", status.tokens_per_s},
          {"decision_us", status.decision_us},
          {"load", status.load},
          {"http_connections", info.http_connections},
          {"padding_bytes", status.padding_bytes},
          {"workers", WorkersOf(status)}};
}

void HideFromClients(Json& out) {
  for (const char* key : {"model_path", "pid", "not_ready_reason"}) {
    out.erase(key);
  }
  out["journal"].erase("trouble");
  for (Json& worker : out["workers"]) worker.erase("pid");
  const auto hide = [](Json& report) {
    if (report.is_object()) report.erase("reason");
  };
  hide(out["switches"]["last"]);
  for (Json& report : out["switches"]["recent"]) hide(report);
}

}  // namespace

std::string SwitchReportJson(const SwitchReport& report) {
  return Dump(ToJson(report));
}

std::string StatusJson(const EngineStatus& status, const ServerInfo& info,
                       Audience audience) {
  Json out = StateOf(status, info);
  out.update(CountsOf(status));
  if (audience == Audience::kClients) HideFromClients(out);
  return Dump(out);
}

ProgressWatch Observe(const ProgressWatch& watch, const EngineStatus& status,
                      double now_s) {
  const bool idle = status.running == 0 && status.waiting == 0;
  ProgressWatch next = watch;
  if (idle || watch.idle || status.last_step != watch.step) {
    next.advanced_at_s = now_s;
  }
  next.step = status.last_step;
  next.idle = idle;
  return next;
}

}  // namespace moebius
