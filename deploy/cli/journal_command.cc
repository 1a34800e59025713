// moebius journal: a journal looked at and mended by hand. The coordinator's
// program knows what one is, so it does the work.
#include <unistd.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "deploy/cli/command.h"
#include "deploy/launcher/child_process.h"

namespace moebius {
namespace {

// Returns only if the program cannot be run.
int BecomeCoordinator(const char* action, const std::string& dir) {
  const absl::StatusOr<std::string> program =
      FindProgram("moebius-coordinator");
  if (!program.ok()) return ReportError(program.status());
  execl(program->c_str(), program->c_str(), "journal", action, dir.c_str(),
        nullptr);
  return ReportError(ErrnoStatus(Cat("cannot run ", *program)));
}

void AddAction(CLI::App& command, const char* name, const char* description,
               Action& action) {
  auto dir = std::make_shared<std::string>();
  CLI::App* sub = command.add_subcommand(name, description);
  sub->add_option("DIR", *dir, "Directory of the journal (key journal.dir).")
      ->required();
  sub->callback([dir, name, &action] {
    action = [dir, name] { return BecomeCoordinator(name, *dir); };
  });
}

}  // namespace

void AddJournalCommand(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand(
      "journal", "Looks at a journal (journal.dir), and mends a damaged one.");
  command->require_subcommand(1);
  AddAction(*command, "check",
            "Says what is in it and where it is damaged. Changes nothing. The "
            "exit code is 1 if it is damaged.",
            action);
  AddAction(*command, "repair",
            "Keeps what is whole of a damaged one and moves the damaged file "
            "aside. Refused while a coordinator has it. Deletes nothing.",
            action);
}

}  // namespace moebius
