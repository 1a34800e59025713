// The group's private directory.
#include "deploy/launcher/private_dir.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utime.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class PrivateDirTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/pdXXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    base_ = name;
  }
  void TearDown() override { fs::remove_all(base_); }

  // A process id that is nobody's: of a child that was reaped.
  static pid_t DeadPid() {
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    waitpid(pid, nullptr, 0);
    return pid;
  }
  // A directory as a launcher of that pid would leave it.
  std::string Leave(pid_t pid, bool locked_file = true) {
    const std::string path = absl::StrCat(base_, "/moebius-", pid, "-abcdef");
    fs::create_directory(path);
    if (locked_file) std::ofstream(path + "/lock") << "";
    std::ofstream(path + "/vault.sock") << "";
    return path;
  }
  std::string base_;
};

TEST_F(PrivateDirTest, IsPrivateAndGoesWithItsObject) {
  std::string path;
  {
    absl::StatusOr<PrivateDir> dir = PrivateDir::Create(base_);
    ASSERT_THAT(dir, IsOk());
    path = dir->path();
    EXPECT_THAT(path, StartsWith(absl::StrCat(base_, "/moebius-", getpid())));
    struct stat info;
    ASSERT_EQ(stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0700u);
    ASSERT_THAT(dir->WriteFile("config.yaml", "text"), IsOk());
    ASSERT_EQ(stat((path + "/config.yaml").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0600u);
    const PrivateDir moved = *std::move(dir);
    EXPECT_TRUE(fs::exists(path));
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(PrivateDirTest, BaseThatIsTooLongForSocketNamesIsRefused) {
  EXPECT_THAT(
      PrivateDir::Create("/tmp/" + std::string(80, 'x')),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("too long")));
}

TEST_F(PrivateDirTest, BaseThatIsMissingIsAnError) {
  EXPECT_THAT(PrivateDir::Create(base_ + "/no"),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("cannot make the directory")));
}

TEST_F(PrivateDirTest, FileThatCannotBeWrittenIsAnError) {
  absl::StatusOr<PrivateDir> dir = PrivateDir::Create(base_);
  ASSERT_THAT(dir, IsOk());
  EXPECT_THAT(dir->WriteFile("no/such", "x"),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(PrivateDirTest, DirectoryOfADeadLauncherIsRemoved) {
  const std::string dead = Leave(DeadPid());
  const std::string early = Leave(DeadPid(), false);
  EXPECT_EQ(RemoveStaleDirs(base_), 2);
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_FALSE(fs::exists(early));
}

TEST_F(PrivateDirTest, CreateRemovesThemToo) {
  const std::string dead = Leave(DeadPid());
  ASSERT_THAT(PrivateDir::Create(base_), IsOk());
  EXPECT_FALSE(fs::exists(dead));
}

TEST_F(PrivateDirTest, DirectoryInUseIsLeftAlone) {
  absl::StatusOr<PrivateDir> dir = PrivateDir::Create(base_);
  ASSERT_THAT(dir, IsOk());
  // Also if its pid means nothing here, as from another container.
  const std::string other = absl::StrCat(base_, "/moebius-", DeadPid(), "-x");
  fs::rename(dir->path(), other);
  EXPECT_EQ(RemoveStaleDirs(base_), 0);
  EXPECT_TRUE(fs::exists(other));
}

TEST_F(PrivateDirTest, YoungDirectoryOfALivingProcessIsLeftAlone) {
  const std::string path = Leave(getpid(), false);
  EXPECT_EQ(RemoveStaleDirs(base_), 0);
  // Its pid may have become another's: then its age tells.
  utimbuf old = {1, 1};
  ASSERT_EQ(utime(path.c_str(), &old), 0);
  EXPECT_EQ(RemoveStaleDirs(base_), 1);
}

TEST_F(PrivateDirTest, WhatIsNotOursIsLeftAlone) {
  fs::create_directory(base_ + "/moebius-notes");
  fs::create_directory(base_ + "/other-1-a");
  std::ofstream(absl::StrCat(base_, "/moebius-", DeadPid(), "-f")) << "";
  fs::create_directory_symlink(
      base_, absl::StrCat(base_, "/moebius-", DeadPid(), "-link"));
  EXPECT_EQ(RemoveStaleDirs(base_), 0);
}

TEST_F(PrivateDirTest, RuntimeDirectoryIsUsedWhereItFits) {
  const char* old = std::getenv("XDG_RUNTIME_DIR");
  const std::optional<std::string> before =
      old == nullptr ? std::nullopt : std::optional<std::string>(old);
  setenv("XDG_RUNTIME_DIR", base_.c_str(), 1);
  EXPECT_EQ(PrivateDir::DefaultBase(), base_);
  setenv("XDG_RUNTIME_DIR", (base_ + "/no").c_str(), 1);
  EXPECT_EQ(PrivateDir::DefaultBase(), "/tmp");
  setenv("XDG_RUNTIME_DIR", "relative", 1);
  EXPECT_EQ(PrivateDir::DefaultBase(), "/tmp");
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(PrivateDir::DefaultBase(), "/tmp");
  if (before) setenv("XDG_RUNTIME_DIR", before->c_str(), 1);
}

TEST_F(PrivateDirTest, TheDirectoryForTemporaryFilesComesNext) {
  const auto value = [](const char* name) {
    const char* text = std::getenv(name);
    return text == nullptr ? std::nullopt : std::optional<std::string>(text);
  };
  const auto runtime = value("XDG_RUNTIME_DIR"), temporary = value("TMPDIR");
  unsetenv("XDG_RUNTIME_DIR");
  setenv("TMPDIR", base_.c_str(), 1);
  EXPECT_EQ(PrivateDir::DefaultBase(), base_);
  setenv("TMPDIR", (base_ + "/no").c_str(), 1);
  EXPECT_EQ(PrivateDir::DefaultBase(), "/tmp");
  unsetenv("TMPDIR");
  if (runtime) setenv("XDG_RUNTIME_DIR", runtime->c_str(), 1);
  if (temporary) setenv("TMPDIR", temporary->c_str(), 1);
}

TEST_F(PrivateDirTest, ErrorsSayHowToTakeAnotherPlace) {
  for (const std::string& base :
       {base_ + "/no", base_ + std::string(80, 'x')}) {
    const absl::StatusOr<PrivateDir> dir = PrivateDir::Create(base);
    ASSERT_FALSE(dir.ok());
    EXPECT_THAT(std::string(dir.status().message()),
                HasSubstr("`moebius serve --state-dir DIR` takes another "));
  }
}

TEST_F(PrivateDirTest, WhatSomebodyHasRemovedIsMadeAgain) {
  absl::StatusOr<PrivateDir> dir = PrivateDir::Create(base_);
  ASSERT_THAT(dir, IsOk());
  ASSERT_THAT(dir->WriteFile("config.yaml", "text"), IsOk());
  EXPECT_THAT(*dir->Restore(), ::testing::IsEmpty());
  fs::remove(dir->path() + "/lock");
  EXPECT_THAT(*dir->Restore(), ::testing::ElementsAre("lock"));
  fs::remove_all(dir->path());
  EXPECT_THAT(*dir->Restore(),
              ::testing::ElementsAre(dir->path(), "lock", "config.yaml"));
  EXPECT_EQ(fs::status(dir->path()).permissions(), fs::perms::owner_all);
  std::string text;
  std::ifstream(dir->path() + "/config.yaml") >> text;
  EXPECT_EQ(text, "text");
  // Nobody takes it for a dead launcher's.
  fs::last_write_time(dir->path(),
                      fs::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_EQ(RemoveStaleDirs(base_), 0);
  // Without its parent there is no place for it.
  fs::remove_all(base_);
  EXPECT_THAT(std::string(dir->Restore().status().message()),
              HasSubstr("was removed by somebody"));
}

}  // namespace
}  // namespace moebius
