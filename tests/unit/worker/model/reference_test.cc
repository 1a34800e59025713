// On the processor, in every layout and group size, prompts prefilled in chunks
// of many sizes.
#include "gtest/gtest.h"
#include "tests/unit/worker/model/reference_tests.h"

namespace moebius {
namespace {

INSTANTIATE_TEST_SUITE_P(
    Layouts, ReferenceTest,
    testing::Values(
        ReferenceCase{1, false, {600}}, ReferenceCase{1, false, {1, 7, 64, 33}},
        ReferenceCase{2, false, {100, 3}}, ReferenceCase{2, true, {17, 200}},
        ReferenceCase{4, false, {50}}, ReferenceCase{4, true, {128, 5}},
        ReferenceCase{8, false, {300, 16}}, ReferenceCase{8, true, {15, 90}}),
    NameOf);

}  // namespace
}  // namespace moebius
