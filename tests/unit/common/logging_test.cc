// A log message is one line, whatever it quotes.
#include "common/logging.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/ostream_sink.h>

#include <memory>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace moebius {
namespace {

std::string Logged(const std::string& quoted) {
  std::ostringstream out;
  spdlog::logger logger("test",
                        std::make_shared<spdlog::sinks::ostream_sink_st>(out));
  logger.set_formatter(OneLineFormatter());
  logger.warn("got {}", quoted);
  return out.str();
}

TEST(Logging, WhatAClientSaidCannotForgeALine) {
  EXPECT_EQ(Logged("x\nE the group cannot go on\x1b[2J"),
            "W got x\\nE the group cannot go on\\x1b[2J\n");
}

TEST(Logging, AMessageIsNoLongerThanWhatTheLauncherTakesForALine) {
  const std::string line = Logged(std::string(1 << 20, 'x'));
  EXPECT_EQ(line.size(), kMaxLogLineBytes + std::string("W ...\n").size());
}

}  // namespace
}  // namespace moebius
