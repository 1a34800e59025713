// What the HTTP front costs: an event's text alone, a request's body, and
// whole streams over loopback sockets, in the server thread's own CPU time.
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include <atomic>
#include <condition_variable>
#include <latch>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "benchmark/benchmark.h"
#include "common/base/check.h"
#include "coordinator/api/openai_api.h"
#include "coordinator/http/http_server.h"
#include "tests/unit/coordinator/api/fake_codec.h"
#include "tests/unit/coordinator/api/fake_engine.h"
#include "tests/unit/coordinator/http/test_client.h"

namespace moebius {
namespace {

AnswerHead Head(bool chat) {
  return {chat, "chatcmpl-0123456789abcdef0123456789abcdef", "verse-moe",
          1700000000};
}

void BM_Event(benchmark::State& state) {
  const ChunkWriter writer(Head(state.range(0) != 0), false);
  std::string out;
  for (auto _ : state) {
    out.clear();
    writer.Append({.index = 0, .text = " token"}, &out);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Event)->ArgName("chat")->Arg(0)->Arg(1);

void BM_EventWithLogprobs(benchmark::State& state) {
  const ChunkWriter writer(Head(true), false);
  const FakeCodec codec;
  std::vector<TokenLogprob> top;
  for (int i = 0; i < state.range(0); ++i) {
    top.push_back({'a' + i, -0.123456f * static_cast<float>(i + 1)});
  }
  const std::vector<ScoredToken> tokens = {
      {.token = 'a', .logprob = -0.123456f, .top = top}};
  std::string out, logprobs;
  for (auto _ : state) {
    out.clear();
    logprobs.clear();
    AppendChatLogprobs(tokens, static_cast<int>(state.range(0)), codec,
                       &logprobs);
    writer.Append({.index = 0, .text = " token", .logprobs = logprobs}, &out);
    benchmark::DoNotOptimize(out.data());
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_EventWithLogprobs)->ArgName("top")->Arg(0)->Arg(5)->Arg(20);

ApiLimits Limits() {
  ApiLimits limits;
  limits.model = "verse-moe";
  limits.max_model_len = 1 << 22;
  limits.vocab_size = kFakeVocab;
  return limits;
}

// A chat of `bytes` bytes, parsed and checked (the tokenizer is a fake).
void BM_PrepareChat(benchmark::State& state) {
  const ApiLimits limits = Limits();
  const FakeCodec codec;
  const std::string body =
      R"({"model":"verse-moe","messages":[{"role":"system","content":"Be )"
      R"(brief."},{"role":"user","content":")" +
      std::string(static_cast<size_t>(state.range(0)), 'x') +
      R"("}],"max_tokens":64,"temperature":0.7,"stream":true,)"
      R"("stream_options":{"include_usage":true}})";
  for (auto _ : state) {
    auto prepared = PrepareChat(body, limits, codec, 1);
    CHECK(prepared.ok());
    benchmark::DoNotOptimize(prepared);
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(body.size()));
}
BENCHMARK(BM_PrepareChat)->ArgName("bytes")->Arg(100)->Arg(1 << 20);

double ThreadCpuSeconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Reads many sockets on a thread of its own and counts the ends of events.
class Reader {
 public:
  Reader() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Reader() {
    stopped_ = true;
    thread_.join();
    close(epoll_);
  }
  void Add(int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    CHECK(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0);
  }
  void WaitFor(int64_t events) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return num_events_ >= events; });
  }

 private:
  void Run() {
    std::vector<epoll_event> ready(512);
    std::vector<char> bytes(64 << 10);
    while (!stopped_) {
      const int n =
          epoll_wait(epoll_, ready.data(), static_cast<int>(ready.size()), 20);
      int64_t found = 0;
      for (int i = 0; i < n; ++i) {
        const ssize_t size =
            recv(ready[i].data.fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
        for (ssize_t j = 1; j < size; ++j) {
          found += bytes[j] == '\n' && bytes[j - 1] == '\n';
        }
      }
      std::lock_guard lock(mutex_);
      num_events_ += found;
      changed_.notify_all();
    }
  }

  const int epoll_;
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t num_events_ = 0;
  std::thread thread_;
};

struct Front {
  Front() : api(engine, codec, threads, metrics, {Limits(), "/m", "0"}) {
    engine.set_listener(
        [this](std::vector<Output> o) { api.calls().OnOutputs(std::move(o)); });
    HttpServerOptions options;
    options.listen.port = 0;
    auto started = HttpServer::Start(options, threads, api);
    CHECK(started.ok());
    server = std::move(*started);
  }
  ~Front() {
    server->Stop();
    threads.Stop();
  }
  double ServerCpuSeconds() {
    double seconds = 0;
    std::latch done(1);
    threads.Post(0, [&] {
      seconds = ThreadCpuSeconds();
      done.count_down();
    });
    done.wait();
    return seconds;
  }

  FakeEngine engine;
  FakeCodec codec;
  FrontMetrics metrics;
  IoThreads threads{1, "http"};
  OpenAiApi api;
  std::unique_ptr<HttpServer> server;
};

// One step of N streams after another: each waits until the client has every
// event of the last. `server_us` is the io thread's CPU time for an event,
// system calls included.
void BM_Streams(benchmark::State& state) {
  const int streams = static_cast<int>(state.range(0));
  Front front;
  std::vector<TestClient> clients;
  std::vector<RequestId> ids;
  Reader reader;
  for (int i = 0; i < streams; ++i) {
    clients.emplace_back(front.server->port());
    CHECK(clients.back().Send(HttpText(
        "POST", "/v1/chat/completions",
        R"({"messages":[{"role":"user","content":"x"}],"stream":true})")));
    ids.push_back(front.engine.TakeSubmitted(1).at(0).id);
    CHECK(clients.back().ReadHead().status == 200);
    reader.Add(clients.back().fd());
  }
  int64_t events = 0;
  const double cpu_before = front.ServerCpuSeconds();
  for (auto _ : state) {
    std::vector<Output> step;
    step.reserve(static_cast<size_t>(streams));
    for (RequestId id : ids) step.push_back(TextOutput(id, " token"));
    front.engine.Emit(std::move(step));
    events += streams;
    reader.WaitFor(events);
  }
  const double cpu = front.ServerCpuSeconds() - cpu_before;
  state.counters["server_us"] = cpu / static_cast<double>(events) * 1e6;
  state.SetItemsProcessed(events);
}
BENCHMARK(BM_Streams)
    ->ArgName("streams")
    ->Arg(1)
    ->Arg(32)
    ->Arg(256)
    ->UseRealTime();

}  // namespace
}  // namespace moebius
