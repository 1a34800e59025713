// moebius bench switch: how long switches take, and what streams notice.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/deadline.h"
#include "common/base/status_macros.h"
#include "deploy/bench/bench_commands.h"
#include "deploy/bench/copy_baseline.h"
#include "deploy/bench/layout_round.h"
#include "deploy/bench/served_group.h"
#include "deploy/bench/shared_copy.h"
#include "deploy/bench/statistics.h"
#include "deploy/bench/stream_set.h"
#include "deploy/bench/switch_report.h"
#include "deploy/cli/client_key.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/config_flags.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr int kCopies = 21;
// Copies in a row take no longer than this, if one does not.
constexpr absl::Duration kCopiesTime = absl::Seconds(3);
constexpr absl::Duration kStopTimeout = absl::Minutes(1);

struct SwitchBenchArgs {
  ConfigFlags flags;
  std::string url, admin;  // both empty: a group of our own
  ClientKey api_key{kApiKeyVariable}, admin_key{kAdminKeyVariable};
  int streams = 8;
  int switches = 20;
  std::vector<std::string> layouts = {"ep", "tp"};
  int prompt_tokens = 64;
  int output_tokens = 1000;
  BenchLimits limits;
};

struct Measured : MeasuredSwitch {
  Clock::time_point asked, answered;
};

class SwitchBench {
 public:
  explicit SwitchBench(const SwitchBenchArgs& args)
      : args_(args),
        deadline_(Deadline::After(absl::Seconds(args.limits.timeout_s))) {}
  absl::Status Run();

 private:
  absl::Status StartGroup();
  absl::Status FindGroup();
  absl::Status Connect();
  absl::StatusOr<std::vector<Json>> MakeBodies();
  absl::StatusOr<SwitchFigures> RequestLayout(const std::string& to);
  absl::Status Measure();
  absl::Status SwitchOnce(const std::string& to, StreamSet& streams);
  absl::Status MeasureMemcpy(int copies);
  absl::Status SwitchIdle();
  absl::Status SwitchUnderLoad();
  absl::Status SwitchUnder(StreamSet& streams);
  Json Figures() const;
  std::string DescribeRates(const Json& figures) const;
  void Show(const Json& figures) const;

  const SwitchBenchArgs& args_;
  const Deadline deadline_;  // of the whole
  EventLoop loop_;
  std::unique_ptr<ServedGroup> group_;
  Url url_, admin_;
  int num_workers_ = 0;
  std::optional<LayoutRound> round_;
  uint64_t weight_bytes_ = 0;  // that a switch moves
  uint64_t copy_bytes_ = 0;    // that a memcpy to compare with does
  std::vector<Measured> measured_;
  std::vector<double> copy_bytes_per_s_;
  std::optional<CopyBaseline> on_gpu_;  // in place of memcpy
  double quiet_gap_ms_ = 0;
};

absl::Status SwitchBench::StartGroup() {
  ASSIGN_OR_RETURN(const Config config, args_.flags.Load());
  ASSIGN_OR_RETURN(const LayoutRound round,
                   LayoutRound::Of(args_.layouts, config.workers.count));
  std::vector<std::string> serve_args = round.ServeArgs(config);
  for (const char* word : {"--log-level", "warn"}) serve_args.push_back(word);
  for (const std::string& word : args_.flags.Given()) {
    serve_args.push_back(word);
  }
  ASSIGN_OR_RETURN(group_,
                   ServedGroup::Start(loop_, serve_args, deadline_.left(),
                                      [](std::string_view line) {
                                        std::fprintf(stderr, "%s\n",
                                                     std::string(line).c_str());
                                      }));
  if (CopyBaseline::IsFor(config)) on_gpu_.emplace(config);
  url_ = group_->api();
  admin_ = group_->admin();
  return absl::OkStatus();
}

absl::Status SwitchBench::FindGroup() {
  ASSIGN_OR_RETURN(url_, ParseUrl(args_.url));
  ASSIGN_OR_RETURN(
      admin_, ParseUrl(args_.admin.empty() ? kDefaultAdminUrl : args_.admin));
  ASSIGN_OR_RETURN(url_, args_.api_key.With(std::move(url_)));
  ASSIGN_OR_RETURN(admin_, args_.admin_key.With(std::move(admin_)));
  return absl::OkStatus();
}

