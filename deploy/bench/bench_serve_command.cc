// moebius bench serve: an HTTP server under a closed or a Poisson load.
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/deadline.h"
#include "common/base/status_macros.h"
#include "deploy/bench/bench_commands.h"
#include "deploy/bench/statistics.h"
#include "deploy/cli/client_key.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/client/completion_stream.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr int kMaxConnections = 10000;

struct ServeBenchArgs {
  std::string url = kDefaultApiUrl;
  ClientKey key{kApiKeyVariable};
  std::string model;
  int requests = 200;
  int concurrency = 8;
  double rate = 0;  // a second; 0: closed loop
  int prompt_tokens = 64;
  int output_tokens = 128;
  double temperature = 0;  // greedy, as in bench throughput
  bool stop_at_eos = false;
  bool ignore_eos = true;  // its contrary, for who likes to say it
  int64_t seed = 1;
  BenchLimits limits;
};

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) +
           1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// What all requests together were.
struct Totals {
  uint64_t completed = 0, failed = 0;
  uint64_t prompt_tokens = 0, output_tokens = 0, events = 0;
  std::vector<double> ttft_ms, per_token_ms, inter_token_ms, whole_ms;
  std::string first_error;

  void Add(const CompletionResult& result, Clock::time_point end);
};

void Totals::Add(const CompletionResult& result, Clock::time_point end) {
  if (!result.status.ok() || result.times.empty()) {
    ++failed;
    if (first_error.empty()) {
      first_error = result.status.ok()
                        ? std::string("a completion without output")
                        : std::string(result.status.message());
    }
    return;
  }
  ++completed;
  const uint64_t tokens =
      std::max<uint64_t>(result.output_tokens, result.times.size());
  prompt_tokens += result.prompt_tokens;
  output_tokens += tokens;
  events += result.times.size();
  ttft_ms.push_back(MillisecondsBetween(result.sent, result.times.front()));
  whole_ms.push_back(MillisecondsBetween(result.sent, end));
  if (tokens > 1) {
    per_token_ms.push_back(
        MillisecondsBetween(result.times.front(), result.times.back()) /
        static_cast<double>(tokens - 1));
  }
  for (size_t i = 1; i < result.times.size(); ++i) {
    inter_token_ms.push_back(
        MillisecondsBetween(result.times[i - 1], result.times[i]));
  }
}

// Issues the requests. Closed: `concurrency` at a time. Poisson: at random
// moments, however many are in flight.
class Load {
 public:
  Load(EventLoop& loop, const Url& url, const ServeBenchArgs& args,
       Deadline deadline, std::vector<std::string> bodies)
      : loop_(loop),
        url_(url),
        args_(args),
        deadline_(deadline),
        bodies_(std::move(bodies)),
        random_(static_cast<uint64_t>(args.seed)) {}

  absl::Status Run() {
    begin_ = Clock::now();
    const double cpu = CpuSeconds();
    if (args_.rate > 0) {
      next_arrival_ = begin_;
      Arrive();
    } else {
      const int at_once = std::min(args_.concurrency, args_.requests);
      for (int i = 0; i < at_once; ++i) Issue();
    }
    const absl::Status status = loop_.RunUntil(
        [this] { return ended_ == args_.requests; }, deadline_.left());
    seconds_ = MillisecondsBetween(begin_, Clock::now()) / 1000;
    cpu_share_ = (CpuSeconds() - cpu) / seconds_;
    return status;
  }

  const Totals& totals() const { return totals_; }
  int ended() const { return ended_; }
  double seconds() const { return seconds_; }
  double cpu_share() const { return cpu_share_; }

 private:
  void Arrive() {
    Issue();
    if (issued_ == args_.requests) return;
    const std::chrono::duration<double> gap(
        std::exponential_distribution<double>(args_.rate)(random_));
    // Against the plan, not against now: a late loop does not thin the load.
    next_arrival_ += std::chrono::duration_cast<Clock::duration>(gap);
    const auto wait =
        std::max(next_arrival_ - Clock::now(), Clock::duration::zero());
    loop_.After(absl::FromChrono(wait), [this] { Arrive(); });
  }

