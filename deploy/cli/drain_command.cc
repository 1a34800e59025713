// moebius drain, moebius undrain: a running group takes no new requests, and
// takes them again.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/cli/client_key.h"
#include "deploy/cli/command.h"
#include "deploy/client/admin_client.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kAnswerTimeout = absl::Seconds(10);

struct DrainArgs {
  std::string admin = kDefaultAdminUrl;
  ClientKey key{kAdminKeyVariable};
  double timeout_s = 600;
};

absl::StatusOr<Json> Ask(const DrainArgs& args, const char* path,
                         absl::Duration timeout) {
  ASSIGN_OR_RETURN(Url admin, ParseUrl(args.admin));
  ASSIGN_OR_RETURN(admin, args.key.With(std::move(admin)));
  EventLoop loop;
  ASSIGN_OR_RETURN(const HttpAnswer answer,
                   HttpRequest(loop, admin, "POST", path, "{}", timeout));
  return ParseAnswer(answer);
}

absl::Status Drain(const DrainArgs& args) {
  const absl::StatusOr<Json> answer =
      Ask(args, "/admin/drain", absl::Seconds(args.timeout_s));
  if (absl::IsDeadlineExceeded(answer.status())) {
    return absl::DeadlineExceededError(
        Cat("requests are still in flight after ", args.timeout_s,
            " s. The group goes on draining; `moebius undrain` takes it back"));
  }
  RETURN_IF_ERROR(answer.status());
  if (!BoolAt(*answer, "drained")) {
    return absl::AbortedError("somebody has undrained the group meanwhile");
  }
  std::printf("Drained: nothing is in flight, new requests are refused.\n");
  return absl::OkStatus();
}

absl::Status Undrain(const DrainArgs& args) {
  RETURN_IF_ERROR(Ask(args, "/admin/undrain", kAnswerTimeout).status());
  std::printf("The group takes requests.\n");
  return absl::OkStatus();
}

CLI::App* AddCommand(CLI::App& app, const char* name, const char* description,
                     DrainArgs& args) {
  CLI::App* command = app.add_subcommand(name, description);
  command
      ->add_option("--admin", args.admin,
                   Cat("Where the group's admin listener is [default ",
                       kDefaultAdminUrl, "]"))
      ->option_text("URL");
  args.key.AddTo(*command, "--api-key-file", "the admin listener");
  return command;
}

}  // namespace

void AddDrainCommands(CLI::App& app, Action& action) {
  auto args = std::make_shared<DrainArgs>();
  CLI::App* drain = AddCommand(
      app, "drain",
      "Have a running group finish what is in flight and refuse new requests.",
      *args);
  drain->footer(
      "Answers when nothing is in flight any more. The group goes on running: "
      "`moebius undrain` takes it back, SIGTERM ends it.");
  drain
      ->add_option("--timeout", args->timeout_s,
                   "Seconds to wait for the end of what is in flight [default "
                   "600]")
      ->option_text("S")
      ->check(CLI::Range(0.1, 86400.0));
  CLI::App* undrain = AddCommand(
      app, "undrain", "Have a drained group take requests again.", *args);
  for (auto [command, run] :
       {std::pair(drain, &Drain), std::pair(undrain, &Undrain)}) {
    RunWhenChosen(*command, action, args, run);
  }
}

}  // namespace moebius
