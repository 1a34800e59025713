#include "coordinator/api/openai_api.h"

#include <time.h>

#include <chrono>
#include <exception>
#include <utility>

#include "common/base/cat.h"
#include "common/base/logging.h"
#include "coordinator/api/access.h"
#include "coordinator/api/page_routes.h"
#include "coordinator/api/probe_routes.h"
#include "coordinator/http/api_error.h"
#include "coordinator/status/orca.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

// Smaller bodies are parsed and tokenized where they arrive; it takes less than
// a millisecond.
constexpr size_t kPreparedInPlaceBytes = 8 << 10;

constexpr std::string_view kCompletions = "/v1/completions";
constexpr std::string_view kChat = "/v1/chat/completions";
constexpr std::string_view kModels = "/v1/models";
constexpr std::string_view kTokenize = "/tokenize";
constexpr std::string_view kDetokenize = "/detokenize";
constexpr std::string_view kServed =
    "POST /v1/completions, POST /v1/chat/completions, GET /v1/models, POST "
    "/tokenize, POST /detokenize, GET /status, GET /metrics, GET "
    "/openapi.json, GET /health, GET "
    "/ready, GET /ranks/N/health and GET /version; control is on the admin "
    "listener";

bool IsPostPath(std::string_view path) {
  return path == kCompletions || path == kChat || path == kTokenize ||
         path == kDetokenize;
}

bool IsModelsPath(std::string_view path) {
  return path == kModels || path.starts_with(Cat(kModels, "/"));
}

// What metrics call a path: one of a few, whatever clients ask for.
std::string RouteOf(std::string_view path) {
  if (IsModelsPath(path)) return std::string(kModels);
  const bool known = IsPostPath(path) || IsReport(path) || path == "/version" ||
                     path == kDescriptionPath;
  if (IsProbe(path)) return ProbeRoute(path);
  return known ? std::string(path) : "other";
}

}  // namespace

OpenAiApi::OpenAiApi(Engine& engine, const TextCodec& codec, IoThreads& threads,
                     FrontMetrics& metrics, OpenAiApiOptions options)
    : engine_(engine),
      codec_(codec),
      metrics_(metrics),
      options_(std::move(options)),
      created_(time(nullptr)),
      calls_(engine, codec, threads, metrics, options_.calls),
      preparation_(1, "http-prepare") {}

OpenAiApi::~OpenAiApi() { preparation_.Stop(); }

void OpenAiApi::Answer(HttpExchange& exchange, const std::string& route,
                       HttpResponse response) {
  metrics_.CountRequest(route, response.status);
  exchange.Respond(std::move(response));
}

void OpenAiApi::Fail(HttpExchange& exchange, const std::string& route,
                     const ApiError& error) {
  Answer(exchange, route, ErrorResponse(error));
}

std::optional<HttpResponse> OpenAiApi::Refuse(const HttpRequest& head) {
  auto refusal = RefuseAtTheDoor(options_.admission, head);
  if (!refusal && !IsPreflight(options_.admission, head)) {
    refusal = RefuseWithoutKey(options_.keys, head);
  }
  if (refusal) metrics_.CountRequest(RouteOf(head.path), refusal->status);
  return refusal;
}

std::vector<std::pair<std::string, std::string>> OpenAiApi::HeadersFor(
    const HttpRequest& head) {
  auto headers = CorsHeaders(options_.admission, head);
  const std::string* asked = head.Header(kOrcaRequestHeader);
  const std::string_view format = OrcaFormat(
      options_.load_header, asked == nullptr ? std::string_view() : *asked);
  if (format.empty() || !IsTrusted(options_.keys, head)) return headers;
  headers.emplace_back(kOrcaHeader, OrcaValue(format, engine_.GetStatus()));
  return headers;
}