  void Issue() {
    CompletionStream* stream = nullptr;
    if (!idle_.empty()) {
      stream = idle_.back();
      idle_.pop_back();
    } else {
      streams_.push_back(
          std::make_unique<CompletionStream>(loop_, url_, CompletionOptions{}));
      stream = streams_.back().get();
    }
    stream->Begin("/v1/completions", bodies_[static_cast<size_t>(issued_++)],
                  nullptr, [this, stream](CompletionResult result) {
                    totals_.Add(result, Clock::now());
                    ++ended_;
                    idle_.push_back(stream);
                    if (args_.rate == 0 && issued_ < args_.requests) Issue();
                  });
  }

  EventLoop& loop_;
  const Url url_;
  const ServeBenchArgs& args_;
  const Deadline deadline_;
  const std::vector<std::string> bodies_;
  std::mt19937_64 random_;
  Clock::time_point begin_, next_arrival_;
  int issued_ = 0, ended_ = 0;
  Totals totals_;
  double seconds_ = 0, cpu_share_ = 0;
  std::vector<CompletionStream*> idle_;
  std::vector<std::unique_ptr<CompletionStream>> streams_;
};

Json Figures(const ServeBenchArgs& args, const Load& load) {
  const Totals& t = load.totals();
  const double s = load.seconds();
  return {{"requests", args.requests},
          {"concurrency", args.rate > 0 ? 0 : args.concurrency},
          {"rate", args.rate},
          {"temperature", args.temperature},
          {"prompt_tokens", args.prompt_tokens},
          {"max_output_tokens", args.output_tokens},
          {"completed", t.completed},
          {"failed", t.failed},
          {"duration_s", s},
          {"requests_per_s", static_cast<double>(t.completed) / s},
          {"output_tokens_per_s", static_cast<double>(t.output_tokens) / s},
          {"total_tokens_per_s",
           static_cast<double>(t.prompt_tokens + t.output_tokens) / s},
          {"events_per_s", static_cast<double>(t.events) / s},
          {"client_cpu_share", load.cpu_share()},
          {"ttft_ms", ToJson(Summarize(t.ttft_ms))},
          {"time_per_output_token_ms", ToJson(Summarize(t.per_token_ms))},
          {"inter_token_latency_ms", ToJson(Summarize(t.inter_token_ms))},
          {"latency_ms", ToJson(Summarize(t.whole_ms))}};
}

std::string Describe(const Json& figures) {
  const auto row = [&](const char* name, const char* key) {
    const Json& f = ObjectAt(figures, key);
    return std::vector<std::string>{name, ShortNumber(NumberAt(f, "mean")),
                                    ShortNumber(NumberAt(f, "median")),
                                    ShortNumber(NumberAt(f, "p99")),
                                    ShortNumber(NumberAt(f, "max"))};
  };
  const auto number = [&](const char* key) {
    return ShortNumber(NumberAt(figures, key));
  };
  return Cat(
      CountAt(figures, "completed"), " requests completed, ",
      CountAt(figures, "failed"), " failed, in ", number("duration_s"), " s\n",
      number("requests_per_s"), " requests/s, ", number("output_tokens_per_s"),
      " output tokens/s, ", number("total_tokens_per_s"),
      " tokens/s with prompts; the client took ",
      ShortNumber(NumberAt(figures, "client_cpu_share") * 100),
      " % of a core\n\n",
      FormatTable({"milliseconds", "mean", "median", "p99", "max"},
                  {row("time to first token", "ttft_ms"),
                   row("time per output token", "time_per_output_token_ms"),
                   row("inter-token latency", "inter_token_latency_ms"),
                   row("whole request", "latency_ms")}));
}

