// The operators of a GPU, exact and fast.
#include "gtest/gtest.h"
#include "kernels/cuda/operators.h"
#include "tests/backends/gpu_under_test.h"
#include "tests/backends/operator_rules_tests.h"
#include "tests/backends/operators_tests.h"

namespace moebius {
namespace {

using Gpus = testing::Types<CudaExact, CudaFast>;
INSTANTIATE_TYPED_TEST_SUITE_P(Gpu, OperatorsTest, Gpus);
INSTANTIATE_TYPED_TEST_SUITE_P(Gpu, OperatorRulesTest, Gpus);

}  // namespace
}  // namespace moebius
