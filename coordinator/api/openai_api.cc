#include "coordinator/api/openai_api.h"

#include <time.h>

#include <algorithm>
#include <exception>
#include <random>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/cat.h"
#include "coordinator/api/access.h"
#include "coordinator/api/api_error.h"
#include "coordinator/api/json_text.h"
#include "coordinator/api/probe_routes.h"
#include "coordinator/api/write_interval.h"
#include "coordinator/text/utf8.h"
#include "spdlog/spdlog.h"

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
  const bool known = IsPostPath(path) || IsProbe(path) || path == "/version";
  return known ? std::string(path) : "other";
}

// Processor time of the calling thread; other programs' does not count.
int64_t ThreadCpuNs() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

uint64_t RandomBase() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// SplitMix64 (Steele, Lea, Flood 2014): a bijection that scrambles a counter.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

OpenAiApi::OpenAiApi(Engine& engine, const TextCodec& codec, IoThreads& threads,
                     FrontMetrics& metrics, OpenAiApiOptions options)
    : engine_(engine),
      codec_(codec),
      threads_(threads),
      metrics_(metrics),
      options_(std::move(options)),
      created_(time(nullptr)),
      random_base_(RandomBase()),
      delivery_ns_(threads.size()),
      preparation_(1, "http-prepare") {}

OpenAiApi::~OpenAiApi() { preparation_.Stop(); }

// ---- routes -----------------------------------------------------------------

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
  auto refusal = RefuseWithoutKey(options_.keys, head);
  if (refusal) metrics_.CountRequest(RouteOf(head.path), refusal->status);
  return refusal;
}

