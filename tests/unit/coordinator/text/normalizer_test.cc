#include "coordinator/text/normalizer.h"

#include <utf8proc.h>

#include <random>
#include <set>

#include "coordinator/text/utf8.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

std::string Utf8(char32_t value) {
  std::string text;
  AppendUtf8(value, &text);
  return text;
}

// What the library makes of the whole text at once.
std::string LibraryForm(const std::string& text, int options) {
  utf8proc_uint8_t* out = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &out,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | options));
  EXPECT_GE(size, 0);
  std::string result(reinterpret_cast<char*>(out), size < 0 ? 0 : size);
  std::free(out);
  return result;
}

std::string Nfc(const std::string& text) {
  const auto result = NormalizeNfc(text);
  EXPECT_THAT(result, IsOk());
  return result.value_or("");
}

TEST(NormalizeNfc, Composes) {
  EXPECT_EQ(Nfc(""), "");
  EXPECT_EQ(Nfc("e\u0301"), "\u00E9");
  EXPECT_EQ(Nfc("xe\u0301y"), "x\u00E9y");
  EXPECT_EQ(Nfc("\u0301e"), "\u0301e");
  EXPECT_EQ(Nfc("\u1112\u1161\u11AB"), "\uD55C");  // Hangul from jamo
  EXPECT_EQ(Nfc("\uD558\u11AB"), "\uD55C");
  EXPECT_EQ(Nfc("\u212B"), "\u00C5");                // the Angstrom sign
  EXPECT_EQ(Nfc("q\u0307\u0323"), "q\u0323\u0307");  // marks in order
}

// The run of marks is sorted, not bubbled: this is 300,000 of them in the
// wrong order, which takes minutes in quadratic time.
TEST(NormalizeNfc, LongRunsOfMarksAreNotQuadratic) {
  std::string text = "a", expected;
  constexpr int kCount = 150000;
  for (int i = 0; i < kCount; ++i) text += "\u0307";
  for (int i = 0; i < kCount; ++i) text += "\u0323";
  const std::string result = Nfc(text);
  EXPECT_EQ(result.substr(0, 3), "\u1EA1");  // a with a dot below
  EXPECT_EQ(result.substr(result.size() - 2), "\u0307");
  EXPECT_EQ(result.size(), text.size() - 1 - 2 + 3);
}

TEST(NormalizeNfc, AgreesWithTheLibraryOnRandomText) {
  std::mt19937 random(11);
  const std::pair<char32_t, int> ranges[] = {
      {0x20, 0x60},    {0x300, 0x70},   {0xC0, 0x180},   {0x1100, 0x100},
      {0xAC00, 11172}, {0x900, 0x700},  {0x1E00, 0x300}, {0x3040, 0x60},
      {0xF900, 0x200}, {0x1D100, 0x100}};
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const auto& [first, count] = ranges[random() % std::size(ranges)];
    for (int i = 0; i < 12; ++i) {
      const bool mark = random() % 3 == 0;
      AppendUtf8(mark ? 0x300 + random() % 0x50 : first + random() % count,
                 &text);
    }
    ASSERT_EQ(Nfc(text), LibraryForm(text, UTF8PROC_COMPOSE)) << text;
  }
}

TEST(IsInertInNfc, HoldsForEveryCharacterItNames) {
  // Inert characters must be starters, be their own NFC, and never be the
  // second of a pair that composes: not the last of a decomposition.
  std::set<char32_t> last_of_decomposition;
  for (char32_t value = 0; value < 0x110000; ++value) {
    if (value == 0xD800) value = 0xE000;
    const std::string parts = LibraryForm(Utf8(value), UTF8PROC_DECOMPOSE);
    const size_t last = PreviousCharacter(parts, parts.size());
    if (last != 0) {
      last_of_decomposition.insert(ReadCodePoint(parts.data() + last).value);
    }
  }
  EXPECT_TRUE(last_of_decomposition.count(0x301));
  for (char32_t value = 0; value < 0x110000; ++value) {
    if (value == 0xD800) value = 0xE000;
    if (!IsInertInNfc(value)) continue;
    ASSERT_EQ(utf8proc_get_property(value)->combining_class, 0);
    ASSERT_EQ(LibraryForm(Utf8(value), UTF8PROC_COMPOSE), Utf8(value));
    ASSERT_FALSE(last_of_decomposition.count(value))
        << std::hex << uint32_t{value};
  }
}

TEST(CharacterClasses, SpacesAndWords) {
  for (const char32_t value : {0x9, 0x20, 0x85, 0xA0, 0x2003, 0x3000}) {
    EXPECT_TRUE(IsWhiteSpace(value)) << uint32_t{value};
  }
  for (const char32_t value : {0x41, 0x180E, 0x200B, 0xFEFF}) {
    EXPECT_FALSE(IsWhiteSpace(value)) << uint32_t{value};
  }
  for (const char32_t value :
       {0x41, 0x5F, 0x39, 0x301, 0x4E2D, 0x2160, 0x200D, 0x24B6}) {
    EXPECT_TRUE(IsWordCharacter(value)) << uint32_t{value};
  }
  for (const char32_t value : {0x20, 0x2D, 0xB2, 0x3002, 0x1F600}) {
    EXPECT_FALSE(IsWordCharacter(value)) << uint32_t{value};
  }
}

}  // namespace
}  // namespace moebius
