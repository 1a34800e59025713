#include "coordinator/api/request_origin.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/call_context.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::HasSubstr;

using Headers = std::vector<std::pair<std::string, std::string>>;

Parsed<RequestOrigin> Of(Headers headers, std::string_view body = "{}") {
  HttpRequest request;
  request.path = "/v1/completions";
  request.headers = std::move(headers);
  return OriginOf(request, body, {});
}

TEST(RequestOrigin, WithoutHeadersItIsANewRequest) {
  const auto origin = Of({});
  ASSERT_TRUE(origin.ok());
  EXPECT_EQ(origin->key, "");
  EXPECT_EQ(origin->last_event, std::nullopt);
  EXPECT_EQ(origin->fingerprint, FingerprintOf("/v1/completions", "{}"));
}

TEST(RequestOrigin, TheKeyIsThatOfItsClient) {
  const auto anybody = Of({{"idempotency-key", "k"}});
  const auto somebody =
      Of({{"authorization", "Bearer a"}, {"idempotency-key", "k"}});
  ASSERT_TRUE(anybody.ok());
  ASSERT_TRUE(somebody.ok());
  EXPECT_EQ(anybody->key, ScopedKey("k", ""));
  EXPECT_EQ(somebody->key, ScopedKey("k", "Bearer a"));
}

TEST(RequestOrigin, KeysHaveALength) {
  EXPECT_TRUE(Of({{"idempotency-key", std::string(kMaxKeyBytes, 'k')}}).ok());
  for (const std::string& key :
       {std::string(), std::string(kMaxKeyBytes + 1, 'k')}) {
    const auto origin = Of({{"idempotency-key", key}});
    ASSERT_FALSE(origin.ok()) << key.size();
    EXPECT_EQ(origin.error().http_status, 400);
    EXPECT_EQ(origin.error().param, "Idempotency-Key");
    EXPECT_THAT(origin.error().message,
                HasSubstr("has " + std::to_string(key.size())));
  }
}

TEST(RequestOrigin, TheLastEventIsOfTheKeysAnswer) {
  const auto origin =
      Of({{"idempotency-key", "k"}, {"last-event-id", "0000002a.0-16"}});
  ASSERT_TRUE(origin.ok());
  EXPECT_EQ(origin->last_event, (EventId{42, {0, 16}}));
  // A browser's EventSource may send an empty one.
  const auto empty = Of({{"idempotency-key", "k"}, {"last-event-id", ""}});
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->last_event, std::nullopt);
}

TEST(RequestOrigin, WithoutAKeyTheLastEventIsIgnored) {
  for (const char* id : {"0000002a.17", "17", "of another server"}) {
    const auto origin = Of({{"last-event-id", id}});
    ASSERT_TRUE(origin.ok()) << id;
    EXPECT_EQ(origin->last_event, std::nullopt) << id;
  }
}

TEST(RequestOrigin, WhatIsNoIdOfAnEventIsRefused) {
  const auto origin = Of({{"idempotency-key", "k"}, {"last-event-id", "x"}});
  ASSERT_FALSE(origin.ok());
  EXPECT_EQ(origin.error().http_status, 400);
  EXPECT_EQ(origin.error().param, "Last-Event-ID");
}

}  // namespace
}  // namespace moebius
