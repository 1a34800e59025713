// The whole path of a decode step on the host: plan, encode, the worker's
// decode and its result's encode, decode, result, journal, text, response.
//
// BM_HostPath turns the engine itself, with a hub whose workers answer at once
// and a journal in /dev/shm (or $MOEBIUS_BENCH_DIR) without syncs.
// `engine` is what a turn takes on the engine's thread: all but the workers'
// part. BM_Parts does with the same parts what that thread does with them, one
// after the other, so that each can be timed.
//
// Counters are nanoseconds a running request and step. Not in it: the channel's
// and the sockets' system calls.
#include <benchmark/benchmark.h>
#include <stdlib.h>
#include <time.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "common/base/check.h"
#include "coordinator/api/generation_call.h"
#include "coordinator/engine/engine_host.h"
#include "coordinator/engine/text_table.h"
#include "coordinator/journal/disk_posix.h"
#include "tests/unit/coordinator/api/fake_codec.h"
#include "tests/unit/coordinator/engine/test_tokenizer.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRanks = 4;
constexpr int kPrompt = 100;
constexpr int kMaxTokens = 8000;
constexpr int kSteps = 1500;  // of one run, behind kWarmUp
constexpr int kWarmUp = 50;
constexpr uint32_t kPages = 1 << 21;
constexpr int kVocabulary = 4000;

// Sums the processor's time between Begin and End: other programs' does not
// count.
class Timer {
 public:
  void Begin() { begin_ns_ = Now(); }
  void End() { total_ns_ += Now() - begin_ns_; }
  void Reset() { total_ns_ = 0; }
  double ns() const { return static_cast<double>(total_ns_); }

 private:
  static int64_t Now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
  }

  int64_t begin_ns_ = 0;
  int64_t total_ns_ = 0;
};

// What the workers say to a plan.
StepResult ResultOf(const StepPlan& plan) {
  StepResult result;
  result.step = plan.step;
  result.duration_us = 1000;
  result.sampled.reserve(plan.items.size());
  for (const WorkItem& item : plan.items) {
    if (!item.sample) continue;
    const uint32_t position = item.position + item.num_tokens;
    const auto token =
        static_cast<int32_t>((item.slot * 131 + position * 17) % kVocabulary);
    result.sampled.push_back({item.slot, position, token, 0, {}});
  }
  return result;
}

// A group that loads at once and answers each plan with the next Receive.
class AnsweringHub final : public Hub {
 public:
  explicit AnsweringHub(int max_slots) : max_slots_(max_slots) {
    for (Rank r = 0; r < kRanks; ++r) reports_.push_back({r, kFirst, ""});
  }

  absl::Status Send(Rank rank, Incarnation, std::string_view bytes) override {
    // Each worker has a process of its own; they do the same.
    if (rank > 0 && running_) return absl::OkStatus();
    worker.Begin();
    auto message = wire::DecodeCommand({bytes.data(), bytes.size()});
    CHECK(message.ok());
    if (const auto* plan = std::get_if<StepPlan>(&message->command)) {
      running_ = true;
      Report(rank, ResultOf(*plan));
    } else {
      Obey(rank, message->command);
    }
    worker.End();
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<Message>> Receive(int) override {
    // One step stays ahead of its result.
    std::vector<Message> messages;
    const size_t keep = running_ ? 1 : 0;
    while (reports_.size() > keep) {
      messages.push_back(std::move(reports_.front()));
      reports_.pop_front();
    }
    return messages;
  }
  void Wake() override {}

  Timer worker;

 private:
  static constexpr Incarnation kFirst{1};

  void Obey(Rank rank, const wire::Command& command) {
    if (std::holds_alternative<wire::Greet>(command)) {
      wire::Hello hello;
      hello.rank = rank;
      hello.num_ranks = kRanks;
      hello.num_pages = kPages;
      hello.max_slots = static_cast<uint32_t>(max_slots_);
      hello.memory = kFirst;
      Report(rank, hello);
    } else if (const auto* halt = std::get_if<wire::Halt>(&command)) {
      Stand stand;
      stand.loaded = loaded_;
      Report(rank, wire::Halted{halt->round, stand, {}});
    } else if (const auto* load = std::get_if<wire::Load>(&command)) {
      loaded_ = true;
      Report(rank, wire::Loaded{load->round, 1, 1});
    }
  }
  void Report(Rank rank, wire::Report report) {
    reports_.push_back(
        {rank, kFirst,
         Encode(wire::ReportMessage{{Term{1}, kFirst, ++sent_[rank]},
                                    std::move(report)})});
  }

  const int max_slots_;
  bool loaded_ = false;
  bool running_ = false;
  std::array<uint64_t, kRanks> sent_{};
  std::deque<Message> reports_;
};

// A connection that takes all that is written.
class Sink final : public HttpExchange {
 public:
  const HttpRequest& request() const override { return request_; }
  std::string TakeBody() override { return ""; }
  void Respond(HttpResponse) override {}
  void StartStream(HttpResponse) override {}
  void Write(std::string_view data) override { bytes_.append(data); }
  void Flush() override {
    benchmark::DoNotOptimize(bytes_.data());
    bytes_.clear();
  }
  void FinishStream() override {}
  bool open() const override { return true; }
  void OnClosed(std::function<void()>) override {}
  int thread() const override { return 0; }
  bool Post(std::function<void()>) override { return false; }

