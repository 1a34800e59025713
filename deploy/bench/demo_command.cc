// moebius demo: a group switches while it streams, and nobody can tell from
// what it says.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "deploy/bench/served_group.h"
#include "deploy/bench/stream_set.h"
#include "deploy/cli/command.h"
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
constexpr const char* kSwitches[] = {"tp", "ep", "tp"};

struct DemoArgs {
  ConfigFlags flags;
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
  absl::Status StreamQuietly(const char* layout);
  absl::Status Wait(StreamSet& streams, const std::function<bool()>& done,
                    const std::string& what);
  absl::Status CheckEqual(const StreamSet& quiet) const;
  void ShowSwitches() const;
  void ShowStream() const;
  absl::Status Stop();

  const DemoArgs& args_;
  const bool is_terminal_;
  EventLoop loop_;
  std::unique_ptr<ServedGroup> group_;
  std::string model_;
  std::vector<Json> requests_;
  std::unique_ptr<StreamSet> streams_;
  std::vector<Switched> switches_;
};

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

absl::Status Demo::Start() {
  std::vector<std::string> serve_args = {"--workers", "2",           "--layout",
                                         "ep",        "--log-level", "warn"};
  for (const std::string& word : args_.flags.Given()) {
    serve_args.push_back(word);
  }
  Print("Moebius: one model in two layouts, switched while it serves.\n\n");
  Print("Starting two worker processes and a coordinator ...");
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

absl::Status Demo::StreamAndSwitch() {
  Print(Cat("\n", requests_.size(), " streams of ", args_.output_tokens,
            " tokens, half of them greedy, half sampled with a seed.\n"
            "While they run, the group goes from expert parallel (ep) to "
            "tensor parallel (tp),\nback, and again:\n"));
  streams_ = std::make_unique<StreamSet>(loop_, group_->api(), requests_,
                                         CompletionOptions{true}, false);
  const size_t num_switches = std::size(kSwitches);
  for (size_t i = 0; i < num_switches; ++i) {
    // The first when every stream is well under way, the last well before any
    // has ended.
    const size_t mark =
        static_cast<size_t>(args_.output_tokens) * (i + 1) / (num_switches + 2);
    RETURN_IF_ERROR(Wait(
        *streams_, [&] { return streams_->min_events() >= mark; },
        Cat("until the switch to ", kSwitches[i])));
    Switched switched;
    switched.asked = Clock::now();
    ASSIGN_OR_RETURN(
        switched.figures,
        RequestLayout(loop_, group_->admin(), kSwitches[i], kSwitchTimeout));
    switched.answered = Clock::now();
    if (!switched.figures.done) {
      return absl::InternalError(
          Cat("asked for ", kSwitches[i], ", nothing was switched"));
    }
    RETURN_IF_ERROR(Wait(
        *streams_, [&] { return streams_->AllHeardSince(switched.answered); },
        "after the switch"));
    if (streams_->done()) {
      return absl::InternalError(
          Cat("the streams ended before the switch to ", kSwitches[i],
              "; give --output-tokens more than ", args_.output_tokens));
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

absl::Status Demo::CheckEqual(const StreamSet& quiet) const {
  for (size_t i = 0; i < requests_.size(); ++i) {
    const CompletionResult& a = streams_->results(i)[0];
    const CompletionResult& b = quiet.results(i)[0];
    if (a.token_ids.size() != static_cast<size_t>(args_.output_tokens)) {
      return absl::InternalError(Cat("stream ", i, " has ", a.token_ids.size(),
                                     " tokens, not ", args_.output_tokens));
    }
    size_t same = 0;
    while (same < a.token_ids.size() && same < b.token_ids.size() &&
           a.token_ids[same] == b.token_ids[same]) {
      ++same;
    }
    if (same < a.token_ids.size() || same < b.token_ids.size()) {
      return absl::InternalError(Cat("stream ", i,
                                     " differs from the quiet run from token ",
                                     same, " on"));
    }
    if (a.text != b.text || a.finish_reason != b.finish_reason) {
      return absl::InternalError(
          Cat("stream ", i,
              " has the tokens of the quiet run, but not its "
              "text or end"));
    }
  }
  return absl::OkStatus();
}

absl::Status Demo::StreamQuietly(const char* layout) {
  ASSIGN_OR_RETURN(
      const SwitchFigures figures,
      RequestLayout(loop_, group_->admin(), layout, kSwitchTimeout));
  (void)figures;
  StreamSet quiet(loop_, group_->api(), requests_, CompletionOptions{true},
                  false);
  RETURN_IF_ERROR(Wait(
      quiet, [&] { return quiet.done(); }, Cat("all of it in ", layout)));
  RETURN_IF_ERROR(CheckEqual(quiet));
  Print(Cat("The same requests without a switch, in ", layout, ": all ",
            requests_.size(), " equal, token for token (longest gap ",
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
  RETURN_IF_ERROR(StreamAndSwitch());
  ShowSwitches();
  ShowStream();
  Print("\n");
  for (const char* layout : {"tp", "ep"}) {
    RETURN_IF_ERROR(StreamQuietly(layout));
  }
  return Stop();
}

}  // namespace

void AddDemoCommand(CLI::App& app, Action& action) {
  auto args = std::make_shared<DemoArgs>();
  CLI::App* command = app.add_subcommand(
      "demo",
      "Show it: 8 streams, three switches in mid-stream, and a comparison with "
      "quiet runs. Uses free ports and leaves nothing behind.");
  args->flags.AddTo(*command, false);
  command
      ->add_option("--output-tokens", args->output_tokens,
                   "Length of each stream [default 400]")
      ->option_text("N")
      ->check(CLI::Range(50, 3000));
  command->callback([args, &action] {
    action = [args] {
      const absl::Status status = Demo(*args).Run();
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}

}  // namespace moebius