absl::Status Run(const ServeBenchArgs& args) {
  const Deadline deadline =
      Deadline::After(absl::Seconds(args.limits.timeout_s));
  ASSIGN_OR_RETURN(Url url, ParseUrl(args.url));
  ASSIGN_OR_RETURN(url, args.key.With(std::move(url)));
  EventLoop loop;
  std::string model = args.model;
  if (model.empty()) {
    ASSIGN_OR_RETURN(model, FetchModelName(loop, url));
  }
  ASSIGN_OR_RETURN(const PromptSource prompts,
                   PromptSource::Fetch(loop, url, model));
  std::vector<std::string> bodies;
  for (int i = 0; i < args.requests; ++i) {
    Json body =
        CompletionBody(model,
                       prompts.Prompt(i + static_cast<int>(args.seed % 1000),
                                      args.prompt_tokens),
                       args.output_tokens, !args.stop_at_eos);
    body["temperature"] = args.temperature;
    bodies.push_back(body.dump());
  }
  Load load(loop, url, args, deadline, std::move(bodies));
  const absl::Status status = load.Run();
  if (!status.ok() && !(IsCutShort(status) && load.ended() > 0)) {
    return NothingMeasured(status, args.limits.timeout_s);
  }
  Json figures = Figures(args, load);
  figures["model"] = model;
  figures["url"] = args.url;
  std::fputs(Describe(figures).c_str(), stdout);
  if (!status.ok()) {
    SayCutShort(status, args.limits.timeout_s,
                static_cast<uint64_t>(load.ended()),
                static_cast<uint64_t>(args.requests), "requests");
    figures["cut_short"] = true;
  }
  RETURN_IF_ERROR(WriteFigures(args.limits.json_file, figures));
  if (absl::IsCancelled(status)) return status;
  if (load.totals().failed > 0) {
    return absl::InternalError(
        Cat(load.totals().failed,
            " requests failed, the first with: ", load.totals().first_error));
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchServeCommand(CLI::App& bench, Action& action) {
  auto args = std::make_shared<ServeBenchArgs>();
  CLI::App* command = bench.add_subcommand(
      "serve",
      "Latency and throughput of a running server over HTTP, with streaming.");
  command->footer(
      "Without --rate the load is closed: --concurrency requests at a time.\n"
      "With it requests arrive at random (Poisson), however many are in "
      "flight.");
  command
      ->add_option("--url", args->url,
                   Cat("The OpenAI API [default ", kDefaultApiUrl, "]"))
      ->option_text("URL");
  args->key.AddTo(*command, "--api-key-file", "the OpenAI API");
  command
      ->add_option("--model", args->model,
                   "Model to name in requests [default: the server's first]")
      ->option_text("NAME");
  command
      ->add_option("--requests", args->requests,
                   "Requests in all [default 200]")
      ->option_text("N")
      ->check(CLI::Range(1, kMaxConnections));
  command
      ->add_option("--concurrency", args->concurrency,
                   "Requests in flight of a closed load [default 8]")
      ->option_text("N")
      ->check(CLI::Range(1, kMaxConnections));
  command
      ->add_option("--rate", args->rate,
                   "Requests per second of a Poisson load; 0 is a closed one "
                   "[default 0]")
      ->option_text("R")
      ->check(CLI::Range(0.0, 1e6));
  command
      ->add_option("--prompt-tokens", args->prompt_tokens,
                   "Tokens of each prompt [default 64]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option("--output-tokens", args->output_tokens,
                   "Tokens to generate for each [default 128]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option("--temperature", args->temperature,
                   "Temperature of the requests; 0 is greedy [default 0]")
      ->option_text("T")
      ->check(CLI::Range(0.0, 2.0));
  CLI::Option* stop = command->add_flag(
      "--stop-at-eos", args->stop_at_eos,
      "End where the model ends; otherwise all tokens are generated.");
  command
      ->add_flag("--ignore-eos", args->ignore_eos,
                 "Generate all tokens: the default.")
      ->excludes(stop);
  command
      ->add_option("--seed", args->seed,
                   "Seed of prompts and arrivals [default 1]")
      ->option_text("N")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  AddLimits(*command, args->limits);
  RunWhenChosen(*command, action, args, &Run);
}

}  // namespace moebius
