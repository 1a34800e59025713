// moebius completion, and moebius manual, which the build calls.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/manual.h"

namespace moebius {
namespace {

std::string Completion(const CLI::App& app, const std::string& shell) {
  if (shell == "bash") return BashCompletion(app);
  return shell == "zsh" ? ZshCompletion(app) : FishCompletion(app);
}

absl::Status Write(const std::filesystem::path& path, const std::string& text) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  std::ofstream file(path);
  file << text;
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::PermissionDeniedError(Cat("cannot write ", path.string()));
}

// As they are installed below share/.
absl::Status WriteManual(const CLI::App& app, const std::string& folder) {
  const std::filesystem::path root = folder;
  for (const CLI::App* command : ShownCommands(app)) {
    RETURN_IF_ERROR(Write(root / "man/man1" / Cat(PageName(*command), ".1"),
                          ManPage(*command)));
  }
  RETURN_IF_ERROR(
      Write(root / "bash-completion/completions/moebius", BashCompletion(app)));
  RETURN_IF_ERROR(
      Write(root / "zsh/site-functions/_moebius", ZshCompletion(app)));
  return Write(root / "fish/vendor_completions.d/moebius.fish",
               FishCompletion(app));
}

}  // namespace

void AddManualCommands(CLI::App& app, Action& action) {
  auto word = std::make_shared<std::string>();
  CLI::App* completion = app.add_subcommand(
      "completion", "Print what completes the words of `moebius` in a shell.");
  completion->footer("Example:\n  source <(moebius completion bash)");
  completion->add_option("SHELL", *word, "The shell.")
      ->option_text("bash|zsh|fish")
      ->required()
      ->check(OneOf({"bash", "zsh", "fish"}));
  completion->callback([word, &app, &action] {
    action = [word, &app] {
      std::fputs(Completion(app, *word).c_str(), stdout);
      return kExitOk;
    };
  });
  CLI::App* manual =
      app.add_subcommand("manual", "Write man pages and completions.");
  manual->group("");  // of the build, not of users
  manual->add_option("FOLDER", *word, "Where.")->required();
  RunWhenChosen(*manual, action, word, [&app](const std::string& folder) {
    return WriteManual(app, folder);
  });
}

}  // namespace moebius
