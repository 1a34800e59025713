// What is read of a file, and what is said when it cannot be.
#include "common/base/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "common/base/unique_fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  Files() {
    std::string name = testing::TempDir() + "/filesXXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  ~Files() override { fs::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return (folder_ / name).string();
  }
  std::string Path(const std::string& name) {
    return (folder_ / name).string();
  }

  fs::path folder_;
};

TEST_F(Files, AMissingFileIsNotFound) {
  EXPECT_THAT(
      ReadFile(Path("none"), 10),
      StatusIs(absl::StatusCode::kNotFound, Path("none") + ": no such file"));
  const std::string file = Write("file", "x");
  EXPECT_THAT(ReadFile(file + "/below", 10),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("file/below: no such file")));
}

TEST_F(Files, ADirectoryIsCalledOne) {
  EXPECT_THAT(ReadFile(folder_.string(), 10),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       folder_.string() + ": is a directory"));
}

TEST_F(Files, APipeIsRefusedWithoutWaiting) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_THAT(ReadFile(Path("pipe"), 10),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("pipe: is no regular file")));
}

TEST_F(Files, ALinkToItselfIsTheCallersMistake) {
  fs::create_symlink("loop", folder_ / "loop");
  EXPECT_THAT(ReadFile(Path("loop"), 10),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("loop: cannot be opened: ")));
}

TEST_F(Files, TooLargeSaysSizeAndBound) {
  const std::string file = Write("file", "12345");
  EXPECT_THAT(ReadFile(file, 4),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       file + ": has 5 bytes; allowed: at most 4 bytes"));
  EXPECT_EQ(ReadFile(file, 5).value(), "12345");
}

TEST_F(Files, FilesWhoseSizeIsNotKnownAreReadAndBounded) {
  EXPECT_THAT(ReadFile("/proc/self/status", 1 << 20).value(),
              HasSubstr("VmRSS"));
  EXPECT_THAT(ReadFile("/proc/self/status", 100),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("has more than 100 bytes")));
}

TEST_F(Files, EveryByteComes) {
  std::string text(100'000, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i);
  EXPECT_EQ(ReadFile(Write("file", text), 100'000).value(), text);
  EXPECT_EQ(ReadFile(Write("empty", ""), 0).value(), "");
}

TEST_F(Files, ADescriptorIsReadFromWhereItStands) {
  const UniqueFd fd(open(Write("file", "12345").c_str(), O_RDONLY));
  ASSERT_EQ(lseek(fd.get(), 2, SEEK_SET), 2);
  EXPECT_EQ(ReadDescriptor(fd.get(), "it", 3).value(), "345");
}

TEST_F(Files, AFailedReadNamesTheFile) {
  const UniqueFd fd(open(Write("file", "x").c_str(), O_WRONLY));
  EXPECT_THAT(ReadDescriptor(fd.get(), "it", 3),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("it: cannot be read: ")));
}

}  // namespace
}  // namespace moebius
