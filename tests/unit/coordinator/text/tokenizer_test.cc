// Encoding and decoding at the edges: empty text, special tokens, added tokens
// with their flags, normalisation, ill-formed bytes, streams.
#include "coordinator/text/tokenizer.h"

#include <random>

#include "coordinator/text/streaming_detokenizer.h"
#include "coordinator/text/utf8.h"
#include "gmock/gmock.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/text/tokenizer_files.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using Ids = std::vector<int32_t>;
using Json = nlohmann::json;

constexpr int32_t kEnd = 300;

std::unique_ptr<Tokenizer> Small(const Json& file = SmallTokenizer()) {
  auto tokenizer = FromJson(file);
  EXPECT_THAT(tokenizer, IsOk());
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

// The small file with one more added token, id 301, with these flags set.
std::unique_ptr<Tokenizer> WithAdded(const std::string& content,
                                     const std::vector<std::string>& flags) {
  Json file = SmallTokenizer();
  Json token = {{"id", 301}, {"content", content}, {"normalized", false}};
  for (const std::string& flag : flags) token[flag] = true;
  file["added_tokens"].push_back(token);
  return Small(file);
}

Ids Encode(const Tokenizer& tokenizer, std::string_view text,
           EncodeOptions options = {}) {
  const auto ids = tokenizer.Encode(text, options);
  EXPECT_THAT(ids, IsOk());
  return ids.value_or(Ids{});
}

// The ids of the bytes of `text`.
Ids Bytes(std::string_view text) {
  Ids ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

Ids Concat(std::initializer_list<Ids> parts) {
  Ids all;
  for (const Ids& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Tokenizer, ATextOverTheBoundIsRefused) {
  const auto tokenizer = Small();
  EXPECT_THAT(tokenizer->Encode(std::string(kMaxEncodeBytes + 1, 'a')),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("16777217 bytes")));
}

TEST(Tokenizer, APatternThatGivesUpIsAnError) {
  Json file = SmallTokenizer();
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", "(?:a|aa|aaa)+\\p{Lu}"}}},
                              {"behavior", "Isolated"},
                              {"invert", false}},
                             {{"type", "ByteLevel"},
                              {"add_prefix_space", false},
                              {"use_regex", false}}}}};
  EXPECT_THAT(Small(file)->Encode(std::string(200, 'a')),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(Tokenizer, IdsThatNoTokenHasStandForNothing) {
  const auto tokenizer = Small();
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  for (const int32_t id : {-1, INT32_MIN, 280, 301, INT32_MAX}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "") << id;
    EXPECT_FALSE(tokenizer->IsSpecial(id)) << id;
    EXPECT_EQ(tokenizer->Decode(Ids{'a', id, 'b'}, false), "ab");
  }
  EXPECT_EQ(tokenizer->TokenId("nothing"), std::nullopt);
}

TEST(Tokenizer, TheEmptyText) {
  const auto tokenizer = Small();
  EXPECT_EQ(Encode(*tokenizer, ""), Ids{});
  EXPECT_EQ(tokenizer->Decode(Ids{}, false), "");
  StreamingDetokenizer stream(tokenizer.get(), false);
  EXPECT_EQ(stream.Flush(), "");
}

TEST(Tokenizer, OnlySpecialTokens) {
  const auto tokenizer = Small();
  EXPECT_EQ(Encode(*tokenizer, "<|end|>"), Ids{kEnd});
  EXPECT_EQ(Encode(*tokenizer, "<|end|><|end|>"), (Ids{kEnd, kEnd}));
  EXPECT_EQ(tokenizer->Decode(Ids{kEnd, kEnd}, /*skip_special=*/true), "");
  EXPECT_EQ(tokenizer->Decode(Ids{kEnd}, /*skip_special=*/false), "<|end|>");
}

TEST(Tokenizer, SpecialTokenTextInsideOfOtherText) {
  const auto tokenizer = Small();
  EXPECT_EQ(Encode(*tokenizer, "a<|end|>b"), (Ids{'a', kEnd, 'b'}));
  EXPECT_EQ(Encode(*tokenizer, "<|end<|end|>|>"),
            Concat({Bytes("<|end"), {kEnd}, Bytes("|>")}));
  EXPECT_EQ(Encode(*tokenizer, "<|end|"), Bytes("<|end|"));
  EXPECT_EQ(Encode(*tokenizer, "a<|end|>b", {.parse_special = false}),
            Bytes("a<|end|>b"));
}

