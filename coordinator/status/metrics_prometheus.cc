#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <string>
#include <utility>
#include <vector>

#include "common/layout/layout.h"
#include "coordinator/status/status_text.h"

namespace moebius {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

// Collects families in the order they are added.
class Families {
 public:
  void Begin(std::string name, std::string help, MetricType type) {
    families_.push_back({std::move(name), std::move(help), type, {}});
  }
  void Add(double value, Labels labels = {}) {
    MetricFamily& family = families_.back();
    ClientMetric metric;
    metric.label = std::move(labels);
    if (family.type == MetricType::Counter) metric.counter.value = value;
    if (family.type == MetricType::Gauge) metric.gauge.value = value;
    family.metric.push_back(std::move(metric));
  }
  void Gauge(std::string name, std::string help, double value) {
    Begin(std::move(name), std::move(help), MetricType::Gauge);
    Add(value);
  }
  void Counter(std::string name, std::string help, uint64_t value) {
    Begin(std::move(name), std::move(help), MetricType::Counter);
    Add(static_cast<double>(value));
  }
  void Histogram(std::string name, std::string help,
                 const LatencyHistogram::Snapshot& snapshot) {
    Begin(std::move(name), std::move(help), MetricType::Histogram);
    ClientMetric metric;
    uint64_t sum = 0;
    for (int i = 0; i < LatencyHistogram::kNumBuckets; ++i) {
      sum += snapshot.counts[i];
      metric.histogram.bucket.push_back(
          {sum, LatencyHistogram::kBoundsSeconds[i]});
    }
    sum += snapshot.counts[LatencyHistogram::kNumBuckets];
    metric.histogram.sample_count = sum;
    metric.histogram.sample_sum = snapshot.sum_seconds;
    families_.back().metric.push_back(std::move(metric));
  }
  std::string Text() const {
    return prometheus::TextSerializer().Serialize(families_);
  }

 private:
  std::vector<MetricFamily> families_;
};

void AddRequests(const EngineStatus& status, Families& out) {
  out.Gauge("moebius_requests_running", "Generations that take part in steps.",
            status.running);
  out.Gauge("moebius_requests_waiting", "Generations accepted and waiting.",
            status.waiting);
  out.Counter("moebius_generations_total", "Generations accepted.",
              status.requests_total);
  out.Counter("moebius_generations_finished_total", "Generations finished.",
              status.requests_finished);
  out.Counter("moebius_generations_aborted_total",
              "Generations ended before they finished.",
              status.requests_aborted);
  out.Counter("moebius_prompt_tokens_total", "Prompt tokens computed.",
              status.prompt_tokens_total);
  out.Counter("moebius_generated_tokens_total", "Tokens generated.",
              status.generated_tokens_total);
  out.Counter("moebius_preemptions_total",
              "Generations put back to be computed again.",
              status.preemptions_total);
}

void AddLayout(const EngineStatus& status, Families& out) {
  out.Begin("moebius_layout", "1 for the layout that steps run in.",
            MetricType::Gauge);
  const std::string current(LayoutName(status.layout));
  for (const char* name : {"ep", "tp"}) {
    out.Add(current == name ? 1 : 0, {{"layout", name}});
  }
  out.Gauge("moebius_layout_auto",
            "1 if the policy chooses the layout, 0 if a person did.",
            status.choice == LayoutChoice::kAuto);
  out.Gauge("moebius_switching", "1 while a switch is under way.",
            status.switch_state != "steady");
  out.Counter("moebius_switches_total", "Switches done.",
              status.switches_total);
  out.Counter("moebius_switches_checked_total",
              "Switches whose weights were found right.",
              status.switches_checked_total);
  out.Counter("moebius_switches_refused_total", "Switches refused.",
              status.switches_refused_total);
  if (!status.last_switch) return;
  const SwitchReport& last = *status.last_switch;
  out.Gauge("moebius_last_switch_pause_seconds",
            "Longest that a running stream waited in the last switch.",
            last.pause_ms / 1e3);
  out.Gauge("moebius_last_switch_copy_seconds",
            "Copies of the slowest worker in the last switch.",
            last.switch_ms / 1e3);
  out.Begin("moebius_last_switch_bytes", "Bytes moved by the last switch.",
            MetricType::Gauge);
  out.Add(static_cast<double>(last.weight_bytes), {{"kind", "weights"}});
  out.Add(static_cast<double>(last.kv_bytes), {{"kind", "kv"}});
}

void AddSteps(const EngineStatus& status, Families& out) {
  out.Counter("moebius_steps_total", "Steps executed.", status.last_step);
  out.Counter("moebius_nonfinite_logits_total",
              "Rows of logits with a NaN or an infinity among them.",
              status.nonfinite_rows_total);
  out.Gauge("moebius_step_seconds", "Recent average duration of a step.",
            status.step_ms / 1e3);
  out.Gauge("moebius_decision_seconds",
            "Recent average of the coordinator's own time for a step.",
            status.decision_us / 1e6);
  out.Gauge("moebius_load", "Requests in flight, smoothed.", status.load);
}

void AddWorkers(const EngineStatus& status, Families& out) {
  const auto each = [&](const char* name, const char* help, auto value) {
    out.Begin(name, help, MetricType::Gauge);
    for (const WorkerStatus& worker : status.workers) {
      out.Add(static_cast<double>(value(worker)),
              {{"rank", std::to_string(worker.rank)}});
    }
  };
  each("moebius_worker_connected", "1 if the worker is connected.",
       [](const WorkerStatus& w) { return w.connected; });
  each("moebius_worker_weight_bytes", "Memory of weights.",
       [](const WorkerStatus& w) { return w.weight_bytes; });
  each("moebius_worker_kv_pages", "KV head pages of the pool.",
       [](const WorkerStatus& w) { return w.pages_total; });
  each("moebius_worker_kv_pages_free", "KV head pages that are free.",
       [](const WorkerStatus& w) { return w.pages_free; });
}

void AddFront(const FrontMetrics::Snapshot& front, Families& out) {
  out.Begin("moebius_http_requests_total", "Requests answered.",
            MetricType::Counter);
  for (const auto& [key, count] : front.requests) {
    out.Add(static_cast<double>(count),
            {{"route", key.first}, {"status", std::to_string(key.second)}});
  }
  out.Counter("moebius_http_disconnects_total",
              "Clients that left, or were cut off, before the answer's end.",
              front.disconnects);
  out.Histogram("moebius_time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                front.first_token);
  out.Histogram("moebius_inter_token_seconds",
                "Between the tokens of a generation.", front.inter_token);
  out.Histogram("moebius_request_seconds",
                "From a request's arrival to the end of its answer.",
                front.request);
}

}  // namespace

std::string MetricsText(const EngineStatus& status, const ServerInfo& info,
                        const FrontMetrics::Snapshot& front) {
  Families out;
  out.Begin("moebius_info", "The server; always 1.", MetricType::Gauge);
  out.Add(1, {{"version", info.version}, {"model", info.model}});
  out.Gauge("moebius_uptime_seconds", "Since the server started.",
            info.uptime_seconds);
  out.Gauge("moebius_ready", "1 if new requests are taken.",
            status.ready && !status.draining);
  out.Gauge("moebius_http_connections", "Open connections.",
            info.http_connections);
  AddRequests(status, out);
  AddLayout(status, out);
  AddSteps(status, out);
  AddWorkers(status, out);
  AddFront(front, out);
  return out.Text();
}

}  // namespace moebius
