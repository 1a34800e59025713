// moebius demo: a group switches while it streams, and nobody can tell from
// what it says.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/bench/demo_comparison.h"
#include "deploy/bench/layout_round.h"
#include "deploy/bench/served_group.h"
#include "deploy/bench/stream_set.h"
#include "deploy/cli/command.h"
#include "deploy/cli/command_words.h"
#include "deploy/cli/config_flags.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kStartTimeout = absl::Minutes(5);
constexpr absl::Duration kPhaseTimeout = absl::Minutes(5);
constexpr absl::Duration kSwitchTimeout = absl::Minutes(1);

struct DemoArgs {
  ConfigFlags flags;
  std::vector<std::string> layouts = {"ep", "tp"};
  int output_tokens = 400;
};

struct Switched {
  SwitchFigures figures;
  Clock::time_point asked, answered;
};

std::vector<Json> Requests(const std::string& model, int output_tokens) {
  constexpr const char* kPrompts[] = {
      "And the LORD said unto Moses,",
      "Kenya: Background",
      "And it came to pass in those days, that",
      "Iceland: Economy - overview",
      "Then spake the king unto his servants, saying,",
      "Portugal: Geography - note",
      "In the beginning",
      "Mongolia: Transportation"};
  std::vector<Json> requests;
  int index = 0;
  for (const char* prompt : kPrompts) {
    Json body = CompletionBody(model, prompt, output_tokens, true);
    body["return_token_ids"] = true;
    if (index % 2 == 0) {
      body["temperature"] = 0;
    } else {
      body["temperature"] = 0.9;
      body["top_p"] = 0.95;
      body["seed"] = 1000 + index;
    }
    requests.push_back(std::move(body));
    ++index;
  }
  return requests;
}

class Demo {
 public:
  explicit Demo(const DemoArgs& args)
      : args_(args), is_terminal_(isatty(STDOUT_FILENO) == 1) {}
  absl::Status Run();

 private:
  absl::Status Start();
  absl::Status StreamAndSwitch();
  absl::Status StreamQuietly(const std::string& layout);
  absl::Status Wait(StreamSet& streams, const std::function<bool()>& done,
                    const std::string& what);
  // Once round the layouts, and the first switch again.
  size_t num_switches() const { return round_->size() + 1; }
  void ShowPlan() const;
  void ShowSwitches() const;
  void ShowStream() const;
  absl::Status Stop();

  const DemoArgs& args_;
  const bool is_terminal_;
  EventLoop loop_;
  Config config_;
  std::optional<LayoutRound> round_;
  std::unique_ptr<ServedGroup> group_;
  std::string model_;
  std::vector<Json> requests_;
  std::unique_ptr<StreamSet> streams_;
  std::vector<Switched> switches_;
  bool any_different_ = false;
};

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

// What each stream was.
std::vector<CompletionResult> ResultsOf(const StreamSet& streams) {
  std::vector<CompletionResult> results;
  for (size_t i = 0; i < streams.size(); ++i) {
    results.push_back(streams.results(i)[0]);
  }
  return results;
}

absl::Status Demo::Start() {
  ASSIGN_OR_RETURN(config_, args_.flags.Load());
  ASSIGN_OR_RETURN(round_,
                   LayoutRound::Of(args_.layouts, config_.workers.count));
  std::vector<std::string> serve_args = round_->ServeArgs(config_);
  for (const char* word : {"--log-level", "warn"}) serve_args.push_back(word);
  for (const std::string& word : args_.flags.Given()) {
    serve_args.push_back(word);
  }
  Print(Cat("Moebius: one model in ",
            round_->size() == 2 ? "two" : Cat(round_->size()),
            " layouts, switched while it serves.\n\n"));
  if (DemoNumerics(config_.workers.numerics) != config_.workers.numerics) {
    config_.workers.numerics = DemoNumerics(config_.workers.numerics);
    serve_args.push_back("--numerics=exact");
    if (config_.workers.device != DeviceChoice::kCpu) {
      Print(
          "Numerics are exact here, so that every bit is the same in each "
          "layout;\n--numerics fast shows those that a GPU has by itself.\n\n");
    }
  }
  Print(Cat("Starting ", config_.workers.count,
            " worker processes and a coordinator ..."));
  const Clock::time_point begin = Clock::now();
  bool waits = true;  // the line above, for its end
  const auto show = [&waits](std::string_view line) {
    Print(Cat(std::exchange(waits, false) ? "\n" : "", "  ", line, "\n"));
  };
  ASSIGN_OR_RETURN(group_,
                   ServedGroup::Start(loop_, serve_args, kStartTimeout, show));
  ASSIGN_OR_RETURN(model_, FetchModelName(loop_, group_->api()));
  Print(Cat(waits ? " " : "", model_, " is served at http://",
            group_->api().authority(), "/v1 after ",
            ShortNumber(MillisecondsBetween(begin, Clock::now()) / 1000),
            " s.\n"));
  requests_ = Requests(model_, args_.output_tokens);
  return absl::OkStatus();
}

