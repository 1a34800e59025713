// The admin routes over loopback sockets; status and metrics as text.
#include "coordinator/api/admin_api.h"

#include <memory>
#include <string>

#include "coordinator/api/json_input.h"
#include "coordinator/http/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/api/fake_engine.h"
#include "tests/unit/coordinator/http/test_client.h"

namespace moebius {
namespace {

using testing::HasSubstr;

Json Parse(const std::string& text) {
  auto value = ParseJson(text);
  EXPECT_THAT(value, IsOk()) << text;
  return value.ok() ? *value : Json();
}

SwitchReport Report() {
  SwitchReport report;
  report.epoch = Epoch{3};
  report.from = ExpertParallel();
  report.to = TensorParallel(2);
  report.num_ranks = 2;
  report.done = true;
  report.weight_bytes = 1000;
  report.kv_bytes = 24;
  report.prepare_ms = 0.5;
  report.pause_ms = 4.25;
  report.switch_ms = 3;
  report.weight_ms = 2;
  report.kv_ms = 1;
  report.boundary = StepId{77};
  return report;
}

class AdminApiTest : public testing::Test {
 protected:
  void SetUp() override {
    AdminApiOptions options;
    options.stalled_after_ms = stalled_after_ms_;
    api_ = std::make_unique<AdminApi>(engine_, report_, std::move(options));
    auto server = HttpServer::Start({}, threads_, *api_);
    ASSERT_THAT(server, IsOk());
    server_ = std::move(*server);
  }
  ~AdminApiTest() override {
    server_->Stop();
    threads_.Stop();
  }
  TestResponse Get(const std::string& path) {
    return TestClient(server_->port()).Exchange(HttpText("GET", path));
  }

