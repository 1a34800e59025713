#include "coordinator/status/moebius_metrics.h"

#include <string>

#include "common/layout/layout.h"

namespace moebius {
namespace {

void AddServer(const EngineStatus& status, const ServerInfo& info,
               MetricsWriter& out) {
  out.BeginGauge("moebius:info", "The server; always 1.");
  out.Add(1, {{"version", info.version}, {"model", info.model}});
  out.Gauge("moebius:uptime_seconds", "Since the coordinator started.",
            info.uptime_seconds);
  out.Gauge("moebius:ready", "1 if new requests are taken.",
            status.ready && !status.draining);
  out.Gauge("moebius:draining", "1 while the group drains.", status.draining);
  out.Gauge("moebius:http_connections", "Open connections.",
            info.http_connections);
  out.Counter("moebius:coordinator_restarts_total",
              "Coordinators that were replaced.", info.term - 1);
  out.Counter("moebius:recoveries_total",
              "Rounds in which the workers were halted and resumed.",
              status.recoveries_total);
  out.Gauge("moebius:last_recovery_seconds",
            "From halt to resume, of the last such round.",
            status.last_recovery_ms / 1e3);
  out.Gauge("moebius:journal_bytes", "Size of the journal.",
            status.journal_bytes);
  out.Gauge("moebius:journal_healthy",
            "0 while the journal cannot be written, and nothing new is taken.",
            status.journal_trouble.empty());
}

void AddGenerations(const EngineStatus& status, int num_ranks,
                    MetricsWriter& out) {
  out.Counter("moebius:generations_total", "Generations accepted.",
              status.requests_total);
  out.Counter("moebius:generations_finished_total", "Generations finished.",
              status.requests_finished);
  out.Counter("moebius:generations_aborted_total",
              "Generations ended before they finished.",
              status.requests_aborted);
  out.Counter("moebius:dropped_tokens_total",
              "Positions whose KV was given up and computed again.",
              status.dropped_tokens_total);
  out.BeginGauge("moebius:kv_tokens",
                 "Tokens of KV that the group holds, by layout.");
  for (const KvStatus& kv : status.kv) {
    out.Add(kv.tokens, {{"layout", LayoutName(kv.layout, num_ranks)}});
  }
  out.BeginGauge("moebius:kv_tokens_free",
                 "Tokens of KV that are free, or would be, by layout.");
  for (const KvStatus& kv : status.kv) {
    out.Add(kv.tokens_free, {{"layout", LayoutName(kv.layout, num_ranks)}});
  }
}

void AddLayout(const EngineStatus& status, const ServerInfo& info,
               MetricsWriter& out) {
  out.BeginGauge("moebius:layout", "1 for the layout that steps run in.");
  for (const Layout layout : info.layouts) {
    out.Add(layout == status.layout,
            {{"layout", LayoutName(layout, info.num_workers)}});
  }
  out.Gauge("moebius:layout_auto",
            "1 if the policy chooses the layout, 0 if a person did.",
            status.choice.is_auto());
  out.Gauge("moebius:load",
            "Requests in flight, smoothed: what the policy looks at.",
            status.load);
  out.BeginGauge(
      "moebius:crossover",
      "Load at which the policy, where it chooses, leaves a layout "
      "for another: for narrower groups (ep has the narrowest) at or "
      "above it, for wider ones at or below.");
  for (const PolicyEdge& edge : status.policy.edges) {
    const std::string_view wide = LayoutName(edge.wide, info.num_workers);
    const std::string_view narrow = LayoutName(edge.narrow, info.num_workers);
    out.Add(edge.leave_narrow_at, {{"layout", narrow}, {"to", wide}});
    out.Add(edge.leave_wide_at, {{"layout", wide}, {"to", narrow}});
  }
  out.BeginGauge("moebius:switch_phase", "1 for the phase of a switch.");
  for (const char* phase : {"steady", "preparing", "committing"}) {
    out.Add(status.switch_state == phase, {{"phase", phase}});
  }
}

// A counter of switches in each direction.
template <typename Value>
void AddByDirection(std::string_view name, std::string_view help, Value value,
                    const EngineStatus& status, int num_ranks,
                    MetricsWriter& out) {
  out.BeginCounter(name, help);
  for (const SwitchTotals& totals : status.totals.switches) {
    out.Add(static_cast<double>(value(totals)),
            {{"from", LayoutName(totals.from, num_ranks)},
             {"to", LayoutName(totals.to, num_ranks)}});
  }
}

void AddSwitches(const EngineStatus& status, int num_ranks,
                 MetricsWriter& out) {
  out.BeginCounter("moebius:switches_total",
                   "Switches, by direction and outcome.");
  for (const SwitchTotals& totals : status.totals.switches) {
    const MetricsWriter::Label from = {"from",
                                       LayoutName(totals.from, num_ranks)};
    const MetricsWriter::Label to = {"to", LayoutName(totals.to, num_ranks)};
    out.Add(totals.done, {from, to, {"outcome", "done"}});
    out.Add(totals.refused, {from, to, {"outcome", "refused"}});
  }
  out.Counter("moebius:switches_checked_total",
              "Switches whose weights were found right.",
              status.switches_checked_total);
  const auto add = [&](std::string_view name, std::string_view help,
                       auto value) {
    AddByDirection(name, help, value, status, num_ranks, out);
  };
  add("moebius:switch_weight_bytes_total", "Weights that switches have moved.",
      [](const SwitchTotals& t) { return t.weight_bytes; });
  add("moebius:switch_kv_bytes_total", "KV that switches have moved.",
      [](const SwitchTotals& t) { return t.kv_bytes; });
  add("moebius:switch_prepare_seconds_total",
      "From PREPARE to its last answer, of switches done.",
      [](const SwitchTotals& t) { return t.prepare_seconds; });
  add("moebius:switch_copy_seconds_total",
      "Copies of the slowest worker, of switches done.",
      [](const SwitchTotals& t) { return t.copy_seconds; });
  out.BeginHistogram("moebius:switch_pause_seconds",
                     "Longest that a running stream waited, of each switch.");
  for (const SwitchTotals& totals : status.totals.switches) {
    out.Add(totals.pause, {{"from", LayoutName(totals.from, num_ranks)},
                           {"to", LayoutName(totals.to, num_ranks)}});
  }
}

void AddSteps(const EngineStatus& status, int num_ranks, MetricsWriter& out) {
  out.Counter("moebius:steps_total", "Steps executed.", status.last_step);
  out.BeginHistogram("moebius:step_seconds",
                     "Duration of steps on the workers, by layout.");
  for (const StepTotals& totals : status.totals.steps) {
    out.Add(totals.seconds, {{"layout", LayoutName(totals.layout, num_ranks)}});
  }
  out.Gauge("moebius:decision_seconds",
            "Recent average of the coordinator's own time for a step.",
            status.decision_us / 1e6);
  out.Counter("moebius:nonfinite_logits_total",
              "Rows of logits with a NaN or an infinity among them.",
              status.nonfinite_rows_total);
}

void AddRanks(const EngineStatus& status, MetricsWriter& out) {
  const auto each = [&](auto value) {
    for (const WorkerStatus& worker : status.workers) {
      out.Add(static_cast<double>(value(worker)),
              {{"rank", std::to_string(worker.rank)}});
    }
  };
  out.BeginGauge("moebius:worker_connected", "1 if the worker is connected.");
  each([](const WorkerStatus& w) { return w.connected; });
  out.BeginCounter("moebius:worker_restarts_total",
                   "Processes of the worker that were replaced.");
  each([](const WorkerStatus& w) {
    return w.incarnation > 0 ? w.incarnation - 1 : 0;
  });
  out.BeginGauge("moebius:worker_weight_bytes", "Memory of weights.");
  each([](const WorkerStatus& w) { return w.weight_bytes; });
  out.BeginGauge("moebius:worker_kv_pages", "KV head pages of the pool.");
  each([](const WorkerStatus& w) { return w.pages_total; });
  out.BeginGauge("moebius:worker_kv_pages_free",
                 "KV head pages that are free.");
  each([](const WorkerStatus& w) { return w.pages_free; });
}

void AddFront(const FrontMetrics::Snapshot& front, MetricsWriter& out) {
  out.BeginCounter("moebius:http_requests_total", "Requests answered.");
  for (const auto& [key, count] : front.requests) {
    out.Add(static_cast<double>(count),
            {{"route", key.first}, {"status", std::to_string(key.second)}});
  }
  out.Counter("moebius:http_disconnects_total",
              "Clients that left, or were cut off, before the answer's end.",
              front.disconnects);
  out.BeginHistogram("moebius:inter_token_seconds",
                     "Between the tokens of a generation, in finer buckets.");
  out.Add(front.inter_token);
  out.BeginHistogram("moebius:request_seconds",
                     "From a request's arrival to the end of its answer, in "
                     "finer buckets.");
  out.Add(front.request);
}

}  // namespace

void AddMoebiusMetrics(const EngineStatus& status, const ServerInfo& info,
                       const FrontMetrics::Snapshot& front,
                       MetricsWriter& out) {
  AddServer(status, info, out);
  AddGenerations(status, info.num_workers, out);
  AddLayout(status, info, out);
  AddSwitches(status, info.num_workers, out);
  AddSteps(status, info.num_workers, out);
  AddRanks(status, out);
  AddFront(front, out);
}

}  // namespace moebius
