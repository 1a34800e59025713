// What the machine and the model allow.
#include "deploy/launcher/machine_limits.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A folder with files as the kernel shows them.
class FreeMemoryTest : public testing::Test {
 protected:
  FreeMemoryTest() : root_(testing::TempDir() + "/machine") {
    fs::remove_all(root_);
  }
  ~FreeMemoryTest() override { fs::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) {
    const fs::path path = root_ + name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }

  std::string root_;
};

TEST_F(FreeMemoryTest, NothingIsKnownWithoutFiles) {
  EXPECT_FALSE(ReadFreeMemory(root_).has_value());
  Write("/proc/meminfo", "MemAvailable: plenty\n");
  Write("/proc/self/cgroup", "nonsense\n0:\n::\n");
  EXPECT_FALSE(ReadFreeMemory(root_).has_value());
}

TEST_F(FreeMemoryTest, MemAvailableWithoutALimit) {
  Write("/proc/meminfo",
        "MemTotal:       24000000 kB\nMemAvailable:   20000000 kB\n");
  Write("/proc/self/cgroup", "0::/\n");
  Write("/sys/fs/cgroup/memory.max", "max\n");
  Write("/sys/fs/cgroup/memory.current", "123\n");
  const auto free = ReadFreeMemory(root_);
  ASSERT_TRUE(free.has_value());
  EXPECT_EQ(free->bytes, int64_t{20000000} * 1024);
  EXPECT_EQ(free->said_by, "MemAvailable");
}

TEST_F(FreeMemoryTest, TheNarrowestControlGroupDecidesAndCachedFilesAreFree) {
  Write("/proc/meminfo", "MemAvailable:   20000000 kB\n");
  Write("/proc/self/cgroup", "0::/pod/box\n");
  Write("/sys/fs/cgroup/pod/memory.max", "1000000\n");
  Write("/sys/fs/cgroup/pod/memory.current", "900000\n");
  Write("/sys/fs/cgroup/pod/memory.stat",
        "anon 300000\ninactive_file 400000\nactive_file 200000\n");
  Write("/sys/fs/cgroup/pod/box/memory.max", "900000\n");
  Write("/sys/fs/cgroup/pod/box/memory.current", "100000\n");
  const auto free = ReadFreeMemory(root_);
  ASSERT_TRUE(free.has_value());
  EXPECT_EQ(free->bytes, 700000);
  EXPECT_EQ(free->said_by, root_ + "/sys/fs/cgroup/pod");
}

TEST_F(FreeMemoryTest, VersionOneOfControlGroups) {
  Write("/proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n");
  Write("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "5000\n");
  Write("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", "6000\n");
  const auto free = ReadFreeMemory(root_);
  ASSERT_TRUE(free.has_value());
  EXPECT_EQ(free->bytes, 0);
}

TEST(CheckKvMemory, RefusesMoreThanThereIsWithTheFigures) {
  Config config;
  config.workers.count = 2;
  config.workers.kv_bytes = int64_t{8} << 30;
  const FreeMemory free{(int64_t{16} << 30) - 1, "MemAvailable"};
  EXPECT_THAT(
      CheckKvMemory(config, free),
      StatusIs(absl::StatusCode::kInvalidArgument,
               "key 'workers.kv_bytes' (--kv-bytes): 2 workers with 8.59 GB of "
               "KV memory each want 17.2 GB; there are 17.2 GB "
               "(MemAvailable)"));
  EXPECT_THAT(CheckKvMemory(config, {int64_t{16} << 30, "MemAvailable"}),
              IsOk());
  config.workers.kv_bytes = 0;
  EXPECT_THAT(CheckKvMemory(config, {0, "MemAvailable"}), IsOk());
}

TEST(CheckLength, RefusesMoreThanTheModelHasWithTheFigures) {
  Config config;
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  config.model.path =
      std::string(source != nullptr ? source : ".") + "/models/verse-moe";
  config.model.max_model_len = 4096;
  EXPECT_THAT(CheckLength(config), IsOk());
  config.model.max_model_len = 4097;
  EXPECT_THAT(CheckLength(config),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("4097 tokens are more than the model's 4096 "
                                 "(max_position_embeddings")));
  config.model.path = "/nowhere";
  EXPECT_THAT(CheckLength(config), IsOk());
}

}  // namespace
}  // namespace moebius
