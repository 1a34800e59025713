// Who may come in: names, pages, bodies.
#include "coordinator/api/admission.h"

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

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

using Headers = std::vector<std::pair<std::string, std::string>>;

HttpRequest Post(Headers headers) {
  HttpRequest head;
  head.method = "POST";
  head.path = "/admin/drain";
  head.headers = std::move(headers);
  return head;
}

AdmissionRules Rules(bool keyed = false) {
  return MakeAdmissionRules(keyed, "127.0.0.1", "Chat.example 10.0.0.7",
                            "https://pages.example");
}

// Status and code of a refusal; 0: none.
std::pair<int, std::string> Refusal(const AdmissionRules& rules,
                                    const HttpRequest& head) {
  const auto response = RefuseAtTheDoor(rules, head);
  if (!response) return {0, ""};
  const auto body = ParseJson(response->body);
  EXPECT_THAT(body, IsOk()) << response->body;
  return {response->status, (*body)["error"]["code"].get<std::string>()};
}

TEST(Admission, AForeignHostIsA403) {
  for (const char* host :
       {"x.example", "x.example:8001", "localhost.example", "127.0.0.1.example",
        "notlocalhost", "10.0.0.8", "[::2]:80", "0.0.0.0", "chat.example.org",
        "localhost:80:80", "128.0.0.1", "["}) {
    EXPECT_THAT(Refusal(Rules(), Post({{"host", host}})),
                Pair(403, "foreign_host"))
        << host;
  }
  HttpRequest absolute = Post({{"host", "localhost"}});
  absolute.authority = "x.example";
  EXPECT_THAT(Refusal(Rules(), absolute), Pair(403, "foreign_host"));
}

TEST(Admission, NamesOfThisMachineAndThoseThatAreAllowedComeIn) {
  for (const char* host :
       {"localhost", "LocalHost:8001", "localhost.", "a.localhost:1",
        "127.0.0.1", "127.0.0.1:8001", "127.9.9.9", "[::1]:8001", "[::1]",
        "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "chat.example",
        "CHAT.example:443", "10.0.0.7:8000", ""}) {
    EXPECT_THAT(Refusal(Rules(), Post({{"host", host}})), Pair(0, "")) << host;
  }
  EXPECT_THAT(Refusal(Rules(), Post({})), Pair(0, ""));  // HTTP/1.0
}

TEST(Admission, TheBoundAddressComesIn) {
  const auto one = MakeAdmissionRules(false, "192.168.1.5", "", "");
  EXPECT_THAT(Refusal(one, Post({{"host", "192.168.1.5:80"}})), Pair(0, ""));
  EXPECT_THAT(Refusal(one, Post({{"host", "192.168.1.6:80"}})),
              Pair(403, "foreign_host"));
  // All addresses: any may be ours, no name is.
  for (const char* bound : {"0.0.0.0", "::"}) {
    const auto all = MakeAdmissionRules(false, bound, "", "");
    for (const char* host : {"192.168.1.6:80", "[fd00::1]"}) {
      EXPECT_THAT(Refusal(all, Post({{"host", host}})), Pair(0, "")) << host;
    }
    EXPECT_THAT(Refusal(all, Post({{"host", "x.example"}})),
                Pair(403, "foreign_host"));
  }
  const auto any = MakeAdmissionRules(false, "127.0.0.1", "*", "");
  EXPECT_THAT(Refusal(any, Post({{"host", "x.example"}})), Pair(0, ""));
}

TEST(Admission, AForeignPageIsA403) {
  for (const char* origin :
       {"https://x.example", "null", "", "http://localhost.example",
        "https://pages.example:8443", "http://pages.example", "localhost",
        "file://", "chrome-extension://abc"}) {
    EXPECT_THAT(Refusal(Rules(), Post({{"host", "localhost"},
                                       {"origin", origin},
                                       {"content-type", "application/json"}})),
                Pair(403, "foreign_origin"))
        << origin;
  }
  // One of two is enough.
  EXPECT_THAT(Refusal(Rules(), Post({{"origin", "http://localhost"},
                                     {"origin", "https://x.example"}})),
              Pair(403, "foreign_origin"));
  for (const char* origin :
       {"http://localhost:3000", "https://127.0.0.1", "http://[::1]:8000",
        "https://chat.example", "https://pages.example"}) {
    EXPECT_THAT(
        Refusal(Rules(), Post({{"host", "localhost"}, {"origin", origin}})),
        Pair(0, ""))
        << origin;
  }
}

TEST(Admission, AListenerWithKeysLooksAtNeither) {
  EXPECT_THAT(Refusal(Rules(/*keyed=*/true),
                      Post({{"host", "x.example"},
                            {"origin", "https://x.example"},
                            {"content-length", "2"},
                            {"content-type", "application/json"}})),
              Pair(0, ""));
}

