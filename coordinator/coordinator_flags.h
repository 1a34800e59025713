// The flags with which the launcher starts a program of the coordinator's room.
#pragma once

#include "CLI/CLI.hpp"
#include "common/vault/child_program.h"
#include "coordinator/coordinator_setup.h"

namespace moebius {

inline void AddCoordinatorFlags(CLI::App& app, ChildProgram& program,
                                CoordinatorOptions& options) {
  app.add_option("--config", program.config_path,
                 "effective configuration (YAML)")
      ->required();
  app.add_option("--dir", program.dir, "private directory of the group")
      ->required();
  app.add_option("--term", options.term.value,
                 "count of the group's coordinators, this one included")
      ->capture_default_str();
  app.add_option("--control-listener", options.control_listener_fd,
                 "descriptor of the socket that workers connect to");
  app.add_option("--control-keys", options.control_keys_fd,
                 "descriptor to read our keys of the control channel from");
}

}  // namespace moebius