absl::Status SwitchBench::Connect() {
  RETURN_IF_ERROR(args_.url.empty() ? StartGroup() : FindGroup());
  ASSIGN_OR_RETURN(const Json status,
                   FetchStatus(loop_, admin_, absl::Seconds(30)));
  const auto workers = status.find("workers");
  if (workers != status.end() && workers->is_array()) {
    num_workers_ = static_cast<int>(workers->size());
  }
  ASSIGN_OR_RETURN(round_, LayoutRound::Of(args_.layouts, num_workers_));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Json>> SwitchBench::MakeBodies() {
  ASSIGN_OR_RETURN(const std::string model, FetchModelName(loop_, url_));
  ASSIGN_OR_RETURN(const PromptSource prompts,
                   PromptSource::Fetch(loop_, url_, model));
  std::vector<Json> bodies;
  for (int i = 0; i < args_.streams; ++i) {
    bodies.push_back(CompletionBody(model,
                                    prompts.Prompt(i, args_.prompt_tokens),
                                    args_.output_tokens, true));
  }
  return bodies;
}

absl::StatusOr<SwitchFigures> SwitchBench::RequestLayout(
    const std::string& to) {
  return moebius::RequestLayout(loop_, admin_, to, deadline_.left());
}

// While the group is idle, with as many threads as workers.
absl::Status SwitchBench::MeasureMemcpy(int copies) {
  if (on_gpu_.has_value()) return absl::OkStatus();
  const Deadline end = Deadline::After(kCopiesTime);
  for (int i = 0; i < copies && (i == 0 || !end.expired()); ++i) {
    RETURN_IF_ERROR(loop_.Poll());
    if (deadline_.expired()) {
      return absl::DeadlineExceededError("no time was left for a memcpy");
    }
    ASSIGN_OR_RETURN(const double rate,
                     SharedCopyBytesPerSecond(copy_bytes_, num_workers_));
    copy_bytes_per_s_.push_back(rate);
  }
  return absl::OkStatus();
}

absl::Status SwitchBench::SwitchOnce(const std::string& to,
                                     StreamSet& streams) {
  Measured measured;
  measured.asked = Clock::now();
  ASSIGN_OR_RETURN(measured.figures, RequestLayout(to));
  measured.answered = Clock::now();
  // Until every stream goes on, twice.
  for (int i = 0; i < 2; ++i) {
    const Clock::time_point now = Clock::now();
    RETURN_IF_ERROR(loop_.RunUntil(
        [&] { return streams.AllHeardSince(now) || !streams.status().ok(); },
        deadline_.left()));
    RETURN_IF_ERROR(streams.status());
  }
  if (measured.figures.done) measured_.push_back(measured);
  return absl::OkStatus();
}

Json SwitchBench::Figures() const {
  std::vector<double> weight_rate, weight_ms, kv_ms, switch_ms, pause_ms,
      gap_ms, prepare_ms, kv_bytes;
  for (const Measured& m : measured_) {
    const SwitchFigures& f = m.figures;
    weight_ms.push_back(f.weight_ms);
    if (f.weight_ms > 0) {
      weight_rate.push_back(static_cast<double>(f.weight_bytes) /
                            (f.weight_ms / 1000));
    }
    kv_ms.push_back(f.kv_ms);
    kv_bytes.push_back(static_cast<double>(f.kv_bytes));
    switch_ms.push_back(f.switch_ms);
    pause_ms.push_back(f.pause_ms);
    prepare_ms.push_back(f.prepare_ms);
    gap_ms.push_back(m.gap_ms);
  }
  const double copy = Summarize(copy_bytes_per_s_).median;
  const double rate = Summarize(weight_rate).median;
  Json figures = {{"switches", measured_.size()},
                  {"streams", args_.streams},
                  {"workers", num_workers_},
                  {"weight_bytes",
                   measured_.empty() ? 0 : measured_[0].figures.weight_bytes},
                  {"kv_bytes", ToJson(Summarize(kv_bytes))},
                  {"weight_ms", ToJson(Summarize(weight_ms))},
                  {"kv_ms", ToJson(Summarize(kv_ms))},
                  {"switch_ms", ToJson(Summarize(switch_ms))},
                  {"prepare_ms", ToJson(Summarize(prepare_ms))},
                  {"pause_ms", ToJson(Summarize(pause_ms))},
                  {"longest_gap_ms", ToJson(Summarize(gap_ms))},
                  {"quiet_gap_ms", quiet_gap_ms_},
                  {"weight_gb_per_s", rate / 1e9},
                  {"memcpy_gb_per_s", copy / 1e9},
                  {"memcpy_bytes", copy_bytes_},
                  {"weight_share_of_memcpy", copy > 0 ? rate / copy : 0}};
  figures["by_layouts"] =
      SwitchesByLayouts({measured_.begin(), measured_.end()});
  if (on_gpu_.has_value()) {
    std::vector<SwitchFigures> switches;
    for (const Measured& m : measured_) switches.push_back(m.figures);
    on_gpu_->AddTo(figures, switches);
  }
  return figures;
}

std::string SwitchBench::DescribeRates(const Json& figures) const {
  if (on_gpu_.has_value()) return on_gpu_->Describe(figures);
  const auto number = [&](const char* key) {
    return ShortNumber(NumberAt(figures, key));
  };
  const auto percent = [&](const char* key) {
    return Cat(ShortNumber(100 * NumberAt(figures, key)), " %");
  };
  return Cat("Weights moved at ", number("weight_gb_per_s"), " GB/s, ",
             percent("weight_share_of_memcpy"), " of a memcpy of ",
             copy_bytes_ == weight_bytes_ ? std::string("as many bytes")
                                          : HumanBytes(copy_bytes_),
             " between two shared mappings (", number("memcpy_gb_per_s"),
             " GB/s)\n");
}

void SwitchBench::Show(const Json& figures) const {
  const auto row = [&](const char* name, const char* key) {
    const Json& f = ObjectAt(figures, key);
    return std::vector<std::string>{name, ShortNumber(NumberAt(f, "median")),
                                    ShortNumber(NumberAt(f, "p99")),
                                    ShortNumber(NumberAt(f, "max"))};
  };
  std::printf(
      "%s\n%s\n",
      Cat(CountAt(figures, "switches"), " switches of ",
          CountAt(figures, "workers"), " workers under ",
          CountAt(figures, "streams"), " streams; each moved ",
          HumanBytes(CountAt(figures, "weight_bytes")), " of weights and ",
          HumanBytes(static_cast<uint64_t>(
              NumberAt(ObjectAt(figures, "kv_bytes"), "median"))),
          " of KV")
          .c_str(),
      DescribeRates(figures).c_str());
  std::fputs(
      FormatTable({"milliseconds", "median", "p99", "max"},
                  {row("weights", "weight_ms"), row("KV", "kv_ms"),
                   row("all copies", "switch_ms"), row("prepare", "prepare_ms"),
                   row("pause", "pause_ms"),
                   row("longest gap of a stream", "longest_gap_ms")})
          .c_str(),
      stdout);
  if (round_->size() > 2) {
    std::printf("\n%s",
                DescribeSwitchesByLayouts(figures["by_layouts"]).c_str());
  }
  if (args_.streams > 0) {
    std::printf("Longest gap before the first switch: %s ms\n",
                ShortNumber(quiet_gap_ms_).c_str());
  }
}

// Switch and memcpy by turns: both see the machine in the same state.
absl::Status SwitchBench::SwitchIdle() {
  for (size_t i = 0; i < static_cast<size_t>(args_.switches); ++i) {
    ASSIGN_OR_RETURN(const SwitchFigures figures,
                     RequestLayout(round_->After(i + 1)));
    if (figures.done) measured_.push_back({{figures, 0}, {}, {}});
    RETURN_IF_ERROR(MeasureMemcpy(1));
  }
  return absl::OkStatus();
}

absl::Status SwitchBench::SwitchUnder(StreamSet& streams) {
  for (size_t i = 0; i < static_cast<size_t>(args_.switches); ++i) {
    RETURN_IF_ERROR(SwitchOnce(round_->After(i + 1), streams));
  }
  streams.Finish();
  RETURN_IF_ERROR(
      loop_.RunUntil([&] { return streams.done(); }, deadline_.left()));
  return streams.status();
}

absl::Status SwitchBench::SwitchUnderLoad() {
  RETURN_IF_ERROR(MeasureMemcpy(kCopies));
  ASSIGN_OR_RETURN(const std::vector<Json> bodies, MakeBodies());
  StreamSet streams(loop_, url_, bodies, CompletionOptions{}, true);
  constexpr size_t kQuietEvents = 50;
  RETURN_IF_ERROR(loop_.RunUntil(
      [&] {
        return streams.min_events() >= kQuietEvents || !streams.status().ok();
      },
      deadline_.left()));
  RETURN_IF_ERROR(streams.status());
  const Clock::time_point first_switch = Clock::now();
  const absl::Status switched = SwitchUnder(streams);
  for (Measured& m : measured_) {
    m.gap_ms = streams.LongestGapMs(m.asked, m.answered);
  }
  quiet_gap_ms_ = streams.LongestGapMs(Clock::time_point::min(), first_switch);
  RETURN_IF_ERROR(switched);
  return MeasureMemcpy(kCopies);
}

absl::Status SwitchBench::Measure() {
  RETURN_IF_ERROR(Connect());
  // From a known layout, so that each request switches. This one, without
  // load, also tells how many bytes there are.
  for (const size_t switches : {1, 0}) {
    ASSIGN_OR_RETURN(const SwitchFigures figures,
                     RequestLayout(round_->After(switches)));
    if (figures.done) weight_bytes_ = figures.weight_bytes;
  }
  if (on_gpu_.has_value()) {
    RETURN_IF_ERROR(on_gpu_->Measure(deadline_.left()));
  }
  copy_bytes_ = SharedCopySample(weight_bytes_, num_workers_);
  return args_.streams == 0 ? SwitchIdle() : SwitchUnderLoad();
}

absl::Status SwitchBench::Run() {
  const absl::Status status = Measure();
  if (!status.ok() && !(IsCutShort(status) && !measured_.empty())) {
    return NothingMeasured(status, args_.limits.timeout_s);
  }
  Json figures = Figures();
  Show(figures);
  if (!status.ok()) {
    SayCutShort(status, args_.limits.timeout_s, measured_.size(),
                static_cast<uint64_t>(args_.switches), "switches");
    figures["cut_short"] = true;
  } else if (group_ != nullptr) {
    RETURN_IF_ERROR(group_->Stop(kStopTimeout));
  }
  RETURN_IF_ERROR(WriteFigures(args_.limits.json_file, figures));
  return absl::IsCancelled(status) ? status : absl::OkStatus();
}

}  // namespace