  int stalled_after_ms_ = 10'000;
  FakeEngine engine_;
  FrontMetrics metrics_;
  const ServerReport report_{engine_,
                             metrics_,
                             {.version = "1.2.3",
                              .model = "verse",
                              .max_model_len = 4096,
                              .num_workers = 4,
                              .layouts = {Layout{1}, Layout{2}, Layout{4}}},
                             [] { return 5; }};
  IoThreads threads_{1, "test-admin"};
  std::unique_ptr<AdminApi> api_;
  std::unique_ptr<HttpServer> server_;
};

TEST(AdminApiKeys, AllButProbesNeedAKey) {
  FakeEngine engine;
  FrontMetrics metrics;
  AdminApiOptions options;
  options.keys = *ApiKeys::Parse("sk-0123456789abcdef", "k");
  const ServerReport report(engine, metrics, {}, {});
  AdminApi api(engine, report, std::move(options));
  IoThreads threads(1, "test-admin");
  auto server = HttpServer::Start({}, threads, api);
  ASSERT_THAT(server, IsOk());
  const int port = (*server)->port();
  for (const char* path : {"/health", "/ready", "/version"}) {
    EXPECT_NE(TestClient(port).Exchange(HttpText("GET", path)).status, 401);
  }
  const std::string header = "Authorization: Bearer sk-0123456789abcdef\r\n";
  for (const char* path : {"/status", "/metrics", "/progress"}) {
    EXPECT_EQ(TestClient(port).Exchange(HttpText("GET", path)).status, 401);
    EXPECT_EQ(
        TestClient(port).Exchange(HttpText("GET", path, "", header)).status,
        200);
  }
  for (const char* path : {"/admin/layout", "/admin/drain?wait=false"}) {
    EXPECT_EQ(TestClient(port).Exchange(HttpText("POST", path, "{}")).status,
              401);
  }
  EXPECT_EQ(TestClient(port)
                .Exchange(HttpText("POST", "/admin/layout", "{}", header))
                .status,
            400);
  (*server)->Stop();
  threads.Stop();
}

TEST_F(AdminApiTest, WrongPathsMethodsAndBodiesAreRefused) {
  EXPECT_EQ(Get("/v1/completions").status, 404);
  EXPECT_EQ(Get("/admin/layout").status, 405);
  TestClient client(server_->port());
  EXPECT_EQ(client.Exchange(HttpText("POST", "/status", "{}")).status, 405);
  const TestResponse bad =
      client.Exchange(HttpText("POST", "/admin/layout", R"({"layout":"pp"})"));
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(Parse(bad.body)["error"]["param"], "layout");
  EXPECT_THAT(Parse(bad.body)["error"]["message"].get<std::string>(),
              testing::HasSubstr(R"("ep", "tp2", "tp" or "auto")"));
}

TEST_F(AdminApiTest, LayoutsBetweenAreAskedForByName) {
  const struct {
    const char* body;
    LayoutChoice choice;
  } kCases[] = {{R"({"layout":"tp2"})", LayoutChoice::Of(Layout{2})},
                {R"({"layout":"tp4"})", LayoutChoice::kTp}};
  for (const auto& one : kCases) {
    TestClient client(server_->port());
    ASSERT_TRUE(client.Send(HttpText("POST", "/admin/layout", one.body)));
    auto [choice, callback] = engine_.TakeLayout();
    ASSERT_TRUE(callback);
    EXPECT_EQ(choice, one.choice);
    callback(Report());
    EXPECT_EQ(client.ReadResponse().status, 200);
  }
}

TEST_F(AdminApiTest, ARefusedSwitchIsA409WithTheReason) {
  TestClient client(server_->port());
  const std::string request =
      HttpText("POST", "/admin/layout", R"({"layout":"tp"})");
  ASSERT_TRUE(client.Send(request));
  SwitchReport refused = Report();
  refused.done = false;
  refused.reason = "KV does not fit";
  auto [choice, callback] = engine_.TakeLayout();
  ASSERT_TRUE(callback);
  EXPECT_EQ(choice, LayoutChoice::kTp);
  callback(refused);
  const TestResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 409);
  EXPECT_EQ(Parse(response.body)["error"]["message"], "KV does not fit");
  const struct {
    absl::Status status;
    int http_status;
  } kCases[] = {
      {absl::FailedPreconditionError("a switch is under way"), 409},
      {absl::DeadlineExceededError("no answer"), 409},
      {absl::UnavailableError("not ready"), 503},
      {absl::InternalError("a worker died"), 500},
      {absl::InvalidArgumentError("one worker"), 400},
  };
  for (const auto& c : kCases) {
    ASSERT_TRUE(client.Send(request));
    auto [_, fail] = engine_.TakeLayout();
    ASSERT_TRUE(fail);
    fail(c.status);
    EXPECT_EQ(client.ReadResponse().status, c.http_status);
  }
}

TEST_F(AdminApiTest, ASwitchIsAnsweredWithItsFiguresWhenItHasEnded) {
  TestClient client(server_->port());
  ASSERT_TRUE(
      client.Send(HttpText("POST", "/admin/layout", R"({"layout":"tp"})")));
  auto [choice, callback] = engine_.TakeLayout();
  ASSERT_TRUE(callback);
  // Status and probes answer meanwhile.
  EXPECT_EQ(Get("/status").status, 200);
  EXPECT_EQ(Get("/metrics").status, 200);
  callback(Report());
  const TestResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body,
            R"({"epoch":3,"from":"ep","to":"tp","cause":"operator",)"
            R"("done":true,"changed":true,)"
            R"("reason":"","began_unix_ms":0,"ended_unix_ms":0,)"
            R"("boundary":77,"weight_bytes":1000,"kv_bytes":24,)"
            R"("prepare_ms":0.5,"pause_ms":4.25,"switch_ms":3.0,)"
            R"("weight_ms":2.0,"kv_ms":1.0})");
}

TEST_F(AdminApiTest, ALayoutThatHoldsAlreadyIsNoChange) {
  TestClient client(server_->port());
  ASSERT_TRUE(
      client.Send(HttpText("POST", "/admin/layout", R"({"layout":"tp"})")));
  SwitchReport nothing;
  nothing.num_ranks = 2;
  nothing.from = nothing.to = TensorParallel(2);
  engine_.TakeLayout().second(nothing);
  const TestResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Parse(response.body)["changed"], false);
  EXPECT_EQ(Parse(response.body)["to"], "tp");
}

