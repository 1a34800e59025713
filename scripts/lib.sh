# Shell functions that the scripts share. Sourced, not run.

# Builds targets of a preset: build_preset release moebius moebius-worker ...
# Without targets, all of them.
build_preset() {
  local preset=$1
  shift
  # Configuring again is what notices new files in CMakeLists; it costs a
  # second where nothing has changed.
  cmake --preset "$preset" > "build/$preset.configure.log" 2>&1 || {
    cat "build/$preset.configure.log" >&2
    return 1
  }
  if [ "$#" -gt 0 ]; then
    cmake --build "build/$preset" --target "$@"
  else
    cmake --build "build/$preset"
  fi
}

programs=(moebius moebius-coordinator moebius-worker moebius-engine-bench moebius-step-bench)
