// Connections where descriptors are few.
#include "coordinator/http/connection_budget.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

constexpr ConnectionBudget kWanted = {8192, 256};

TEST(ConnectionBudget, TooFewDescriptorsAreRefusedWithTheFigures) {
  EXPECT_THAT(ShareDescriptors(61, 20, kWanted),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       "only 61 file descriptors are allowed, 20 of them are "
                       "in use; allow at least 62 (ulimit -n, LimitNOFILE=)"));
  // Below what is open already.
  EXPECT_FALSE(ShareDescriptors(10, 20, kWanted).ok());
}

TEST(ConnectionBudget, FewAreSharedOut) {
  const struct {
    int limit;
    ConnectionBudget budget;
  } kTable[] = {
      {62, {8, 2}},
      {64, {10, 2}},
      {256, {179, 25}},
      {1024, {851, 121}},
      {4096, {3788, 256}},  // admin has what it wants
      {20 + 32 + 8192 + 256 - 1, {8191, 256}},
      {20 + 32 + 8192 + 256, kWanted},
      {1 << 20, kWanted},
  };
  for (const auto& row : kTable) {
    const auto budget = ShareDescriptors(row.limit, 20, kWanted);
    ASSERT_THAT(budget, IsOk()) << row.limit;
    EXPECT_EQ(budget->api, row.budget.api) << row.limit;
    EXPECT_EQ(budget->admin, row.budget.admin) << row.limit;
    EXPECT_LE(budget->api + budget->admin + 20 + kSpareDescriptors, row.limit);
  }
  EXPECT_EQ(DescriptorsFor(20, kWanted), 20 + 32 + 8192 + 256);
}

TEST(ConnectionBudget, WhoWantsLessThanTheFewestGetsIt) {
  const auto budget = ShareDescriptors(56, 20, {2, 256});
  ASSERT_THAT(budget, IsOk());
  EXPECT_EQ(budget->api, 2);
}

}  // namespace
}  // namespace moebius
