// The public routes over loopback sockets, with an engine that does what the
// test says.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/api/openai_api.h"
#include "coordinator/http/http_server.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/api/fake_codec.h"
#include "tests/unit/coordinator/api/fake_engine.h"
#include "tests/unit/coordinator/http/test_client.h"

namespace moebius {

class OpenAiApiTest : public testing::Test {
 protected:
  ~OpenAiApiTest() override {
    if (server_) server_->Stop();
    threads_->Stop();
  }

  void Start(int num_threads = 1) {
    threads_ = std::make_unique<IoThreads>(num_threads, "test-http");
    OpenAiApiOptions options;
    options.limits.model = "verse";
    options.limits.max_model_len = 100'000;
    options.limits.vocab_size = kFakeVocab;
    options.limits.defaults.eos_ids = {kFakeEos};
    options.model_root = "/models/verse";
    options.version = "1.2.3";
    options.max_preparing = max_preparing_;
    options.calls.resume_window = resume_window_;
    options.max_preparing_bytes = max_preparing_bytes_;
    options.keys = keys_;
    options.admission = admission_;
    options.calls.waiting_comment = waiting_comment_;
    api_ = std::make_unique<OpenAiApi>(engine_, *codec_, *threads_, metrics_,
                                       options);
    engine_.set_listener([this](std::vector<Output> outputs) {
      api_->calls().OnOutputs(std::move(outputs));
    });
    auto server = HttpServer::Start(http_options_, *threads_, *api_);
    ASSERT_THAT(server, IsOk());
    server_ = std::move(*server);
  }
  int port() const { return server_->port(); }

  TestResponse Post(const std::string& path, const std::string& body) {
    return TestClient(port()).Exchange(HttpText("POST", path, body));
  }
  TestResponse Get(const std::string& path) {
    return TestClient(port()).Exchange(HttpText("GET", path));
  }

  HttpServerOptions http_options_;
  FakeEngine engine_;
  int max_preparing_ = 256;
  std::chrono::milliseconds resume_window_{60'000};
  size_t max_preparing_bytes_ = size_t{128} << 20;
  std::optional<ApiKeys> keys_;
  AdmissionRules admission_;
  std::chrono::milliseconds waiting_comment_{0};
  std::unique_ptr<TextCodec> codec_ = std::make_unique<FakeCodec>();
  FrontMetrics metrics_;
  std::unique_ptr<IoThreads> threads_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> server_;
};

inline Json Parse(const std::string& text) {
  auto value = ParseJson(text);
  EXPECT_THAT(value, IsOk()) << text;
  return value.ok() ? *value : Json();
}

}  // namespace moebius
