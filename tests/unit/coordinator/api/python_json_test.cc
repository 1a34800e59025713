// What Python's json.loads makes of texts that are no JSON, or hardly.
#include "coordinator/api/python_json.h"

#include <cmath>
#include <string>

#include "coordinator/text/json_integer.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

std::string Nested(int depth) {
  return std::string(depth, '[') + std::string(depth, ']');
}

TEST(PythonJson, WhatPythonRefusesIsNone) {
  for (const std::string text : {"",
                                 " ",
                                 "{",
                                 "{\"a\"",
                                 "{\"a\":",
                                 "{\"a\":1",
                                 "{\"a\":1,",
                                 "{\"a\":1,}",
                                 "{a:1}",
                                 "{'a':1}",
                                 "[1,]",
                                 "[1 2]",
                                 "[,]",
                                 "1 x",
                                 "01",
                                 "-",
                                 "+1",
                                 ".5",
                                 "1.",
                                 "1e",
                                 "1.e5",
                                 "0x1",
                                 "nan",
                                 "inf",
                                 "NaN5",
                                 "tru",
                                 "True",
                                 "\"a",
                                 "\"\\x\"",
                                 "\"\\u12g4\"",
                                 "\"\\u12\"",
                                 "\"\n\"",
                                 "\"\\",
                                 "\xEF\xBB\xBF{}",
                                 "\"\xFF\"",
                                 "// c\n1",
                                 "{\"a\":1} {}",
                                 "]",
                                 "}"}) {
    EXPECT_FALSE(ParsePythonJson(text).has_value()) << text;
  }
  EXPECT_FALSE(ParsePythonJson(Nested(kMaxPythonJsonDepth + 2)).has_value());
  EXPECT_FALSE(ParsePythonJson(std::string(100000, '[')).has_value());
}

TEST(PythonJson, JsonIsReadAsJson) {
  const std::string text =
      R"({"z":[1,-2,3.5,true,false,null,"",[],{}],"a":{"é":"\n\"/"},)"
      R"("m":18446744073709551615,"l":-9223372036854775808,"e":-1.5e-07})";
  const auto value = ParsePythonJson(" \t\r\n" + text + " \n");
  ASSERT_TRUE(value.has_value());
  EXPECT_EQ(value->dump(), text);
  EXPECT_EQ(ParsePythonJson(R"("\ud83d\ude00\u00e9\/\b\f\r\t")")->dump(),
            R"("😀é/\b\f\r\t")");
  EXPECT_EQ(ParsePythonJson("-0")->dump(), "0");
  EXPECT_TRUE(ParsePythonJson(Nested(65)).has_value());
  EXPECT_TRUE(ParsePythonJson(Nested(kMaxPythonJsonDepth + 1)).has_value());
}

TEST(PythonJson, OfAKeyGivenTwiceTheLastValueCountsInTheFirstPlace) {
  EXPECT_EQ(ParsePythonJson(R"({"a":1,"b":2,"a":{"c":3}})")->dump(),
            R"({"a":{"c":3},"b":2})");
}

TEST(PythonJson, NumbersWithoutBoundsAreRead) {
  const auto value = ParsePythonJson(
      "[NaN,Infinity,-Infinity,1e400,-1e400,1e-400,18446744073709551616,"
      "-9223372036854775809]");
  ASSERT_TRUE(value.has_value());
  EXPECT_TRUE(std::isnan((*value)[0].get<double>()));
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ((*value)[1], infinity);
  EXPECT_EQ((*value)[2], -infinity);
  EXPECT_EQ((*value)[3], infinity);
  EXPECT_EQ((*value)[4], -infinity);
  EXPECT_EQ((*value)[5], 0.0);
  EXPECT_EQ(LongIntegerDigits((*value)[6]), "18446744073709551616");
  EXPECT_EQ(LongIntegerDigits((*value)[7]), "-9223372036854775809");
}

TEST(PythonJson, HalfASurrogatePairIsTheReplacementCharacter) {
  EXPECT_EQ(ParsePythonJson(R"("a\ud83db\ude00\ud83d\u0041")")->dump(),
            "\"a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\xEF\xBF\xBD"
            "A\"");
}

}  // namespace
}  // namespace moebius
