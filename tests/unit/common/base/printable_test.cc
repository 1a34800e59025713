// Nothing from outside reaches a terminal as more than text.
#include "common/base/printable.h"

#include <string>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(Printable, ControlCharactersBecomeEscapes) {
  EXPECT_EQ(Printable("a\r\nb\tc"), "a\\r\\nb\\tc");
  EXPECT_EQ(Printable("\x1b[2J\x07\x7f"), "\\x1b[2J\\x07\\x7f");
  EXPECT_EQ(Printable(std::string_view("a\0b", 3)), "a\\x00b");
  // C1, whose U+009B is another way to say ESC [.
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J\xc2\x85"),
            "\\u009b2J\\u0085");
}

TEST(Printable, WhatReordersOrEndsLinesBecomesEscapes) {
  EXPECT_EQ(Printable("\xe2\x80\xae"
                      "x\xe2\x81\xa6"
                      "y\xe2\x80\xa8"
                      "z\xd8\x9c"),
            "\\u202ex\\u2066y\\u2028z\\u061c");
}

TEST(Printable, BytesThatAreNotUtf8BecomeEscapes) {
  EXPECT_EQ(Printable("\xff\x9b[2J"), "\\xff\\x9b[2J");
  EXPECT_EQ(Printable("\xc0\x8a"), "\\xc0\\x8a");           // overlong
  EXPECT_EQ(Printable("\xe0\x82\x9b"), "\\xe0\\x82\\x9b");  // overlong
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // surrogate
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(Printable("\xe2\x82"), "\\xe2\\x82");  // cut off
}

TEST(Printable, TextStaysAsItIs) {
  const std::string text = "a \\n \"b\" \xc3\xa4\xe2\x82\xac\xf0\x9f\x99\x82";
  EXPECT_EQ(Printable(text), text);
  EXPECT_EQ(Printable(""), "");
}

TEST(Printable, LongTextIsCutBetweenCharacters) {
  EXPECT_EQ(Printable("abc", 3), "abc");
  EXPECT_EQ(Printable("abcd", 3), "abc...");
  EXPECT_EQ(Printable("ab\xc3\xa4", 3), "ab...");
  EXPECT_EQ(Printable("ab\n", 3), "ab...");
}

TEST(Printable, LinesKeepTheirEnds) {
  EXPECT_EQ(PrintableLines("a\n\tb\r\x1b"), "a\n\tb\\r\\x1b");
}

}  // namespace
}  // namespace moebius
