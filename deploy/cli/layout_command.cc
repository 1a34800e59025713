// moebius layout: switches a running group by hand.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/cli/client_key.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

struct LayoutArgs {
  std::string layout;
  std::string admin = kDefaultAdminUrl;
  ClientKey key{kAdminKeyVariable};
  double timeout_s = 60;
};

absl::Status Switch(const LayoutArgs& args) {
  ASSIGN_OR_RETURN(Url admin, ParseUrl(args.admin));
  ASSIGN_OR_RETURN(admin, args.key.With(std::move(admin)));
  EventLoop loop;
  ASSIGN_OR_RETURN(
      const SwitchFigures figures,
      RequestLayout(loop, admin, args.layout, absl::Seconds(args.timeout_s)));
  if (args.layout == "auto") {
    std::printf("The load decides on the layout from now on.\n");
    return absl::OkStatus();
  }
  if (!figures.done) {
    std::printf("The layout is %s already.\n", args.layout.c_str());
    return absl::OkStatus();
  }
  std::printf("Switched from %s to %s.\n", figures.from.c_str(),
              figures.to.c_str());
  std::fputs(
      FormatTable(
          {"", "bytes", "ms"},
          {{"weights", HumanBytes(figures.weight_bytes),
            ShortNumber(figures.weight_ms)},
           {"KV", HumanBytes(figures.kv_bytes), ShortNumber(figures.kv_ms)},
           {"both", HumanBytes(figures.weight_bytes + figures.kv_bytes),
            ShortNumber(figures.switch_ms)},
           {"prepare", "", ShortNumber(figures.prepare_ms)},
           {"pause", "", ShortNumber(figures.pause_ms)}})
          .c_str(),
      stdout);
  return absl::OkStatus();
}

}  // namespace

void AddLayoutCommand(CLI::App& app, Action& action) {
  auto args = std::make_shared<LayoutArgs>();
  CLI::App* command = app.add_subcommand(
      "layout",
      "Switch a running group between expert (ep) and tensor (tp) parallelism, "
      "or to a layout between them (tpN: tensor parallelism in groups of N "
      "workers, expert parallelism among the groups), or let the load decide "
      "(auto).");
  command->footer(
      "Requests in flight go on. Answers when the switch has ended. The exit "
      "code is 1 when it was refused.");
  command
      ->add_option("layout", args->layout,
                   "expert parallel, tensor parallel, in groups of N workers, "
                   "or by load; a wrong one is refused with those there are")
      ->option_text("ep|tp|tpN|auto")
      ->required()
      ->check(LayoutWord(/*also_auto=*/true));
  command
      ->add_option("--admin", args->admin,
                   Cat("Where the group's admin listener is [default ",
                       kDefaultAdminUrl, "]"))
      ->option_text("URL");
  args->key.AddTo(*command, "--api-key-file", "the admin listener");
  command
      ->add_option("--timeout", args->timeout_s,
                   "Seconds to wait for the end of the switch [default 60]")
      ->option_text("S")
      ->check(CLI::Range(0.1, 3600.0));
  RunWhenChosen(*command, action, args, &Switch);
}

}  // namespace moebius
