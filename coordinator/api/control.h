// The bodies of control calls and of what they are answered with. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/openai_request.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/http_message.h"

namespace moebius {

// What POST /admin/layout, /admin/drain and /admin/undrain are asked with.
struct ControlCall {
  // Its id is empty where none was given: then it cannot be asked for again.
  Operation operation;
  std::string expected_instance_id;  // empty: any
  bool wait = true;                  // for the end
};

// Reads {"layout", "operation_id", "expected_instance_id", "wait"}, all but
// the layout optional, and ?wait=false. `path` is one of the three; a drain or
// its end may come without a body. `layouts` are those of the group.
Parsed<ControlCall> ParseControl(std::string_view path, std::string_view query,
                                 std::string_view body,
                                 const std::vector<Layout>& layouts,
                                 int num_ranks);

// What a switch, a drain and its end are answered with.
HttpResponse SwitchResponse(const absl::StatusOr<SwitchReport>& report);
HttpResponse DrainResponse(bool drained);
HttpResponse UndrainResponse(const absl::Status& status);
// The same, as the journal keeps it.
OperationEnd EndOf(OperationKind kind, const OperationResult& result);

// 200 with {"operation_id", "kind", "layout": null or what was asked for,
// "state": "running" or "ended", "began_unix_ms", "ended_unix_ms",
// "http_status", "answer": the last three null while it runs}, or 404 if
// `known` (may be null) has none with that id.
HttpResponse OperationResponse(const std::vector<KnownOperation>* known,
                               std::string_view id);

// To an operation that was asked for: the first answer if it has ended, 202
// while it runs, 409 with the one that is in the way.
HttpResponse AnswerToOperation(const absl::StatusOr<OperationAnswer>& answer);
// 409: the caller takes us for another group.
HttpResponse WrongInstance(std::string_view expected, std::string_view ours);

}  // namespace moebius
