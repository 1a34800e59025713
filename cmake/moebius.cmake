# The build states the dependency law (cmake/dependency_law.txt): every target
# belongs to the room that its folder lies in, and a room may use only the rooms
# that its line names. A dependency outside them, or a name nobody defined,
# stops the configuration.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  ${CMAKE_SOURCE_DIR}/cmake/dependency_law.txt)
file(STRINGS ${CMAKE_SOURCE_DIR}/cmake/dependency_law.txt lines REGEX "^room ")
set(MOEBIUS_ROOMS)
foreach(line IN LISTS lines)
  string(REGEX MATCH "^room ([^:]+): (.+)$" matched "${line}")
  list(APPEND MOEBIUS_ROOMS ${CMAKE_MATCH_1})
  string(REPLACE " " ";" MOEBIUS_MAY_USE_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
endforeach()

add_library(moebius_options INTERFACE)
target_include_directories(moebius_options INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(moebius_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall$<SEMICOLON>-Wextra$<SEMICOLON>-Wno-missing-field-initializers>)
# One multiply-add is one rounding only where the source says so: contraction
# would make results depend on how a compiler laid out a loop.
target_compile_options(moebius_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false$<SEMICOLON>-Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-ffp-contract=off$<SEMICOLON>--expt-relaxed-constexpr$<SEMICOLON>-diag-suppress=554,20012,20013,20014,20015>)
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
    $<$<IN_LIST:$<TARGET_PROPERTY:MOEBIUS_TOP>,common$<SEMICOLON>worker$<SEMICOLON>coordinator>:-fsanitize=fuzzer-no-link>)
endif()

# Precompiled headers are third-party ones (common/CMakeLists.txt,
# tests/CMakeLists.txt). What ccache needs with them:
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(MOEBIUS_CCACHE_OPTIONS $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
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

# Whether `path` is `folder` or lies below it.
function(moebius_lies_below out path folder)
  string(FIND "${path}/" "${folder}/" at)
  if(at EQUAL 0)
    set(${out} TRUE PARENT_SCOPE)
  else()
    set(${out} FALSE PARENT_SCOPE)
  endif()
endfunction()

# The longest room that the current folder lies below.
function(moebius_room out)
  file(RELATIVE_PATH path ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  set(found "")
  foreach(room IN LISTS MOEBIUS_ROOMS)
    moebius_lies_below(below ${path} ${room})
    string(LENGTH "${found}" longest)
    string(LENGTH "${room}" length)
    if(below AND length GREATER longest)
      set(found ${room})
    endif()
  endforeach()
  if(NOT found)
    message(FATAL_ERROR "'${path}' is in no room that may define targets")
  endif()
  set(${out} ${found} PARENT_SCOPE)
endfunction()

# Checked when every folder has been read, so that their order means nothing.
function(moebius_check_deps target room)
  list(JOIN ARGN "]] [[" deps)
  cmake_language(EVAL CODE "cmake_language(DEFER DIRECTORY [[${CMAKE_SOURCE_DIR}]]
    CALL moebius_check_deps_now [[${target}]] [[${room}]] [[${deps}]])")
endfunction()

function(moebius_check_deps_now target room)
  list(REMOVE_ITEM ARGN "")
  foreach(dep IN LISTS ARGN)
    if(NOT TARGET ${dep})
      message(FATAL_ERROR "${target} (${room}/) depends on '${dep}', which nothing defines")
    endif()
    if(NOT dep MATCHES "^moebius::")
      continue()
    endif()
    get_target_property(real ${dep} ALIASED_TARGET)
    get_target_property(folder ${real} MOEBIUS_FOLDER)
    set(allowed FALSE)
    foreach(used IN LISTS MOEBIUS_MAY_USE_${room})
      moebius_lies_below(below ${folder} ${used})
      if(below)
        set(allowed TRUE)
      endif()
    endforeach()
    if(NOT allowed)
      message(FATAL_ERROR "${target} (${room}/) must not depend on ${dep} (${folder}/): the law allows ${MOEBIUS_MAY_USE_${room}}")
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
    if(TARGET moebius_headers AND NOT room MATCHES "^kernels")
      target_precompile_headers(moebius_${name} REUSE_FROM moebius_headers)
      target_compile_options(moebius_${name} PRIVATE ${MOEBIUS_CCACHE_OPTIONS})
    endif()
  else()
    add_library(moebius_${name} INTERFACE ${ARG_HDRS})
    target_link_libraries(moebius_${name} INTERFACE ${ARG_DEPS} moebius_options)
  endif()
  file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR})
  string(REGEX REPLACE "/.*" "" top ${folder})
  set_target_properties(moebius_${name} PROPERTIES
    MOEBIUS_FOLDER ${folder} MOEBIUS_TOP ${top})
  add_library(moebius::${name} ALIAS moebius_${name})
endfunction()

# moebius_program(name [CHILD] SRCS main.cc DEPS ...) builds a program. It is
# installed into bin, one that other programs start (CHILD) into libexec/moebius.
function(moebius_program name)
  cmake_parse_arguments(ARG "CHILD" "" "SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} moebius_options)
  # Command lines take longer to optimise than they will ever run.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  set(folder bin)
  if(ARG_CHILD)
    set(folder libexec/moebius)
    set_target_properties(${name} PROPERTIES
      INSTALL_RPATH "$ORIGIN/../../lib/moebius")
  endif()
  install(TARGETS ${name} RUNTIME_DEPENDENCY_SET moebius_libraries
    RUNTIME DESTINATION ${folder})
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
# The test also has its folder's name for a label (.../coordinator/engine: engine).
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

# moebius_gpu_test(name SRCS x_gpu_test.cc DEPS ...) is a test that needs a GPU:
# built with everything else, installed, and run by scripts/gpu/check on a
# machine that has one; ctest does not know it.
function(moebius_gpu_test name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  add_executable(${name} ${ARG_SRCS})
  moebius_join_groups(${name} gpu)
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main moebius_options)
  target_precompile_headers(${name} REUSE_FROM tests_headers)
  target_compile_options(${name} PRIVATE ${MOEBIUS_TEST_OPTIONS})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/gpu)
  install(TARGETS ${name} RUNTIME DESTINATION gpu COMPONENT gpu EXCLUDE_FROM_ALL)
endfunction()

# moebius_bench(name SRCS x_bench.cc DEPS ...) is a Google Benchmark program. One
# named ..._gpu_bench goes where moebius_gpu_test's do.
function(moebius_bench name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  moebius_room(room)
  moebius_check_deps(${name} ${room} ${ARG_DEPS})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} benchmark::benchmark benchmark::benchmark_main moebius_options)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
  if(name MATCHES "_gpu_bench$")
    moebius_join_groups(${name} gpu)
    install(TARGETS ${name} RUNTIME DESTINATION gpu COMPONENT gpu EXCLUDE_FROM_ALL)
  endif()
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
