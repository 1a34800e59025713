// moebius: one program to start, watch, switch and measure a group.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <sstream>
#include <string>

#include "CLI/CLI.hpp"
#include "common/base/cat.h"
#include "common/base/printable.h"
#include "common/base/version.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_words.h"

namespace moebius {

int ReportError(const absl::Status& status) {
  // May quote a server, or a file.
  std::fprintf(stderr, "moebius: %s\n",
               PrintableLines(StdView(status.message())).c_str());
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status)
             ? kExitUsage
             : kExitFailed;
}

namespace {

// A program that is started without one of these would take the next socket or
// file for it.
void OpenStandardDescriptors() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) < 0) {
      [[maybe_unused]] const int opened = open("/dev/null", O_RDWR);
    }
  }
}

// Help that fits a terminal of 80 columns.
class WrappedHelp : public CLI::Formatter {
 public:
  WrappedHelp() { column_width(kNameColumns); }
  std::string make_option_desc(const CLI::Option* option) const override {
    return Wrapped(CLI::Formatter::make_option_desc(option));
  }
  std::string make_description(const CLI::App* command) const override {
    return WrapLines(CLI::Formatter::make_description(command));
  }
  std::string make_footer(const CLI::App* command) const override {
    return WrapLines(CLI::Formatter::make_footer(command));
  }
  std::string make_subcommand(const CLI::App* command) const override {
    std::stringstream out;
    CLI::detail::format_help(out, command->get_name(),
                             Wrapped(command->get_description()), kNameColumns);
    return out.str();
  }

 private:
  static constexpr size_t kNameColumns = 30;
  static constexpr size_t kAllColumns = 80;
  static constexpr size_t kTextColumns = kAllColumns - kNameColumns;

  // Line by line: what is short enough stays as it is, with its indentation.
  static std::string WrapLines(const std::string& text) {
    std::istringstream lines(text);
    std::string wrapped;
    for (std::string line; std::getline(lines, line);) {
      wrapped += line.size() <= kAllColumns ? line : Wrapped(line, kAllColumns);
      wrapped += '\n';
    }
    return wrapped;
  }

  static std::string Wrapped(const std::string& text,
                             size_t columns = kTextColumns) {
    std::istringstream words(text);
    std::string wrapped;
    size_t column = 0;
    for (std::string word; words >> word;) {
      if (column > 0 && column + 1 + word.size() > columns) {
        wrapped += '\n';
        column = 0;
      } else if (column > 0) {
        wrapped += ' ';
        ++column;
      }
      wrapped += word;
      column += word.size();
    }
    return wrapped;
  }
};

int Main(int argc, char** argv) {
  OpenStandardDescriptors();
  signal(SIGPIPE, SIG_IGN);
  CLI::App app(
      "Moebius serves Mixture-of-Experts models and switches between expert "
      "and tensor parallelism while it serves.",
      "moebius");
  app.require_subcommand(1);
  app.set_version_flag("--version", Cat("moebius ", kVersion));
  app.formatter(std::make_shared<WrappedHelp>());
  app.footer("`moebius COMMAND --help` explains a command.");
  Action action;
  AddServeCommand(app, action);
  AddStatusCommand(app, action);
  AddLayoutCommand(app, action);
  AddDrainCommands(app, action);
  AddBenchCommand(app, action);
  AddChaosCommand(app, action);
  AddDemoCommand(app, action);
  AddJournalCommand(app, action);
  AddCheckDeployCommand(app, action);
  AddManualCommands(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // Help and the version are "errors" with code 0.
    if (e.get_exit_code() == 0) return app.exit(e);
    // What was not understood may well be called a missing something else.
    const std::string unknown = UnknownWord(app, {argv + 1, argv + argc});
    if (unknown.empty()) {
      app.exit(e);
    } else {
      std::fprintf(stderr,
                   "moebius: %s\nRun with --help for more information.\n",
                   unknown.c_str());
    }
    return kExitUsage;
  }
  return action();
}

}  // namespace
}  // namespace moebius

int main(int argc, char** argv) { return moebius::Main(argc, argv); }
