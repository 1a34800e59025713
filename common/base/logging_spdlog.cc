#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>

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

std::unique_ptr<spdlog::formatter> OneLineFormatter() {
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<PrintableText>('*').set_pattern("%L %*");
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
  spdlog::set_formatter(OneLineFormatter());
}

void SetLogLevel(LogLevel least) { spdlog::set_level(LevelOf(least)); }

bool IsLogged(LogLevel level) {
  return spdlog::default_logger_raw()->should_log(LevelOf(level));
}

void WriteLog(LogLevel level, std::string_view message) {
  spdlog::default_logger_raw()->log(
      LevelOf(level), spdlog::string_view_t(message.data(), message.size()));
}

}  // namespace moebius
