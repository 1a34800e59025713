// What the launcher shows.
#include "deploy/launcher/console.h"

#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "common/base/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    // The writing end blocks, as a launcher's standard output does.
    EXPECT_EQ(fcntl(ends[1], F_SETFL, 0), 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
  }
  std::string ReadAll() {
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = ::read(read.get(), buffer, sizeof buffer)) > 0;) {
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  }
  UniqueFd read, write;
};

TEST(LineSplitter, JoinsPiecesAndCutsLines) {
  LineSplitter splitter;
  EXPECT_THAT(splitter.Add("one\ntw"), ElementsAre("one"));
  EXPECT_THAT(splitter.Add("o\n\nth"), ElementsAre("two", ""));
  EXPECT_THAT(splitter.Add(""), IsEmpty());
  EXPECT_EQ(splitter.Flush(), "th");
  EXPECT_EQ(splitter.Flush(), "");
}

TEST(LineSplitter, BoundsALineWithoutEnd) {
  LineSplitter splitter;
  const std::string endless(LineSplitter::kMaxLineBytes * 2 + 5, 'x');
  const std::vector<std::string> lines = splitter.Add(endless);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].size(), LineSplitter::kMaxLineBytes);
  EXPECT_EQ(splitter.Flush(), "xxxxx");
}

TEST(LineSplitter, LineOfExactlyTheBoundIsNotFollowedByAnEmptyOne) {
  LineSplitter splitter;
  const std::string full(LineSplitter::kMaxLineBytes - 1, 'x');
  EXPECT_THAT(splitter.Add(full + "\n"), ElementsAre(full));
  EXPECT_EQ(splitter.Flush(), "");
}

TEST(HumanBytes, HasThreeFigures) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1000), "1.00 kB");
  EXPECT_EQ(HumanBytes(12'582'912), "12.6 MB");
  EXPECT_EQ(HumanBytes(999'600), "1.00 MB");
  EXPECT_EQ(HumanBytes(123'456'789'012), "123 GB");
  EXPECT_EQ(HumanBytes(~uint64_t{0}), "18.4 EB");
}

TEST(ProgressBar, FillsUp) {
  EXPECT_EQ(ProgressBar(0, 10, 4), "[    ]   0 %");
  EXPECT_EQ(ProgressBar(5, 10, 4), "[##  ]  50 %");
  EXPECT_EQ(ProgressBar(10, 10, 4), "[####] 100 %");
  EXPECT_EQ(ProgressBar(11, 10, 4), "[####] 100 %");
  EXPECT_EQ(ProgressBar(0, 0, 4), "[    ]   0 %");
}

TEST(Console, ReaderThatDoesNotKeepUpIsToldHowMuchItLost) {
  Pipe out, err;
  Console console(out.write.get(), err.write.get(), false);
  const std::string line(1000, 'x');
  for (int i = 0; i < 200; ++i) console.Out(line);  // more than a pipe holds
  const std::string first = out.ReadAll();
  EXPECT_LT(first.size(), 200 * line.size());
  console.Out("after");
  EXPECT_THAT(out.ReadAll(), HasSubstr("lines lost: nobody read them)\nafter"));
}

TEST(Console, ClosedReaderIsPassedOver) {
  Pipe out, err;
  signal(SIGPIPE, SIG_IGN);
  out.read.reset();
  Console console(out.write.get(), err.write.get(), false);
  console.Out("nobody");
  console.Err("somebody");
  EXPECT_EQ(err.ReadAll(), "somebody\n");
}

TEST(Console, ControlCharactersInALineAreShownNotObeyed) {
  Pipe out, err;
  Console console(out.write.get(), err.write.get(), false);
  console.Out("[worker 0] \x1b]0;title\x07\r\n[coordinator] forged");
  EXPECT_EQ(out.ReadAll(),
            "[worker 0] \\x1b]0;title\\x07\\r\\n[coordinator] forged\n");
}

TEST(Console, ProgressIsALineForEachTenth) {
  Pipe out, err;
  Console console(out.write.get(), err.write.get(), false);
  for (uint64_t done = 0; done <= 100; ++done) {
    console.Progress("loading", done, 100);
  }
  const std::string text = err.ReadAll();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10);
  EXPECT_THAT(text, HasSubstr("loading: 10 % (10 B of 100 B)\n"));
  EXPECT_THAT(text, HasSubstr("loading: 100 % (100 B of 100 B)\n"));
}

TEST(Console, BarIsDrawnOverAndMakesRoomForLines) {
  Pipe out, err;
  Console console(out.write.get(), err.write.get(), true);
  console.Progress("loading", 1, 2);
  console.Progress("loading", 1, 2);  // nothing new
  const std::string bar = err.ReadAll();
  EXPECT_THAT(bar, HasSubstr("\rloading ["));
  EXPECT_EQ(std::count(bar.begin(), bar.end(), '\r'), 1);
  console.Err("a line");
  EXPECT_EQ(err.ReadAll(), "\r\x1b[Ka line\n");
  console.EndProgress();
  EXPECT_EQ(err.ReadAll(), "");
}

}  // namespace
}  // namespace moebius
