#include "coordinator/api/call_table.h"

#include <time.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "common/base/logging.h"
#include "coordinator/api/event_id.h"
#include "coordinator/api/retry_after.h"
#include "coordinator/api/write_interval.h"

namespace moebius {
namespace {

// Processor time of the calling thread; other programs' does not count.
int64_t ThreadCpuNs() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

// Why the answer to a request that is known cannot be given.
ApiError AttachError(const absl::Status& status, bool resumes) {
  if (status.code() != absl::StatusCode::kNotFound) return EngineError(status);
  if (resumes) return NotResumable();
  // Its results were dropped a moment ago: sent again, it is a new request.
  return EngineError(absl::UnavailableError(
      "the answer to this request is not kept any more; send it again"));
}

}  // namespace

CallTable::CallTable(Engine& engine, const TextCodec& codec, IoThreads& threads,
                     FrontMetrics& metrics, CallTableOptions options)
    : engine_(engine),
      codec_(codec),
      threads_(threads),
      metrics_(metrics),
      options_(options),
      delivery_ns_(threads.size()) {}

std::optional<ApiError> CallTable::Submit(
    std::shared_ptr<HttpExchange> exchange, PreparedRequest prepared,
    AnswerHead head, RequestOrigin origin) {
  std::vector<Generation> generations;
  for (Generation& generation : prepared.generations) {
    generations.push_back({std::move(generation.prompt),
                           std::move(generation.sampling), generation.stop});
  }
  const size_t count = generations.size();
  // A whole answer has no events.
  if (!prepared.stream) origin.last_event.reset();
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
      return error;
    }
    if (origin.last_event.has_value()) {
      std::optional<std::string_view> answer_id;
      if (again) answer_id = known->second.context.answer_id;
      auto refusal = RefuseResume(*origin.last_event, answer_id, count);
      if (refusal) return refusal;
    }
    if (again) {
      head.id = known->second.context.answer_id;
      head.created = known->second.context.created;
    }
    CallContext context{
        prepared.chat,
        !origin.key.empty(),
        head.created,
        origin.fingerprint,
        origin.key.empty() ? ScopedKey(head.id, "") : origin.key,
        head.id};
    call = std::make_shared<GenerationCall>(exchange, std::move(prepared),
                                            std::move(head), codec_, metrics_,
                                            origin.arrived);
    Begin(origin, *call);
    if (again) {
      AttachTo(known->second, call);
    } else {
      auto submitted =
          engine_.Submit(std::move(generations), EncodeCallContext(context));
      if (!submitted.ok()) return Refusal(submitted.status());
      for (size_t i = 0; i < count; ++i) {
        calls_[(*submitted)[i].value].push_back(
            Entry{call, static_cast<int>(i)});
      }
      StartSweeping();
      const RequestId first = submitted->front();
      LogDebug("request ", first.value, ", ", count, " choices, is ",
               context.answer_id, ", request ", exchange->request().id);
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
  return std::nullopt;
}

void CallTable::Begin(const RequestOrigin& origin, GenerationCall& call) const {
  if (!origin.key.empty()) call.WriteEventIds();
  if (origin.last_event) call.SkipTo(origin.last_event->counts);
  if (options_.remark) {
    const EngineStatus status = engine_.GetStatus();
    call.RemarkFrom(std::string(
        LayoutName(status.layout, static_cast<int>(status.workers.size()))));
  }
}

ApiError CallTable::Refusal(const absl::Status& status) const {
  ApiError error = EngineError(status);
  if (absl::IsResourceExhausted(status)) {
    const EngineStatus engine = engine_.GetStatus();
    error.retry_after_s =
        RetryAfterSeconds(engine.waiting, engine.ended_recently);
  }
  return error;
}

void CallTable::AttachTo(Known& known, std::shared_ptr<GenerationCall> call) {
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

absl::Status CallTable::Restore(RequestId first, size_t count, bool unfinished,
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

void CallTable::OnForgotten(const std::vector<RequestId>& firsts) {
  std::lock_guard lock(calls_mutex_);
  for (RequestId first : firsts) {
    const auto key = key_of_.find(first.value);
    if (key == key_of_.end()) continue;
    known_.erase(key->second);
    key_of_.erase(key);
  }
}

void CallTable::AbortCall(GenerationCall& call) {
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

void CallTable::ExpireOrphans() {
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

void CallTable::StartSweeping() {
  if (sweeping_ || options_.waiting_comment.count() == 0) return;
  // A stream is found out late by one sweep at most.
  constexpr int kSweepsPerComment = 8;
  sweeping_ =
      threads_.PostAfter(0,
                         std::chrono::duration_cast<std::chrono::microseconds>(
                             options_.waiting_comment) /
                             kSweepsPerComment,
                         [this] { SweepSilent(); });
}

void CallTable::SweepSilent() {
  using Calls = absl::flat_hash_set<std::shared_ptr<GenerationCall>>;
  std::vector<std::shared_ptr<Calls>> by_thread(threads_.size());
  {
    std::lock_guard lock(calls_mutex_);
    sweeping_ = false;
    if (calls_.empty()) return;
    for (auto& calls : by_thread) calls = std::make_shared<Calls>();
    for (const auto& [id, entries] : calls_) {
      for (const Entry& entry : entries) {
        by_thread[entry.call->exchange().thread()]->insert(entry.call);
      }
    }
    StartSweeping();
  }
  for (int i = 0; i < threads_.size(); ++i) {
    threads_.Post(i, [this, calls = std::move(by_thread[i])] {
      const auto now = Clock::now();
      for (const auto& call : *calls) {
        call->SayWaiting(now, options_.waiting_comment);
      }
    });
  }
}

void CallTable::OnOutputs(std::vector<Output> outputs) {
  Batch batch;
  batch.outputs = std::move(outputs);
  Push(std::move(batch));
}

void CallTable::Push(Batch batch) {
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

std::chrono::nanoseconds CallTable::Interval() const {
  int64_t cost = 0;
  for (const auto& ns : delivery_ns_) {
    cost = std::max(cost, ns.load(std::memory_order_relaxed));
  }
  return WriteInterval(options_.write_interval, std::chrono::nanoseconds(cost));
}

// A call that comes in the midst of a generation gets what was said so far, and
// everything that is said from here on.
void CallTable::TakeIn(Batch& batch,
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
    StartSweeping();
    // The head of a stream need not wait for the next token.
    Output accepted;
    accepted.request = ids[i];
    accepted.accepted = true;
    deliveries.push_back(
        {Entry{call, static_cast<int>(i)}, std::move(accepted), {}});
  }
}

void CallTable::FanOut() {
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

void CallTable::Deliver(int thread, std::vector<Delivery> deliveries) {
  const int64_t begin_ns = ThreadCpuNs();
  const auto now = Clock::now();
  std::vector<GenerationCall*> dirty;
  for (Delivery& delivery : deliveries) {
    GenerationCall& call = *delivery.entry.call;
    if (!delivery.failure.ok()) {
      call.Fail(AttachError(delivery.failure, call.resumes()));
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