TEST_F(AdminApiTest, AForeignPageCannotDrainTheGroup) {
  TestClient page(server_->port());
  const TestResponse answer = page.Exchange(
      "POST /admin/drain?wait=false HTTP/1.1\r\nHost: x.example\r\nOrigin: "
      "https://x.example\r\nContent-Type: text/plain\r\nContent-Length: "
      "0\r\n\r\n");
  EXPECT_EQ(answer.status, 403);
  EXPECT_EQ(Parse(answer.body)["error"]["code"], "foreign_host");
  TestClient local(server_->port());
  EXPECT_EQ(local
                .Exchange(HttpText("POST", "/admin/drain?wait=false", "",
                                   "Origin: https://x.example\r\n"))
                .status,
            403);
  EXPECT_EQ(engine_.num_drains(), 0u);
}

TEST_F(AdminApiTest, AClientThatLeavesDuringASwitchHarmsNothing) {
  {
    TestClient client(server_->port());
    ASSERT_TRUE(
        client.Send(HttpText("POST", "/admin/layout", R"({"layout":"ep"})")));
    auto [choice, callback] = engine_.TakeLayout();
    ASSERT_TRUE(callback);
    client.Close();
    EXPECT_EQ(Get("/health").status, 200);
    callback(Report());
  }
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(AdminApiTest, DrainAnswersWhenTheLastRequestHasEnded) {
  TestClient client(server_->port()), impatient(server_->port());
  ASSERT_TRUE(client.Send(HttpText("POST", "/admin/drain")));
  auto drained = engine_.TakeDrain();
  ASSERT_TRUE(drained);
  EXPECT_EQ(
      impatient.Exchange(HttpText("POST", "/admin/drain?wait=false")).status,
      202);
  drained(true);
  const TestResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, R"({"draining":true,"drained":true})");
}

TEST_F(AdminApiTest, UndrainIsRefusedWhereTheGroupIsBeingStopped) {
  engine_.set_undrain_error(
      absl::FailedPreconditionError("the group is being stopped"));
  TestClient client(server_->port());
  const TestResponse response =
      client.Exchange(HttpText("POST", "/admin/undrain"));
  EXPECT_EQ(response.status, 409);
  EXPECT_NE(response.body.find("the group is being stopped"),
            std::string::npos);
  EXPECT_EQ(Get("/admin/undrain").status, 405);
}