TEST(Admission, APagesBodyIsJsonOrA415) {
  for (const bool keyed : {false, true}) {
    for (const char* type :
         {"text/plain", "application/x-www-form-urlencoded", "",
          "application/jsonp", "text/plain;application/json",
          "multipart/form-data; boundary=application/json"}) {
      const Headers headers = {{"origin", "http://localhost"},
                               {"content-type", type},
                               {"content-length", "2"}};
      EXPECT_THAT(Refusal(Rules(keyed), Post(headers)),
                  Pair(415, "unsupported_content_type"))
          << type;
    }
  }
  EXPECT_THAT(Refusal(Rules(), Post({{"origin", "http://localhost"},
                                     {"transfer-encoding", "chunked"}})),
              Pair(415, "unsupported_content_type"));
  for (const char* type :
       {"application/json", "Application/JSON",
        "application/json; charset=utf-8", " application/json ;x=y"}) {
    EXPECT_THAT(Refusal(Rules(), Post({{"origin", "http://localhost"},
                                       {"content-type", type},
                                       {"content-length", "2"}})),
                Pair(0, ""))
        << type;
  }
  // No page, or no body.
  EXPECT_THAT(Refusal(Rules(), Post({{"content-type", "text/plain"},
                                     {"content-length", "2"}})),
              Pair(0, ""));
  EXPECT_THAT(Refusal(Rules(), Post({{"origin", "http://localhost"},
                                     {"content-length", "0"}})),
              Pair(0, ""));
}

TEST(Admission, ACompressedBodyIsA415) {
  for (const char* coding : {"gzip", "br", "identity, gzip", "deflate"}) {
    const HttpRequest head =
        Post({{"content-encoding", coding}, {"content-length", "20"}});
    EXPECT_THAT(Refusal(Rules(), head),
                Pair(415, "unsupported_content_encoding"));
    EXPECT_THAT(RefuseAtTheDoor(Rules(), head)->headers,
                ElementsAre(Pair("Accept-Encoding", "identity")));
  }
  EXPECT_THAT(Refusal(Rules(), Post({{"content-encoding", "Identity"}})),
              Pair(0, ""));
}

HttpRequest Options(Headers headers) {
  HttpRequest head = Post(std::move(headers));
  head.method = "OPTIONS";
  return head;
}

TEST(Admission, OnlyAllowedOriginsHaveAPreflight) {
  const Headers asks = {{"origin", "https://pages.example"},
                        {"access-control-request-method", "POST"},
                        {"access-control-request-headers", "x-a,content-type"}};
  EXPECT_TRUE(IsPreflight(Rules(), Options(asks)));
  EXPECT_FALSE(IsPreflight(Rules(), Post(asks)));
  EXPECT_FALSE(IsPreflight(Rules(), Options({asks[0]})));
  EXPECT_FALSE(IsPreflight(Rules(), Options({asks[1]})));
  EXPECT_FALSE(IsPreflight(
      Rules(), Options({{"origin", "https://x.example"}, asks[1]})));
  EXPECT_FALSE(IsPreflight(MakeAdmissionRules(false, "127.0.0.1", "", ""),
                           Options(asks)));
  EXPECT_TRUE(IsPreflight(MakeAdmissionRules(true, "127.0.0.1", "", "*"),
                          Options(asks)));
  const HttpResponse answer = PreflightResponse(Options(asks));
  EXPECT_EQ(answer.status, 204);
  EXPECT_THAT(
      answer.headers,
      ElementsAre(Pair("Access-Control-Allow-Methods", "GET, POST"),
                  Pair("Access-Control-Allow-Headers", "x-a,content-type"),
                  Pair("Access-Control-Max-Age", "600")));
}

TEST(Admission, OnlyAllowedOriginsAreToldToBrowsers) {
  const auto off = MakeAdmissionRules(false, "127.0.0.1", "", "");
  EXPECT_THAT(CorsHeaders(off, Post({{"origin", "http://localhost"}})),
              IsEmpty());
  EXPECT_THAT(CorsHeaders(Rules(), Post({{"origin", "http://localhost"}})),
              ElementsAre(Pair("Vary", "Origin")));
  EXPECT_THAT(CorsHeaders(Rules(), Post({})),
              ElementsAre(Pair("Vary", "Origin")));
  EXPECT_THAT(
      CorsHeaders(Rules(), Post({{"origin", "https://pages.example"}})),
      ElementsAre(
          Pair("Vary", "Origin"),
          Pair("Access-Control-Allow-Origin", "https://pages.example"),
          Pair("Access-Control-Expose-Headers", "Retry-After, X-Request-Id")));
}

TEST(Admission, AHostIsReadInOneForm) {
  EXPECT_EQ(NormalHost("A.Example.:80"), "a.example");
  EXPECT_EQ(NormalHost("[0:0::1]:80"), "::1");
  EXPECT_EQ(NormalHost("fd00:0::1"), "fd00::1");
  EXPECT_EQ(NormalHost("["), "");
  EXPECT_EQ(NormalHost(""), "");
  EXPECT_EQ(NormalHost(":80"), "");
}

}  // namespace
}  // namespace moebius