// Runs the loop until done(), with a bar of the streams' progress.
absl::Status Demo::Wait(StreamSet& streams, const std::function<bool()>& done,
                        const std::string& what) {
  const size_t total =
      requests_.size() * static_cast<size_t>(args_.output_tokens);
  Clock::time_point shown;
  const absl::Status status = loop_.RunUntil(
      [&] {
        const Clock::time_point now = Clock::now();
        if (is_terminal_ && MillisecondsBetween(shown, now) > 50) {
          shown = now;
          Print(Cat("\r  ", ProgressBar(streams.total_events(), total, 30),
                    "  ", what, "\x1b[K"));
        }
        return done() || streams.done();
      },
      kPhaseTimeout);
  if (is_terminal_) Print("\r\x1b[K");
  RETURN_IF_ERROR(status);
  return streams.status();
}

void Demo::ShowPlan() const {
  std::string way =
      "from expert parallel (ep) to tensor parallel (tp),\nback, and again:\n";
  if (round_->size() != 2 || round_->After(0) != "ep" ||
      round_->After(1) != "tp") {
    way = Cat("from ", round_->After(0));
    for (size_t i = 1; i <= num_switches(); ++i) {
      way += Cat(" to ", round_->After(i));
    }
    way += ":\n";
  }
  Print(Cat("\n", requests_.size(), " streams of ", args_.output_tokens,
            " tokens, half of them greedy, half sampled with a seed.\n"
            "While they run, the group goes ",
            way));
}

absl::Status Demo::StreamAndSwitch() {
  streams_ = std::make_unique<StreamSet>(loop_, group_->api(), requests_,
                                         CompletionOptions{true}, false);
  for (size_t i = 1; i <= num_switches(); ++i) {
    const std::string& to = round_->After(i);
    // The first when every stream is well under way, the last well before any
    // has ended.
    const size_t mark =
        static_cast<size_t>(args_.output_tokens) * i / (num_switches() + 2);
    RETURN_IF_ERROR(Wait(
        *streams_, [&] { return streams_->min_events() >= mark; },
        Cat("until the switch to ", to)));
    Switched switched;
    switched.asked = Clock::now();
    ASSIGN_OR_RETURN(switched.figures,
                     RequestLayout(loop_, group_->admin(), to, kSwitchTimeout));
    switched.answered = Clock::now();
    if (!switched.figures.done) {
      return absl::InternalError(
          Cat("asked for ", to, ", nothing was switched"));
    }
    RETURN_IF_ERROR(Wait(
        *streams_, [&] { return streams_->AllHeardSince(switched.answered); },
        "after the switch"));
    if (streams_->done()) {
      return absl::InternalError(Cat("the streams ended before the switch to ",
                                     to, "; give --output-tokens more than ",
                                     args_.output_tokens));
    }
    switches_.push_back(switched);
  }
  return Wait(
      *streams_, [&] { return streams_->done(); }, "to the end");
}

void Demo::ShowSwitches() const {
  std::vector<std::vector<std::string>> rows;
  for (const Switched& switched : switches_) {
    const SwitchFigures& f = switched.figures;
    rows.push_back({Cat(f.from, " to ", f.to), HumanBytes(f.weight_bytes),
                    HumanBytes(f.kv_bytes),
                    Cat(ShortNumber(f.switch_ms), " ms"),
                    Cat(ShortNumber(f.pause_ms), " ms"),
                    Cat(ShortNumber(streams_->LongestGapMs(switched.asked,
                                                           switched.answered)),
                        " ms")});
  }
  Print(Cat("\n", FormatTable({"switch", "weights moved", "KV moved",
                               "time of the copies", "pause",
                               "longest gap of a stream"},
                              rows)));
}

