// The operators of the processor.
#include "gtest/gtest.h"
#include "kernels/embed.h"
#include "kernels/experts.h"
#include "kernels/project.h"
#include "tests/backends/device_under_test.h"
#include "tests/backends/operator_rules_tests.h"
#include "tests/backends/operators_tests.h"

namespace moebius {
namespace {

INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, OperatorsTest, testing::Types<Cpu>);
INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, OperatorRulesTest, testing::Types<Cpu>);

}  // namespace
}  // namespace moebius