 private:
  HttpRequest request_;
  std::string bytes_;
};

// One streaming chat a request, by the order of their ids.
class Calls {
 public:
  explicit Calls(int count) {
    for (int i = 0; i < count; ++i) {
      PreparedRequest prepared;
      prepared.chat = prepared.stream = true;
      prepared.prompts.resize(1);
      prepared.generations.resize(1);
      calls_.push_back(std::make_unique<GenerationCall>(
          std::make_shared<Sink>(), std::move(prepared),
          AnswerHead{true, "chatcmpl-0123456789abcdef0123456789abcdef",
                     "verse-moe", 1700000000},
          codec_, metrics_, Clock::now()));
    }
  }
  void Hear(const std::vector<Output>& outputs) {
    response.Begin();
    const Clock::time_point now = Clock::now();
    for (const Output& output : outputs) {
      GenerationCall& call = *calls_[output.request.value - 1];
      call.OnOutput(0, output, now);
      call.Flush(now);
    }
    response.End();
  }

  Timer response;

 private:
  FakeCodec codec_;
  FrontMetrics metrics_;
  std::vector<std::unique_ptr<GenerationCall>> calls_;
};

// Text between the turns, as if on a thread of its own.
class TextBetween final : public TextStage {
 public:
  explicit TextBetween(Calls* calls)
      : table_(&TestTokenizer(), [this, calls](std::vector<Output> outputs) {
          text.End();
          calls->Hear(outputs);
          text.Begin();
        }) {}

  void Work() {
    text.Begin();
    table_.Take(queue_, ends_);
    text.End();
  }
  void Begin(std::function<void()>) override {}
  void Push(TextBatch& batch) override {
    if (queue_.empty()) return queue_.swap(batch);
    for (TextItem& item : batch) queue_.push_back(std::move(item));
    batch.clear();
  }
  std::vector<TextEnd> TakeEnds() override { return {}; }
  size_t backlog() const override { return queue_.size(); }
  void Flush() override { Work(); }

  Timer text;

 private:
  TextTable table_;
  TextBatch queue_;
  std::vector<TextEnd> ends_;
};

// A journal in a directory of its own.
class Directory {
 public:
  Directory() {
    const char* base = std::getenv("MOEBIUS_BENCH_DIR");
    path_ = std::string(base != nullptr ? base : "/dev/shm") +
            "/host_path_benchXXXXXX";
    CHECK(mkdtemp(path_.data()) != nullptr);
    auto disk = PosixDisk::Open(path_);
    CHECK(disk.ok());
    disk_ = *std::move(disk);
    auto opened = Journal::Open(
        {.checkpoint = 1, .salt = 77, .fsync = FsyncPolicy::kNone}, *disk_);
    CHECK(opened.ok());
    journal = std::move(opened->journal);
    CHECK(journal->Append(journal::TermBegun{Term{1}}).ok());
  }
  ~Directory() {
    journal.reset();
    std::filesystem::remove_all(path_);
  }

  std::unique_ptr<Journal> journal;