// What the first stream said, with the switches in it.
void Demo::ShowStream() const {
  constexpr size_t kTailBytes = 60;  // after the last switch
  const CompletionResult& first = streams_->results(0)[0];
  std::string text = requests_[0]["prompt"].get<std::string>();
  size_t shown = 0;
  size_t next = 0;
  for (size_t i = 0; i < first.times.size() && next < switches_.size(); ++i) {
    if (first.times[i] < switches_[next].asked) continue;
    // The last that came before it.
    const size_t end = i == 0 ? 0 : first.text_ends[i - 1];
    text += first.text.substr(shown, end - shown);
    text += Cat(" <<", switches_[next].figures.from, " to ",
                switches_[next].figures.to, ">>");
    shown = end;
    ++next;
  }
  std::string tail = first.text.substr(shown);
  if (tail.size() > kTailBytes) {
    tail = Cat(tail.substr(0, tail.rfind(' ', kTailBytes)), " ...");
  }
  Print(Cat("\nOne of the streams:\n\n", WrapText(Cat(text, tail), 80)));
}

absl::Status Demo::StreamQuietly(const std::string& layout) {
  ASSIGN_OR_RETURN(
      const SwitchFigures figures,
      RequestLayout(loop_, group_->admin(), layout, kSwitchTimeout));
  (void)figures;
  StreamSet quiet(loop_, group_->api(), requests_, CompletionOptions{true},
                  false);
  RETURN_IF_ERROR(Wait(
      quiet, [&] { return quiet.done(); }, Cat("all of it in ", layout)));
  ASSIGN_OR_RETURN(const StreamDifferences found,
                   CompareStreams(ResultsOf(*streams_), ResultsOf(quiet),
                                  static_cast<size_t>(args_.output_tokens)));
  RETURN_IF_ERROR(CheckDifferences(found, config_.workers.numerics, layout));
  any_different_ = any_different_ || found.num_different > 0;
  Print(Cat("The same requests without a switch, in ", layout, ": ",
            DescribeDifferences(found), " (longest gap ",
            ShortNumber(quiet.LongestGapMs()), " ms).\n"));
  return absl::OkStatus();
}

absl::Status Demo::Stop() {
  RETURN_IF_ERROR(group_->Stop(absl::Minutes(1)));
  const std::vector<std::string> left = group_->Leftovers();
  if (!left.empty()) {
    std::string list;
    for (const std::string& line : left) list += Cat("\n  ", line);
    return absl::InternalError(Cat("the group left behind:", list));
  }
  Print("\nStopped. No process, socket or shared memory is left.\n");
  return absl::OkStatus();
}

absl::Status Demo::Run() {
  RETURN_IF_ERROR(Start());
  ShowPlan();
  RETURN_IF_ERROR(StreamAndSwitch());
  ShowSwitches();
  ShowStream();
  Print("\n");
  for (size_t i = 1; i <= round_->size(); ++i) {
    RETURN_IF_ERROR(StreamQuietly(round_->After(i)));
  }
  if (any_different_) {
    Print(
        "Fast numerics add in an order that depends on layout and batch, so "
        "of two tokens\nthat are nearly as likely either may be chosen.\n");
  }
  return Stop();
}

}  // namespace

void AddDemoCommand(CLI::App& app, Action& action) {
  auto args = std::make_shared<DemoArgs>();
  CLI::App* command = app.add_subcommand(
      "demo",
      "Show it: 8 streams, three switches in mid-stream, and a comparison with "
      "quiet runs. Numerics are exact unless --numerics fast is given. Uses "
      "free ports and leaves nothing behind.");
  command
      ->add_option("--layouts", args->layouts,
                   "The layouts that it goes round [default ep,tp]")
      ->option_text("ep|tp|tpN,...")
      ->delimiter(',')
      ->check(LayoutWord(/*also_auto=*/false));
  args->flags.AddTo(*command, false);
  command
      ->add_option("--output-tokens", args->output_tokens,
                   "Length of each stream [default 400]")
      ->option_text("N")
      ->check(CLI::Range(50, 3000));
  RunWhenChosen(*command, action, args,
                [](const DemoArgs& given) { return Demo(given).Run(); });
}

}  // namespace moebius
