// What the launcher shows: its own lines, its children's lines with a prefix,
// and how far loading is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moebius {

// Cuts a stream of bytes into lines. A line over kMaxLineBytes comes in pieces.
class LineSplitter {
 public:
  static constexpr size_t kMaxLineBytes = 2048;

  // The lines that `bytes` completes, without their ends.
  std::vector<std::string> Add(std::string_view bytes);
  // What is left without an end of line, at the end of the stream; may be "".
  std::string Flush();

 private:
  std::string partial_;
};

// "12.6 MB", "3.2 GB": three figures, powers of 1000.
std::string HumanBytes(uint64_t bytes);

// Bar of a terminal: "[#####     ]  50 %".
std::string ProgressBar(uint64_t done, uint64_t total, int width);

// Console
//
// Writes whole lines and never blocks: a reader that does not keep up loses
// lines (it is told how many), the group does not wait for it. What a child
// says may hold what a client said: control characters come out as escapes.
// Threading: thread-compatible.
class Console {
 public:
  // `bar`: progress is a bar that is drawn over; otherwise a line for each
  // tenth.
  Console(int out_fd, int err_fd, bool bar)
      : out_fd_(out_fd), err_fd_(err_fd), bar_(bar) {}
  // Standard output and error; a bar if the latter is a terminal.
  static Console Standard();

  void Out(std::string_view line) { Write(out_fd_, out_lost_, line); }
  // Where the log is JSON: what is none yet, of ours or of a child that dies,
  // becomes the message of one.
  void Err(std::string_view line);
  void SetJson(bool json) { json_ = json; }

  // `what` so far; shows it if there is something new to show.
  void Progress(std::string_view what, uint64_t done, uint64_t total);
  // No more progress: removes the bar.
  void EndProgress();

 private:
  void Write(int fd, int& lost, std::string_view line);
  void EraseBar();

  const int out_fd_;
  const int err_fd_;
  const bool bar_;
  bool json_ = false;
  int out_lost_ = 0, err_lost_ = 0;  // lines
  int shown_tenth_ = 0;
  std::string shown_bar_;  // "" when none is on the screen
};

}  // namespace moebius