TEST(Tokenizer, AnAddedTokenLeavesTheSpacesBesideItAlone) {
  const auto tokenizer = WithAdded("<x>", {});
  EXPECT_EQ(Encode(*tokenizer, "a <x> b"), (Ids{'a', ' ', 301, ' ', 'b'}));
  // Not special: found in any case, and kept.
  EXPECT_EQ(Encode(*tokenizer, "<x>", {.parse_special = false}), Ids{301});
  EXPECT_EQ(tokenizer->Decode(Ids{301, kEnd}, /*skip_special=*/true), "<x>");
}

TEST(Tokenizer, StrippingTakesWhiteSpaceAlong) {
  EXPECT_EQ(Encode(*WithAdded("<x>", {"lstrip"}), "a \n\u3000<x> b"),
            (Ids{'a', 301, ' ', 'b'}));
  EXPECT_EQ(Encode(*WithAdded("<x>", {"rstrip"}), "a <x> \u00A0\tb"),
            (Ids{'a', ' ', 301, 'b'}));
  EXPECT_EQ(Encode(*WithAdded("<x>", {"lstrip", "rstrip"}), "<x> <x>  <x>"),
            (Ids{301, 301, 301}));
  EXPECT_EQ(Encode(*WithAdded("<x>", {"lstrip", "rstrip"}), " <x> "), Ids{301});
}

// A token of blanks that strips blanks meets itself in what it took.
TEST(Tokenizer, StrippingALongRunIsNotQuadratic) {
  const auto tokenizer = WithAdded(" ", {"rstrip"});
  const std::string text = std::string(1 << 20, ' ') + "a";
  const Ids ids = Encode(*tokenizer, text);
  EXPECT_EQ(ids.size(), (1u << 20) + 1);
}

TEST(Tokenizer, ASingleWordStandsAlone) {
  const auto tokenizer = WithAdded("<x>", {"single_word"});
  EXPECT_EQ(Encode(*tokenizer, "<x>"), Ids{301});
  EXPECT_EQ(Encode(*tokenizer, "-<x>."), (Ids{'-', 301, '.'}));
  EXPECT_EQ(Encode(*tokenizer, "a<x>"), Bytes("a<x>"));
  EXPECT_EQ(Encode(*tokenizer, "<x>_"), Bytes("<x>_"));
  EXPECT_EQ(Encode(*tokenizer, "\u4E2D<x>"), Bytes("\u4E2D<x>"));
}

TEST(Tokenizer, TheLongestOfTokensAtOnePlaceCounts) {
  Json file = SmallTokenizer();
  file["added_tokens"].push_back(
      {{"id", 301}, {"content", "<|end"}, {"normalized", false}});
  file["added_tokens"].push_back(
      {{"id", 302}, {"content", "<|end|>!"}, {"normalized", false}});
  const auto tokenizer = Small(file);
  EXPECT_EQ(Encode(*tokenizer, "<|end|>!"), Ids{302});
  EXPECT_EQ(Encode(*tokenizer, "<|end|>?"), (Ids{kEnd, '?'}));
  EXPECT_EQ(Encode(*tokenizer, "<|end?"), (Ids{301, '?'}));
}

TEST(Tokenizer, DecomposedTextIsComposed) {
  const auto tokenizer = Small();
  EXPECT_EQ(Encode(*tokenizer, "e\u0301"), Bytes("\u00E9"));
  EXPECT_EQ(Encode(*tokenizer, "the\u0301"), Encode(*tokenizer, "th\u00E9"));
  Json file = SmallTokenizer();
  file["normalizer"] = nullptr;
  EXPECT_EQ(Encode(*Small(file), "e\u0301"), Bytes("e\u0301"));
}

TEST(Tokenizer, NormalizedTokensAreSoughtAfterNormalisation) {
  EXPECT_EQ(Encode(*WithAdded("\u0151", {"normalized"}), "o\u030B"), Ids{301});
  EXPECT_EQ(Encode(*WithAdded("o\u030B", {"normalized"}), "\u0151"), Ids{301});
  EXPECT_EQ(Encode(*WithAdded("o\u030B", {}), "o\u030B"), Ids{301});
  EXPECT_EQ(Encode(*WithAdded("o\u030B", {}), "\u0151"), Bytes("\u0151"));
  // Composition does not reach across a token sought before it.
  EXPECT_EQ(Encode(*WithAdded("oo", {}), "oo\u030B"),
            Concat({{301}, Bytes("\u030B")}));
}

