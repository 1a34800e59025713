# What `cmake --install` puts where, beside the programs (moebius_program):
#
#   bin/                    moebius, and moebius-group for groups on many hosts
#   libexec/moebius/        programs that those start
#   lib/moebius/            shared libraries that a bare machine lacks (component
#                           `libraries`; a .deb depends on packages instead)
#   lib/systemd/            units
#   share/moebius/          configurations, the test model, files to deploy with
#   share/doc, man, bash-completion, zsh, fish
#
# Nothing in it knows where it lies.
set(doc share/doc/moebius)

# Of the C library everything must be the machine's own, and so must the GPU's
# driver. The C++ runtime is not part of a C library: it comes along.
install(RUNTIME_DEPENDENCY_SET moebius_libraries
  PRE_EXCLUDE_REGEXES
    "^(ld-linux.*|libc|libm|libmvec|libpthread|libdl|librt|libresolv|libutil)\\.so\\."
    "^libcuda\\.so\\." "^libnvidia-.*"
  DESTINATION lib/moebius COMPONENT libraries)
# Whoever hands libraries on hands on their licences.
set(MOEBIUS_NOTICES ${doc}/libraries)
configure_file(${CMAKE_SOURCE_DIR}/cmake/library_notices.cmake.in
  ${CMAKE_BINARY_DIR}/library_notices.cmake @ONLY)
install(SCRIPT ${CMAKE_BINARY_DIR}/library_notices.cmake COMPONENT libraries)

install(DIRECTORY configs models DESTINATION share/moebius
  PATTERN "*.py" EXCLUDE PATTERN "reference.json" EXCLUDE)
install(FILES README.md ARCHITECTURE.md docs/deploy.md docs/operators.md
    docs/status.schema.json docs/openapi.json
  DESTINATION ${doc})
install(DIRECTORY docs/images DESTINATION ${doc})
install(FILES LICENSE DESTINATION ${doc} RENAME copyright)

# Man pages and completions, in the words of --help.
set(manual ${CMAKE_BINARY_DIR}/manual)
add_custom_command(OUTPUT ${manual}/man/man1/moebius.1
  COMMAND ${CMAKE_COMMAND} -E rm -rf ${manual}
  COMMAND moebius manual ${manual} DEPENDS moebius VERBATIM)
add_custom_target(manual ALL DEPENDS ${manual}/man/man1/moebius.1)
install(DIRECTORY ${manual}/ DESTINATION share)

install(FILES deploy/systemd/moebius@.service DESTINATION lib/systemd/system)
install(FILES deploy/systemd/moebius-user@.service DESTINATION lib/systemd/user)

install(PROGRAMS deploy/bin/moebius-group DESTINATION bin)
install(PROGRAMS deploy/fleet/moebius-host DESTINATION libexec/moebius)
install(PROGRAMS deploy/bin/check DESTINATION libexec/moebius
  RENAME moebius-check-deploy)
install(DIRECTORY deploy/fleet DESTINATION share/moebius FILES_MATCHING PATTERN "*.py")
install(DIRECTORY deploy/balancers deploy/monitoring
    deploy/containers deploy/kubernetes deploy/helm deploy/slurm
  DESTINATION share/moebius/deploy)

# All that is installed.
add_custom_target(packaged)
add_dependencies(packaged manual moebius moebius-coordinator moebius-worker
  moebius-engine-bench moebius-step-bench)
