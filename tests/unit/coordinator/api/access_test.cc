// Who is let in: keys in headers, probes without.
#include "coordinator/api/access.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/json_input.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kKey[] = "sk-0123456789abcdef";
constexpr char kOther[] = "sk-fedcba9876543210";

std::optional<ApiKeys> Keys() {
  auto keys =
      ApiKeys::Parse(std::string(kKey) + "\nsk-second-of-the-keys", "k");
  EXPECT_THAT(keys, IsOk());
  return *std::move(keys);
}

HttpRequest Asking(const std::string& path,
                   const std::vector<std::string>& authorizations) {
  HttpRequest head;
  head.method = "GET";
  head.path = path;
  head.headers.emplace_back("host", "x");
  for (const std::string& value : authorizations) {
    head.headers.emplace_back("authorization", value);
  }
  return head;
}

TEST(Access, WithoutARightKeyTheAnswerIsOpenAis401) {
  const std::string key = kKey;
  const std::vector<std::vector<std::string>> kCases = {
      {},
      {""},
      {"Bearer"},
      {"Bearer "},
      {key},
      {"Basic " + key},
      {"Bearer" + key},
      {"Bearer\t" + key},
      {"Bearer " + key + "x"},
      {"Bearer " + key + " "},
      {"Bearer x" + key},
      {"Bearer " + key.substr(1)},
      {"Bearer " + std::string(kOther)},
      {"Bearer " + key + ", Bearer " + key},
      {"Bearer " + std::string(100'000, 'k')},
      // Which one would somebody before us have looked at?
      {"Bearer " + key, "Bearer " + std::string(kOther)},
      {"Bearer " + key, "Bearer " + key},
  };
  for (const auto& authorizations : kCases) {
    const auto refusal =
        RefuseWithoutKey(Keys(), Asking("/v1/models", authorizations));
    const std::string shown =
        authorizations.empty() ? "none" : authorizations[0].substr(0, 60);
    ASSERT_TRUE(refusal.has_value()) << shown;
    EXPECT_EQ(refusal->status, 401);
    const auto body = ParseJson(refusal->body);
    ASSERT_THAT(body, IsOk());
    const Json& error = (*body)["error"];
    EXPECT_EQ(error["code"], "invalid_api_key");
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_EQ(error["param"], nullptr);
    EXPECT_THAT(refusal->body, Not(HasSubstr("sk-")));
    ASSERT_EQ(refusal->headers.size(), 1u);
    EXPECT_EQ(refusal->headers[0].first, "WWW-Authenticate");
    EXPECT_THAT(refusal->headers[0].second, testing::StartsWith("Bearer"));
  }
}

TEST(Access, ARightKeyLetsIn) {
  const std::string key = kKey;
  for (const std::string& value :
       {"Bearer " + key, "bearer " + key, "BEARER   " + key,
        std::string("Bearer sk-second-of-the-keys")}) {
    EXPECT_FALSE(RefuseWithoutKey(Keys(), Asking("/v1/models", {value})))
        << value;
  }
}

TEST(Access, ProbesAndTheVersionNeedNoKey) {
  for (const char* path : {"/health", "/ready", "/version"}) {
    EXPECT_FALSE(RefuseWithoutKey(Keys(), Asking(path, {})));
    EXPECT_FALSE(RefuseWithoutKey(Keys(), Asking(path, {"Bearer wrong"})));
  }
  for (const char* path :
       {"/metrics", "/status", "/progress", "/admin/drain", "/admin/layout",
        "/tokenize", "/", "/health/", "//health", "/health/../status",
        "/Health", "/nothing", ""}) {
    EXPECT_TRUE(RefuseWithoutKey(Keys(), Asking(path, {}))) << path;
  }
}

TEST(Access, WithoutKeysEverybodyIsLetIn) {
  EXPECT_FALSE(RefuseWithoutKey(std::nullopt, Asking("/v1/models", {})));
}

}  // namespace
}  // namespace moebius