TEST(Tokenizer, IllFormedBytesBecomeReplacementCharacters) {
  const auto tokenizer = Small();
  EXPECT_EQ(Encode(*tokenizer, "a\xFFz\xE2\x82"), Bytes("a\uFFFDz\uFFFD"));
  EXPECT_EQ(tokenizer->Decode(Bytes("a\xE2\x82z\x80"), false),
            "a\uFFFDz\uFFFD");
  EXPECT_EQ(Encode(*tokenizer, std::string_view("a\0b", 3)),
            (Ids{'a', 0, 'b'}));
}

TEST(Tokenizer, TokensAreFoundByTheirBytes) {
  const auto tokenizer = Small();
  EXPECT_EQ(tokenizer->TokenId(" the"), 258);
  EXPECT_EQ(tokenizer->TokenBytes(258), " the");
  EXPECT_EQ(tokenizer->TokenId("<|end|>"), kEnd);
  EXPECT_TRUE(tokenizer->IsSpecial(kEnd));
  EXPECT_EQ(Encode(*tokenizer, " the"), Ids{258});
}

// One long word of the split pattern, and one long run of blanks.
TEST(Tokenizer, LongRunsAreNotQuadratic) {
  const Tokenizer* tokenizer = Qwen3();
  ASSERT_NE(tokenizer, nullptr);
  for (const char* unit :
       {"a", " ", "\n", "=", "\u00E9", "\u0301", "'", "<|"}) {
    std::string text;
    while (text.size() < (1 << 18)) text += unit;
    const Ids ids = Encode(*tokenizer, text);
    EXPECT_GT(ids.size(), 0u);
    EXPECT_EQ(tokenizer->Decode(ids, false), text) << unit;
  }
}

TEST(StreamingDetokenizer, HoldsBackAnIncompleteCharacter) {
  const auto tokenizer = Small();
  StreamingDetokenizer stream(tokenizer.get(), false);
  EXPECT_EQ(stream.Append('a'), "a");
  EXPECT_EQ(stream.Append(0xF0), "");
  EXPECT_EQ(stream.Append(0x9F), "");
  EXPECT_EQ(stream.Append(0x98), "");
  EXPECT_EQ(stream.Append(0x80), "\U0001F600");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(StreamingDetokenizer, ReplacesWhatCanNeverBeComplete) {
  const auto tokenizer = Small();
  StreamingDetokenizer stream(tokenizer.get(), false);
  EXPECT_EQ(stream.Append(0x80), "\uFFFD");
  EXPECT_EQ(stream.Append(0xE2), "");
  EXPECT_EQ(stream.Append('a'), "\uFFFDa");
  EXPECT_EQ(stream.Append(0xE2), "");
  EXPECT_EQ(stream.Append(kEnd), "\uFFFD<|end|>");
  EXPECT_EQ(stream.Append(0xE2), "");
  EXPECT_EQ(stream.Flush(), "\uFFFD");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(StreamingDetokenizer, SkipsSpecialTokens) {
  const auto tokenizer = Small();
  StreamingDetokenizer stream(tokenizer.get(), true);
  EXPECT_EQ(stream.Append(0xC3), "");
  EXPECT_EQ(stream.Append(kEnd), "");
  EXPECT_EQ(stream.Append(0xA9), "\u00E9");
}

TEST(StreamingDetokenizer, DeltasAddUpToDecodeOnRandomIds) {
  std::mt19937 random(5);
  for (const Tokenizer* tokenizer : {Qwen3(), VerseMoe()}) {
    ASSERT_NE(tokenizer, nullptr);
    // Tokens of single bytes are as likely as all others, so that characters
    // are begun, broken and completed.
    Ids single;
    for (int byte = 0x80; byte < 0x100; ++byte) {
      const char c = static_cast<char>(byte);
      single.push_back(tokenizer->TokenId(std::string_view(&c, 1)).value());
    }
    for (int round = 0; round < 3000; ++round) {
      const bool skip_special = round % 2 == 0;
      StreamingDetokenizer stream(tokenizer, skip_special);
      Ids ids;
      std::string text, bytes;
      for (int i = 0; i < 30; ++i) {
        const int32_t id =
            random() % 2 == 0
                ? single[random() % single.size()]
                : static_cast<int32_t>(random() % tokenizer->vocab_size());
        ids.push_back(id);
        if (!skip_special || !tokenizer->IsSpecial(id)) {
          bytes += tokenizer->TokenBytes(id);
        }
        const std::string delta = stream.Append(id);
        ASSERT_TRUE(IsValidUtf8(delta));
        text += delta;
      }
      text += stream.Flush();
      ASSERT_EQ(text, tokenizer->Decode(ids, skip_special));
      ASSERT_EQ(text, RepairUtf8(bytes));
    }
  }
}

}  // namespace
}  // namespace moebius
