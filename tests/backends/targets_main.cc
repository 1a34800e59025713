// Runs the tests on one of the instruction sets the operators are compiled
// for: MOEBIUS_TARGET=AVX3, AVX2, SCALAR, NEON; without it on the best one.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"
#include "hwy/targets.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const char* wanted = std::getenv("MOEBIUS_TARGET")) {
    int64_t chosen = 0;
    for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_NEON, HWY_SCALAR}) {
      if (std::string(wanted) == hwy::TargetName(target)) chosen = target;
    }
    if (chosen == 0) {
      std::fprintf(stderr, "no target is named %s\n", wanted);
      return 1;
    }
    if ((hwy::SupportedTargets() & chosen) == 0) {
      std::printf("this machine has no %s: nothing to test\n", wanted);
      return 77;  // skipped, to CTest
    }
    hwy::SetSupportedTargetsForTest(chosen);
  }
  return RUN_ALL_TESTS();
}
