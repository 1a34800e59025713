#include "coordinator/status/metrics_text.h"

#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "coordinator/status/kv_usage.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string TextOf(MetricsFormat format) {
  EngineStatus status;
  status.workers.resize(2);
  status.workers[1].rank = 1;
  status.totals.generations.queue.Add(0.05);
  ServerInfo info;
  info.model = "a \"b\" \\ \n c";
  info.max_model_len = 4096;
  FrontMetrics front;
  front.CountRequest("/v1/completions", 200);
  front.inter_token().Add(0.0015);
  return MetricsText(status, info, front.Get(), format);
}

// What a scraper reads: each family once, with its help, its type and at least
// one sample, none of which comes outside of it.
void ExpectFamilies(const std::string& text, bool open_metrics) {
  std::istringstream lines(text);
  std::string line, family, type;
  std::set<std::string> seen;
  std::set<std::string> samples;
  bool ended = false;
  while (std::getline(lines, line)) {
    EXPECT_FALSE(ended) << line;
    if (line == "# EOF") {
      ended = true;
      continue;
    }
    std::istringstream words(line);
    std::string first, second, third;
    words >> first >> second >> third;
    if (first == "#") {
      if (second == "HELP") {
        family = third;
        EXPECT_TRUE(seen.insert(family).second) << family;
      } else {
        EXPECT_EQ(third, family);
        words >> type;
      }
      continue;
    }
    std::string name = first.substr(0, first.find_first_of("{ "));
    EXPECT_TRUE(samples.insert(line.substr(0, line.rfind(' '))).second) << line;
    ASSERT_TRUE(name.starts_with(family)) << line;
    const std::string suffix = name.substr(family.size());
    if (type == "histogram") {
      EXPECT_THAT(suffix, testing::AnyOf("_bucket", "_count", "_sum"));
    } else if (type == "counter" && open_metrics) {
      EXPECT_EQ(suffix, "_total") << line;
    } else {
      EXPECT_EQ(suffix, "") << line;
      EXPECT_EQ(type == "counter", name.ends_with("_total")) << line;
    }
  }
  EXPECT_EQ(ended, open_metrics);
}

TEST(MetricsText, EachFamilyIsWholeInBothFormats) {
  ExpectFamilies(TextOf(MetricsFormat::kPrometheus), false);
  ExpectFamilies(TextOf(MetricsFormat::kOpenMetrics), true);
}

TEST(MetricsText, NamesOfModelsAreEscaped) {
  EXPECT_THAT(TextOf(MetricsFormat::kPrometheus),
              HasSubstr(R"(model_name="a \"b\" \\ \n c"})"));
}

std::vector<std::string> BoundsOf(const std::string& text,
                                  const std::string& name) {
  std::vector<std::string> bounds;
  const std::string begin = name + "_bucket{";
  for (size_t at = 0; (at = text.find(begin, at)) != text.npos;) {
    at = text.find("le=\"", at) + 4;
    bounds.push_back(text.substr(at, text.find('"', at) - at));
  }
  return bounds;
}

// vllm/v1/metrics/buckets.py.
TEST(MetricsText, BucketsAreThoseOfVllm) {
  const std::string text = TextOf(MetricsFormat::kPrometheus);
  EXPECT_THAT(BoundsOf(text, "vllm:time_to_first_token_seconds"),
              ElementsAre("0.001", "0.005", "0.01", "0.02", "0.04", "0.06",
                          "0.08", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5",
                          "5.0", "7.5", "10.0", "20.0", "40.0", "80.0", "160.0",
                          "640.0", "2560.0", "+Inf"));
  for (const char* name : {"vllm:inter_token_latency_seconds",
                           "vllm:request_time_per_output_token_seconds"}) {
    EXPECT_THAT(
        BoundsOf(text, name),
        ElementsAre("0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.2",
                    "0.3", "0.4", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5",
                    "10.0", "20.0", "40.0", "80.0", "+Inf"));
  }
  for (const char* name : {"vllm:e2e_request_latency_seconds",
                           "vllm:request_queue_time_seconds"}) {
    EXPECT_THAT(BoundsOf(text, name),
                ElementsAre("0.3", "0.5", "0.8", "1.0", "1.5", "2.0", "2.5",
                            "5.0", "10.0", "15.0", "20.0", "30.0", "40.0",
                            "50.0", "60.0", "120.0", "240.0", "480.0", "960.0",
                            "1920.0", "7680.0", "+Inf"));
  }
  EXPECT_THAT(BoundsOf(text, "vllm:request_prompt_tokens"),
              ElementsAre("1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0",
                          "200.0", "500.0", "1000.0", "2000.0", "+Inf"));
}

TEST(MetricsText, FinerBucketsAreInTheFirstOfVllms) {
  const std::string text = TextOf(MetricsFormat::kPrometheus);
  EXPECT_THAT(text, HasSubstr("moebius:inter_token_seconds_bucket{le=\"0.001\"}"
                              " 0\n"));
  EXPECT_THAT(text, HasSubstr("moebius:inter_token_seconds_bucket{le=\"0.002\"}"
                              " 1\n"));
  EXPECT_THAT(text, HasSubstr("c\",le=\"0.01\"} 1\n"));
}

TEST(MetricsText, KvUsageIsAShareOfAllPools) {
  EngineStatus status;
  EXPECT_EQ(KvUsage(status), 0);
  status.workers.resize(2);
  status.workers[0].pages_total = 300;
  status.workers[0].pages_free = 100;
  status.workers[1].pages_total = 100;
  status.workers[1].pages_free = 100;
  EXPECT_EQ(KvUsage(status), 0.5);
}

}  // namespace
}  // namespace moebius