TEST_F(AdminApiTest, UndrainTakesRequestsAgainAndEndsTheWaiting) {
  TestClient waiting(server_->port()), client(server_->port());
  ASSERT_TRUE(waiting.Send(HttpText("POST", "/admin/drain")));
  auto ended = engine_.TakeDrain();
  ASSERT_TRUE(ended);
  const TestResponse response =
      client.Exchange(HttpText("POST", "/admin/undrain"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, R"({"draining":false})");
  EXPECT_EQ(engine_.num_undrained(), 1);
  ended(false);
  EXPECT_EQ(waiting.ReadResponse().body,
            R"({"draining":false,"drained":false})");
}

EngineStatus FullStatus() {
  EngineStatus status;
  status.ready = true;
  status.layout = TensorParallel(4);
  SwitchTotals& totals =
      TotalsOf(Layout{2}, TensorParallel(4), status.totals.switches);
  totals.done = 3;
  TotalsOf(Layout{2}, status.totals.steps).seconds.Add(0.5);
  status.kv = {{TensorParallel(4), 64, 60}, {Layout{2}, 128, 124}};
  status.choice = LayoutChoice::kAuto;
  status.switch_state = "steady";
  status.last_step = 12;
  status.running = 3;
  status.waiting = 4;
  status.requests_total = 10;
  status.requests_finished = 2;
  status.requests_aborted = 1;
  status.prompt_tokens_total = 100;
  status.generated_tokens_total = 200;
  status.switches_total = 5;
  status.last_switch = Report();
  status.step_ms = 1.5;
  status.nonfinite_rows_total = 7;
  status.nonfinite_step = 11;
  status.nonfinite_slot = 2;
  status.workers.push_back({0, 123, 1, true, 16, 64, 60});
  status.workers.push_back({1, 124, 1, false, 16, 64, 64});
  return status;
}

TEST_F(AdminApiTest, StatusSaysWhatTheGroupDoes) {
  engine_.set_status(FullStatus());
  const Json status = Parse(Get("/status").body);
  EXPECT_EQ(status["model"], "verse");
  EXPECT_EQ(status["layout"], "tp");
  EXPECT_EQ(status["layout_choice"], "auto");
  EXPECT_EQ(status["running"], 3);
  EXPECT_EQ(status["requests"]["aborted"], 1);
  EXPECT_EQ(status["nonfinite_logits"].dump(),
            R"({"rows":7,"last_step":11,"last_slot":2})");
  EXPECT_EQ(status["switches"]["last"]["pause_ms"], 4.25);
  EXPECT_EQ(status["workers"][1]["connected"], false);
  EXPECT_EQ(status["http_connections"], 5);
  EXPECT_GE(status["uptime_s"].get<double>(), 0.0);
  engine_.set_status({});
  EXPECT_TRUE(Parse(Get("/status").body)["switches"]["last"].is_null());
}

TEST_F(AdminApiTest, MetricsAreInPrometheusFormat) {
  engine_.set_status(FullStatus());
  metrics_.CountRequest("/v1/completions", 200);
  metrics_.CountRequest("/v1/completions", 200);
  metrics_.CountRequest("/v1/completions", 429);
  metrics_.first_token().Add(0.0101);
  metrics_.first_token().Add(1000);
  const TestResponse response = Get("/metrics");
  EXPECT_EQ(response.headers.at("content-type"),
            "text/plain; version=0.0.4; charset=utf-8");
  for (const char* line : {
           "# TYPE vllm:num_requests_running gauge\n",
           "\nvllm:num_requests_running{engine=\"0\",model_name=\"verse\"} 3\n",
           "\nmoebius:layout{layout=\"tp\"} 1\n",
           "\nmoebius:layout{layout=\"ep\"} 0\n",
           "\nmoebius:layout{layout=\"tp2\"} 0\n",
           "\nmoebius:kv_tokens{layout=\"tp2\"} 128\n",
           "\nmoebius:switches_total{from=\"tp2\",to=\"tp\","
           "outcome=\"done\"} 3\n",
           "\nmoebius:step_seconds_count{layout=\"tp2\"} 1\n",
           "\nmoebius:worker_connected{rank=\"1\"} 0\n",
           "\nmoebius:worker_kv_pages_free{rank=\"0\"} 60\n",
           "# TYPE vllm:generation_tokens_total counter\n",
           "\nvllm:generation_tokens_total{engine=\"0\",model_name=\"verse\"} "
           "200"
           "\n",
           "\nmoebius:http_requests_total{route=\"/v1/completions\","
           "status=\"200\"} 2\n",
           "\nmoebius:http_requests_total{route=\"/v1/completions\","
           "status=\"429\"} 1\n",
           "# TYPE vllm:time_to_first_token_seconds histogram\n",
           "\nvllm:time_to_first_token_seconds_bucket{engine=\"0\","
           "model_name=\"verse\",le=\"0.01\"} 0\n",
           "model_name=\"verse\",le=\"0.02\"} 1\n",
           "model_name=\"verse\",le=\"+Inf\"} 2\n",
           "\nvllm:time_to_first_token_seconds_count{engine=\"0\","
           "model_name=\"verse\"} 2\n",
           "\nmoebius:nonfinite_logits_total 7\n",
       }) {
    EXPECT_THAT(response.body, HasSubstr(line));
  }
}

TEST(ProgressWatch, StandingStillWithWorkIsNotProgress) {
  EngineStatus status;
  status.last_step = 5;
  ProgressWatch watch = Observe({}, status, 100);
  EXPECT_TRUE(watch.idle);
  status.running = 1;  // work arrived some time after the last look
  watch = Observe(watch, status, 200);
  EXPECT_EQ(watch.advanced_at_s, 200);
  watch = Observe(watch, status, 215);
  EXPECT_EQ(watch.advanced_at_s, 200);
  EXPECT_FALSE(watch.idle);
  status.last_step = 6;
  watch = Observe(watch, status, 216);
  EXPECT_EQ(watch.advanced_at_s, 216);
  status.running = 0;
  EXPECT_EQ(Observe(watch, status, 300).advanced_at_s, 300);
}

class StalledAdminApiTest : public AdminApiTest {
 protected:
  StalledAdminApiTest() { stalled_after_ms_ = -1; }  // any stillness is a stall
};

TEST_F(StalledAdminApiTest, ProgressIsItsOwnAnswer) {
  EngineStatus status;
  status.ready = true;
  engine_.set_status(status);
  EXPECT_EQ(Get("/progress").status, 200);  // nothing to do
  status.running = 1;
  engine_.set_status(status);
  EXPECT_EQ(Get("/progress").status, 503);
  const TestResponse stalled = Get("/progress");
  EXPECT_EQ(stalled.status, 503);
  EXPECT_EQ(Parse(stalled.body)["progressing"], false);
  EXPECT_EQ(Get("/ready").status, 200);
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(AdminApiTest, StepsThatAdvanceAreProgress) {
  EngineStatus status = FullStatus();
  engine_.set_status(status);
  const TestResponse response = Get("/progress");
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Parse(response.body)["last_step"], 12);
  EXPECT_EQ(Parse(response.body)["progressing"], true);
}

std::string PostJson(int port, const std::string& path, const std::string& body,
                     int expected_status) {
  const TestResponse answer =
      TestClient(port).Exchange(HttpText("POST", path, body));
  EXPECT_EQ(answer.status, expected_status) << answer.body;
  return answer.body;
}

TEST_F(AdminApiTest, AnOperationIsAnsweredWithWhatTheEngineSays) {
  KnownOperation running;
  running.operation = {"op-1", OperationKind::kLayout, LayoutChoice::kTp};
  running.began_unix_ms = 5;
  KnownOperation ended = running;
  ended.end = OperationEnd{409, R"({"error":1})", 9};
  struct Row {
    OperationVerdict verdict;
    KnownOperation known;
    int status;
    std::string body;  // a part of it
  };
  for (const Row& row : {
           Row{OperationVerdict::kBegins, running, 202,
               R"({"operation_id":"op-1","kind":"layout","layout":"tp",)"
               R"("state":"running","began_unix_ms":5,"ended_unix_ms":null,)"
               R"("http_status":null,"answer":null})"},
           {OperationVerdict::kKnown, ended, 409, R"({"error":1})"},
           {OperationVerdict::kBusy, running, 409, R"("operation_running")"},
           {OperationVerdict::kOtherId, ended, 409,
            R"("operation":{"operation_id":"op-1","kind":"layout","layout":)"
            R"("tp","state":"ended","began_unix_ms":5,"ended_unix_ms":9,)"
            R"("http_status":409,"answer":{"error":1}}})"},
       }) {
    TestClient client(server_->port());
    client.Send(HttpText("POST", "/admin/layout",
                         R"({"layout":"tp","operation_id":"op-1"})"));
    auto asked = engine_.TakeOperation();
    EXPECT_EQ(asked.operation, running.operation);
    EXPECT_TRUE(asked.wait);
    asked.callback(OperationAnswer{row.verdict, row.known});
    const TestResponse answer = client.ReadResponse();
    EXPECT_EQ(answer.status, row.status);
    EXPECT_THAT(answer.body, HasSubstr(row.body));
  }
}

TEST_F(AdminApiTest, ControlCallsThatCannotBeAreRefusedBeforeTheEngineHears) {
  const int port = server_->port();
  for (const char* body :
       {R"({"layout":"tp","operation_id":"a b"})",
        R"({"layout":"tp","operation_id":7})",
        R"({"layout":"tp","wait":false})", R"({"operation_id":"a"})"}) {
    PostJson(port, "/admin/layout", body, 400);
  }
  PostJson(port, "/admin/drain", "[]", 400);
  PostJson(port, "/admin/undrain", R"({"operation_id":"\n"})", 400);
  EXPECT_THAT(
      PostJson(port, "/admin/undrain",
               R"({"expected_instance_id":"x","operation_id":"a"})", 409),
      HasSubstr("instance_changed"));
  EXPECT_EQ(engine_.num_undrained(), 0);
  EXPECT_EQ(Get("/admin/operations/a").status, 404);
}

}  // namespace
}  // namespace moebius
