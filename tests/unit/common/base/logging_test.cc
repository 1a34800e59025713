// A log message is one line, whatever it quotes.
#include "common/base/logging.h"

#include <string>

#include "gtest/gtest.h"

namespace moebius {
namespace {

class Logging : public testing::Test {
 protected:
  static void SetUpTestSuite() { StartLogging("test"); }
  void TearDown() override { SetLogLevel(LogLevel::kInfo); }

  static std::string Logged(const std::string& quoted) {
    testing::internal::CaptureStderr();
    LogWarn("got ", quoted);
    return testing::internal::GetCapturedStderr();
  }
};

TEST_F(Logging, WhatAClientSaidCannotForgeALine) {
  EXPECT_EQ(Logged("x\nE the group cannot go on\x1b[2J"),
            "W got x\\nE the group cannot go on\\x1b[2J\n");
}

TEST_F(Logging, AMessageIsNoLongerThanWhatTheLauncherTakesForALine) {
  const std::string line = Logged(std::string(1 << 20, 'x'));
  EXPECT_EQ(line.size(), kMaxLogLineBytes + std::string("W ...\n").size());
}

TEST_F(Logging, BracesAreTextLikeAnyOther) {
  EXPECT_EQ(Logged("{} {0:x} {"), "W got {} {0:x} {\n");
}

TEST_F(Logging, WhatIsBelowTheLevelIsNotWritten) {
  testing::internal::CaptureStderr();
  LogDebug("a");
  LogInfo("b ", 1);
  SetLogLevel(LogLevel::kError);
  LogWarn("c");
  LogError("d ", 2.5);
  SetLogLevel(LogLevel::kOff);
  LogError("e");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "I b 1\nE d 2.5\n");
}

}  // namespace
}  // namespace moebius
