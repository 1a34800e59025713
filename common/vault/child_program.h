// What the programs that the launcher starts have in common: their log, their
// line to the launcher, their configuration, and how they say that they failed.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/config/config.h"
#include "common/vault/vault_client.h"

namespace moebius {

struct ChildProgram {
  std::string name;         // of the logger
  std::string dir;          // the group's private directory
  std::string config_path;  // effective configuration
  Rank rank = 0;            // kCoordinatorRank for the coordinator
};

// Ignores SIGINT and SIGHUP (a terminal's reach everybody; the launcher decides
// what they mean), SIGUSR1 and SIGUSR2 (of programs that rotate logs), connects
// to the launcher, loads the configuration and runs `body`. An error is logged
// and told to the launcher. Returns the exit code of the program.
int RunChildProgram(
    const ChildProgram& program,
    const std::function<absl::Status(const Config&, VaultClient&)>& body);

}  // namespace moebius
