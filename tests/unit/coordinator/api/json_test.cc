// JSON that clients send, and JSON that we write by hand.
#include <cmath>
#include <limits>
#include <string>

#include "coordinator/api/json_input.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

std::string Nested(int depth) {
  return std::string(depth, '[') + std::string(depth, ']');
}

TEST(JsonInput, WhatIsNoJsonIsRefusedWithThePlace) {
  const struct {
    std::string text;
    const char* reason;
  } kCases[] = {
      {"", "syntax error"},
      {"{", "syntax error"},
      {"{\"a\":1,}", "syntax error at byte 8"},
      {"{\"a\":1} x", "syntax error"},
      {"{'a':1}", "syntax error"},
      {"NaN", "syntax error"},
      {"[Infinity]", "syntax error"},
      {"[-]", "syntax error"},
      {"[01]", "syntax error"},
      {"// c\n1", "syntax error"},
      {"\"\x01\"", "syntax error"},
      {"\"\\ud800\"", "syntax error"},
      {std::string("\"a\0b\"", 5), "syntax error"},
      {"\"\xff\"", "invalid UTF-8"},
      {"\"\xc3\"", "invalid UTF-8"},
      {"\"\xed\xa0\x80\"", "invalid UTF-8"},
      {"1e999", "out of range"},
      {"[-1e400]", "out of range"},
      {"{\"a\":1,\"b\":2,\"a\":3}", "the key \"a\" is given twice"},
      {Nested(kMaxJsonDepth + 1), "nested more than 64 levels"},
      {Nested(100000), "nested more than 64 levels"},
  };
  for (const auto& c : kCases) {
    EXPECT_THAT(ParseJson(c.text), StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr(c.reason)))
        << c.text.substr(0, 80);
  }
}

TEST(JsonInput, ManyKeysOfOneObjectAreRefused) {
  std::string text = "{";
  for (int i = 0; i <= kMaxJsonKeys; ++i) {
    text += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":0";
  }
  EXPECT_THAT(ParseJson(text + "}"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("more than 4096 keys")));
}

TEST(JsonInput, ARepeatedKeyIsFoundAmongMany) {
  std::string text = "{";
  for (int i = 0; i < 100; ++i) {
    text += "\"k" + std::to_string(i) + "\":{\"same\":1},";
  }
  EXPECT_THAT(ParseJson(text + "\"k3\":0}"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("\"k3\" is given twice")));
  EXPECT_THAT(ParseJson(text + "\"k100\":0}"), IsOk());
}

TEST(JsonInput, ValuesAndTheOrderOfKeysAreKept) {
  const std::string text =
      R"({"z":[1,-2,3.5,true,false,null],"a":{"é":"\n"},"m":18446744073709551615})";
  auto value = ParseJson(text);
  ASSERT_THAT(value, IsOk());
  EXPECT_EQ(value->dump(), text);
  EXPECT_THAT(ParseJson(Nested(kMaxJsonDepth)), IsOk());
}

TEST(JsonText, StringsAreEscaped) {
  std::string out;
  AppendJsonString(std::string_view("a\"b\\c\n\r\t\b\f\x01\x7f\0é😀", 19), &out);
  EXPECT_EQ(out, R"("a\"b\\c\n\r\t\b\f\u0001\u007f\u0000é😀")");
  auto back = ParseJson(out);
  ASSERT_THAT(back, IsOk());
  EXPECT_EQ(back->get<std::string>(),
            std::string("a\"b\\c\n\r\t\b\f\x01\x7f\0é😀", 19));
}

TEST(JsonText, FloatsReadBackBitForBit) {
  uint32_t bits = 12345;
  for (int i = 0; i < 20000; ++i) {
    bits = bits * 1664525u + 1013904223u;
    float value;
    static_assert(sizeof(value) == sizeof(bits));
    std::memcpy(&value, &bits, sizeof(value));
    if (!std::isfinite(value)) continue;
    std::string text;
    AppendFloat(value, &text);
    const float back = std::strtof(text.c_str(), nullptr);
    ASSERT_EQ(std::memcmp(&back, &value, sizeof(value)), 0) << text;
    ASSERT_THAT(ParseJson(text), IsOk()) << text;
  }
}

TEST(JsonText, WhatJsonCannotCarryBecomesANumber) {
  std::string text;
  AppendFloat(-std::numeric_limits<float>::infinity(), &text);
  text += ' ';
  AppendFloat(std::numeric_limits<float>::quiet_NaN(), &text);
  text += ' ';
  AppendFloat(std::numeric_limits<float>::infinity(), &text);
  text += ' ';
  AppendDouble(std::numeric_limits<double>::quiet_NaN(), &text);
  EXPECT_EQ(text, "-9999.0 -9999.0 9999.0 null");
}

TEST(JsonText, IllFormedUtf8IsRepaired) {
  const struct {
    const char* in;
    const char* out;
  } kCases[] = {
      {"ok é 😀", "ok é 😀"},
      {"\xff", "\ufffd"},
      {"a\xc3", "a\ufffd"},
      {"\xc3\x28", "\ufffd("},
      {"\xe2\x82", "\ufffd"},
      {"\xe2\x82x", "\ufffdx"},
      {"\xc0\xaf", "\ufffd\ufffd"},
      {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
      {"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"},
      {"\xf0\x9f\x98", "\ufffd"},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(RepairUtf8(c.in), c.out);
    EXPECT_EQ(IsValidUtf8(c.in), std::string(c.in) == c.out) << c.out;
  }
}

}  // namespace
}  // namespace moebius
