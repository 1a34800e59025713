// Key files: what may be in them, who may read them, and what is said of wrong
// ones, which is never a key.
#include "common/config/api_keys.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

namespace fs = std::filesystem;

constexpr char kKey[] = "sk-0123456789abcdef";

// A key with no word in common with the others.
std::string KeyOf(int i) { return absl::StrCat("key-number-", 100000 + i); }

class ApiKeysFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "keysXXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "keys";
  }
  void TearDown() override { fs::remove_all(folder_); }
  void Write(const std::string& text, mode_t mode = 0600) {
    std::ofstream(path_) << text;
    ASSERT_EQ(chmod(path_.c_str(), mode), 0);
  }
  fs::path folder_, path_;
};

TEST(ApiKeys, WrongLinesAreNamedWithoutTheirText) {
  const struct {
    std::string text;
    int line;
  } kCases[] = {
      {"short-of-sixteen", 0},  // 16: allowed
      {"short-of-sixtee", 1},
      {"# comment\n\nsecret secret secret\n", 3},
      {std::string(kKey) + "\n" + std::string(257, 's'), 2},
      {std::string("secret-secret-\0secret", 21), 1},
      {"secret-secret-secr\xc3\xa9t", 1},
      {"secret-secret\tsecret", 1},
      {"secret-secret-secret\x7f", 1},
  };
  for (const auto& c : kCases) {
    const auto keys = ApiKeys::Parse(c.text, "k.txt");
    if (c.line == 0) {
      EXPECT_THAT(keys, IsOk()) << c.text;
      continue;
    }
    EXPECT_THAT(
        keys, StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(absl::StrCat("k.txt:", c.line, ": ")),
                             HasSubstr("16 to 256 printable"),
                             Not(HasSubstr("secret")), Not(HasSubstr("sss")))));
  }
}

TEST(ApiKeys, AFileWithoutKeysAndOneWithTooManyAreRefused) {
  for (const char* text : {"", "\n\n", "# sk-0123456789abcdef\n"}) {
    EXPECT_THAT(ApiKeys::Parse(text, "k.txt"),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("k.txt: no key is in it")));
  }
  std::string text;
  for (int i = 0; i < ApiKeys::kMaxKeys; ++i)
    absl::StrAppend(&text, KeyOf(i), "\n");
  EXPECT_THAT(ApiKeys::Parse(text, "k.txt"), IsOk());
  EXPECT_THAT(ApiKeys::Parse(text + KeyOf(9999), "k.txt"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("k.txt:1025: allowed are at most 1024 keys")));
  EXPECT_THAT(
      ApiKeys::Parse(std::string(ApiKeys::kMaxFileBytes + 1, '\n'), "k.txt"),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("at most 1048576 bytes")));
}

TEST(ApiKeys, ContainsTheKeysOfTheFileAndNothingElse) {
  std::string text = "# first\n\n";
  for (int i = 0; i < 100; ++i) {
    absl::StrAppend(&text, " ", KeyOf(i), " \r\n# and then\n");
  }
  absl::StrAppend(&text, std::string(256, 'z'));
  const auto keys = ApiKeys::Parse(text, "k.txt");
  ASSERT_THAT(keys, IsOk());
  EXPECT_EQ(keys->size(), 101);
  EXPECT_EQ(keys->First(), KeyOf(0));
  for (int i = 0; i < 100; ++i) {
    const std::string key = KeyOf(i);
    EXPECT_TRUE(keys->Contains(key));
    EXPECT_FALSE(keys->Contains(key.substr(0, key.size() - 1)));
    EXPECT_FALSE(keys->Contains(key + "0"));
    EXPECT_FALSE(keys->Contains(key + std::string(1, '\0')));
    for (size_t at = 0; at < key.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        std::string other = key;
        other[at] = static_cast<char>(other[at] ^ 1 << bit);
        const bool also_one = keys->Contains(other);
        EXPECT_EQ(also_one, text.find(other) != std::string::npos) << other;
      }
    }
  }
  EXPECT_TRUE(keys->Contains(std::string(256, 'z')));
  EXPECT_FALSE(keys->Contains(std::string(255, 'z')));
  EXPECT_FALSE(keys->Contains(std::string(257, 'z')));
  EXPECT_FALSE(keys->Contains(std::string(1 << 20, 'z')));
  EXPECT_FALSE(keys->Contains(""));
  EXPECT_FALSE(keys->Contains(std::string(16, '\0')));
  EXPECT_FALSE(keys->Contains("# first"));
}

TEST(ApiKeys, SendableKeysHaveNoSpacesAndNoLineEnds) {
  EXPECT_TRUE(IsSendableKey("k"));
  EXPECT_TRUE(IsSendableKey(std::string(256, 'k')));
  for (const std::string& key :
       {std::string(), std::string("a b"), std::string("a\r\nX-Header: b"),
        std::string("a\n"), std::string("\xc3\xa9"), std::string(257, 'k')}) {
    EXPECT_FALSE(IsSendableKey(key)) << key;
  }
}

TEST_F(ApiKeysFile, OfItsOwnerAloneIsRead) {
  Write(absl::StrCat(kKey, "\n"));
  const auto keys = ApiKeys::Load(path_.string());
  ASSERT_THAT(keys, IsOk());
  EXPECT_TRUE(keys->Contains(kKey));
  Write(kKey, 0400);
  EXPECT_THAT(ApiKeys::Load(path_.string()), IsOk());
  fs::create_symlink(path_, folder_ / "link");
  EXPECT_THAT(ApiKeys::Load((folder_ / "link").string()), IsOk());
}

TEST_F(ApiKeysFile, OpenToOthersIsRefusedWithTheWayOut) {
  for (mode_t mode : {0640, 0604, 0660, 0602, 0610, 0777}) {
    Write(kKey, mode);
    EXPECT_THAT(
        ApiKeys::Load(path_.string()),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 AllOf(HasSubstr(absl::StrCat("chmod 600 ", path_.string())),
                       HasSubstr(absl::StrCat("mode ", absl::Hex(mode >> 6),
                                              absl::Hex(mode >> 3 & 7),
                                              absl::Hex(mode & 7))),
                       Not(HasSubstr(kKey)))))
        << mode;
  }
}

TEST_F(ApiKeysFile, ThatIsNoFileIsRefused) {
  EXPECT_THAT(ApiKeys::Load(path_.string()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(path_.string())));
  EXPECT_THAT(ApiKeys::Load(folder_.string()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("allowed is a regular file")));
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);  // nobody writes: no waiting
  EXPECT_THAT(ApiKeys::Load(path_.string()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("allowed is a regular file")));
  EXPECT_THAT(ApiKeys::Load("/dev/zero"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ApiKeysFile, OfAnotherUserIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  Write(kKey);
  ASSERT_EQ(chown(path_.c_str(), 65534, 65534), 0);
  EXPECT_THAT(ApiKeys::Load(path_.string()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("must belong to user 0 or root, not to user "
                                 "65534")));
}

}  // namespace
}  // namespace moebius