 private:
  std::string path_;
  std::unique_ptr<PosixDisk> disk_;
};

Generation Request(int i) {
  Generation generation;
  // Of different lengths: not all cross a page in the same step.
  generation.prompt.assign(static_cast<size_t>(kPrompt + i % kPageTokens), 1);
  generation.stop.max_tokens = kMaxTokens;
  generation.stop.eos_ids = {kVocabulary};
  return generation;
}

SchedulerOptions Schedule(int running) {
  SchedulerOptions options;
  options.attention = {kRanks, 8 * kRanks, 8};
  options.layout = ExpertParallel();
  options.max_running = running;
  options.max_queue = running;
  options.token_budget = 8192;
  options.max_model_len = 16384;
  options.pages_per_rank.assign(kRanks, kPages);
  return options;
}

EngineOptions Options(int running, Journal* journal) {
  const SchedulerOptions schedule = Schedule(running);
  EngineOptions options;
  options.config.workers.count = kRanks;
  options.config.scheduler.max_running = schedule.max_running;
  options.config.scheduler.max_queue = schedule.max_queue;
  options.config.scheduler.token_budget = schedule.token_budget;
  options.config.scheduler.steps_ahead = 2;
  options.config.layout.choice = LayoutChoice::kEp;
  options.model.num_q_heads = schedule.attention.num_q_heads;
  options.model.num_kv_heads = schedule.attention.num_kv_heads;
  options.max_model_len = schedule.max_model_len;
  options.tokenizer = &TestTokenizer();
  options.journal = journal;
  return options;
}

void BM_HostPath(benchmark::State& state) {
  const int running = static_cast<int>(state.range(0));
  Directory directory;
  Calls calls(running);
  auto owned_hub = std::make_unique<AnsweringHub>(running);
  auto owned_text = std::make_unique<TextBetween>(&calls);
  AnsweringHub& hub = *owned_hub;
  TextBetween& text = *owned_text;
  EngineHost engine(Options(running, directory.journal.get()),
                    std::move(owned_hub), std::move(owned_text));
  while (!engine.GetStatus().ready) CHECK(engine.Turn(0));
  for (int i = 0; i < running; ++i) {
    std::vector<Generation> one;
    one.push_back(Request(i));
    CHECK(engine.Submit(std::move(one), "{}").ok());
  }
  Timer turn;
  const auto step = [&] {
    turn.Begin();
    CHECK(engine.Turn(0));
    turn.End();
    text.Work();
  };
  while (engine.GetStatus().running < static_cast<uint64_t>(running)) step();
  for (int i = 0; i < kWarmUp; ++i) step();
  for (Timer* timer : {&turn, &hub.worker, &text.text, &calls.response}) {
    timer->Reset();
  }
  const uint64_t before = engine.GetStatus().generated_tokens_total;
  for (auto _ : state) step();
  const auto tokens =
      static_cast<double>(engine.GetStatus().generated_tokens_total - before);
  const double engine_ns = turn.ns() - hub.worker.ns();
  state.counters["engine"] = engine_ns / tokens;
  state.counters["worker"] = hub.worker.ns() / tokens;
  state.counters["text"] = text.text.ns() / tokens;
  state.counters["response"] = calls.response.ns() / tokens;
  state.counters["all"] =
      (turn.ns() + text.text.ns() + calls.response.ns()) / tokens;
}
BENCHMARK(BM_HostPath)
    ->ArgName("requests")
    ->Arg(256)
    ->Arg(2048)
    ->Iterations(kSteps)
    ->Unit(benchmark::kMicrosecond);

// The same steps with the parts of the engine's thread apart.
class Parts {
 public:
  explicit Parts(int running)
      : scheduler_(*Scheduler::Create(Schedule(running))) {
    Journal& journal = *directory_.journal;
    for (int i = 0; i < running; ++i) {
      const RequestId id{static_cast<uint64_t>(i) + 1};
      Generation one = Request(i);
      CHECK(journal.Append(journal::Accepted{{{id, one}}, "{}", 0}).ok());
      CHECK(scheduler_.Add(id, one.prompt, {}, kMaxTokens).ok());
    }
    while (scheduler_.counters().running < running) Step();
  }

  void Step() {
    plan.Begin();
    std::optional<StepPlan> next = scheduler_.NextStep();
    plan.End();
    CHECK(next.has_value());
    const std::string report = Encode(
        wire::ReportMessage{{Term{1}, Incarnation{1}, 7}, ResultOf(*next)});
    encode.Begin();
    const wire::CommandMessage command{{Term{1}, Incarnation{1}, 7},
                                       *std::move(next)};
    benchmark::DoNotOptimize(Encode(command));
    encode.End();
    decode.Begin();
    auto message = wire::DecodeReport(report);
    decode.End();
    CHECK(message.ok());
    StepResult& got = std::get<StepResult>(message->report);
    result.Begin();
    auto tokens = scheduler_.OnResult(got.step, absl::MakeSpan(&got, 1));
    result.End();
    CHECK(tokens.ok());
    num_tokens += tokens->size();
    journal.Begin();
    journal::StepTokens added{got.step, {}};
    added.tokens.reserve(tokens->size());
    for (NewToken& token : *tokens) {
      added.tokens.push_back(
          {token.request, token.token, token.prompt_logprobs});
    }
    CHECK(directory_.journal->Append(std::move(added)).ok());
    CHECK(directory_.journal->Commit().ok());
    journal.End();
  }

  Timer plan, encode, decode, result, journal;
  size_t num_tokens = 0;

 private:
  Directory directory_;
  Scheduler scheduler_;
};

void BM_Parts(benchmark::State& state) {
  Parts parts(static_cast<int>(state.range(0)));
  for (int i = 0; i < kWarmUp; ++i) parts.Step();
  const std::pair<const char*, Timer*> timers[] = {{"plan", &parts.plan},
                                                   {"encode", &parts.encode},
                                                   {"decode", &parts.decode},
                                                   {"result", &parts.result},
                                                   {"journal", &parts.journal}};
  for (const auto& [name, timer] : timers) timer->Reset();
  parts.num_tokens = 0;
  for (auto _ : state) parts.Step();
  for (const auto& [name, timer] : timers) {
    state.counters[name] = timer->ns() / static_cast<double>(parts.num_tokens);
  }
}
BENCHMARK(BM_Parts)
    ->ArgName("requests")
    ->Arg(256)
    ->Arg(2048)
    ->Iterations(kSteps)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace moebius