void OpenAiApi::Handle(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  const std::string& path = request.path;
  const bool post = IsPostPath(path);
  const bool model = IsModelsPath(path);
  const bool get = model || IsProbe(path) || path == "/version";
  const std::string route = RouteOf(path);
  if (!post && !get) return Fail(*exchange, route, UnknownPath(request));
  const std::string_view allowed = post ? "POST" : "GET";
  if (!IsMethod(request, allowed)) {
    return Answer(*exchange, route, WrongMethod(request, allowed));
  }
  if (path == kCompletions) return HandlePost(exchange, Kind::kCompletion);
  if (path == kChat) return HandlePost(exchange, Kind::kChat);
  if (path == kTokenize) return HandlePost(exchange, Kind::kTokenize);
  if (path == kDetokenize) return HandlePost(exchange, Kind::kDetokenize);
  if (model) return HandleModels(*exchange);
  if (path == "/version") {
    return Answer(*exchange, route, VersionResponse(options_.version));
  }
  Answer(*exchange, route, ProbeResponse(path, engine_));
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
  Parsed<Origin> origin = OriginOf(exchange->request(), *body, Clock::now());
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
      spdlog::error("http: a large request could not be prepared: {}",
                    e.what());
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
                                  bool in_place, Origin origin) {
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
             ? PrepareChat(body, options_.limits, codec_, DrawSeed())
             : PrepareCompletion(body, options_.limits, codec_, DrawSeed());
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

// ---- generations ------------------------------------------------------------

AnswerHead OpenAiApi::NewHead(bool chat) {
  const uint64_t n = num_drawn_.fetch_add(1, std::memory_order_relaxed);
  AnswerHead head;
  head.chat = chat;
  head.id = absl::StrFormat("%s-%016x%016x", chat ? "chatcmpl" : "cmpl",
                            Mix(random_base_ + n), Mix(~random_base_ + n));
  head.model = options_.limits.model;
  head.created = time(nullptr);
  return head;
}

uint64_t OpenAiApi::DrawSeed() {
  const uint64_t n = num_drawn_.fetch_add(1, std::memory_order_relaxed);
  return Mix(random_base_ ^ Mix(n));
}

Parsed<OpenAiApi::Origin> OpenAiApi::OriginOf(const HttpRequest& request,
                                              const std::string& body,
                                              Clock::time_point arrived) const {
  Origin origin;
  origin.arrived = arrived;
  const std::string* key = request.Header("idempotency-key");
  if (key != nullptr) {
    if (key->empty() || key->size() > kMaxKeyBytes) {
      ApiError error;
      error.param = "Idempotency-Key";
      error.message = Cat("an Idempotency-Key has 1 to ", kMaxKeyBytes,
                          " bytes; this one has ", key->size());
      return error;
    }
    const std::string* authorization = request.Header("authorization");
    origin.key =
        ScopedKey(*key, authorization == nullptr ? "" : *authorization);
  }
  origin.fingerprint = FingerprintOf(request.path, body);
  const std::string* last = request.Header("last-event-id");
  if (last == nullptr || last->empty()) return origin;
  for (absl::string_view count : absl::StrSplit(*last, '-')) {
    int64_t value = -1;
    if (count.size() > 10 || !absl::SimpleAtoi(count, &value) || value < 0) {
      ApiError error;
      error.param = "Last-Event-ID";
      error.message =
          "Last-Event-ID is to be the id of an event of the same request";
      return error;
    }
    origin.last_event.push_back(value);
  }
  return origin;
}

void OpenAiApi::Submit(std::shared_ptr<HttpExchange> exchange,
                       Parsed<PreparedRequest> prepared, Origin origin) {
  if (!exchange->open()) return;  // left while its body was being read
  const std::string& route = exchange->request().path;
  if (!prepared.ok()) return Fail(*exchange, route, prepared.error());
  std::vector<Generation> generations;
  for (Generation& generation : prepared->generations) {
    generations.push_back({std::move(generation.prompt),
                           std::move(generation.sampling), generation.stop});
  }
  const size_t count = generations.size();
  if (!origin.last_event.empty() && origin.last_event.size() != count) {
    ApiError error;
    error.param = "Last-Event-ID";
    error.message = Cat("Last-Event-ID speaks of ", origin.last_event.size(),
                        " choices; the request has ", count);
    return Fail(*exchange, route, error);
  }
  const bool chat = prepared->chat;
  AnswerHead head = NewHead(chat);
  std::shared_ptr<GenerationCall> call;
  {
    std::lock_guard lock(calls_mutex_);
    auto known = origin.key.empty() ? known_.end() : known_.find(origin.key);
    const bool again = known != known_.end() && !known->second.aborted;
    if (again && known->second.context.fingerprint != origin.fingerprint) {
      ApiError error;
      error.http_status = 409;
      error.param = "Idempotency-Key";
      error.code = "idempotency_key_reused";
      error.message = "this Idempotency-Key belongs to another request";
      return Fail(*exchange, route, error);
    }
    if (again) {
      head.id = known->second.context.answer_id;
      head.created = known->second.context.created;
    }
    CallContext context{
        chat,
        !origin.key.empty(),
        head.created,
        origin.fingerprint,
        origin.key.empty() ? ScopedKey(head.id, "") : origin.key,
        head.id};
    call = std::make_shared<GenerationCall>(exchange, std::move(*prepared),
                                            std::move(head), codec_, metrics_,
                                            origin.arrived);
    call->SkipTo(std::move(origin.last_event));
    if (again) {
      AttachTo(known->second, call);
    } else {
      auto submitted =
          engine_.Submit(std::move(generations), EncodeCallContext(context));
      if (!submitted.ok()) {
        return Fail(*exchange, route, EngineError(submitted.status()));
      }
      for (size_t i = 0; i < count; ++i) {
        calls_[(*submitted)[i].value].push_back(
            Entry{call, static_cast<int>(i)});
      }
      const RequestId first = submitted->front();
      call->SetIds(std::move(*submitted));
      if (known != known_.end()) key_of_.erase(known->second.first.value);
      key_of_[first.value] = context.key;
      std::string key = context.key;
      known_[key] = Known{first, count, std::move(context), 1, false, {}};
    }
  }
  // The exchange must not own what owns it.
  exchange->OnClosed([this, weak = std::weak_ptr<GenerationCall>(call)] {
    if (auto gone = weak.lock()) AbortCall(*gone);
  });
}

void OpenAiApi::AttachTo(Known& known, std::shared_ptr<GenerationCall> call) {
  std::vector<RequestId> ids;
  for (size_t i = 0; i < known.count; ++i) {
    ids.push_back(RequestId{known.first.value + i});
  }
  call->SetIds(ids);
  ++known.attached;
  known.alone_until.reset();
  engine_.Attach(std::move(ids),
                 [this, call](absl::StatusOr<std::vector<Output>> outputs) {
                   Batch batch;
                   batch.newcomer = call;
                   batch.status = outputs.status();
                   if (outputs.ok()) batch.outputs = *std::move(outputs);
                   Push(std::move(batch));
                 });
}

absl::Status OpenAiApi::Restore(RequestId first, size_t count, bool unfinished,
                                std::string_view context) {
  auto parsed = ParseCallContext(context);
  if (!parsed.ok()) return parsed.status();
  std::lock_guard lock(calls_mutex_);
  Known known{first, count, *std::move(parsed), 0, false, {}};
  if (unfinished) known.alone_until = Clock::now() + options_.resume_window;
  key_of_[first.value] = known.context.key;
  std::string key = known.context.key;
  known_[key] = std::move(known);
  if (unfinished) {
    threads_.PostAfter(0, options_.resume_window + std::chrono::milliseconds(1),
                       [this] { ExpireOrphans(); });
  }
  return absl::OkStatus();
}

void OpenAiApi::OnForgotten(const std::vector<RequestId>& firsts) {
  std::lock_guard lock(calls_mutex_);
  for (RequestId first : firsts) {
    const auto key = key_of_.find(first.value);
    if (key == key_of_.end()) continue;
    known_.erase(key->second);
    key_of_.erase(key);
  }
}

void OpenAiApi::AbortCall(GenerationCall& call) {
  call.gone.store(true);
  metrics_.CountDisconnect();
  const std::vector<RequestId> ids = call.UnfinishedIds();
  // Calls may go with their last entry: not under the lock.
  std::vector<Entry> dropped;
  bool abort = !ids.empty();
  {
    std::lock_guard lock(calls_mutex_);
    for (RequestId id : ids) {
      auto it = calls_.find(id.value);
      if (it == calls_.end()) continue;
      auto& entries = it->second;
      for (size_t i = 0; i < entries.size(); ++i) {
        if (entries[i].call.get() != &call) continue;
        dropped.push_back(std::move(entries[i]));
        entries.erase(entries.begin() + static_cast<int64_t>(i));
        break;
      }
      if (entries.empty()) calls_.erase(it);
    }
    const auto key =
        call.ids().empty() ? key_of_.end() : key_of_.find(call.ids()[0].value);
    if (key != key_of_.end()) {
      Known& known = known_.at(key->second);
      --known.attached;
      abort = abort && known.attached == 0;
      if (abort && known.context.durable) {
        abort = false;
        known.alone_until = Clock::now() + options_.resume_window;
        threads_.PostAfter(
            0, options_.resume_window + std::chrono::milliseconds(1),
            [this] { ExpireOrphans(); });
      }
      if (abort) known.aborted = true;
    }
  }
  if (!abort) return;
  for (RequestId id : ids) engine_.Abort(id);
}

void OpenAiApi::ExpireOrphans() {
  std::vector<RequestId> ids;
  {
    std::lock_guard lock(calls_mutex_);
    const auto now = Clock::now();
    for (auto& [key, known] : known_) {
      if (!known.alone_until.has_value() || now < *known.alone_until) continue;
      known.alone_until.reset();
      known.aborted = true;
      for (size_t i = 0; i < known.count; ++i) {
        ids.push_back(RequestId{known.first.value + i});
      }
    }
  }
  // Those that have ended are not known to the engine any more.
  for (RequestId id : ids) engine_.Abort(id);
}

void OpenAiApi::OnOutputs(std::vector<Output> outputs) {
  Batch batch;
  batch.outputs = std::move(outputs);
  Push(std::move(batch));
}

void OpenAiApi::Push(Batch batch) {
  std::lock_guard lock(queue_mutex_);
  queue_.push_back(std::move(batch));
  if (fan_out_posted_) return;
  const auto interval = Interval();
  const auto since = Clock::now() - last_fan_out_;
  if (since >= interval) {
    fan_out_posted_ = threads_.Post(0, [this] { FanOut(); });
    return;
  }
  fan_out_posted_ = threads_.PostAfter(
      0,
      std::chrono::duration_cast<std::chrono::microseconds>(interval - since),
      [this] { FanOut(); });
}

std::chrono::nanoseconds OpenAiApi::Interval() const {
  int64_t cost = 0;
  for (const auto& ns : delivery_ns_) {
    cost = std::max(cost, ns.load(std::memory_order_relaxed));
  }
  return WriteInterval(options_.write_interval, std::chrono::nanoseconds(cost));
}

// A call that comes in the midst of a generation gets what was said so far, and
// everything that is said from here on.
void OpenAiApi::TakeIn(Batch& batch,
                       std::vector<std::vector<Delivery>>& by_thread) {
  const std::shared_ptr<GenerationCall>& call = batch.newcomer;
  if (call->gone.load()) return;
  auto& deliveries = by_thread[call->exchange().thread()];
  if (!batch.status.ok()) {
    deliveries.push_back({Entry{call, 0}, Output(), batch.status});
    return;
  }
  const std::vector<RequestId>& ids = call->ids();
  std::vector<bool> finished(ids.size());
  for (Output& output : batch.outputs) {
    const size_t choice = output.request.value - ids[0].value;
    if (output.finish) finished[choice] = true;
    deliveries.push_back({Entry{call, static_cast<int>(choice)},
                          std::move(output), absl::OkStatus()});
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (finished[i]) continue;
    calls_[ids[i].value].push_back(Entry{call, static_cast<int>(i)});
    // The head of a stream need not wait for the next token.
    Output accepted;
    accepted.request = ids[i];
    accepted.accepted = true;
    deliveries.push_back(
        {Entry{call, static_cast<int>(i)}, std::move(accepted), {}});
  }
}

void OpenAiApi::FanOut() {
  std::vector<Batch> batches;
  {
    std::lock_guard lock(queue_mutex_);
    batches.swap(queue_);
    fan_out_posted_ = false;
    last_fan_out_ = Clock::now();
  }
  std::vector<std::vector<Delivery>> by_thread(threads_.size());
  {
    std::lock_guard lock(calls_mutex_);
    for (Batch& batch : batches) {
      if (batch.newcomer != nullptr) {
        TakeIn(batch, by_thread);
        continue;
      }
      for (Output& output : batch.outputs) {
        auto it = calls_.find(output.request.value);
        if (it == calls_.end()) continue;  // aborted
        std::vector<Entry> entries = it->second;
        if (output.finish) calls_.erase(it);
        for (size_t i = 0; i < entries.size(); ++i) {
          auto& deliveries = by_thread[entries[i].call->exchange().thread()];
          const bool last = i + 1 == entries.size();
          deliveries.push_back({std::move(entries[i]),
                                last ? std::move(output) : output,
                                absl::OkStatus()});
        }
      }
    }
  }
  for (int i = 1; i < threads_.size(); ++i) {
    if (by_thread[i].empty()) continue;
    threads_.Post(i, [this, i,
                      deliveries = std::make_shared<std::vector<Delivery>>(
                          std::move(by_thread[i]))] {
      Deliver(i, std::move(*deliveries));
    });
  }
  Deliver(0, std::move(by_thread[0]));
}

void OpenAiApi::Deliver(int thread, std::vector<Delivery> deliveries) {
  const int64_t begin_ns = ThreadCpuNs();
  const auto now = Clock::now();
  std::vector<GenerationCall*> dirty;
  for (Delivery& delivery : deliveries) {
    GenerationCall& call = *delivery.entry.call;
    if (!delivery.failure.ok()) {
      call.Fail(EngineError(delivery.failure));
      continue;
    }
    call.OnOutput(delivery.entry.choice, delivery.output, now);
    if (!call.dirty) dirty.push_back(&call);
    call.dirty = true;
  }
  // `deliveries` keeps the calls alive until here.
  for (GenerationCall* call : dirty) {
    call->dirty = false;
    call->Flush(now);
  }
  delivery_ns_[thread].store(ThreadCpuNs() - begin_ns,
                             std::memory_order_relaxed);
}

}  // namespace moebius
