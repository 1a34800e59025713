// The file system as the journal uses it.
#include "coordinator/journal/disk_posix.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "common/faults/fault_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsSupersetOf;

class PosixDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/diskXXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    base_ = name;
    path_ = base_ + "/journal";
  }
  void TearDown() override { fs::remove_all(base_); }

  std::unique_ptr<PosixDisk> Open() {
    auto disk = PosixDisk::Open(path_);
    EXPECT_THAT(disk, IsOk());
    return disk.ok() ? *std::move(disk) : nullptr;
  }

  static int ModeOf(const std::string& path) {
    struct stat info {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_mode & 0777;
  }

  std::string base_, path_;
};

TEST_F(PosixDiskTest, ADirectoryWithoutAParentIsAnError) {
  EXPECT_THAT(PosixDisk::Open(base_ + "/no/journal"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/journal")));
}

TEST_F(PosixDiskTest, AFileInPlaceOfTheDirectoryIsAnError) {
  std::ofstream(path_) << "x";
  EXPECT_FALSE(PosixDisk::Open(path_).ok());
}

TEST_F(PosixDiskTest, ADirectoryThatOthersMayReadIsRefused) {
  for (mode_t mode : {0755, 0710, 0701}) {
    fs::remove_all(path_);
    ASSERT_EQ(mkdir(path_.c_str(), 0700), 0);
    ASSERT_EQ(chmod(path_.c_str(), mode), 0);
    EXPECT_THAT(PosixDisk::Open(path_),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         HasSubstr("mode 0700")));
  }
}

TEST_F(PosixDiskTest, ASecondOneIsRefusedUntilTheFirstEnds) {
  auto first = Open();
  auto second = Open();
  ASSERT_THAT(first->Lock(), IsOk());
  EXPECT_THAT(second->Lock(),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("another process has this journal open")));
  first.reset();
  EXPECT_THAT(second->Lock(), IsOk());
}

TEST_F(PosixDiskTest, MissingFilesAreNamed) {
  auto disk = Open();
  const auto missing =
      StatusIs(absl::StatusCode::kNotFound, HasSubstr(path_ + "/none"));
  EXPECT_THAT(disk->Read("none", 100), missing);
  EXPECT_THAT(disk->Remove("none"), missing);
  EXPECT_THAT(disk->Rename("none", "other"), missing);
}

TEST_F(PosixDiskTest, ALinkIsNotFollowed) {
  auto disk = Open();
  std::ofstream(base_ + "/elsewhere") << "x";
  fs::create_symlink(base_ + "/elsewhere", path_ + "/link");
  EXPECT_FALSE(disk->Read("link", 100).ok());
  EXPECT_FALSE(disk->Create("link").ok());
}

TEST_F(PosixDiskTest, AFileOverTheBoundIsNotRead) {
  auto disk = Open();
  ASSERT_THAT((*disk->Create("file"))->Append(std::string(100, 'x')), IsOk());
  EXPECT_THAT(disk->Read("file", 99),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("has 100 bytes; at most 99")));
  EXPECT_THAT(disk->Read("file", 100), IsOk());
}

// A limit on the size of files makes the system take a write in part.
TEST_F(PosixDiskTest, AWriteThatIsTakenInPartIsAnError) {
  auto disk = Open();
  auto file = disk->Create("file");
  ASSERT_THAT(file, IsOk());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit limit = before;
  limit.rlim_cur = 1000;
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const absl::Status status = (*file)->Append(std::string(1500, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, handler);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_ + "/file"));
  EXPECT_EQ(disk->Read("file", 1 << 20)->size(), 1000);
}

// A disk that is full and broken on purpose.
class OneFault final : public FaultHandler {
 public:
  explicit OneFault(FaultId id) : id_(id) { SetFaultHandler(this); }
  ~OneFault() override { SetFaultHandler(nullptr); }
  absl::Status OnFaultPoint(FaultId id) override {
    return id == id_ ? InjectedError(id, ENOSPC) : absl::OkStatus();
  }

 private:
  const FaultId id_;
};

TEST_F(PosixDiskTest, WritesAndSyncsFailOnPurpose) {
  auto disk = Open();
  auto file = disk->Create("file");
  ASSERT_THAT(file, IsOk());
  {
    const OneFault fault(FaultId::kJournalWrite);
    EXPECT_THAT((*file)->Append(std::string("x")),
                StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_THAT((*file)->Sync(), IsOk());
  }
  {
    const OneFault fault(FaultId::kJournalSync);
    EXPECT_THAT((*file)->Append(std::string("y")), IsOk());
    EXPECT_FALSE((*file)->Sync().ok());
  }
  EXPECT_EQ(*disk->Read("file", 10), "y");
}

TEST_F(PosixDiskTest, FilesAreWrittenRenamedAndRemoved) {
  auto disk = Open();
  EXPECT_EQ(ModeOf(path_), 0700);
  {
    auto file = disk->Create("a");
    ASSERT_THAT(file, IsOk());
    EXPECT_THAT((*file)->Append(std::string("one ")), IsOk());
    EXPECT_THAT((*file)->Append(std::string("two")), IsOk());
    EXPECT_THAT((*file)->Sync(), IsOk());
  }
  EXPECT_EQ(ModeOf(path_ + "/a"), 0600);
  EXPECT_EQ(*disk->Read("a", 100), "one two");
  EXPECT_THAT(disk->Rename("a", "b"), IsOk());
  EXPECT_THAT(disk->SyncNames(), IsOk());
  EXPECT_THAT(disk->Read("a", 100), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(*disk->List(), IsSupersetOf({std::string("b")}));
  { ASSERT_THAT(disk->Create("b"), IsOk()); }
  EXPECT_EQ(*disk->Read("b", 100), "");
  EXPECT_THAT(disk->Remove("b"), IsOk());
  EXPECT_THAT(*disk->List(), testing::Not(testing::Contains("b")));
}

TEST_F(PosixDiskTest, AFileGoesOnUnderItsNewName) {
  auto disk = Open();
  auto file = disk->Create("a.tmp");
  ASSERT_THAT(file, IsOk());
  ASSERT_THAT((*file)->Append(std::string("1")), IsOk());
  ASSERT_THAT(disk->Rename("a.tmp", "a"), IsOk());
  ASSERT_THAT((*file)->Append(std::string("2")), IsOk());
  EXPECT_EQ(*disk->Read("a", 10), "12");
}

TEST_F(PosixDiskTest, ADirectoryIsOpenedAgainWithWhatIsInIt) {
  ASSERT_THAT((*Open()->Create("a"))->Append(std::string("1")), IsOk());
  EXPECT_EQ(*Open()->Read("a", 10), "1");
}

}  // namespace
}  // namespace moebius
