#include "common/base/log_line.h"

#include <cstdio>
#include <ctime>

#include "common/base/printable.h"

namespace moebius {
namespace {

// Half of what a message may have as text: each byte may need an escape.
constexpr size_t kMaxMessageBytes = 900;
constexpr size_t kMaxWordBytes = 128;

void AppendQuoted(std::string_view text, size_t max_bytes, std::string* out) {
  *out += '"';
  for (const char c : Printable(text, max_bytes)) {
    if (c == '"' || c == '\\') *out += '\\';
    *out += c;
  }
  *out += '"';
}

}  // namespace

std::string LogTime(int64_t unix_ms) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const size_t size = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + size, sizeof text - size, ".%03dZ",
                static_cast<int>(unix_ms % 1000));
  return text;
}

std::string JsonLogLine(const LogLine& line) {
  std::string out = R"({"time":")" + LogTime(line.unix_ms) + R"(","level":)";
  AppendQuoted(line.level, kMaxWordBytes, &out);
  out += R"(,"process":)";
  AppendQuoted(line.process, kMaxWordBytes, &out);
  if (!line.request.empty()) {
    out += R"(,"request":)";
    AppendQuoted(line.request, kMaxWordBytes, &out);
  }
  out += R"(,"message":)";
  AppendQuoted(line.message, kMaxMessageBytes, &out);
  out += '}';
  return out;
}

}  // namespace moebius
