// The public routes: OpenAI's, vLLM's tokenizer routes, and probes.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/config/api_keys.h"
#include "coordinator/api/admission.h"
#include "coordinator/api/call_table.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/api/request_origin.h"
#include "coordinator/api/server_report.h"
#include "coordinator/api/text_codec.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/io_threads.h"
#include "coordinator/http/random_ids.h"
#include "coordinator/status/front_metrics.h"

namespace moebius {

struct OpenAiApiOptions {
  ApiLimits limits;
  std::string model_root;  // path of the checkpoint, /v1/models says it
  std::string version;
  // For /status and /metrics; null: neither is served. Outlives the API.
  const ServerReport* report = nullptr;
  // One of these must be shown; nothing: anybody is served.
  std::optional<ApiKeys> keys;
  int not_ready_status = 503;  // of /ready
  LoadHeader load_header = LoadHeader::kAsked;
  AdmissionRules admission;
  // Large bodies waiting for the thread that prepares them; 429 beyond.
  int max_preparing = 256;
  size_t max_preparing_bytes = size_t{128} << 20;
  CallTableOptions calls;
};

// OpenAiApi
//
//   POST /v1/completions, /v1/chat/completions, /tokenize, /detokenize
//   GET  /v1/models, /v1/models/{model}, /health, /ready, /ranks/N/health,
//        /openapi.json, /version, /status, /metrics
//   OPTIONS of anything, as browsers ask before a page of an allowed origin
//   does
//
// Requests whose body is large are parsed and tokenized on a thread of their
// own, so that they hold no stream up.
//
// Threading: thread-safe. Lifetime: as CallTable's.
class OpenAiApi final : public HttpHandler {
 public:
  OpenAiApi(Engine& engine, const TextCodec& codec, IoThreads& threads,
            FrontMetrics& metrics, OpenAiApiOptions options);
  ~OpenAiApi() override;

  // What the engine's outputs, and what it forgets, are to be told.
  CallTable& calls() { return calls_; }

  std::optional<HttpResponse> Refuse(const HttpRequest& head) override;
  std::vector<std::pair<std::string, std::string>> HeadersFor(
      const HttpRequest& head) override;
  void Handle(std::shared_ptr<HttpExchange> exchange) override;

 private:
  enum class Kind { kCompletion, kChat, kTokenize, kDetokenize };

  void Answer(HttpExchange& exchange, const std::string& route,
              HttpResponse response);
  void Fail(HttpExchange& exchange, const std::string& route,
            const ApiError& error);

  void HandlePost(std::shared_ptr<HttpExchange> exchange, Kind kind);
  // Parse the body and go on with what comes of it on the exchange's thread:
  // at once if called there, `in_place`, else through a post.
  void PrepareGeneration(std::shared_ptr<HttpExchange> exchange, Kind kind,
                         const std::string& body, bool in_place,
                         RequestOrigin origin);
  void PrepareText(std::shared_ptr<HttpExchange> exchange, Kind kind,
                   const std::string& body, bool in_place);
  void HandleModels(HttpExchange& exchange);

  // Parses and tokenizes; pure but for drawing a seed. Any thread.
  Parsed<PreparedRequest> Prepare(Kind kind, const std::string& body);
  Parsed<HttpResponse> Text(Kind kind, const std::string& body) const;

  void Submit(std::shared_ptr<HttpExchange> exchange,
              Parsed<PreparedRequest> prepared, RequestOrigin origin);

  AnswerHead NewHead(bool chat);

  Engine& engine_;
  const TextCodec& codec_;
  FrontMetrics& metrics_;
  const OpenAiApiOptions options_;
  const int64_t created_;
  RandomIds ids_;
  std::atomic<int> num_preparing_{0};
  std::atomic<size_t> preparing_bytes_{0};
  CallTable calls_;

  IoThreads preparation_;  // last: its tasks use the rest
};

}  // namespace moebius
