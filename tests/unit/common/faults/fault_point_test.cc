// Faults: what can be said, what is refused, and when they fire.
#include "common/faults/fault_point.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <memory>
#include <set>
#include <string>

#include "common/faults/fault_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST(Fault, WhatIsWrongIsRefusedWithTheForm) {
  for (const char* text :
       {"", "worker.pull", "worker.pull=", "worker.pull=die", "nowhere=crash",
        "worker.pull@16=crash", "worker.pull@-1=crash", "worker.pull@x=crash",
        "worker.pull=crash#0", "worker.pull=crash#x", "worker.pull=crash*0",
        "worker.pull=crash:5", "worker.pull=sleep:-1", "worker.pull=sleep:x",
        "worker.pull=error:EWHAT", "worker.pull=sleep:9999999999"}) {
    SCOPED_TRACE(text);
    EXPECT_THAT(ParseFault(text), StatusIs(absl::StatusCode::kInvalidArgument,
                                           HasSubstr("POINT[@RANK")));
  }
  EXPECT_THAT(
      ParseFault("nowhere=crash"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("worker.pull, ")));
}

TEST(Fault, TextsReadBackTheSame) {
  for (const char* text :
       {"worker.pull=crash", "worker.pull@1=crash#3",
        "journal.write@coordinator=error:ENOSPC*5", "worker.step=sleep:250",
        "worker.barrier@0=stop#2*3", "worker.memory=error"}) {
    SCOPED_TRACE(text);
    const auto fault = ParseFault(text);
    ASSERT_THAT(fault, IsOk());
    EXPECT_EQ(FaultText(*fault), text);
  }
}

TEST(Fault, NamesAreDifferent) {
  std::set<std::string_view> names;
  for (int i = 0; i < kNumFaultIds; ++i) {
    EXPECT_TRUE(names.insert(InfoOf(static_cast<FaultId>(i)).name).second);
  }
}

class FaultTableTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = testing::TempDir() + "faultsXXXXXX";
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    dir_ = path;
    auto table = FaultTable::Create(dir_);
    ASSERT_THAT(table, IsOk());
    table_ = *std::move(table);
  }
  void TearDown() override {
    SetFaultHandler(nullptr);
    std::filesystem::remove_all(dir_);
  }
  void Arm(std::string_view text) {
    const auto fault = ParseFault(text);
    ASSERT_THAT(fault, IsOk());
    ASSERT_THAT(table_->Arm(*fault), IsOk());
  }
  std::string dir_;
  std::unique_ptr<FaultTable> table_;
};

TEST_F(FaultTableTest, WithoutATableNothingHappens) {
  EXPECT_THAT(FaultTable::Open(dir_ + "/none"),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(FaultPoint(FaultId::kWorkerPull), IsOk());
}

TEST_F(FaultTableTest, AFaultFiresWhereWhenAndAsOftenAsItSays) {
  Arm("worker.pull@1=error:EIO#2*2");
  TableFaultHandler handler(table_.get(), 1);
  SetFaultHandler(&handler);
  EXPECT_THAT(FaultPoint(FaultId::kWorkerPulled), IsOk());
  EXPECT_THAT(FaultPoint(FaultId::kWorkerPull), IsOk());
  EXPECT_FALSE(FaultPoint(FaultId::kWorkerPull).ok());
  EXPECT_THAT(FaultPoint(FaultId::kWorkerPull).message(),
              HasSubstr("injected at worker.pull"));
  EXPECT_THAT(FaultPoint(FaultId::kWorkerPull), IsOk());
  TableFaultHandler other(table_.get(), 0);
  SetFaultHandler(&other);
  Arm("worker.pull@1=error");
  EXPECT_THAT(FaultPoint(FaultId::kWorkerPull), IsOk());
  EXPECT_EQ(table_->reached(FaultId::kWorkerPull), 5u);
}

TEST_F(FaultTableTest, CountsOutliveWhoDies) {
  Arm("worker.pull=crash#2");
  for (int process = 0; process < 2; ++process) {
    const pid_t pid = fork();
    if (pid == 0) {
      auto table = FaultTable::Open(dir_);
      if (!table.ok()) _exit(9);
      TableFaultHandler handler(table->get(), 0);
      SetFaultHandler(&handler);
      if (!FaultPoint(FaultId::kWorkerPull).ok()) _exit(8);
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    if (process == 0) {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    } else {
      EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
  }
  ASSERT_EQ(table_->armed().size(), 1u);
  EXPECT_EQ(table_->armed()[0].fired, 1u);
}

TEST_F(FaultTableTest, RoomIsBoundedAndUsedAgain) {
  for (int i = 0; i < FaultTable::kMaxArmed; ++i) Arm("worker.pull=error");
  EXPECT_THAT(table_->Arm(*ParseFault("worker.pull=error")),
              StatusIs(absl::StatusCode::kResourceExhausted));
  // The first is used up, and gives its place away.
  EXPECT_EQ(table_->Reach(FaultId::kWorkerPull, 0).action, FaultAction::kError);
  Arm("worker.pull=error");
  table_->DisarmAll();
  EXPECT_TRUE(table_->armed().empty());
}

}  // namespace
}  // namespace moebius
