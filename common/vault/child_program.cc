#include "common/vault/child_program.h"

#include <csignal>
#include <memory>

#include "absl/time/time.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/config_yaml.h"
#include "common/faults/fault_table.h"

namespace moebius {
namespace {

constexpr absl::Duration kVaultTimeout = absl::Seconds(10);

absl::Status LoadAndRun(
    const ChildProgram& program, VaultClient& vault,
    const std::function<absl::Status(const Config&, VaultClient&)>& body) {
  auto config = LoadConfigYaml(program.config_path);
  if (!config.ok()) return config.status();
  SetLogLevel(config->log.level);
  SetLogFormat(config->log.format);
  std::unique_ptr<FaultTable> faults;
  std::unique_ptr<TableFaultHandler> handler;
  if (config->faults.enabled) {
    ASSIGN_OR_RETURN(faults, FaultTable::Open(program.dir));
    handler = std::make_unique<TableFaultHandler>(faults.get(), program.rank);
    SetFaultHandler(handler.get());
  }
  const absl::Status status = body(*config, vault);
  SetFaultHandler(nullptr);
  return status;
}

}  // namespace

int RunChildProgram(
    const ChildProgram& program,
    const std::function<absl::Status(const Config&, VaultClient&)>& body) {
  for (int signal : {SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) {
    std::signal(signal, SIG_IGN);
  }
  StartLogging(program.name);
  auto vault = VaultClient::Connect(program.dir, program.rank, kVaultTimeout);
  if (!vault.ok()) {
    LogError(vault.status().ToString());
    return 1;
  }
  const absl::Status status = LoadAndRun(program, **vault, body);
  if (status.ok()) return 0;
  LogError(status.ToString());
  (*vault)->Failed(status).IgnoreError();
  return 1;
}

}  // namespace moebius
