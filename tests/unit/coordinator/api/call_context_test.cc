#include "coordinator/api/call_context.h"

#include <random>
#include <string>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

CallContext Sample() {
  return {
      true,        true, 1795718927, 0xfedcba9876543210, "0123/key:with 3:odd",
      "chatcmpl-1"};
}

TEST(CallContext, ReadsBackTheSame) {
  for (const CallContext& context : {Sample(), CallContext{}}) {
    const auto parsed = ParseCallContext(EncodeCallContext(context));
    ASSERT_THAT(parsed, IsOk());
    EXPECT_EQ(*parsed, context);
  }
}

TEST(CallContext, EverythingElseIsRefused) {
  const std::string good = EncodeCallContext(Sample());
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(ParseCallContext(good.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(ParseCallContext(good + "x").ok());
  for (const char* bad :
       {"M2 1 1 1 1 1:k1:a", "M1 2 1 1 1 1:k1:a", "M1 1 1 1 1 99:k1:a",
        "M1 1 1 1 1 -1:k1:a", "M1  1 1 1 1:k1:a"}) {
    EXPECT_FALSE(ParseCallContext(bad).ok()) << bad;
  }
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (int k = 0; k < 3; ++k) bytes[random() % bytes.size()] = random();
    const auto parsed = ParseCallContext(bytes);
    if (parsed.ok()) EncodeCallContext(*parsed);
  }
}

TEST(CallContext, KeysOfOtherCredentialsAreOthers) {
  EXPECT_NE(ScopedKey("k", "Bearer a"), ScopedKey("k", "Bearer b"));
  EXPECT_EQ(ScopedKey("k", "Bearer a"), ScopedKey("k", "Bearer a"));
  EXPECT_NE(FingerprintOf("/v1/completions", "x"),
            FingerprintOf("/v1/chat/completions", "x"));
  EXPECT_NE(FingerprintOf("/v1/completions", "x"),
            FingerprintOf("/v1/completions", "y"));
}

}  // namespace
}  // namespace moebius
