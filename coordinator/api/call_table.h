// The calls under way: who gets which output of the engine, and which request
// belongs to a key.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "coordinator/api/call_context.h"
#include "coordinator/api/generation_call.h"
#include "coordinator/api/generation_request.h"
#include "coordinator/api/request_origin.h"
#include "coordinator/api/text_codec.h"
#include "coordinator/engine/engine.h"
#include "coordinator/http/api_error.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/io_threads.h"
#include "coordinator/status/front_metrics.h"

namespace moebius {

struct CallTableOptions {
  // How long a request that came with a key goes on without a client.
  std::chrono::milliseconds resume_window{60'000};
  // Outputs go to the streams at most this often, the tokens of several short
  // steps in one write; less often where writing takes much of a core, see
  // write_interval.h. 0: at once.
  std::chrono::microseconds write_interval{0};
  // A stream that nothing was sent on for this long gets a comment. 0: none.
  std::chrono::milliseconds waiting_comment{0};
  // The log's line of a request tells tokens, layout and time to first token.
  bool remark = false;
};

// CallTable
//
// Hands requests to the engine and the engine's outputs to the calls they
// belong to, each on the io thread of its connection.
//
// A request may be repeated: one with the Idempotency-Key of an earlier one
// (or, as its key, the id of the earlier answer) gets the answer of that, from
// the beginning or from behind its Last-Event-ID on, whether it is still being
// generated or not, at the same time as others or after a coordinator's death.
// A Last-Event-ID of an answer that is not here is a 404, never the tail of
// another one.
// A request that came with a key outlives its connection for a time; any other
// is aborted at once when its client goes away.
//
// Threading: thread-safe. OnOutputs() takes a lock for a moment and posts at
// most once, so it may be called on the text stage's thread.
//
// Lifetime: engine, codec, metrics and threads outlive it; before it is
// destroyed the server must have been stopped, `threads` too, and the engine
// must call OnOutputs() no more.
class CallTable {
 public:
  CallTable(Engine& engine, const TextCodec& codec, IoThreads& threads,
            FrontMetrics& metrics, CallTableOptions options);
  CallTable(const CallTable&) = delete;
  CallTable& operator=(const CallTable&) = delete;

  // Has the engine generate what `prepared` asks for, or the request that
  // origin's key belongs to answered again; `exchange` gets the answer. An
  // error: nothing was submitted, and the exchange is still to be answered.
  // On the exchange's thread.
  std::optional<ApiError> Submit(std::shared_ptr<HttpExchange> exchange,
                                 PreparedRequest prepared, AnswerHead head,
                                 RequestOrigin origin);

  // The engine's listener.
  void OnOutputs(std::vector<Output> outputs);

  // Takes up a request of an earlier coordinator, before Submit() is called.
  // kInvalidArgument when its context says nothing.
  absl::Status Restore(RequestId first, size_t count, bool unfinished,
                       std::string_view context);
  // The engine's on_forgotten.
  void OnForgotten(const std::vector<RequestId>& firsts);

 private:
  using Clock = GenerationCall::Clock;

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

  // The answer to a request that is known already goes to `call` as well.
  void AttachTo(Known& known, std::shared_ptr<GenerationCall> call)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mutex_);
  // What a client hears whose request the engine did not take.
  // What a call is told before its first output.
  void Begin(const RequestOrigin& origin, GenerationCall& call) const;
  ApiError Refusal(const absl::Status& status) const;
  void AbortCall(GenerationCall& call);
  void ExpireOrphans();
  // Comments on silent streams, now and then as long as there are calls.
  void StartSweeping() ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mutex_);
  void SweepSilent();
  void Push(Batch batch);

  // On the first io thread.
  void FanOut();
  void TakeIn(Batch& batch, std::vector<std::vector<Delivery>>& by_thread)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(calls_mutex_);
  // On io thread `thread`, which all of the deliveries' exchanges are on.
  void Deliver(int thread, std::vector<Delivery> deliveries);
  // From the last round of writes to the next.
  std::chrono::nanoseconds Interval() const;

  Engine& engine_;
  const TextCodec& codec_;
  IoThreads& threads_;
  FrontMetrics& metrics_;
  const CallTableOptions options_;
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
  bool sweeping_ ABSL_GUARDED_BY(calls_mutex_) = false;
  // By scoped key, and the key of each request by its first id.
  absl::flat_hash_map<std::string, Known> known_ ABSL_GUARDED_BY(calls_mutex_);
  absl::flat_hash_map<uint64_t, std::string> key_of_
      ABSL_GUARDED_BY(calls_mutex_);
};

}  // namespace moebius
