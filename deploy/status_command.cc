// moebius status: how a group is doing.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/cat.h"
#include "common/status_macros.h"
#include "deploy/admin_client.h"
#include "deploy/client_key.h"
#include "deploy/command.h"
#include "deploy/console.h"
#include "deploy/table.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

struct StatusArgs {
  std::string admin = kDefaultAdminUrl;
  ClientKey key{kAdminKeyVariable};
  bool json = false;
  bool watch = false;
  double interval_s = 1.0;
};

std::string DescribeWorkers(const Json& status) {
  const auto workers = status.find("workers");
  if (workers == status.end() || !workers->is_array()) return "";
  std::vector<std::vector<std::string>> rows;
  for (const Json& worker : *workers) {
    const uint64_t total = CountAt(worker, "pages_total");
    const uint64_t free = CountAt(worker, "pages_free");
    rows.push_back({Cat(CountAt(worker, "rank")), Cat(CountAt(worker, "pid")),
                    BoolAt(worker, "connected") ? "connected" : "away",
                    HumanBytes(CountAt(worker, "weight_bytes")),
                    Cat(total - std::min(free, total), " of ", total)});
  }
  return FormatTable({"worker", "pid", "state", "weights", "pages in use"},
                     rows);
}

std::string DescribeSwitch(const Json& report) {
  const SwitchFigures figures = ParseSwitchFigures(report);
  if (figures.from.empty()) return "none yet";
  if (!figures.done) {
    return Cat(figures.from, " to ", figures.to, " refused: ", figures.reason);
  }
  return Cat(figures.from, " to ", figures.to, ", ",
             HumanBytes(figures.weight_bytes), " weights, ",
             HumanBytes(figures.kv_bytes), " KV in ",
             ShortNumber(figures.switch_ms), " ms; pause ",
             ShortNumber(figures.pause_ms), " ms");
}

std::string Describe(const Json& status) {
  const Json& requests = ObjectAt(status, "requests");
  const Json& tokens = ObjectAt(status, "tokens");
  const Json& switches = ObjectAt(status, "switches");
  std::string state =
      BoolAt(status, "draining") ? "draining"
      : BoolAt(status, "ready")
          ? "ready"
          : Cat("not ready: ", TextAt(status, "not_ready_reason"));
  std::string text;
  const auto row = [&](std::string_view name, const std::string& value) {
    text += Cat(name, std::string(12 - name.size(), ' '), value, "\n");
  };
  row("model", Cat(TextAt(status, "model"), " (", TextAt(status, "model_path"),
                   ", context ", CountAt(status, "max_model_len"), ")"));
  row("state", state);
  row("layout", Cat(TextAt(status, "layout"),
                    " (asked for: ", TextAt(status, "layout_choice"), "; ",
                    TextAt(status, "switch_state"), ")"));
  row("requests",
      Cat(CountAt(status, "running"), " running, ", CountAt(status, "waiting"),
          " waiting; ", CountAt(requests, "finished"), " finished, ",
          CountAt(requests, "aborted"), " aborted of ",
          CountAt(requests, "total")));
  row("tokens",
      Cat(CountAt(tokens, "prompt"), " in, ", CountAt(tokens, "generated"),
          " out; ", CountAt(status, "preemptions"), " preemptions"));
  row("steps",
      Cat(CountAt(status, "last_step"), "; ",
          ShortNumber(NumberAt(status, "step_ms")), " ms each, ",
          ShortNumber(NumberAt(status, "decision_us")), " us of it to decide"));
  row("switches",
      Cat(CountAt(switches, "total"), ", ", CountAt(switches, "refused"),
          " refused; last ", DescribeSwitch(ObjectAt(switches, "last"))));
  return Cat(text, DescribeWorkers(status));
}

absl::Status ShowOnce(EventLoop& loop, const Url& admin, const StatusArgs& args,
                      bool clear) {
  ASSIGN_OR_RETURN(const Json status,
                   FetchStatus(loop, admin, absl::Seconds(10)));
  if (clear) std::fputs("\x1b[H\x1b[2J", stdout);
  if (args.json) {
    std::printf("%s\n", status.dump(args.watch ? -1 : 2).c_str());
  } else {
    std::fputs(Describe(status).c_str(), stdout);
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Show(const StatusArgs& args) {
  ASSIGN_OR_RETURN(Url admin, ParseUrl(args.admin));
  ASSIGN_OR_RETURN(admin, args.key.With(std::move(admin)));
  EventLoop loop;
  if (!args.watch) return ShowOnce(loop, admin, args, false);
  const bool clear = !args.json && isatty(STDOUT_FILENO) == 1;
  while (true) {  // until Ctrl-C, or until nobody answers
    RETURN_IF_ERROR(ShowOnce(loop, admin, args, clear));
    bool passed = false;
    loop.After(absl::Seconds(args.interval_s), [&] { passed = true; });
    const absl::Status waited =
        loop.RunUntil([&] { return passed; }, absl::InfiniteDuration());
    if (absl::IsCancelled(waited)) return absl::OkStatus();
    RETURN_IF_ERROR(waited);
  }
}

}  // namespace

void AddStatusCommand(CLI::App& app, Action& action) {
  auto args = std::make_shared<StatusArgs>();
  CLI::App* command =
      app.add_subcommand("status", "Show how a running group is doing.");
  command
      ->add_option("--admin", args->admin,
                   Cat("Where the group's admin listener is [default ",
                       kDefaultAdminUrl, "]"))
      ->option_text("URL");
  args->key.AddTo(*command, "--api-key-file", "the admin listener");
  command->add_flag("--json", args->json, "The whole status as JSON.");
  command->add_flag("--watch", args->watch, "Again and again, until Ctrl-C.");
  command
      ->add_option("--interval", args->interval_s,
                   "Seconds between two looks of --watch [default 1]")
      ->option_text("S")
      ->check(CLI::Range(0.1, 3600.0));
  command->callback([args, &action] {
    action = [args] {
      const absl::Status status = Show(*args);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}

}  // namespace moebius
