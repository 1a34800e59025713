#include "tests/simulation/script.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "coordinator/journal/journal_codec.h"
#include "coordinator/journal/journal_frame.h"
#include "tests/simulation/cluster.h"
#include "tests/simulation/requests.h"
#include "tests/simulation/script_words.h"
#include "worker/memory/signals.h"

namespace moebius::simulation {
namespace {

// ---- the scene -------------------------------------------------------------

constexpr int kNumWorkers = 2;
constexpr size_t kPromptTokens = 20;
constexpr int kAnswerTokens = 12;
// The switch is ordered when the client has heard so many.
constexpr size_t kTokensBeforeSwitch = 3;
// "#2": in the second layer; with the eighth token.
constexpr std::string_view kFaults[] = {
    "worker.pull@1=crash#2", "coordinator.tokens@coordinator=crash#8"};

// Of the asks that there are the first with that prompt.
int AskOfScene() {
  const std::vector<Ask>& asks = AsksOf(Script::SceneOptions().model);
  for (size_t i = 0; i < asks.size(); ++i) {
    if (asks[i].prompt.size() == kPromptTokens &&
        asks[i].max_tokens >= kAnswerTokens) {
      return static_cast<int>(i);
    }
  }
  CHECK(false);
  return 0;
}

// ---- its telling -----------------------------------------------------------

constexpr std::string_view kHead =
    "The protocol in one scene: a request; a switch from EP to TP while it "
    "runs; the death of a worker in the midst of the switch; the death of the "
    "coordinator. Played by the simulation, with the programs' own code. Each "
    "line: virtual milliseconds, who, what. \"->\" is a message and whom it "
    "goes to, \"journal\" a commit that is on disk, \"signals\" what a worker "
    "shows all others in shared memory. Tokens are named by their places: 0 to "
    "19 are the prompt, 20 to 31 the answer.";

// Stands before the first such line behind the comment before it.
struct Comment {
  std::string_view who, what;  // Line's who, and a part of its what
  std::string_view says;
};
constexpr Comment kComments[] = {
    {"launcher", "starts coordinator 1",
     "Each coordinator has a term, higher than any in the journal."},
    {"coordinator", "GREET of term 1",
     "A worker that connects is greeted, and says whose memory it has."},
    {"coordinator", "HALT round 1",
     "Service begins like a recovery: all halt and say where they stand. No "
     "memory has weights, so all load."},
    {"client", "asks",
     "Step 2 takes the token that step 1 has yet to draw. The client hears "
     "only what the journal has."},
    {"operator", "orders",
     "A switch is prepared while the steps under way end; no new one is "
     "issued."},
    {"journal", "SWITCH DECIDED",
     "All are prepared. From SWITCH DECIDED on the switch is final, whatever "
     "dies. COMMIT meets all workers at one boundary, between two steps."},
    {"@", "1 layer done",
     "A layer is pulled from the memory of all. A rank that has passed the "
     "barrier behind it records it: it is complete everywhere."},
    {"launcher", "starts incarnation 2",
     "The launcher reaps worker 1, then starts its successor, which adopts "
     "the memory and ends the barrier that worker 0 waits at."},
    {"coordinator", "HALT round 3",
     "The successor has joined, so the round begins again with all."},
    {"coordinator", "RESTORE",
     "The switch goes on with the layer that it stopped in. Steps without a "
     "result are planned anew, under new numbers."},
    {"@", "-> nobody",
     "Workers do what they were told. What nobody has heard will be drawn "
     "again, with the same value."},
    {"launcher", "starts coordinator 2",
     "The journal has the request and its tokens, so the client hears all of "
     "them."},
    {"coordinator", "GREET of term 2",
     "Workers obey the higher term. What they hold agrees with the journal, so "
     "the KV is kept."},
    {"@", "WEIGHTS CHECKED",
     "Beside the steps each worker has summed up its weights. RESUME asked for "
     "that, since a coordinator cannot know what its predecessor heard."},
};

// Events that are one to the reader.
constexpr int64_t kAtOnceUs = 100;
// Lines that are not worth a word in their place.
constexpr size_t kFewLines = 3;

// A sentence as lines that begin with '#'.
std::string AsComment(std::string_view says) {
  constexpr size_t kColumns = 88;
  std::string text = "#";
  size_t column = 1;
  while (!says.empty()) {
    const std::string_view word = says.substr(0, says.find(' '));
    says.remove_prefix(std::min(says.size(), word.size() + 1));
    if (column + 1 + word.size() > kColumns) {
      text += "\n#";
      column = 1;
    }
    text += Cat(" ", word);
    column += 1 + word.size();
  }
  return text + "\n";
}

std::string Columns(std::string_view time, std::string_view who,
                    std::string_view what) {
  char line[256];
  std::snprintf(line, sizeof(line), "%6.*s  %-11.*s  %.*s",
                static_cast<int>(time.size()), time.data(),
                static_cast<int>(who.size()), who.data(),
                static_cast<int>(what.size()), what.data());
  return line;
}

std::string Replace(std::string text, char mark, const std::string& with) {
  if (const size_t at = text.find(mark); at != text.npos) {
    text.replace(at, 1, with);
  }
  return text;
}

std::string StepsLikewise(uint64_t first, uint64_t last) {
  if (first == last) return Cat("step ", first, " goes the same way");
  return Cat("steps ", first, last == first + 1 ? " and " : " to ", last,
             " go the same way");
}

bool IsDecode(const StepPlan& plan) {
  return plan.released.empty() && plan.admissions.empty() &&
         plan.page_rows.empty() && plan.items.size() == 1 &&
         plan.items[0].num_tokens == 1;
}

}  // namespace

Script::Script() {
  for (std::string_view text : kFaults) {
    const absl::StatusOr<FaultSpec> spec = ParseFault(text);
    CHECK(spec.ok());
    faults_.push_back(*spec);
  }
}

Options Script::SceneOptions() {
  Options options = WithoutFaults(Options{});
  options.steady = true;
  options.num_workers = kNumWorkers;
  return options;
}

Wish Script::wish() const {
  Wish wish;
  wish.ask = AskOfScene();
  wish.stop.max_tokens = kAnswerTokens;
  return wish;
}

bool Script::Strikes(int process, FaultId id) {
  Look();
  for (FaultSpec& fault : faults_) {
    if (fault.point != id || fault.process != process || fault.nth == 0) {
      continue;
    }
    if (--fault.nth > 0) continue;
    const bool worker = process != kCoordinatorRank;
    Say({.who = worker ? "@" : "coordinator",
         .what = Cat("dies: ", InfoOf(id).where),
         .ranks = worker ? std::set<Rank>{process} : std::set<Rank>{}});
    return true;
  }
  return false;
}

bool Script::OrdersSwitch(const std::vector<Front::Choice>& choices) {
  if (ordered_ || choices[0].tokens.size() < kTokensBeforeSwitch) return false;
  return ordered_ = true;
}

// ---- what happens ----------------------------------------------------------

void Script::Bind(const World* world, const VaultStore* store) {
  world_ = world;
  store_ = store;
}

void Script::Say(Line line) {
  line.at_us = world_->now_us();
  const auto same = [&line](const Line& other) {
    return line.who == other.who && line.what == other.what &&
           line.at_us <= other.at_us + kAtOnceUs;
  };
  if (!lines_.empty() && line.first > 0 && same(lines_.back()) &&
      line.first == lines_.back().last + 1) {
    lines_.back().last = line.last;
    return;
  }
  // What another worker did meanwhile may stand between.
  for (auto other = lines_.rbegin(); other != lines_.rend(); ++other) {
    const bool ours =
        !line.ranks.empty() && other->ranks.contains(*line.ranks.begin());
    if (!ours && !line.ranks.empty() && same(*other)) {
      other->ranks.merge(line.ranks);
      return;
    }
    if (ours || other->who != "@" || line.who != "@") break;
  }
  lines_.push_back(std::move(line));
}

void Script::OnNote(std::string_view kind, int rank, uint64_t a, uint64_t b) {
  if (kind == "coordinator") {
    coordinator_alive_ = true;
    Say("launcher", Cat("starts coordinator ", a));
  } else if (kind.starts_with("coordinator lost")) {
    coordinator_alive_ = false;
  } else if (kind == "begun") {
    Say({.who = "launcher",
         .what = Cat("starts incarnation ", a, " of @"),
         .ranks = {rank}});
  } else if (kind == "submitted") {
    Say("client", Cat("asks for ", kAnswerTokens, " tokens after a prompt of ",
                      kPromptTokens));
  } else if (kind == "order") {
    Say("operator", "orders tp");
  } else if (kind == "order answered") {
    Say("operator",
        Cat("hears: epoch ", a, b != 0 ? " is done" : " is refused"));
  } else if (kind == "attached") {
    Say("client", "comes back with its key");
  } else if (kind == "token") {
    Say({.who = "client",
         .what = "hears #",
         .first = a,
         .last = a,
         .decode = decode_,
         .heard = true});
  }
}

void Script::OnCommand(Rank rank, const wire::CommandMessage& message) {
  Line line{.who = "coordinator",
            .what = Cat("-> @  ", WordsOf(message)),
            .ranks = {rank}};
  const auto* plan = std::get_if<StepPlan>(&message.command);
  if (plan != nullptr && IsDecode(*plan)) line.decode = plan->step.value;
  Say(std::move(line));
}

void Script::OnReport(Rank rank, const wire::Report& report) {
  Look();
  Line line{.who = "@",
            .what = Cat("-> ", coordinator_alive_ ? "coordinator" : "nobody",
                        "  ", WordsOf(report)),
            .ranks = {rank}};
  const auto* result = std::get_if<StepResult>(&report);
  if (result != nullptr && coordinator_alive_) {
    line.decode = result->step.value;
    line.result = true;
  }
  Say(std::move(line));
}

void Script::OnJournal(absl::Span<const char> bytes) {
  if (bytes.size() >= 8 && std::string_view(bytes.data(), 8) == "MOEBJRNL") {
    segment_.clear();
  }
  segment_.append(bytes.data(), bytes.size());
  const auto contents = ReadSegment({segment_.data(), segment_.size()});
  CHECK(contents.ok());
  const SegmentHeader& header = contents->header;
  if (segment_.size() == bytes.size()) {
    beginning_ = header.segment == 1
                     ? std::string("segment 1: ")
                     : Cat("segment ", header.segment, ", with all of segment ",
                           header.segment - 1, ": ");
    frames_seen_ = contents->frames.size();
  }
  for (; frames_seen_ < contents->frames.size(); ++frames_seen_) {
    SayFrame(contents->frames[frames_seen_].payload);
  }
}

// One commit, one line.
void Script::SayFrame(absl::Span<const char> payload) {
  const auto records = journal::DecodeRecords(payload);
  CHECK(records.ok());
  Line line{.who = "journal"};
  for (const journal::Record& record : *records) {
    // Nothing follows from it here.
    if (std::holds_alternative<journal::WorkerJoined>(record)) continue;
    line.what += Cat(line.what.empty() ? "" : "; ", WordsOf(record));
    if (const auto* step = std::get_if<journal::StepTokens>(&record)) {
      decode_ = step->step.value;
    }
  }
  if (line.what.empty()) return;
  line.what.insert(0, std::exchange(beginning_, ""));
  if (records->size() == 1 &&
      std::holds_alternative<journal::StepTokens>(records->front())) {
    line.decode = decode_;
  }
  Say(std::move(line));
}

void Script::OnOutputs(const std::vector<Front::Choice>& choices) {
  const Front::Choice& choice = choices[0];
  if (choice.accepted && !std::exchange(accepted_, true)) {
    Say("client", "hears that it is accepted");
  }
  if (choice.finished && !std::exchange(ended_, true)) {
    Say("client", Cat("hears the end: all ", choice.tokens.size(),
                      " tokens are those of a quiet run"));
  }
}

void Script::OnChecked(uint64_t times) {
  if (times == 0 || std::exchange(checked_, true)) return;
  Say("coordinator", "finds that the weights are what was loaded");
}

void Script::Look() {
  for (Rank r = 0; r < kNumWorkers; ++r) {
    const SignalsBlock* const block = store_->Signals(r);
    if (block == nullptr) continue;
    const Signals now{block->progress.switch_record.load(),
                      block->arrival.aborted_through.load()};
    const Signals before = std::exchange(signals_[r], now);
    if (now.record != before.record) {
      const SwitchProgress progress = LoadSwitchProgress(*block);
      if (progress.epoch.value > 0) {
        Say({.who = "@",
             .what = Cat("signals  ", WordsOf(progress)),
             .ranks = {r}});
      }
    }
    if (now.aborted != before.aborted) {
      Say({.who = "@",
           .what = Cat("signals  no barrier up to ", now.aborted,
                       " will be complete"),
           .ranks = {r}});
    }
  }
}

// ---- the text --------------------------------------------------------------

std::string Script::Render(const Line& line) const {
  const auto named = [&](std::string text) {
    if (line.ranks.empty()) return text;
    const bool all = line.ranks.size() == kNumWorkers;
    const bool to = text.starts_with("->");
    return Replace(std::move(text), '@',
                   all && to ? std::string("all")
                   : all     ? std::string("all workers")
                             : Cat("worker ", *line.ranks.begin()));
  };
  if (line.who.empty()) return Columns("...", "", line.what);
  char time[16];
  std::snprintf(time, sizeof(time), "%.1f",
                static_cast<double>(line.at_us) / 1000);
  std::string what = named(line.what);
  if (line.first > 0) what = Replace(what, '#', Tokens(line.first, line.last));
  return Columns(time, named(line.who), what);
}

// The coordinator's first turn with a result is shown, later ones are not,
// unless they are cut short.
std::vector<Script::Line> Script::Shorten() const {
  const auto is_heard = [](const Line& line) { return line.heard; };
  std::vector<Line> lines;
  bool told = false;
  for (auto begin = lines_.begin(); begin != lines_.end();) {
    const auto end = std::find_if(
        begin, lines_.end(), [](const Line& line) { return line.decode == 0; });
    auto first = begin;
    if (!told) {
      first = std::find_if(begin, end, is_heard);
      if (first != end) ++first;
      told = first != begin && std::prev(first)->heard;
    }
    // Past what was heard last.
    auto last = end;
    while (last != first && !std::prev(last)->heard) --last;
    const bool hides =
        static_cast<size_t>(last - first) >= kFewLines &&
        std::any_of(first, last, [](const Line& line) { return line.result; });
    lines.insert(lines.end(), begin, hides ? first : end);
    if (hides) {
      lines.push_back(
          {.what = StepsLikewise(std::find_if(first, last, is_heard)->decode,
                                 std::prev(last)->decode)});
      lines.insert(lines.end(), last, end);
    }
    begin = end;
    if (begin != lines_.end()) lines.push_back(*begin++);
  }
  return lines;
}

absl::StatusOr<std::string> Script::Text() const {
  std::string text = AsComment(kHead);
  const Comment* comment = std::begin(kComments);
  for (const Line& line : Shorten()) {
    if (comment != std::end(kComments) && line.who == comment->who &&
        line.what.find(comment->what) != std::string::npos) {
      text += Cat("\n", AsComment(comment++->says));
    }
    text += Cat(Render(line), "\n");
  }
  if (comment != std::end(kComments)) {
    return absl::InternalError(
        AbslView(Cat("a comment finds no line: ", comment->says, "\n", text)));
  }
  return text;
}

absl::StatusOr<std::string> PlayScript() {
  Script script;
  RunOptions run;
  run.script = &script;
  const Outcome outcome = Play(Script::SceneOptions(), run);
  auto text = script.Text();
  if (!outcome.violation.has_value()) return text;
  return absl::InternalError(
      AbslView(Cat("invariant ", std::string(1, outcome.violation->invariant),
                   ": ", outcome.violation->what, "\n",
                   text.ok() ? *text : std::string(text.status().message()))));
}

}  // namespace moebius::simulation
