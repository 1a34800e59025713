#include "coordinator/status/agent_check.h"

#include <string>

#include "coordinator/status/orca.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

struct Row {
  const char* name;
  bool ready = true, draining = false, switching = false;
  uint64_t running = 0, waiting = 0;
  uint32_t pages_free = 100;
  std::string reason;
  std::string expected;
};

TEST(AgentCheck, TheWeightIsWhatIsLeftOfTheNearestLimit) {
  ServerInfo info;
  info.max_queue = 100;
  for (const Row& row : {
           Row{.name = "idle", .expected = "up ready 100%\n"},
           Row{.name = "running", .running = 64, .expected = "up ready 75%\n"},
           Row{.name = "waiting",
           .running = 64,
           .waiting = 60,
           .expected = "up ready 40%\n"},
           Row{.name = "KV", .pages_free = 10, .expected = "up ready 10%\n"},
           Row{.name = "full",
           .running = 256,
           .waiting = 100,
           .pages_free = 0,
           .expected = "up ready 1%\n"},
           Row{.name = "beyond", .running = 400, .expected = "up ready 1%\n"},
           Row{.name = "switching",
           .switching = true,
           .running = 64,
           .expected = "up ready 38%\n"},
           Row{.name = "draining",
           .ready = false,
           .draining = true,
           .reason = "draining",
           .expected = "drain\n"},
           Row{.name = "starting",
           .ready = false,
           .expected = "down#starting\n"},
           Row{.name = "a reason",
           .ready = false,
           .reason = "a\nup 100%",
           .expected = "down#a\\nup 100%\n"},
       }) {
    EngineStatus status;
    status.ready = row.ready;
    status.draining = row.draining;
    status.not_ready_reason = row.reason;
    status.max_running = 256;
    status.running = row.running;
    status.waiting = row.waiting;
    status.workers.resize(1);
    status.workers[0].pages_total = 100;
    status.workers[0].pages_free = row.pages_free;
    if (row.switching) status.switch_under_way.emplace();
    EXPECT_EQ(AgentLine(status, info), row.expected) << row.name;
  }
}

TEST(Orca, IsGivenInTheFormatThatIsAskedFor) {
  EngineStatus status;
  status.running = 3;
  status.waiting = 2;
  EXPECT_EQ(OrcaValue("text", status),
            "TEXT named_metrics.kv_cache_usage_perc=0.0000, "
            "named_metrics.num_requests_waiting=2, "
            "named_metrics.num_requests_running=3");
  EXPECT_EQ(OrcaValue("json", status),
            R"(JSON {"named_metrics": {"kv_cache_usage_perc": 0.0000, )"
            R"("num_requests_waiting": 2, "num_requests_running": 3}})");
  EXPECT_EQ(OrcaFormat(LoadHeader::kAsked, "JSON"), "json");
  EXPECT_EQ(OrcaFormat(LoadHeader::kJson, "TEXT"), "text");
  EXPECT_EQ(OrcaFormat(LoadHeader::kText, "BIN"), "text");
  EXPECT_EQ(OrcaFormat(LoadHeader::kJson, ""), "json");
  EXPECT_EQ(OrcaFormat(LoadHeader::kAsked, "BIN"), "");
  EXPECT_EQ(OrcaFormat(LoadHeader::kAsked, ""), "");
}

}  // namespace
}  // namespace moebius
