// moebius chaos: makes things go wrong in a running group, and looks whether
// anybody noticed.
#include <signal.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"
#include "deploy/bench/chaos_plan.h"
#include "deploy/bench/statistics.h"
#include "deploy/bench/stream_set.h"
#include "deploy/cli/client_key.h"
#include "deploy/cli/command.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kTimeout = absl::Minutes(5);
constexpr absl::Duration kStatusTimeout = absl::Seconds(10);
// What a deed may still be answerable for, if the next does not come sooner.
constexpr std::chrono::milliseconds kAftermath(5000);

struct ChaosArgs {
  std::string plan_file;
  std::string url = kDefaultApiUrl;
  std::string admin = kDefaultAdminUrl;
  ClientKey api_key{kApiKeyVariable}, admin_key{kAdminKeyVariable};
  std::string json_file;
  bool list = false;
};

struct Done {
  int at_ms = 0;
  const ChaosAction* action = nullptr;
  std::string outcome;
  bool is_kill = false;
  Clock::time_point begin, end;
  double stall_ms = 0;
};

// The program of a process, as /proc tells it; empty when there is none.
std::string ProgramOf(int64_t pid) {
  std::ifstream file(Cat("/proc/", pid, "/comm"));
  std::string name;
  std::getline(file, name);
  return name;
}

class Chaos {
 public:
  Chaos(const ChaosPlan& plan, Url url, Url admin)
      : plan_(plan), url_(std::move(url)), admin_(std::move(admin)) {}
  // However it ends, nobody stays stopped who was to go on.
  ~Chaos() {
    for (int64_t pid : stopped_) Continue(pid);
  }

  // OK: it was carried out and nobody's tokens changed.
  absl::Status Run();
  Json Figures() const;
  void Show() const;
  // kFailedPrecondition naming the limits that did not hold.
  absl::Status CheckLimits() const;

 private:
  absl::Status MakeBodies();
  absl::Status RunQuietly();
  absl::Status RunWithTrouble();
  absl::Status Carry(const ChaosMoment& moment);
  absl::StatusOr<std::string> Do(const ChaosAction& action);
  absl::StatusOr<std::string> SignalWorker(const ChaosAction& action, int sig);
  absl::StatusOr<std::string> Signal(int64_t pid, std::string_view program,
                                     int sig);
  void Continue(int64_t pid) {
    Signal(pid, "moebius-worker", SIGCONT).status().IgnoreError();
  }
  absl::StatusOr<std::string> Switch();
  absl::Status Compare(const StreamSet& streams);
  absl::StatusOr<Json> Status() {
    return FetchStatus(loop_, admin_, kStatusTimeout);
  }

  const ChaosPlan& plan_;
  const Url url_, admin_;
  EventLoop loop_;
  std::vector<Json> bodies_;
  std::vector<std::vector<int64_t>> quiet_;  // [stream] tokens
  std::vector<Done> done_;
  std::set<int64_t> stopped_;   // to go on after a while
  uint64_t draws_ = 1'000'000;  // apart from those of MomentsOf
  Clock::time_point begin_;
  size_t completions_ = 0, resumed_ = 0;
  uint64_t tokens_ = 0;
  double longest_stall_ms_ = 0;
  uint64_t dropped_tokens_ = 0, recoveries_ = 0;
};

absl::Status Chaos::MakeBodies() {
  ASSIGN_OR_RETURN(const std::string model, FetchModelName(loop_, url_));
  ASSIGN_OR_RETURN(const PromptSource prompts,
                   PromptSource::Fetch(loop_, url_, model));
  for (int i = 0; i < plan_.streams; ++i) {
    Json body = CompletionBody(model, prompts.Prompt(i, plan_.prompt_tokens),
                               plan_.output_tokens, true);
    body["seed"] = plan_.seed + i;
    body["temperature"] = i % 2 == 0 ? 0.0 : 1.0;
    body["return_token_ids"] = true;
    bodies_.push_back(std::move(body));
  }
  return absl::OkStatus();
}

