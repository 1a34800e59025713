#include "coordinator/http/negotiation.h"

#include <string>
#include <string_view>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(Negotiation, TheOwnEntryCountsBeforeRanges) {
  struct Case {
    std::string_view list, wanted;
    double weight;
  };
  for (const Case& c : {
           Case{"", "gzip", 0},
           {"gzip", "gzip", 1},
           {"GZIP", "gzip", 1},
           {"deflate, gzip;q=0.5", "gzip", 0.5},
           {"gzip;q=0, *", "gzip", 0},
           {"*;q=0.2", "gzip", 0.2},
           {"br, *;q=0", "gzip", 0},
           {"x-gzip", "gzip", 0},
           {"text/*;q=0.3, */*;q=0.1", "text/plain", 0.3},
           {"text/plain;q=0.7;version=0.0.4, text/*", "text/plain", 0.7},
           {"text/plain;version=0.0.4;q=0.5", "text/plain", 0.5},
           {"*/*", "text/plain", 1},
           {"a/b;q=0.1 , a/b;v=2;q=0.4", "a/b", 0.4},
           // No weights.
           {"gzip;q=2", "gzip", 0},
           {"gzip;q=nan", "gzip", 0},
           {"gzip;q=", "gzip", 0},
           {",,;q=1,", "gzip", 0},
       }) {
    EXPECT_EQ(WeightOf(c.list, c.wanted), c.weight) << c.list;
  }
}

HttpRequest WithAccept(std::string value) {
  HttpRequest request;
  request.headers.emplace_back("accept", std::move(value));
  return request;
}

TEST(Negotiation, OpenMetricsIsForThoseThatWantItMoreThanText) {
  // As Prometheus 2.42 asks.
  EXPECT_TRUE(PrefersOpenMetrics(
      WithAccept("application/openmetrics-text;version=1.0.0,"
                 "application/openmetrics-text;version=0.0.1;q=0.75,"
                 "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")));
  EXPECT_TRUE(PrefersOpenMetrics(WithAccept("application/openmetrics-text")));
  EXPECT_FALSE(PrefersOpenMetrics(HttpRequest()));
  EXPECT_FALSE(PrefersOpenMetrics(WithAccept("*/*")));
  EXPECT_FALSE(PrefersOpenMetrics(
      WithAccept("text/plain, application/openmetrics-text;q=0.9")));
}

}  // namespace
}  // namespace moebius
