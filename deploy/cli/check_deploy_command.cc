// moebius check-deploy: what is deployed with, checked by the program that
// comes along (deploy/bin/check).
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_words.h"
#include "deploy/launcher/child_process.h"

namespace moebius {
namespace {

// Returns only if the program cannot be run.
absl::Status BecomeCheck(const std::vector<std::string>& required) {
  ASSIGN_OR_RETURN(std::string program, FindProgram("moebius-check-deploy"));
  std::vector<std::string> words = {program};
  if (!required.empty()) words.push_back("--require");
  words.insert(words.end(), required.begin(), required.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(program.c_str(), argv.data());
  return ErrnoStatus(Cat("cannot run ", program));
}

}  // namespace

void AddCheckDeployCommand(CLI::App& app, Action& action) {
  auto required = std::make_shared<std::vector<std::string>>();
  CLI::App* command = app.add_subcommand(
      "check-deploy",
      "Check what Moebius is deployed with: units, scripts, manifests, chart, "
      "compose file, dashboards.");
  command->footer(
      "Needs Python 3 with yaml (Debian: python3-yaml). Uses of these tools "
      "those that this machine has, and names the others as not checked:\n"
      "  systemd-analyze   units: their keys, and what they expose\n"
      "  shellcheck        scripts\n"
      "  yamllint          every YAML file\n"
      "  kubectl           kustomizations, and what a pod must have\n"
      "  helm              the chart, and what a pod must have\n"
      "  compose           the compose file (docker compose, docker-compose)\n"
      "  docker            the Dockerfile (buildx)\n"
      "The exit code is 1 when something is wrong.");
  command
      ->add_option("--require", *required,
                   "Tools whose absence is a failure, as it is in CI.")
      ->option_text("TOOL,...")
      ->delimiter(',')
      ->check(OneOf({"systemd-analyze", "shellcheck", "yamllint", "kubectl",
                     "helm", "compose", "docker"}));
  RunWhenChosen(*command, action, required, &BecomeCheck);
}

}  // namespace moebius
