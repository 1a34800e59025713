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
  HttpResponse response;
  response.body = StatusJson(engine_.GetStatus(), InfoNow(), audience);
  return response;
}

std::string ServerReport::Agent() const {
  return AgentLine(engine_.GetStatus(), info_);
}

HttpResponse ServerReport::Metrics(const HttpRequest& request) const {
  const MetricsFormat format = PrefersOpenMetrics(request)
                                   ? MetricsFormat::kOpenMetrics
                                   : MetricsFormat::kPrometheus;
  HttpResponse response;
  response.content_type = MetricsContentType(format);
  response.headers.emplace_back("Vary", "Accept, Accept-Encoding");
  response.body =
      MetricsText(engine_.GetStatus(), InfoNow(), metrics_.Get(), format);
  if (!TakesGzip(request)) return response;
  std::string compressed = Gzip(response.body);
  if (compressed.empty()) return response;
  response.headers.emplace_back("Content-Encoding", "gzip");
  response.body = std::move(compressed);
  return response;
}

}  // namespace moebius
