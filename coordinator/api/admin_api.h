// The routes of the admin listener: control, status, metrics, probes.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "common/config/api_keys.h"
#include "common/faults/fault_table.h"
#include "coordinator/api/admission.h"
#include "coordinator/api/server_report.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/http_message.h"
#include "coordinator/status/status_text.h"

namespace moebius {

struct AdminApiOptions {
  // /progress says 503 if there is work and no step was done for this long.
  int stalled_after_ms = 10'000;
  FaultTable* faults = nullptr;  // null: no faults can be injected
  // One of these must be shown; nothing: anybody is served.
  std::optional<ApiKeys> keys;
  int not_ready_status = 503;  // of /ready
  AdmissionRules admission;
};

// AdminApi
//
//   POST /admin/layout {"layout":"ep"|"tp"|"auto"}   answers when the switch
//        has ended: 200 with its figures, 409 if it was refused
//   POST /admin/drain    takes no new requests; answers when the last one has
//        ended, with ?wait=false at once (202)
//   POST /admin/undrain  takes new requests again, and ends the waiting of
//        those who drain; 409 once the group is being stopped
//   These three take "operation_id", under which the call can be repeated, and
//        "expected_instance_id" (control.h): the same one again is answered as
//        the first was, also by a later coordinator, another one of its kind
//        while it runs is a 409, and with "wait": false the answer is a 202
//   GET  /admin/operations/ID   what became of it
//   GET, POST, DELETE /admin/faults   faults armed, and points reached; arms
//        {"arm":["worker.pull@1=crash", ...]}; disarms all. 404 unless faults
//        are enabled.
//   GET  /   the operators' page, with /page.js and /page.css
//   GET  /openapi.json, /status, /metrics, /health, /ready, /ranks/N/health,
//   /progress,
//        /version
//
// Threading: thread-safe. Engine and report outlive it.
class AdminApi final : public HttpHandler {
 public:
  AdminApi(Engine& engine, const ServerReport& report, AdminApiOptions options);

  std::optional<HttpResponse> Refuse(const HttpRequest& head) override;
  void Handle(std::shared_ptr<HttpExchange> exchange) override;

 private:
  void HandleControl(std::shared_ptr<HttpExchange> exchange);
  void HandleLayout(std::shared_ptr<HttpExchange> exchange, LayoutChoice choice,
                    bool wait);
  HttpResponse Faults(const HttpRequest& request);
  void HandleDrain(std::shared_ptr<HttpExchange> exchange, bool wait);
  HttpResponse Progress();

  Engine& engine_;
  const ServerReport& report_;
  const AdminApiOptions options_;
  std::mutex mutex_;
  ProgressWatch watch_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moebius
