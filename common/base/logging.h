// How the processes of a group log: LogWarn("worker ", rank, " is lost").
//
// The library that writes stays behind this: its own calls take each file that
// has one four seconds more to compile.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/base/cat.h"
#include "common/base/log_level.h"

namespace moebius {

// A message is its time, level and text on one line of at most
// kMaxLogLineBytes (or one JSON object, log_line.h), whatever is in the text:
// messages quote clients. The bound is below what the launcher takes for one
// line, so that no part of a message can pose as a line of its own.
inline constexpr size_t kMaxLogLineBytes = 1800;

// From now on messages go to standard error in this form. Once in a process.
void StartLogging(const std::string& name);

// The least that is written.
void SetLogLevel(LogLevel least);
// Text until it is called.
void SetLogFormat(LogFormat format);

bool IsLogged(LogLevel level);
// `request`: the id of the request that it is about; "": of none.
void WriteLog(LogLevel level, std::string_view message,
              std::string_view request = "");

// Parts as Cat() takes them, put together only if they are to be written. Any
// thread.
template <typename... Parts>
void LogDebug(const Parts&... parts) {
  if (IsLogged(LogLevel::kDebug)) WriteLog(LogLevel::kDebug, Cat(parts...));
}
template <typename... Parts>
void LogInfo(const Parts&... parts) {
  if (IsLogged(LogLevel::kInfo)) WriteLog(LogLevel::kInfo, Cat(parts...));
}
template <typename... Parts>
void LogWarn(const Parts&... parts) {
  if (IsLogged(LogLevel::kWarn)) WriteLog(LogLevel::kWarn, Cat(parts...));
}
template <typename... Parts>
void LogError(const Parts&... parts) {
  if (IsLogged(LogLevel::kError)) WriteLog(LogLevel::kError, Cat(parts...));
}

}  // namespace moebius
