#include "deploy/cli/table.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(Table, TextIsBrokenAtSpaces) {
  EXPECT_EQ(WrapText("aa bb cc", 5), "aa bb\ncc\n");
  EXPECT_EQ(WrapText("aa\n\nbb", 5), "aa\n\nbb\n");
  EXPECT_EQ(WrapText("toolongaword b", 5), "toolongaword\nb\n");
  EXPECT_EQ(WrapText("\u00e9\u00e9 \u00e9\u00e9", 5),
            "\u00e9\u00e9 \u00e9\u00e9\n");
}

TEST(Table, ColumnsAreAligned) {
  EXPECT_EQ(FormatTable({"name", "ms"}, {{"a", "1"}, {"longer", "100"}, {"é"}}),
            "name     ms\n"
            "a         1\n"
            "longer  100\n"
            "é\n");
  EXPECT_EQ(ShortNumber(1234.5), "1234");
  EXPECT_EQ(ShortNumber(12.34), "12.3");
  EXPECT_EQ(ShortNumber(1.234), "1.23");
  EXPECT_EQ(ShortNumber(0.1234), "0.123");
  EXPECT_EQ(ShortNumber(0), "0");
}

}  // namespace
}  // namespace moebius
