// How grave a message of the log is, and how it is written.
#pragma once

namespace moebius {

enum class LogFormat { kText, kJson };

// kTrace and kOff are for the least that is written (SetLogLevel): no message
// is of these levels.
enum class LogLevel { kTrace, kDebug, kInfo, kWarn, kError, kOff };

}  // namespace moebius
