// A log message is one line, whatever it quotes.
#include "common/base/logging.h"

#include <string>

#include "common/base/log_line.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

class Logging : public testing::Test {
 protected:
  static void SetUpTestSuite() { StartLogging("test"); }
  void TearDown() override {
    SetLogLevel(LogLevel::kInfo);
    SetLogFormat(LogFormat::kText);
  }

  // What was written, each line without its time.
  static std::string Captured() {
    constexpr size_t kTimeBytes = sizeof "2026-11-30T17:56:12.123Z";
    const std::string text = testing::internal::GetCapturedStderr();
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const size_t end = text.find('\n', at) + 1;
      EXPECT_EQ(text.substr(at + kTimeBytes - 2, 2), "Z ");
      out += text.substr(at + kTimeBytes, end - at - kTimeBytes);
      at = end;
    }
    return out;
  }
  static std::string Logged(const std::string& quoted) {
    testing::internal::CaptureStderr();
    LogWarn("got ", quoted);
    return Captured();
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
  EXPECT_EQ(Captured(), "I b 1\nE d 2.5\n");
}

TEST_F(Logging, AJsonLineNamesTimeLevelProcessAndRequest) {
  SetLogFormat(LogFormat::kJson);
  testing::internal::CaptureStderr();
  WriteLog(LogLevel::kWarn, "a \"b\"\n\\", "req-1");
  LogInfo("c");
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find(R"({"time":"20)"), 0u) << text;
  EXPECT_NE(text.find(R"(","level":"warning","process":"test",)"
                      R"("request":"req-1","message":"a \"b\"\\n\\"})"
                      "\n"),
            text.npos)
      << text;
  EXPECT_NE(text.find(R"("level":"info","process":"test","message":"c"})"
                      "\n"),
            text.npos)
      << text;
}

TEST(LogLine, IsWholeHoweverLongTheMessage) {
  const std::string line =
      JsonLogLine({.level = "info", .message = std::string(1 << 20, '"')});
  EXPECT_LT(line.size(), kMaxLogLineBytes + 200);
  EXPECT_EQ(line.substr(line.size() - 2), "\"}");
  EXPECT_EQ(LogTime(1700000000005), "2023-11-14T22:13:20.005Z");
}

}  // namespace
}  // namespace moebius
