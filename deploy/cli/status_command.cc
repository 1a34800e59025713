// moebius status: how a group is doing.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/printable.h"
#include "common/base/status_macros.h"
#include "deploy/cli/client_key.h"
#include "deploy/cli/command.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kAnswerTimeout = absl::Seconds(10);

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

// "512 tokens in tp4, of which 500 are free; 256 in tp".
std::string DescribeKv(const Json& status) {
  const auto kv = status.find("kv");
  if (kv == status.end() || !kv->is_array() || kv->empty()) return "none yet";
  std::string text;
  for (const Json& one : *kv) {
    const bool now = text.empty();
    text += Cat(now ? "" : "; ", CountAt(one, "tokens"),
                now ? " tokens in " : " in ", TextAt(one, "layout"));
    if (now)
      text += Cat(", of which ", CountAt(one, "tokens_free"), " are free");
  }
  return text;
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
  row("KV", DescribeKv(status));
  row("switches",
      Cat(CountAt(switches, "total"), ", ", CountAt(switches, "refused"),
          " refused; last ", DescribeSwitch(ObjectAt(switches, "last"))));
  return Cat(text, DescribeWorkers(status));
}

void Print(const Json& status, bool json, bool one_line) {
  if (json) {
    std::printf("%s\n", status.dump(one_line ? -1 : 2).c_str());
  } else {
    std::fputs(Describe(status).c_str(), stdout);
  }
  std::fflush(stdout);
}

// Looks again and again, also while nobody answers.
class Watch {
 public:
  Watch(EventLoop& loop, const Url& admin, const StatusArgs& args)
      : loop_(loop),
        admin_(admin),
        args_(args),
        clear_(!args.json && isatty(STDOUT_FILENO) == 1) {}

  // Until a signal comes. Errors: of the first look, and whatever a group that
  // is being restarted would not say (a key that is wrong).
  absl::Status Run() {
    while (true) {
      RETURN_IF_ERROR(Look());
      bool passed = false;
      loop_.After(absl::Seconds(args_.interval_s), [&] { passed = true; });
      RETURN_IF_ERROR(
          loop_.RunUntil([&] { return passed; }, absl::InfiniteDuration()));
    }
  }

 private:
  absl::Status Look() {
    const auto status = FetchStatus(loop_, admin_, kAnswerTimeout);
    if (status.ok()) {
      if (clear_) std::fputs("\x1b[H\x1b[2J", stdout);
      Print(*status, args_.json, /*one_line=*/true);
      answered_ = true;
      away_ = false;
      return absl::OkStatus();
    }
    const bool may_come_back = absl::IsUnavailable(status.status()) ||
                               absl::IsDeadlineExceeded(status.status());
    if (!answered_ || !may_come_back) return status.status();
    if (!std::exchange(away_, true)) SayAway(status.status());
    return absl::OkStatus();
  }

  void SayAway(const absl::Status& why) const {
    const std::string text = Printable(StdView(why.message()));
    if (args_.json) {
      std::printf("%s\n",
                  Json{{"ready", false}, {"away", text}}.dump().c_str());
    } else {
      std::printf("The group is away (%s). Waiting for it to come back ...\n",
                  text.c_str());
    }
    std::fflush(stdout);
  }

  EventLoop& loop_;
  const Url& admin_;
  const StatusArgs& args_;
  const bool clear_;       // the screen, before each look
  bool answered_ = false;  // once
  bool away_ = false;      // and it was said
};

absl::Status Show(const StatusArgs& args) {
  ASSIGN_OR_RETURN(Url admin, ParseUrl(args.admin));
  ASSIGN_OR_RETURN(admin, args.key.With(std::move(admin)));
  EventLoop loop;
  if (args.watch) {
    const absl::Status status = Watch(loop, admin, args).Run();
    return absl::IsCancelled(status) ? absl::OkStatus() : status;
  }
  ASSIGN_OR_RETURN(const Json status, FetchStatus(loop, admin, kAnswerTimeout));
  Print(status, args.json, /*one_line=*/false);
  return absl::OkStatus();
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
  command->add_flag("--watch", args->watch,
                    "Again and again, until Ctrl-C, also while the group is "
                    "away (it may be restarted).");
  command
      ->add_option("--interval", args->interval_s,
                   "Seconds between two looks of --watch [default 1]")
      ->option_text("S")
      ->check(CLI::Range(0.1, 3600.0));
  RunWhenChosen(*command, action, args, &Show);
}

}  // namespace moebius