void OpenAiApi::Handle(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  const std::string& path = request.path;
  const bool post = IsPostPath(path);
  const bool model = IsModelsPath(path);
  const bool report = IsReport(path) && options_.report != nullptr;
  const bool get = model || report || IsProbe(path) || path == "/version" ||
                   path == kDescriptionPath;
  const std::string route = RouteOf(path);
  if (IsPreflight(options_.admission, request)) {
    return Answer(*exchange, route, PreflightResponse(request));
  }
  if (IsBalancerCheck(request)) {
    return Answer(
        *exchange, route,
        BalancerCheckResponse(request, engine_, options_.not_ready_status));
  }
  if (!post && !get)
    return Fail(*exchange, route, UnknownPath(request, kServed));
  const std::string_view allowed = post ? "POST" : "GET";
  if (!IsMethod(request, allowed)) {
    return Answer(*exchange, route, WrongMethod(request, allowed));
  }
  if (path == kCompletions) return HandlePost(exchange, Kind::kCompletion);
  if (path == kChat) return HandlePost(exchange, Kind::kChat);
  if (path == kTokenize) return HandlePost(exchange, Kind::kTokenize);
  if (path == kDetokenize) return HandlePost(exchange, Kind::kDetokenize);
  if (model) return HandleModels(*exchange);
  if (report) {
    return Answer(*exchange, route,
                  path == "/status"
                      ? options_.report->Status(Audience::kClients)
                      : options_.report->Metrics(request));
  }
  if (path == kDescriptionPath) {
    return Answer(*exchange, route, DescriptionResponse());
  }
  if (path == "/version") {
    return Answer(*exchange, route, VersionResponse(options_.version));
  }
  Answer(*exchange, route,
         ProbeResponse(
             path, engine_,
             {IsTrusted(options_.keys, request), options_.not_ready_status}));
}

void OpenAiApi::HandleModels(HttpExchange& exchange) {
  const std::string& path = exchange.request().path;
  HttpResponse response;
  const ApiLimits& limits = options_.limits;
  const std::string route(kModels);
  if (path == kModels) {
    response.body = ModelsBody(limits.model, options_.model_root,
                               limits.max_model_len, created_);
    return Answer(exchange, route, std::move(response));
  }
  const std::string_view name =
      std::string_view(path).substr(kModels.size() + 1);
  if (name != limits.model) {
    ApiError error;
    error.http_status = 404;
    error.param = "model";
    error.code = "model_not_found";
    error.message =
        Cat("the model \"", RepairUtf8(name),
            "\" does not exist; this server has \"", limits.model, "\"");
    return Fail(exchange, route, error);
  }
  response.body = ModelBody(limits.model, options_.model_root,
                            limits.max_model_len, created_);
  Answer(exchange, route, std::move(response));
}

void OpenAiApi::HandlePost(std::shared_ptr<HttpExchange> exchange, Kind kind) {
  auto body = std::make_shared<const std::string>(exchange->TakeBody());
  const bool in_place = body->size() <= kPreparedInPlaceBytes;
  Parsed<RequestOrigin> origin =
      OriginOf(exchange->request(), *body, std::chrono::steady_clock::now());
  if (!origin.ok()) {
    return Fail(*exchange, exchange->request().path, origin.error());
  }
  const auto prepare = [this, exchange, kind, body, in_place,
                        origin = std::move(*origin)] {
    if (kind == Kind::kCompletion || kind == Kind::kChat) {
      PrepareGeneration(exchange, kind, *body, in_place, origin);
    } else {
      PrepareText(exchange, kind, *body, in_place);
    }
  };
  if (in_place) return prepare();
  const size_t size = body->size();
  const bool too_many = num_preparing_.fetch_add(1) >= options_.max_preparing;
  // One is taken however large it is.
  const size_t before = preparing_bytes_.fetch_add(size);
  if (too_many ||
      (before > 0 && before + size > options_.max_preparing_bytes)) {
    num_preparing_.fetch_sub(1);
    preparing_bytes_.fetch_sub(size);
    return Fail(*exchange, exchange->request().path,
                EngineError(absl::ResourceExhaustedError(
                    "too many large requests are waiting")));
  }
  preparation_.Post(0, [this, prepare, exchange, size] {
    try {
      prepare();
    } catch (const std::exception& e) {  // memory, most likely
      LogError("http: a large request could not be prepared: ", e.what());
      exchange->Post([this, exchange] {
        Fail(*exchange, exchange->request().path,
             EngineError(absl::InternalError("the request failed")));
      });
    }
    num_preparing_.fetch_sub(1);
    preparing_bytes_.fetch_sub(size);
  });
}

