// moebius serve: starts a group and supervises it.
#include <fcntl.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "deploy/cli/command.h"
#include "deploy/cli/config_flags.h"
#include "deploy/launcher/console.h"
#include "deploy/launcher/group.h"

namespace moebius {
namespace {

struct ServeArgs {
  ConfigFlags flags;
  int ready_fd = -1;
  std::string state_dir;
  bool help_config = false;
};

int Serve(const ServeArgs& args) {
  if (args.help_config) {
    std::fputs(DescribeConfig().c_str(), stdout);
    return kExitOk;
  }
  if (args.ready_fd >= 0 && fcntl(args.ready_fd, F_SETFD, FD_CLOEXEC) != 0) {
    return ReportError(absl::InvalidArgumentError(
        Cat("--ready-fd: allowed is an open descriptor, not ", args.ready_fd)));
  }
  const absl::StatusOr<Config> config = args.flags.Load();
  if (!config.ok()) return ReportError(config.status());
  GroupOptions options;
  options.config = *config;
  options.ready_fd = args.ready_fd;
  if (!args.state_dir.empty()) {
    options.state_dir = std::filesystem::absolute(args.state_dir).string();
  }
  Console console = Console::Standard();
  const absl::StatusOr<int> exit_code = RunGroup(options, console);
  if (!exit_code.ok()) return ReportError(exit_code.status());
  return *exit_code;
}

}  // namespace

void AddServeCommand(CLI::App& app, Action& action) {
  auto args = std::make_shared<ServeArgs>();
  CLI::App* command = app.add_subcommand(
      "serve",
      "Serve a model: start worker processes and a coordinator, and watch over "
      "them.");
  command->footer(
      "Example:\n"
      "  moebius serve -c configs/local_cpu.yaml --workers 2 --layout tp\n"
      "SIGTERM or Ctrl-C drains: requests in flight are finished, new ones "
      "refused.\nA second one ends at once. The exit code is 0 after a clean "
      "drain, and 3 when\nrequests had to be cut at its end "
      "(--drain-timeout-ms).");
  args->flags.AddTo(*command, true);
  command
      ->add_option("--ready-fd", args->ready_fd,
                   "Writes one line of JSON (pid, directory, ports) to this "
                   "descriptor once the group serves, and closes it.")
      ->option_text("FD");
  command
      ->add_option("--state-dir", args->state_dir,
                   "Where the group's private directory is made (sockets, and "
                   "the journal unless journal.dir is set): a place that "
                   "nobody cleans. Without it: XDG_RUNTIME_DIR, TMPDIR, /tmp.")
      ->option_text("DIR");
  command->add_flag("--help-config", args->help_config,
                    "Lists every key of the configuration and exits.");
  command->callback(
      [args, &action] { action = [args] { return Serve(*args); }; });
}

}  // namespace moebius
