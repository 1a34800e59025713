# The build states the dependency law: every target belongs to the room (the
# top-level folder) that defines it, and a room may use only the rooms listed
# here. A dependency outside the list, or a name nobody defined, stops the
# configuration.
set(MOEBIUS_MAY_USE_common common)
set(MOEBIUS_MAY_USE_kernels common kernels)
set(MOEBIUS_MAY_USE_worker common kernels worker)
set(MOEBIUS_MAY_USE_coordinator common coordinator)
set(MOEBIUS_MAY_USE_deploy common deploy)
set(MOEBIUS_MAY_USE_tests common kernels worker coordinator deploy tests)

add_library(moebius_options INTERFACE)
target_include_directories(moebius_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(moebius_options INTERFACE -Wall -Wextra -Wno-missing-field-initializers)
# One multiply-add is one rounding only where the source says so: contraction
# would make results depend on how a compiler laid out a loop.
target_compile_options(moebius_options INTERFACE -ffp-contract=off)
if(MOEBIUS_SANITIZE)
  target_compile_options(moebius_options INTERFACE -fsanitize=${MOEBIUS_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  target_link_options(moebius_options INTERFACE -fsanitize=${MOEBIUS_SANITIZE})
endif()
if(MOEBIUS_ONE_INSTRUCTION_SET)
  target_compile_definitions(moebius_options INTERFACE HWY_COMPILE_ONLY_STATIC)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_options(moebius_options INTERFACE -march=haswell -maes -mpclmul)
  endif()
endif()
if(MOEBIUS_FUZZ)
  # Where fuzzers get to.
  target_compile_options(moebius_options INTERFACE
    $<$<IN_LIST:$<TARGET_PROPERTY:MOEBIUS_ROOM>,common$<SEMICOLON>worker$<SEMICOLON>coordinator>:-fsanitize=fuzzer-no-link>)
endif()

# Precompiled headers are third-party ones (common/CMakeLists.txt,
# tests/CMakeLists.txt). What ccache needs with them:
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(MOEBIUS_CCACHE_OPTIONS -fpch-preprocess)
else()
  set(MOEBIUS_CCACHE_OPTIONS "SHELL:-Xclang -fno-pch-timestamp")
endif()
find_program(MOEBIUS_CCACHE ccache)
if(MOEBIUS_CCACHE)
  # What this allows is that a macro which those do not look at may differ.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros ${MOEBIUS_CCACHE})
endif()
find_program(MOEBIUS_MOLD mold)
if(MOEBIUS_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

function(moebius_room out)
  file(RELATIVE_PATH path ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  string(REGEX REPLACE "/.*" "" room "${path}")
  if(NOT DEFINED MOEBIUS_MAY_USE_${room})
    message(FATAL_ERROR "'${room}' is not a room that may define targets")
  endif()
  set(${out} ${room} PARENT_SCOPE)
endfunction()

function(moebius_check_deps target room)
  foreach(dep IN LISTS ARGN)
    if(NOT TARGET ${dep})
      message(FATAL_ERROR "${target} (${room}/) depends on '${dep}', which nothing defines")
    endif()
    if(dep MATCHES "^moebius::")
      get_target_property(real ${dep} ALIASED_TARGET)
      get_target_property(dep_room ${real} MOEBIUS_ROOM)
      if(NOT dep_room IN_LIST MOEBIUS_MAY_USE_${room})
        message(FATAL_ERROR "${target} (${room}/) must not depend on ${dep} (${dep_room}/): the law allows ${MOEBIUS_MAY_USE_${room}}")
      endif()
    endif()
  endforeach()
endfunction()

# moebius_library(name HDRS a.h SRCS a.cc DEPS moebius::x absl::status)
# Defines moebius::name. One target a module.
function(moebius_library name)
  cmake_parse_arguments(ARG "" "" "HDRS;SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  if(ARG_SRCS)
    add_library(moebius_${name} STATIC ${ARG_SRCS} ${ARG_HDRS})
    target_link_libraries(moebius_${name} PUBLIC ${ARG_DEPS} moebius_options)
    if(TARGET moebius_headers AND NOT room STREQUAL "kernels")
      target_precompile_headers(moebius_${name} REUSE_FROM moebius_headers)
      target_compile_options(moebius_${name} PRIVATE ${MOEBIUS_CCACHE_OPTIONS})
    endif()
  else()
    add_library(moebius_${name} INTERFACE ${ARG_HDRS})
    target_link_libraries(moebius_${name} INTERFACE ${ARG_DEPS} moebius_options)
  endif()
  set_target_properties(moebius_${name} PROPERTIES MOEBIUS_ROOM ${room})
  add_library(moebius::${name} ALIAS moebius_${name})
endfunction()

# moebius_program(name SRCS main.cc DEPS ...) builds and installs bin/name.
function(moebius_program name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} moebius_options)
  # Command lines take longer to optimise than they will ever run.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# Members of the group target `tests_LABEL`, which builds all tests of a label.
function(moebius_join_groups target)
  foreach(label IN LISTS ARGN)
    if(NOT TARGET tests_${label})
      add_custom_target(tests_${label})
    endif()
    add_dependencies(tests_${label} ${target})
  endforeach()
endfunction()

# Tests take longer to optimise than they will ever run, under sanitizers at any
# level.
set(MOEBIUS_TEST_OPTIONS $<$<CONFIG:Release>:-O1> $<$<CONFIG:RelWithDebInfo>:-O0>
  ${MOEBIUS_CCACHE_OPTIONS})

# moebius_test(name SRCS x_test.cc DEPS ... [LABELS unit] [TIMEOUT seconds])
# The test also has its folder's name for a label (tests/unit/engine: engine).
function(moebius_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  list(APPEND ARG_LABELS ${folder})
  list(REMOVE_DUPLICATES ARG_LABELS)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SRCS})
  moebius_join_groups(${name} ${ARG_LABELS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main moebius_options)
  target_precompile_headers(${name} REUSE_FROM tests_headers)
  target_compile_options(${name} PRIVATE ${MOEBIUS_TEST_OPTIONS})
  get_property(extras GLOBAL PROPERTY MOEBIUS_TEST_EXTRAS)
  if(extras)
    target_link_libraries(${name} PRIVATE ${extras})
  endif()
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "MOEBIUS_SOURCE_DIR=${CMAKE_SOURCE_DIR};MOEBIUS_BINARY_DIR=${CMAKE_BINARY_DIR}")
endfunction()

# moebius_bench(name SRCS x_bench.cc DEPS ...) is a Google Benchmark program.
function(moebius_bench name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} benchmark::benchmark benchmark::benchmark_main moebius_options)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
endfunction()

# moebius_fuzzer(name SRCS x_fuzz.cc DEPS ... SEEDS dir) is a libFuzzer target,
# built only with MOEBIUS_FUZZ (clang).
function(moebius_fuzzer name)
  cmake_parse_arguments(ARG "" "SEEDS" "SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  if(NOT MOEBIUS_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} moebius_options)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
  moebius_join_groups(${name} fuzz)
  # What it finds is kept in the build folder and tried again the next time.
  set(corpus ${CMAKE_BINARY_DIR}/fuzz/corpus/${name})
  file(MAKE_DIRECTORY ${corpus})
  set(seeds)
  if(ARG_SEEDS)
    set(seeds ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_SEEDS})
  endif()
  add_test(NAME ${name} COMMAND ${name} -max_total_time=${MOEBIUS_FUZZ_SECONDS}
    -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 -verbosity=0
    -artifact_prefix=${CMAKE_BINARY_DIR}/fuzz/found- ${corpus} ${seeds})
  math(EXPR timeout "${MOEBIUS_FUZZ_SECONDS} + 120")
  set_tests_properties(${name} PROPERTIES LABELS fuzz TIMEOUT ${timeout})
endfunction()
