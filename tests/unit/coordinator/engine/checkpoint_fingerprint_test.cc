// What makes a checkpoint another one.
#include "coordinator/engine/checkpoint_fingerprint.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kLarge = uint64_t{65} << 20;  // beyond what is read whole

class CheckpointFingerprintTest : public testing::Test {
 protected:
  CheckpointFingerprintTest() {
    std::string name = testing::TempDir() + "/checkpointXXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    config_.model.path = name;
    Write("config.json", "{}");
    Write("tokenizer.json", "{\"model\": 1}");
    Write("model.safetensors", "the weights");
  }
  ~CheckpointFingerprintTest() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }
  // A sparse file, with `text` at a place.
  void WriteLarge(uint64_t size, uint64_t at, const std::string& text) {
    Write("large.safetensors", std::string(8, '\0'));
    fs::resize_file(folder_ / "large.safetensors", size);
    std::fstream file(folder_ / "large.safetensors",
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file << text;
  }
  uint64_t Fingerprint() {
    const auto fingerprint = FingerprintCheckpoint(config_);
    EXPECT_THAT(fingerprint, IsOk());
    return fingerprint.value_or(0);
  }

  fs::path folder_;
  Config config_;
};

TEST_F(CheckpointFingerprintTest, AFileThatCannotBeReadIsNamed) {
  fs::create_directory(folder_ / "more.safetensors");
  const auto fingerprint = FingerprintCheckpoint(config_);
  ASSERT_FALSE(fingerprint.ok());
  EXPECT_NE(fingerprint.status().message().find("more.safetensors"),
            std::string::npos);
}

TEST_F(CheckpointFingerprintTest, ACopyInAnotherPlaceIsTheSame) {
  const uint64_t before = Fingerprint();
  const fs::path copy = folder_ / "copy";
  fs::create_directory(copy);
  for (const char* name :
       {"config.json", "tokenizer.json", "model.safetensors"}) {
    fs::copy_file(folder_ / name, copy / name);
  }
  config_.model.path = copy.string();
  EXPECT_EQ(Fingerprint(), before);
}

TEST_F(CheckpointFingerprintTest, AnyFileThatCountsMakesItAnother) {
  const uint64_t before = Fingerprint();
  Write("config.json", "{ }");
  const uint64_t other_config = Fingerprint();
  EXPECT_NE(other_config, before);
  Write("tokenizer.json", "{\"model\": 2}");
  const uint64_t other_tokenizer = Fingerprint();
  EXPECT_NE(other_tokenizer, other_config);
  Write("model.safetensors", "the Weights");
  const uint64_t other_weights = Fingerprint();
  EXPECT_NE(other_weights, other_tokenizer);
  Write("model-2.safetensors", "");
  EXPECT_NE(Fingerprint(), other_weights);
  fs::remove(folder_ / "model-2.safetensors");
  EXPECT_EQ(Fingerprint(), other_weights);
  fs::rename(folder_ / "model.safetensors", folder_ / "other.safetensors");
  EXPECT_NE(Fingerprint(), other_weights);
}

TEST_F(CheckpointFingerprintTest, WhatDoesNotTouchTheTokensDoesNotCount) {
  const uint64_t before = Fingerprint();
  Write("README.md", "about it");
  Write("chat_template.jinja", "{{ messages }}");
  EXPECT_EQ(Fingerprint(), before);
}

TEST_F(CheckpointFingerprintTest, TheTypeOfTheKvCounts) {
  const uint64_t before = Fingerprint();
  config_.workers.kv_dtype = KvDtype::kBfloat16;
  EXPECT_NE(Fingerprint(), before);
}

// Tokens may differ with what computes them, and how.
TEST_F(CheckpointFingerprintTest, DeviceAndNumericsCount) {
  std::set<uint64_t> seen = {Fingerprint()};
  config_.workers.device = DeviceChoice::kCuda;
  EXPECT_TRUE(seen.insert(Fingerprint()).second);
  config_.workers.numerics = NumericsChoice::kExact;
  EXPECT_TRUE(seen.insert(Fingerprint()).second);
  config_.workers.device = DeviceChoice::kAuto;
  EXPECT_TRUE(seen.insert(Fingerprint()).second);
}

// It is in journals that are on disks already.
TEST_F(CheckpointFingerprintTest, TheNumberStaysWhatItWas) {
  EXPECT_EQ(Fingerprint(), 0x2922a1699f4a1addu);
  config_.model.load_format = LoadFormat::kDummy;
  EXPECT_EQ(Fingerprint(), 0xf461aad77ef7d5d9u);
  config_.workers.kv_dtype = KvDtype::kBfloat16;
  EXPECT_EQ(Fingerprint(), 0x2d53a25094972ffau);
  config_.model.load_format = LoadFormat::kAuto;
  EXPECT_EQ(Fingerprint(), 0x882133f00d8df50u);
}

// Two signs that flip, in the highest bits of two words.
TEST_F(CheckpointFingerprintTest, ChangesDoNotCancelOut) {
  Write("model.safetensors", std::string(64, '\0'));
  const uint64_t before = Fingerprint();
  std::string flipped(64, '\0');
  flipped[7] = flipped[15] = static_cast<char>(0x80);
  Write("model.safetensors", flipped);
  EXPECT_NE(Fingerprint(), before);
}

TEST_F(CheckpointFingerprintTest, MadeUpWeightsAreThatWord) {
  const uint64_t before = Fingerprint();
  config_.model.load_format = LoadFormat::kDummy;
  const uint64_t made_up = Fingerprint();
  EXPECT_NE(made_up, before);
  Write("model.safetensors", "others");
  EXPECT_EQ(Fingerprint(), made_up);
}

TEST_F(CheckpointFingerprintTest, OfALargeFileSizeHeaderAndBlocksCount) {
  WriteLarge(kLarge, 0, "");
  const uint64_t before = Fingerprint();
  WriteLarge(kLarge + 1, 0, "");
  EXPECT_NE(Fingerprint(), before);
  // Its header has 20,000 bytes: all of them count, in no block.
  const std::string header("\x20\x4e\0\0\0\0\0\0", 8);
  WriteLarge(kLarge, 0, header);
  const uint64_t with_header = Fingerprint();
  WriteLarge(kLarge, 10'000, "x");
  EXPECT_EQ(Fingerprint(), before);  // no header there, and between two blocks
  WriteLarge(kLarge, 0, header + std::string(15'000, ' ') + "x");
  EXPECT_NE(Fingerprint(), with_header);
  // Blocks begin at each 4,096th part.
  WriteLarge(kLarge, kLarge / 4096 * 2000, "x");
  EXPECT_NE(Fingerprint(), before);
}

}  // namespace
}  // namespace moebius
