#include "coordinator/api/server_report.h"

#include <string>
#include <utility>

#include "coordinator/http/gzip.h"
#include "coordinator/http/negotiation.h"
#include "coordinator/status/agent_check.h"
#include "coordinator/status/metrics_text.h"

namespace moebius {

ServerReport::ServerReport(const Engine& engine, const FrontMetrics& metrics,
                           ServerInfo info,
                           std::function<int()> num_connections)
    : engine_(engine),
      metrics_(metrics),
      info_(std::move(info)),
      num_connections_(std::move(num_connections)),
      started_(std::chrono::steady_clock::now()) {}

double ServerReport::SecondsUp() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                       started_)
      .count();
}

ServerInfo ServerReport::InfoNow() const {
  ServerInfo info = info_;
  info.uptime_seconds = SecondsUp();
  if (num_connections_) info.http_connections = num_connections_();
  return info;
}

HttpResponse ServerReport::Status(Audience audience) const {
  const EngineStatus status = engine_.GetStatus();
  HttpResponse response;
  response.body = statuses_[audience == Audience::kOperators].Get(
      status, [&] { return StatusJson(status, InfoNow(), audience); });
  return response;
}

std::string ServerReport::Agent() const {
  return AgentLine(engine_.GetStatus(), info_);
}

HttpResponse ServerReport::Metrics(const HttpRequest& request) const {
  const MetricsFormat format = PrefersOpenMetrics(request)
                                   ? MetricsFormat::kOpenMetrics
                                   : MetricsFormat::kPrometheus;
  const EngineStatus status = engine_.GetStatus();
  const bool open = format == MetricsFormat::kOpenMetrics;
  const auto text = [&] {
    return MetricsText(status, InfoNow(), metrics_.Get(), format);
  };
  HttpResponse response;
  response.content_type = MetricsContentType(format);
  response.headers.emplace_back("Vary", "Accept, Accept-Encoding");
  if (TakesGzip(request)) {
    response.body = compressed_[open].Get(status, [&] { return Gzip(text()); });
  }
  if (response.body.empty()) {  // not wanted, or zlib has no memory
    response.body = metrics_texts_[open].Get(status, text);
  } else {
    response.headers.emplace_back("Content-Encoding", "gzip");
  }
  return response;
}

}  // namespace moebius
