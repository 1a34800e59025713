#include "coordinator/http/http_head.h"

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

HttpRequest With(std::vector<std::pair<std::string, std::string>> headers) {
  HttpRequest head;
  head.headers = std::move(headers);
  return head;
}

TEST(HttpHead, OnlyOneHostThatIsOneIsTaken) {
  EXPECT_EQ(HostTrouble(With({}), false), "no Host");
  EXPECT_EQ(HostTrouble(With({}), true), "");
  for (const bool http_1_0 : {false, true}) {
    EXPECT_EQ(HostTrouble(With({{"host", "a"}, {"host", "a"}}), http_1_0),
              "more than one Host");
    for (const char* bad : {"a b", "a/b", "user@a", "a?b", "a#b", "a\tb",
                            "\xc3\xa4.example", "a\"b", "<a>"}) {
      EXPECT_EQ(HostTrouble(With({{"host", bad}}), http_1_0),
                "a Host that is none")
          << bad;
    }
    for (const char* good : {"", "a", "a-b_c.example:80", "[::1]:80"}) {
      EXPECT_EQ(HostTrouble(With({{"host", good}}), http_1_0), "") << good;
    }
  }
}

TEST(HttpHead, ALineFeedAloneIsFoundWhereverTheHeadIsCut) {
  const std::string end = "\r\n\r\n";
  const struct {
    std::string text;
    bool bare;
  } kCases[] = {
      {"GET / HTTP/1.1\nHost: x\n\n", true},
      {"\nGET / HTTP/1.1\r\nHost: x" + end, true},
      {"GET / HTTP/1.1\r\nHost: x\nA: b" + end, true},
      {"GET / HTTP/1.1\r\nHost: x\r\n\n", true},
      {"GET / HTTP/1.1\r\nHost: x" + end, false},
      {"GET / HTTP/1.1\r\nHost: x" + end + "a\nbody\n\n", false},
      {"GET / HTTP/1.1\r\nHost: x" + end + "\n" + end, false},
  };
  for (const auto& c : kCases) {
    for (size_t cut = 0; cut <= c.text.size(); ++cut) {
      size_t scanned = 0;
      bool bare =
          HasBareLineFeed(std::string_view(c.text).substr(0, cut), &scanned);
      bare = bare || HasBareLineFeed(c.text, &scanned);
      EXPECT_EQ(bare, c.bare) << c.text << cut;
    }
  }
}

TEST(HttpHead, AnIdThatCannotBeShownIsNone) {
  EXPECT_EQ(ClientRequestId(With({})), "");
  for (const std::string& bad :
       {std::string(), std::string("a b"), std::string("a\tb"),
        std::string("\xc3\xa4"), std::string("a\x7f"),
        std::string(kMaxRequestIdBytes + 1, 'a')}) {
    EXPECT_EQ(ClientRequestId(With({{"x-request-id", bad}})), "") << bad;
  }
  for (const std::string& good :
       {std::string("a"), std::string("bench-0_{1}:\"2\""),
        std::string(kMaxRequestIdBytes, 'a')}) {
    EXPECT_EQ(ClientRequestId(With({{"x-request-id", good}})), good);
  }
}

TEST(HttpHead, TargetsAreTakenApart) {
  const struct {
    const char* target;
    const char* path;
    const char* query;
    const char* authority;
  } kCases[] = {
      {"/", "/", "", ""},
      {"", "", "", ""},
      {"/a/b?c=d/", "/a/b", "c=d/", ""},
      {"/v1/models/", "/v1/models", "", ""},
      {"/v1/models//", "/v1/models/", "", ""},
      {"/a%2fb%2", "/a/b%2", "", ""},
      {"http://h:80/a?b", "/a", "b", "h:80"},
      {"http://h", "/", "", "h"},
  };
  for (const auto& c : kCases) {
    HttpRequest request;
    SplitTarget(c.target, &request);
    EXPECT_EQ(request.path, c.path) << c.target;
    EXPECT_EQ(request.query, c.query) << c.target;
    EXPECT_EQ(request.authority, c.authority) << c.target;
  }
}

}  // namespace
}  // namespace moebius
