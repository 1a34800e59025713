#include "deploy/launcher/console.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/base/cat.h"
#include "common/base/log_line.h"
#include "common/base/printable.h"

namespace moebius {
namespace {

// True if a write of up to PIPE_BUF bytes will not block.
bool HasRoom(int fd) {
  pollfd entry = {fd, POLLOUT, 0};
  int rc;
  do {
    rc = poll(&entry, 1, 0);
  } while (rc < 0 && errno == EINTR);
  return rc == 1 && (entry.revents & (POLLERR | POLLNVAL)) == 0;
}

// False when it was lost. Writes no more than PIPE_BUF at once, each time only
// where there is room.
bool WriteAll(int fd, std::string_view text) {
  constexpr size_t kPieceBytes = 4096;
  while (!text.empty()) {
    if (!HasRoom(fd)) return false;
    const ssize_t n =
        write(fd, text.data(), std::min(text.size(), kPieceBytes));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

}  // namespace

std::vector<std::string> LineSplitter::Add(std::string_view bytes) {
  std::vector<std::string> lines;
  while (!bytes.empty()) {
    const size_t room = kMaxLineBytes - partial_.size();
    const size_t end = bytes.substr(0, room).find('\n');
    if (end != std::string_view::npos) {
      partial_.append(bytes.substr(0, end));
      lines.push_back(Flush());
      bytes.remove_prefix(end + 1);
      continue;
    }
    const size_t taken = std::min(room, bytes.size());
    partial_.append(bytes.substr(0, taken));
    bytes.remove_prefix(taken);
    if (partial_.size() == kMaxLineBytes) lines.push_back(Flush());
  }
  return lines;
}

std::string LineSplitter::Flush() { return std::exchange(partial_, ""); }

std::string HumanBytes(uint64_t bytes) {
  if (bytes < 1000) return Cat(bytes, " B");
  double value = static_cast<double>(bytes);
  std::string_view units = "kMGTPE";
  size_t unit = 0;
  value /= 1000;
  while (value >= 999.5 && unit + 1 < units.size()) {
    value /= 1000;
    ++unit;
  }
  const int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return absl::StrFormat("%.*f %cB", decimals, value, units[unit]);
}

std::string ProgressBar(uint64_t done, uint64_t total, int width) {
  const double share = total == 0
                           ? 0.0
                           : std::min(1.0, static_cast<double>(done) /
                                               static_cast<double>(total));
  const int filled = static_cast<int>(share * width);
  return absl::StrFormat("[%s%s] %3d %%", std::string(filled, '#'),
                         std::string(width - filled, ' '),
                         static_cast<int>(share * 100));
}

Console Console::Standard() {
  return Console(STDOUT_FILENO, STDERR_FILENO, isatty(STDERR_FILENO) == 1);
}

void Console::Err(std::string_view line) {
  if (!json_ || line.starts_with('{')) return Write(err_fd_, err_lost_, line);
  const LogLine json = {.unix_ms = absl::ToUnixMillis(absl::Now()),
                        .level = "info",
                        .process = "launcher",
                        .message = line};
  Write(err_fd_, err_lost_, JsonLogLine(json));
}

void Console::Write(int fd, int& lost, std::string_view line) {
  EraseBar();
  if (lost > 0) {
    if (!WriteAll(fd, Cat("(", lost, " lines lost: nobody read them)\n"))) {
      ++lost;
      return;
    }
    lost = 0;
  }
  if (!WriteAll(fd, Cat(Printable(line), "\n"))) ++lost;
}

void Console::EraseBar() {
  if (shown_bar_.empty()) return;
  WriteAll(err_fd_, "\r\x1b[K");
  shown_bar_.clear();
}

void Console::Progress(std::string_view what, uint64_t done, uint64_t total) {
  if (total == 0) return;
  done = std::min(done, total);
  if (bar_) {
    const std::string bar = Cat(what, " ", ProgressBar(done, total, 30), "  ",
                                HumanBytes(done), " of ", HumanBytes(total));
    if (bar == shown_bar_) return;
    WriteAll(err_fd_, Cat("\r", bar, "\x1b[K"));
    shown_bar_ = bar;
    return;
  }
  const int tenth = static_cast<int>(static_cast<double>(done) * 10.0 /
                                     static_cast<double>(total));
  if (tenth <= shown_tenth_) return;
  shown_tenth_ = tenth;
  Err(Cat(what, ": ", tenth * 10, " % (", HumanBytes(done), " of ",
          HumanBytes(total), ")"));
}

void Console::EndProgress() {
  EraseBar();
  shown_tenth_ = 0;
}

}  // namespace moebius