void AddBenchSwitchCommand(CLI::App& bench, Action& action) {
  auto args = std::make_shared<SwitchBenchArgs>();
  CLI::App* command = bench.add_subcommand(
      "switch",
      "Switches under load: bytes, times, and the longest gap that a stream "
      "saw. Starts a group of its own unless --url says which.");
  command
      ->add_option("--url", args->url,
                   "OpenAI API of a running group [default: a group of its "
                   "own]")
      ->option_text("URL");
  command
      ->add_option("--admin", args->admin,
                   Cat("Its admin listener [default ", kDefaultAdminUrl, "]"))
      ->option_text("URL")
      ->needs("--url");
  args->api_key.AddTo(*command, "--api-key-file", "its API");
  args->admin_key.AddTo(*command, "--admin-api-key-file", "its admin listener");
  command
      ->add_option(
          "--streams", args->streams,
          "Streams under way; with 0 the group is idle, and each switch is "
          "followed by a memcpy to compare with; on a GPU plain copies are "
          "measured once, before the first [default 8]")
      ->option_text("N")
      ->check(CLI::Range(0, 1024));
  command
      ->add_option("--layouts", args->layouts,
                   "Layouts that it goes round [default ep,tp]")
      ->option_text("ep|tp|tpN,...")
      ->delimiter(',')
      ->check(LayoutWord(/*also_auto=*/false));
  command->add_option("--switches", args->switches, "Switches [default 20]")
      ->option_text("N")
      ->check(CLI::Range(1, 10000));
  command
      ->add_option("--prompt-tokens", args->prompt_tokens,
                   "Tokens of each prompt [default 64]")
      ->option_text("N")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option("--output-tokens", args->output_tokens,
                   "Tokens of each stream, which then begins again [default "
                   "1000]")
      ->option_text("N")
      ->check(CLI::Range(2, 1 << 20));
  AddLimits(*command, args->limits);
  args->flags.AddTo(*command, false);
  RunWhenChosen(*command, action, args, [](const SwitchBenchArgs& given) {
    return SwitchBench(given).Run();
  });
}

}  // namespace moebius
