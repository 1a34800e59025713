#include "coordinator/text/utf8.h"

#include <random>

#include "coordinator/text/byte_alphabet.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(RepairUtf8, OneReplacementForEachMaximalSubpart) {
  // The Unicode Standard, tables 3-8 to 3-11.
  EXPECT_EQ(RepairUtf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(RepairUtf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41");
  EXPECT_EQ(RepairUtf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\x41\uFFFD\uFFFD\x42");
  EXPECT_EQ(RepairUtf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\x41");
}

TEST(RepairUtf8, AnIncompleteEndIsOneReplacement) {
  EXPECT_EQ(RepairUtf8("a\xE2\x82"), "a\uFFFD");
  EXPECT_EQ(RepairUtf8("a\xF0\x9F\x98"), "a\uFFFD");
  EXPECT_EQ(RepairUtf8("\xC3"), "\uFFFD");
}

TEST(RepairUtf8, LeavesValidTextAlone) {
  const std::string text =
      "plain, \u00E9, \u20AC, \U0001F600, " + std::string("\0x", 2);
  EXPECT_TRUE(IsValidUtf8(text));
  EXPECT_EQ(RepairUtf8(text), text);
}

TEST(Utf8Repairer, TheCutsDoNotMatter) {
  std::mt19937 random(7);
  // Bytes that begin, continue, end and break characters.
  const std::string bytes = "a\x80\x9F\xA0\xBF\xC2\xE0\xE2\xED\xF0\xF4\xFF";
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 24; ++i) text += bytes[random() % bytes.size()];
    std::string out;
    Utf8Repairer repairer;
    for (size_t at = 0; at < text.size();) {
      const size_t size = random() % 4;
      repairer.Append(std::string_view(text).substr(at, size), &out);
      at += size;
    }
    repairer.Flush(&out);
    ASSERT_EQ(out, RepairUtf8(text));
    ASSERT_TRUE(IsValidUtf8(out));
  }
}

TEST(Utf8, EveryCodePointSurvives) {
  for (char32_t value = 0; value < 0x110000; ++value) {
    if (value == 0xD800) value = 0xE000;
    std::string text;
    AppendUtf8(value, &text);
    ASSERT_TRUE(IsValidUtf8(text)) << std::hex << uint32_t{value};
    const CodePoint point = ReadCodePoint(text.data());
    ASSERT_EQ(point.value, value);
    ASSERT_EQ(point.size_bytes, static_cast<int>(text.size()));
    ASSERT_EQ(PreviousCharacter(text, text.size()), 0u);
  }
}

TEST(ByteAlphabet, RefusesOtherCharacters) {
  EXPECT_EQ(BytesFromSpelling("a b"), std::nullopt);     // a space
  EXPECT_EQ(BytesFromSpelling("\u00AD"), std::nullopt);  // not printable
  EXPECT_EQ(BytesFromSpelling("\u0144"), std::nullopt);  // past the last
  EXPECT_EQ(BytesFromSpelling("\u4E2D"), std::nullopt);
}

TEST(ByteAlphabet, EveryByteHasOneSpelling) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(BytesFromSpelling(SpellingFromBytes(all)), all);
  EXPECT_EQ(SpellingFromBytes(" the\n"), "\u0120the\u010A");
  EXPECT_EQ(SpellingFromBytes("\xFF"), "\u00FF");
}

}  // namespace
}  // namespace moebius
