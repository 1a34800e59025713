// One line of a log as JSON. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moebius {

// "2026-11-30T17:56:12.123Z", of milliseconds since 1970.
std::string LogTime(int64_t unix_ms);

struct LogLine {
  int64_t unix_ms = 0;
  std::string_view level;    // "info"
  std::string_view process;  // "worker 0"
  std::string_view request;  // its id; empty: the line is of none
  std::string_view message;
};

// {"time", "level", "process", "request" if there is one, "message"}, without
// an end of line. Control characters and bytes that are no UTF-8 are written
// as Printable() does, and what is too long for a line of the launcher's is
// cut, so that the object stays whole.
std::string JsonLogLine(const LogLine& line);

}  // namespace moebius
