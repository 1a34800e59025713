// The public routes: OpenAI's, vLLM's tokenizer routes, and probes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "common/api_keys.h"
#include "coordinator/api/call_context.h"
#include "coordinator/api/generation_call.h"
#include "coordinator/api/http_message.h"
#include "coordinator/api/io_threads.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/api/text_codec.h"
#include "coordinator/engine.h"
#include "coordinator/status/front_metrics.h"

namespace moebius {

struct OpenAiApiOptions {
  ApiLimits limits;
  std::string model_root;  // path of the checkpoint, /v1/models says it
  std::string version;
  // How long such a request goes on without a client.
  std::chrono::milliseconds resume_window{60'000};
  // One of these must be shown; nothing: anybody is served.
  std::optional<ApiKeys> keys;
  // Large bodies waiting for the thread that prepares them; 429 beyond.
  int max_preparing = 256;
  size_t max_preparing_bytes = size_t{128} << 20;
  // Outputs go to the streams at most this often, the tokens of several short
  // steps in one write; less often where writing takes much of a core, see
  // write_interval.h. 0: at once.
  std::chrono::microseconds write_interval{0};
};

// OpenAiApi
//
//   POST /v1/completions, /v1/chat/completions, /tokenize, /detokenize
//   GET  /v1/models, /v1/models/{model}, /health, /ready, /version
//
// A request may be repeated: one with the Idempotency-Key of an earlier one
// (or, as its key, the id of the earlier answer) gets the answer of that, from
// the beginning or from behind its Last-Event-ID on, whether it is still being
// generated or not, at the same time as others or after a coordinator's death.
// A request that came with a key outlives its connection for a time.
//
// Requests whose body is large are parsed and tokenized on a thread of their
// own, so that they hold no stream up. A client that goes away has its
// generations aborted at once.
//
// Threading: thread-safe. OnOutputs() takes a lock for a moment and posts at
// most once, so it may be called on the engine's thread.
//
// Lifetime: engine, codec, metrics and threads outlive it; before it is
// destroyed the server must have been stopped, `threads` too, and the engine
// must call OnOutputs() no more.
class OpenAiApi final : public HttpHandler {
 public:
  OpenAiApi(Engine& engine, const TextCodec& codec, IoThreads& threads,
            FrontMetrics& metrics, OpenAiApiOptions options);
  ~OpenAiApi() override;

  // The engine's listener.
  void OnOutputs(std::vector<Output> outputs);

  // Takes up a request of an earlier coordinator, before Handle() is called.
  // kInvalidArgument when its context says nothing.
  absl::Status Restore(RequestId first, size_t count, bool unfinished,
                       std::string_view context);
  // The engine's on_forgotten.
  void OnForgotten(const std::vector<RequestId>& firsts);

  std::optional<HttpResponse> Refuse(const HttpRequest& head) override;
  void Handle(std::shared_ptr<HttpExchange> exchange) override;

 private:
  using Clock = std::chrono::steady_clock;
  enum class Kind { kCompletion, kChat, kTokenize, kDetokenize };

  struct Entry {
    std::shared_ptr<GenerationCall> call;
    int choice = 0;
  };
  struct Delivery {
    Entry entry;
    Output output;
    absl::Status failure;  // the call has nothing to answer with
  };
  // A request by its key.
  struct Known {
    RequestId first;
    size_t count = 0;
    CallContext context;
    int attached = 0;  // calls
    bool aborted = false;
    std::optional<Clock::time_point> alone_until;
  };
  // What the engine said at once: outputs for everyone or, to a call that comes
  // in between, all that was said so far.
  struct Batch {
    std::vector<Output> outputs;
    std::shared_ptr<GenerationCall> newcomer;
    absl::Status status;  // of the newcomer
  };

  // What a request says beside its body.
  struct Origin {
    std::string key;  // scoped; empty: none was given
    uint64_t fingerprint = 0;
    std::vector<int64_t> last_event;
    Clock::time_point arrived;
  };

  void Answer(HttpExchange& exchange, const std::string& route,
              HttpResponse response);
  void Fail(HttpExchange& exchange, const std::string& route,
            const ApiError& error);

  void HandlePost(std::shared_ptr<HttpExchange> exchange, Kind kind);
  // Parse the body and go on with what comes of it on the exchange's thread:
  // at once if called there, `in_place`, else through a post.
  void PrepareGeneration(std::shared_ptr<HttpExchange> exchange, Kind kind,
                         const std::string& body, bool in_place, Origin origin);
  void PrepareText(std::shared_ptr<HttpExchange> exchange, Kind kind,
                   const std::string& body, bool in_place);
  void HandleModels(HttpExchange& exchange);
  void HandleReady(HttpExchange& exchange);

  // Parses and tokenizes; pure but for drawing a seed. Any thread.
  Parsed<PreparedRequest> Prepare(Kind kind, const std::string& body);
  Parsed<HttpResponse> Text(Kind kind, const std::string& body) const;

  Parsed<Origin> OriginOf(const HttpRequest& request, const std::string& body,
                          Clock::time_point arrived) const;
  void Submit(std::shared_ptr<HttpExchange> exchange,
              Parsed<PreparedRequest> prepared, Origin origin);
  // The answer to a request that is known already goes to `call` as well.
  void AttachTo(Known& known, std::shared_ptr<GenerationCall> call)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mutex_);
  void AbortCall(GenerationCall& call);
  void ExpireOrphans();
  void Push(Batch batch);

  // On the first io thread.
  void FanOut();
  void TakeIn(Batch& batch, std::vector<std::vector<Delivery>>& by_thread)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mutex_);
  // On io thread `thread`, which all of the deliveries' exchanges are on.
  void Deliver(int thread, std::vector<Delivery> deliveries);
  // From the last round of writes to the next.
  std::chrono::nanoseconds Interval() const;

  AnswerHead NewHead(bool chat);
  uint64_t DrawSeed();

  Engine& engine_;
  const TextCodec& codec_;
  IoThreads& threads_;
  FrontMetrics& metrics_;
  const OpenAiApiOptions options_;
  const int64_t created_;
  const uint64_t random_base_;
  std::atomic<uint64_t> num_drawn_{0};
  std::atomic<int> num_preparing_{0};
  std::atomic<size_t> preparing_bytes_{0};
  // Processor time that the last deliveries on each io thread took.
  std::vector<std::atomic<int64_t>> delivery_ns_;

  std::mutex queue_mutex_;
  std::vector<Batch> queue_ ABSL_GUARDED_BY(queue_mutex_);
  bool fan_out_posted_ ABSL_GUARDED_BY(queue_mutex_) = false;
  Clock::time_point last_fan_out_ ABSL_GUARDED_BY(queue_mutex_);

  // Held over Engine::Submit, so that no output can be looked up before its
  // request is entered.
  std::mutex calls_mutex_;
  absl::flat_hash_map<uint64_t, std::vector<Entry>> calls_
      ABSL_GUARDED_BY(calls_mutex_);
  // By scoped key, and the key of each request by its first id.
  absl::flat_hash_map<std::string, Known> known_ ABSL_GUARDED_BY(calls_mutex_);
  absl::flat_hash_map<uint64_t, std::string> key_of_
      ABSL_GUARDED_BY(calls_mutex_);

  IoThreads preparation_;  // last: its tasks use the rest
};

}  // namespace moebius
