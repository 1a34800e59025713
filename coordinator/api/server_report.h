// What a server says of itself, on both listeners: /status and /metrics.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "coordinator/api/text_keeper.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/http_message.h"
#include "coordinator/status/front_metrics.h"
#include "coordinator/status/status_text.h"

namespace moebius {

// ServerReport
//
// Reads the engine's last snapshot: it never waits for a step or a switch.
// Threading: thread-safe. Engine and metrics outlive it.
class ServerReport {
 public:
  // Uptime and connections of `info` are filled in; `num_connections`, of the
  // public listener, may be empty.
  ServerReport(const Engine& engine, const FrontMetrics& metrics,
               ServerInfo info, std::function<int()> num_connections);

  HttpResponse Status(Audience audience) const;
  // In the format, and compressed, as the request asks.
  HttpResponse Metrics(const HttpRequest& request) const;

  // For HAProxy's agent-check.
  std::string Agent() const;

  const ServerInfo& info() const { return info_; }
  double SecondsUp() const;

 private:
  ServerInfo InfoNow() const;

  const Engine& engine_;
  const FrontMetrics& metrics_;
  const ServerInfo info_;
  const std::function<int()> num_connections_;
  const std::chrono::steady_clock::time_point started_;
  mutable std::array<TextKeeper, 2> statuses_;  // for clients, for operators
  // As Prometheus' own text, as OpenMetrics:
  mutable std::array<TextKeeper, 2> metrics_texts_, compressed_;
};

// Whether `path` is one of its routes.
constexpr bool IsReport(std::string_view path) {
  return path == "/status" || path == "/metrics";
}

}  // namespace moebius
