#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <memory>

#include "common/base/log_line.h"
#include "common/base/logging.h"
#include "common/base/printable.h"

namespace moebius {
namespace {

class PrintableText final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const std::string text = Printable(
        {message.payload.data(), message.payload.size()}, kMaxLogLineBytes);
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<PrintableText>();
  }
};

// Of the message that this thread writes.
thread_local std::string_view request_of_message;

class JsonText final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const spdlog::string_view_t level =
        spdlog::level::to_string_view(message.level);
    const std::string line =
        JsonLogLine({std::chrono::duration_cast<std::chrono::milliseconds>(
                         message.time.time_since_epoch())
                         .count(),
                     {level.data(), level.size()},
                     {message.logger_name.data(), message.logger_name.size()},
                     request_of_message,
                     {message.payload.data(), message.payload.size()}});
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<JsonText>();
  }
};

std::unique_ptr<spdlog::formatter> FormatterOf(LogFormat format) {
  auto formatter = std::make_unique<spdlog::pattern_formatter>(
      spdlog::pattern_time_type::utc);
  if (format == LogFormat::kJson) {
    formatter->add_flag<JsonText>('*').set_pattern("%*");
  } else {
    formatter->add_flag<PrintableText>('*').set_pattern(
        "%Y-%m-%dT%H:%M:%S.%eZ %L %*");
  }
  return formatter;
}

spdlog::level::level_enum LevelOf(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace:
      return spdlog::level::trace;
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

}  // namespace

void StartLogging(const std::string& name) {
  spdlog::set_default_logger(spdlog::stderr_color_mt(name));
  SetLogFormat(LogFormat::kText);
}

void SetLogFormat(LogFormat format) {
  spdlog::set_formatter(FormatterOf(format));
}

void SetLogLevel(LogLevel least) { spdlog::set_level(LevelOf(least)); }

bool IsLogged(LogLevel level) {
  return spdlog::default_logger_raw()->should_log(LevelOf(level));
}

void WriteLog(LogLevel level, std::string_view message,
              std::string_view request) {
  request_of_message = request;
  spdlog::default_logger_raw()->log(
      LevelOf(level), spdlog::string_view_t(message.data(), message.size()));
  request_of_message = {};
}

}  // namespace moebius
