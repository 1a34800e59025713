#include "coordinator/api/text_keeper.h"

#include <string>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(TextKeeper, AnotherSnapshotOrADrainIsSaidAtOnce) {
  TextKeeper keeper;
  EngineStatus status;
  int made = 0;
  const auto make = [&] { return std::to_string(++made); };
  EXPECT_EQ(keeper.Get(status, make), "1");
  status.version = 1;
  EXPECT_EQ(keeper.Get(status, make), "2");
  status.draining = true;
  EXPECT_EQ(keeper.Get(status, make), "3");
  status.version = 0;
  EXPECT_EQ(keeper.Get(status, make), "4");
}

TEST(TextKeeper, ATextOfTheSameSnapshotIsMadeAnewWhenItIsOld) {
  TextKeeper keeper;
  const EngineStatus status;
  int made = 0;
  const auto make = [&] { return std::to_string(++made); };
  int asked = 0;
  while (made < 3) {
    ++asked;
    const std::string text = keeper.Get(status, make);
    ASSERT_EQ(text, std::to_string(made));
  }
  EXPECT_GT(asked, made);
}

}  // namespace
}  // namespace moebius