void OpenAiApi::PrepareGeneration(std::shared_ptr<HttpExchange> exchange,
                                  Kind kind, const std::string& body,
                                  bool in_place, RequestOrigin origin) {
  Parsed<PreparedRequest> prepared = Prepare(kind, body);
  if (in_place) {
    return Submit(exchange, std::move(prepared), std::move(origin));
  }
  auto shared = std::make_shared<Parsed<PreparedRequest>>(std::move(prepared));
  exchange->Post([this, exchange, shared, origin = std::move(origin)] {
    Submit(exchange, std::move(*shared), origin);
  });
}

void OpenAiApi::PrepareText(std::shared_ptr<HttpExchange> exchange, Kind kind,
                            const std::string& body, bool in_place) {
  auto text = std::make_shared<Parsed<HttpResponse>>(Text(kind, body));
  const auto finish = [this, exchange, text] {
    const std::string& route = exchange->request().path;
    if (!text->ok()) return Fail(*exchange, route, text->error());
    Answer(*exchange, route, std::move(**text));
  };
  if (in_place) {
    finish();
  } else {
    exchange->Post(finish);
  }
}

Parsed<PreparedRequest> OpenAiApi::Prepare(Kind kind, const std::string& body) {
  return kind == Kind::kChat
             ? PrepareChat(body, options_.limits, codec_, ids_.NextNumber())
             : PrepareCompletion(body, options_.limits, codec_,
                                 ids_.NextNumber());
}

Parsed<HttpResponse> OpenAiApi::Text(Kind kind, const std::string& body) const {
  HttpResponse response;
  if (kind == Kind::kDetokenize) {
    auto request = ParseDetokenize(body, options_.limits);
    if (!request.ok()) return request.error();
    response.body = DetokenizeBody(codec_.Decode(request->tokens));
    return response;
  }
  auto request = ParseTokenize(body, options_.limits);
  if (!request.ok()) return request.error();
  const auto* chat = std::get_if<ChatInput>(&request->input);
  auto ids = chat != nullptr ? EncodeChat(*chat, codec_)
                             : EncodeText(std::get<std::string>(request->input),
                                          "prompt", codec_);
  if (!ids.ok()) return ids.error();
  response.body = TokenizeBody(*ids, options_.limits.max_model_len,
                               request->return_token_strs ? &codec_ : nullptr);
  return response;
}

AnswerHead OpenAiApi::NewHead(bool chat) {
  AnswerHead head;
  head.chat = chat;
  head.id = Cat(chat ? "chatcmpl-" : "cmpl-", ids_.Next());
  head.model = options_.limits.model;
  head.created = time(nullptr);
  return head;
}

void OpenAiApi::Submit(std::shared_ptr<HttpExchange> exchange,
                       Parsed<PreparedRequest> prepared, RequestOrigin origin) {
  if (!exchange->open()) return;  // left while its body was being read
  const std::string& route = exchange->request().path;
  if (!prepared.ok()) return Fail(*exchange, route, prepared.error());
  AnswerHead head = NewHead(prepared->chat);
  const auto error = calls_.Submit(exchange, std::move(*prepared),
                                   std::move(head), std::move(origin));
  if (error) Fail(*exchange, route, *error);
}

}  // namespace moebius
