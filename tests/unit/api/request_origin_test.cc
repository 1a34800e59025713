#include "coordinator/api/request_origin.h"

#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/call_context.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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
  EXPECT_THAT(origin->last_event, IsEmpty());
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

TEST(RequestOrigin, TheLastEventSaysTokensOfEachChoice) {
  EXPECT_THAT(Of({{"last-event-id", "17"}})->last_event, ElementsAre(17));
  EXPECT_THAT(Of({{"last-event-id", "0-16-9999999999"}})->last_event,
              ElementsAre(0, 16, 9999999999));
  // A browser's EventSource may send an empty one.
  EXPECT_THAT(Of({{"last-event-id", ""}})->last_event, IsEmpty());
}

TEST(RequestOrigin, WhatIsNoIdOfAnEventIsRefused) {
  for (const char* id :
       {"x", "1-", "-1", "1--2", "1.5", "12345678901", "1-x"}) {
    const auto origin = Of({{"last-event-id", id}});
    ASSERT_FALSE(origin.ok()) << id;
    EXPECT_EQ(origin.error().http_status, 400);
    EXPECT_EQ(origin.error().param, "Last-Event-ID");
  }
}

}  // namespace
}  // namespace moebius