absl::Status Chaos::RunQuietly() {
  StreamSet streams(loop_, url_, bodies_, {.keep_output = true},
                    /*repeat=*/false);
  RETURN_IF_ERROR(loop_.RunUntil([&] { return streams.done(); }, kTimeout));
  RETURN_IF_ERROR(streams.status());
  for (size_t i = 0; i < streams.size(); ++i) {
    quiet_.push_back(streams.results(i).front().token_ids);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Chaos::Signal(int64_t pid, std::string_view program,
                                          int sig) {
  // The kernel cuts names to 15 bytes.
  if (pid <= 0 || ProgramOf(pid) != program.substr(0, 15)) {
    return Cat("process ", pid, " was gone already");
  }
  if (::kill(static_cast<pid_t>(pid), sig) != 0) {
    return ErrnoStatus(Cat("signalling ", pid));
  }
  return Cat("process ", pid);
}

absl::StatusOr<std::string> Chaos::SignalWorker(const ChaosAction& action,
                                                int sig) {
  ASSIGN_OR_RETURN(const Json status, Status());
  const auto workers = status.find("workers");
  if (workers == status.end() || !workers->is_array() || workers->empty()) {
    return absl::InternalError("the status names no workers");
  }
  const uint64_t rank = action.rank >= 0
                            ? action.rank
                            : ChaosDraw(plan_.seed, draws_++, workers->size());
  if (rank >= workers->size()) {
    return absl::InvalidArgumentError(AbslView(
        Cat("there is no worker ", rank, " in a group of ", workers->size())));
  }
  const int64_t pid = static_cast<int64_t>(CountAt((*workers)[rank], "pid"));
  ASSIGN_OR_RETURN(const std::string outcome,
                   Signal(pid, "moebius-worker", sig));
  if (sig == SIGSTOP && action.resume_ms > 0) {
    stopped_.insert(pid);
    loop_.After(absl::Milliseconds(action.resume_ms), [this, pid] {
      stopped_.erase(pid);
      Continue(pid);
    });
  }
  return Cat("worker ", rank, ", ", outcome);
}

absl::StatusOr<std::string> Chaos::Switch() {
  ASSIGN_OR_RETURN(const Json status, Status());
  std::vector<std::string> others = plan_.layouts;
  std::erase(others, TextAt(status, "layout"));
  const std::string& to =
      others.size() == 1
          ? others[0]
          : others[ChaosDraw(plan_.seed, draws_++, others.size())];
  const auto figures = RequestLayout(loop_, admin_, to, kTimeout);
  if (absl::IsFailedPrecondition(figures.status())) {
    return Cat("to ", to, ", refused: ", figures.status().message());
  }
  RETURN_IF_ERROR(figures.status());
  return Cat("to ", to, figures->done ? "" : ", where it was already");
}

absl::StatusOr<std::string> Chaos::Do(const ChaosAction& action) {
  switch (action.deed) {
    case ChaosDeed::kKillWorker:
      return SignalWorker(action, SIGKILL);
    case ChaosDeed::kStopWorker:
      return SignalWorker(action, SIGSTOP);
    case ChaosDeed::kKillCoordinator: {
      ASSIGN_OR_RETURN(const Json status, Status());
      return Signal(static_cast<int64_t>(CountAt(status, "pid")),
                    "moebius-coordinator", SIGKILL);
    }
    case ChaosDeed::kSwitch:
      return Switch();
    case ChaosDeed::kFault:
      break;
  }
  const Json body = {{"arm", Json::array({action.fault})}};
  ASSIGN_OR_RETURN(const HttpAnswer answer,
                   HttpRequest(loop_, admin_, "POST", "/admin/faults",
                               body.dump(), kStatusTimeout));
  RETURN_IF_ERROR(ParseAnswer(answer).status());
  return action.fault;
}

absl::Status Chaos::Carry(const ChaosMoment& moment) {
  Done done;
  done.action = moment.action;
  done.is_kill = moment.action->deed != ChaosDeed::kSwitch;
  done.begin = Clock::now();
  done.at_ms = static_cast<int>(MillisecondsBetween(begin_, done.begin));
  const auto outcome = Do(*moment.action);
  // The coordinator may be away just now; the plan goes on.
  if (!outcome.ok() && !absl::IsUnavailable(outcome.status()) &&
      !absl::IsDeadlineExceeded(outcome.status())) {
    return outcome.status();
  }
  done.outcome =
      outcome.ok() ? *outcome : Cat("not done: ", outcome.status().message());
  if (!outcome.ok()) done.is_kill = false;
  std::printf("%7.1f s  %-16s %s\n", done.at_ms / 1000.0,
              std::string(ChaosDeedName(moment.action->deed)).c_str(),
              done.outcome.c_str());
  std::fflush(stdout);
  done_.push_back(std::move(done));
  return absl::OkStatus();
}

absl::Status Chaos::Compare(const StreamSet& streams) {
  for (size_t i = 0; i < streams.size(); ++i) {
    for (const CompletionResult& result : streams.results(i)) {
      ++completions_;
      tokens_ += result.token_ids.size();
      if (result.token_ids == quiet_[i]) continue;
      size_t at = 0;
      while (at < std::min(result.token_ids.size(), quiet_[i].size()) &&
             result.token_ids[at] == quiet_[i][at]) {
        ++at;
      }
      return absl::DataLossError(
          AbslView(Cat("stream ", i, " has ", result.token_ids.size(),
                       " tokens; from number ", at,
                       " on they are not those of a quiet run, which has ",
                       quiet_[i].size())));
    }
  }
  return absl::OkStatus();
}

absl::Status Chaos::RunWithTrouble() {
  ASSIGN_OR_RETURN(const Json before, Status());
  StreamSet streams(loop_, url_, bodies_,
                    {.keep_output = true, .resume_for = kTimeout},
                    /*repeat=*/true);
  begin_ = Clock::now();
  const auto wait_until = [&](int at_ms) {
    return loop_.RunUntil(
        [&] {
          return !streams.status().ok() ||
                 MillisecondsBetween(begin_, Clock::now()) >= at_ms;
        },
        absl::Milliseconds(plan_.duration_ms) + kTimeout);
  };
  for (const ChaosMoment& moment : MomentsOf(plan_)) {
    // The loop looks at its condition when something happens.
    const double left =
        moment.at_ms - MillisecondsBetween(begin_, Clock::now());
    if (left > 0) loop_.After(absl::Milliseconds(left), [] {});
    RETURN_IF_ERROR(wait_until(moment.at_ms));
    RETURN_IF_ERROR(streams.status());
    RETURN_IF_ERROR(Carry(moment));
  }
  loop_.After(absl::Milliseconds(plan_.duration_ms), [] {});
  RETURN_IF_ERROR(wait_until(plan_.duration_ms));
  streams.Finish();
  RETURN_IF_ERROR(loop_.RunUntil(
      [&] { return streams.done() || !streams.status().ok(); }, kTimeout));
  RETURN_IF_ERROR(streams.status());
  for (size_t i = 0; i < done_.size(); ++i) {
    Clock::time_point end = done_[i].begin + kAftermath;
    for (size_t k = i + 1; k < done_.size(); ++k) {
      if (done_[k].is_kill) {
        end = std::min(end, done_[k].begin);
        break;
      }
    }
    done_[i].stall_ms = streams.LongestGapMs(done_[i].begin, end);
  }
  longest_stall_ms_ = streams.LongestGapMs();
  for (size_t i = 0; i < streams.size(); ++i) {
    for (const CompletionResult& result : streams.results(i)) {
      resumed_ += result.times_resumed > 0;
    }
  }
  ASSIGN_OR_RETURN(const Json after, Status());
  // A new coordinator counts from zero.
  const bool same = CountAt(after, "term") == CountAt(before, "term");
  const auto since = [&](uint64_t now, uint64_t then) {
    return same ? now - then : now;
  };
  dropped_tokens_ = since(CountAt(after, "dropped_tokens"),
                          CountAt(before, "dropped_tokens"));
  recoveries_ = since(CountAt(ObjectAt(after, "recoveries"), "total"),
                      CountAt(ObjectAt(before, "recoveries"), "total"));
  return Compare(streams);
}

absl::Status Chaos::Run() {
  RETURN_IF_ERROR(MakeBodies());
  std::printf("%d streams of %d tokens without trouble, to compare with ...\n",
              plan_.streams, plan_.output_tokens);
  std::fflush(stdout);
  RETURN_IF_ERROR(RunQuietly());
  std::printf("and with it, for %.0f s:\n\n", plan_.duration_ms / 1000.0);
  std::fflush(stdout);
  return RunWithTrouble();
}

Json Chaos::Figures() const {
  std::map<std::string, std::vector<double>> stalls;
  std::vector<double> kills;
  Json deeds = Json::array();
  for (const Done& done : done_) {
    const std::string deed(ChaosDeedName(done.action->deed));
    stalls[deed].push_back(done.stall_ms);
    if (done.is_kill) kills.push_back(done.stall_ms);
    deeds.push_back({{"at_ms", done.at_ms},
                     {"do", deed},
                     {"outcome", done.outcome},
                     {"stall_ms", done.stall_ms}});
  }
  Json by_deed = Json::object();
  for (const auto& [deed, values] : stalls) {
    by_deed[deed] = ToJson(Summarize(values));
  }
  return {{"streams", plan_.streams},
          {"completions", completions_},
          {"tokens", tokens_},
          {"longest_stall_ms", longest_stall_ms_},
          {"kill_stall_ms", ToJson(Summarize(kills))},
          {"stall_ms", by_deed},
          {"resumed", resumed_},
          {"recoveries", recoveries_},
          {"dropped_tokens", dropped_tokens_},
          {"deeds", deeds}};
}

void Chaos::Show() const {
  const Json figures = Figures();
  std::vector<std::vector<std::string>> rows;
  for (const auto& [deed, summary] : figures["stall_ms"].items()) {
    rows.push_back({deed, Cat(CountAt(summary, "count")),
                    ShortNumber(NumberAt(summary, "median")),
                    ShortNumber(NumberAt(summary, "max"))});
  }
  std::printf(
      "\n%s\n%s\n",
      FormatTable({"", "times", "stall, median ms", "most ms"}, rows).c_str(),
      Cat(completions_, " completions of ", tokens_,
          " tokens, all as without trouble; ", resumed_,
          " of them broke off and were resumed. ", recoveries_, " recoveries, ",
          dropped_tokens_,
          " positions computed again. Longest time without a token: ",
          ShortNumber(longest_stall_ms_), " ms.")
          .c_str());
}

absl::Status Chaos::CheckLimits() const {
  const double median = NumberAt(Figures()["kill_stall_ms"], "median");
  std::string broken;
  const auto check = [&](std::string_view name, double value, double limit) {
    if (limit > 0 && value > limit) {
      broken += Cat(broken.empty() ? "" : ", ", name, " ", ShortNumber(value),
                    " > ", ShortNumber(limit));
    }
  };
  check("longest_stall_ms", longest_stall_ms_, plan_.limits.longest_stall_ms);
  check("median_stall_ms", median, plan_.limits.median_stall_ms);
  if (plan_.limits.dropped_tokens.has_value() &&
      dropped_tokens_ > *plan_.limits.dropped_tokens) {
    broken += Cat(broken.empty() ? "" : ", ", "dropped_tokens ",
                  dropped_tokens_, " > ", *plan_.limits.dropped_tokens);
  }
  if (broken.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      AbslView(Cat("limits of the plan did not hold: ", broken)));
}

absl::Status RunChaos(const ChaosArgs& args) {
  ASSIGN_OR_RETURN(const ChaosPlan plan, LoadChaosPlan(args.plan_file));
  ASSIGN_OR_RETURN(Url url, ParseUrl(args.url));
  ASSIGN_OR_RETURN(url, args.api_key.With(std::move(url)));
  ASSIGN_OR_RETURN(Url admin, ParseUrl(args.admin));
  ASSIGN_OR_RETURN(admin, args.admin_key.With(std::move(admin)));
  Chaos chaos(plan, url, admin);
  RETURN_IF_ERROR(chaos.Run());
  chaos.Show();
  if (!args.json_file.empty()) {
    std::ofstream file(args.json_file);
    file << chaos.Figures().dump(2) << '\n';
    if (!file.flush()) {
      return absl::UnavailableError(
          AbslView(Cat(args.json_file, " cannot be written")));
    }
  }
  return chaos.CheckLimits();
}

void ListPoints() {
  std::vector<std::vector<std::string>> rows;
  for (int i = 0; i < kNumFaultIds; ++i) {
    const FaultInfo& info = InfoOf(static_cast<FaultId>(i));
    std::printf("%-24s %s\n", std::string(info.name).c_str(),
                std::string(info.where).c_str());
  }
}

}  // namespace

void AddChaosCommand(CLI::App& app, Action& action) {
  auto args = std::make_shared<ChaosArgs>();
  CLI::App* command = app.add_subcommand(
      "chaos",
      "Make things go wrong in a running group while streams run, and tell "
      "whether a token changed and how long streams stalled.");
  command->footer(
      "The plan says what is done when: see configs/chaos/. It kills processes "
      "of the group, so run it on the group's host and as its user; fault "
      "points need `faults: {enabled: true}` in the group's configuration. The "
      "exit code is 1 when a stream was lost, a token changed, or a limit of "
      "the plan did not hold.");
  auto* plan =
      command->add_option("-c,--plan", args->plan_file, "The plan (YAML)");
  plan->option_text("FILE");
  command
      ->add_option(
          "--url", args->url,
          Cat("Where the group's API is [default ", kDefaultApiUrl, "]"))
      ->option_text("URL");
  command
      ->add_option("--admin", args->admin,
                   Cat("Where the group's admin listener is [default ",
                       kDefaultAdminUrl, "]"))
      ->option_text("URL");
  args->api_key.AddTo(*command, "--api-key-file", "the group's API");
  args->admin_key.AddTo(*command, "--admin-api-key-file",
                        "the group's admin listener");
  command->add_option("--json", args->json_file, "Writes the figures to a file")
      ->option_text("FILE");
  command->add_flag("--list", args->list,
                    "Lists the fault points and does nothing else");
  command->callback([args, plan, &action] {
    if (!args->list && plan->count() == 0) {
      throw CLI::RequiredError("--plan");
    }
    action = [args] {
      if (args->list) {
        ListPoints();
        return kExitOk;
      }
      const absl::Status status = RunChaos(*args);
      return status.ok() ? kExitOk : ReportError(status);
    };
  });
}

}  // namespace moebius
