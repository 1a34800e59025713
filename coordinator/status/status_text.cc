#include "coordinator/status/status_text.h"

#include <nlohmann/json.hpp>
#include <string_view>

#include "common/layout/layout.h"

namespace moebius {
namespace {

using Json = nlohmann::ordered_json;

// Reasons and names come from files and peers: never let a stray byte throw.
std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json ToJson(const SwitchReport& report) {
  return {{"epoch", report.epoch.value},
          {"from", std::string(LayoutName(report.from))},
          {"to", std::string(LayoutName(report.to))},
          {"done", report.done},
          {"changed", report.done},
          {"reason", report.reason},
          {"boundary", report.boundary.value},
          {"weight_bytes", report.weight_bytes},
          {"kv_bytes", report.kv_bytes},
          {"prepare_ms", report.prepare_ms},
          {"pause_ms", report.pause_ms},
          {"switch_ms", report.switch_ms},
          {"weight_ms", report.weight_ms},
          {"kv_ms", report.kv_ms}};
}

Json ToJson(const WorkerStatus& worker) {
  return {{"rank", worker.rank},
          {"pid", worker.pid},
          {"incarnation", worker.incarnation},
          {"connected", worker.connected},
          {"weight_bytes", worker.weight_bytes},
          {"pages_total", worker.pages_total},
          {"pages_free", worker.pages_free}};
}

// "ep", "tp" or "auto".
std::string LayoutChoiceName(LayoutChoice choice) {
  switch (choice) {
    case LayoutChoice::kEp:
      return "ep";
    case LayoutChoice::kTp:
      return "tp";
    case LayoutChoice::kAuto:
      return "auto";
  }
  return "ep";
}

}  // namespace

std::string SwitchReportJson(const SwitchReport& report) {
  return Dump(ToJson(report));
}

std::string StatusJson(const EngineStatus& status, const ServerInfo& info) {
  Json workers = Json::array();
  for (const WorkerStatus& worker : status.workers) {
    workers.push_back(ToJson(worker));
  }
  const Json last =
      status.last_switch ? ToJson(*status.last_switch) : Json(nullptr);
  const Json out = {
      {"version", info.version},
      {"model", info.model},
      {"model_path", info.model_path},
      {"max_model_len", info.max_model_len},
      {"uptime_s", info.uptime_seconds},
      {"pid", info.pid},
      {"term", info.term},
      {"ready", status.ready},
      {"draining", status.draining},
      {"not_ready_reason", status.not_ready_reason},
      {"loaded_share",
       status.loaded_share ? Json(*status.loaded_share) : Json(nullptr)},
      {"layout", std::string(LayoutName(status.layout))},
      {"layout_choice", LayoutChoiceName(status.choice)},
      {"switch_state", status.switch_state},
      {"last_step", status.last_step},
      {"running", status.running},
      {"waiting", status.waiting},
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
      {"switches",
       {{"total", status.switches_total},
        {"checked", status.switches_checked_total},
        {"refused", status.switches_refused_total},
        {"last", last}}},
      {"nonfinite_logits",
       {{"rows", status.nonfinite_rows_total},
        {"last_step", status.nonfinite_step},
        {"last_slot", status.nonfinite_slot}}},
      {"step_ms", status.step_ms},
      {"decision_us", status.decision_us},
      {"load", status.load},
      {"http_connections", info.http_connections},
      {"padding_bytes", status.padding_bytes},
      {"workers", workers}};
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
