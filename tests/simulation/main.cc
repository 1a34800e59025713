// moebius-simulation: plays seeds, and says what they found.
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/cat.h"
#include "tests/simulation/cluster.h"
#include "tests/simulation/mutants.h"
#include "tests/simulation/options.h"
#include "tests/simulation/script.h"
#include "tests/unit/worker/model/checkpoint_writer.h"

namespace moebius::simulation {
namespace {

// Of every so many seeds one is played twice, and both must be the same.
constexpr uint64_t kReplayed = 100;
// From so many seeds on every fault point must have been reached,
constexpr uint64_t kEnoughToReach = 500;
// and a fault injected at every one where faults are.
constexpr uint64_t kEnoughToStrike = 2000;

struct Arguments {
  std::string seeds;
  uint64_t seed = 0;
  bool trace = false;
  bool quiet = false;
  double minutes = 0;
  std::string mutant;
  bool list_mutants = false;
  int hunt = 0;
  std::string write;
  bool script = false;
};

// What many seeds add up to.
struct Sum {
  uint64_t played = 0, replayed = 0, switches = 0, recoveries = 0;
  double seconds = 0;
  Tally tally;
};

struct Find {
  const MutantInfo* mutant = nullptr;
  int seeds = 0;  // played until it was found
  double seconds = 0;
  std::optional<Violation> violation;  // nothing: not found
};

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(Clock::now() - begin_).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_ = Clock::now();
};

// Memory is first made before the group serves, when a death ends it.
bool IsStruck(FaultId id) { return id != FaultId::kWorkerMemory; }

Options OptionsFor(uint64_t seed, const Arguments& arguments) {
  const Options options = OptionsOf(seed);
  return arguments.quiet ? WithoutFaults(options) : options;
}

void Explain(const Options& options, const Violation& violation,
             const std::deque<std::string>& notes) {
  std::printf("%s\n", Show(options).c_str());
  for (const std::string& note : notes) std::printf("%s\n", note.c_str());
  std::printf("seed %llu: invariant %c at %.3f ms: %s\n",
              static_cast<unsigned long long>(options.seed),
              violation.invariant, static_cast<double>(violation.at_us) / 1000,
              violation.what.c_str());
}

int PlayOne(const Arguments& arguments, const MutantInfo* mutant) {
  const Options options = OptionsFor(arguments.seed, arguments);
  std::printf("%s\n", Show(options).c_str());
  RunOptions run;
  run.trace = arguments.trace;
  run.mutant = mutant;
  const Outcome outcome = Play(options, run);
  std::printf(
      "hash %016llx, %llu events, %d switches, %llu recoveries, %.3f s\n",
      static_cast<unsigned long long>(outcome.hash),
      static_cast<unsigned long long>(outcome.tally.events), outcome.switches,
      static_cast<unsigned long long>(outcome.recoveries),
      static_cast<double>(outcome.end_us) / 1e6);
  if (!outcome.violation.has_value()) return 0;
  Explain(options, *outcome.violation, {});
  return 1;
}

// False after a seed has failed, which is explained.
bool PlayMany(const Arguments& arguments, const MutantInfo* mutant,
              uint64_t first, uint64_t last, Sum& sum) {
  const Stopwatch watch;
  double shown = 0;
  for (uint64_t seed = first; seed <= last; ++seed) {
    const Options options = OptionsFor(seed, arguments);
    RunOptions run;
    run.mutant = mutant;
    Outcome outcome = Play(options, run);
    if (!outcome.violation.has_value() && seed % kReplayed == 0) {
      ++sum.replayed;
      const Outcome again = Play(options, run);
      if (again.hash != outcome.hash) {
        outcome.violation = Violation{'R', "a second run differs", 0};
      }
    }
    ++sum.played;
    sum.tally.Add(outcome.tally);
    sum.switches += static_cast<uint64_t>(outcome.switches);
    sum.recoveries += outcome.recoveries;
    sum.seconds = watch.seconds();
    if (outcome.violation.has_value()) {
      run.keep_notes = true;
      Explain(options, *outcome.violation, Play(options, run).notes);
      return false;
    }
    if (sum.seconds - shown > 10) {
      shown = sum.seconds;
      std::printf("%llu seeds, %.1f a second\n",
                  static_cast<unsigned long long>(sum.played),
                  static_cast<double>(sum.played) / shown);
      std::fflush(stdout);
    }
    if (arguments.minutes > 0 && sum.seconds > arguments.minutes * 60) break;
  }
  return true;
}

std::string TableOf(const Sum& sum) {
  const auto number = [](uint64_t n) {
    std::string text = std::to_string(n);
    for (int i = static_cast<int>(text.size()) - 3; i > 0; i -= 3) {
      text.insert(static_cast<size_t>(i), 1, ',');
    }
    return text;
  };
  std::string text =
      Cat("| | |\n|---|---:|\n| seeds | ", number(sum.played),
          " |\n| played twice, with equal records | ", number(sum.replayed),
          " |\n| events | ", number(sum.tally.events), " |\n| switches done | ",
          number(sum.switches), " |\n| recoveries | ", number(sum.recoveries),
          " |\n");
  for (const auto& [kind, count] : sum.tally.faults) {
    text += Cat("| ", kind, " | ", number(count), " |\n");
  }
  text += "\n| fault point | reached | fault injected |\n|---|---:|---:|\n";
  for (int i = 0; i < kNumFaultIds; ++i) {
    const auto id = static_cast<FaultId>(i);
    text += Cat("| `", InfoOf(id).name, "` | ", number(sum.tally.reached[i]),
                " | ", number(sum.tally.struck[i]), " |\n");
  }
  return text;
}

// Fault points that so many seeds should have come to, and did not.
int CountMissed(const Sum& sum) {
  int missed = 0;
  for (int i = 0; i < kNumFaultIds; ++i) {
    const auto id = static_cast<FaultId>(i);
    const bool reach =
        sum.played >= kEnoughToReach && sum.tally.reached[i] == 0;
    const bool strike = sum.played >= kEnoughToStrike && IsStruck(id) &&
                        sum.tally.struck[i] == 0;
    if (!reach && !strike) continue;
    ++missed;
    std::printf("%s: %s\n", std::string(InfoOf(id).name).c_str(),
                reach ? "never reached" : "no fault was ever injected there");
  }
  return missed;
}

// Each planted bug must be found within `arguments.hunt` seeds.
std::vector<Find> Hunt(const Arguments& arguments) {
  std::vector<Find> finds;
  for (const MutantInfo& info : AllMutants()) {
    const Stopwatch watch;
    Find find{&info};
    while (!find.violation.has_value() && find.seeds < arguments.hunt) {
      RunOptions run;
      run.mutant = &info;
      find.violation =
          Play(OptionsOf(static_cast<uint64_t>(++find.seeds)), run).violation;
    }
    find.seconds = watch.seconds();
    const std::string name(info.name);
    if (find.violation.has_value()) {
      std::printf("%-26s seed %4d  %c  %5.1f s  %s\n", name.c_str(), find.seeds,
                  find.violation->invariant, find.seconds,
                  find.violation->what.substr(0, 100).c_str());
    } else {
      std::printf("%-26s NOT FOUND in %d seeds\n", name.c_str(), find.seeds);
    }
    std::fflush(stdout);
    finds.push_back(std::move(find));
  }
  return finds;
}

std::string TableOf(const std::vector<Find>& finds) {
  std::string text =
      "| planted bug | | seeds until found | invariant |\n|---|---|---:|---|\n";
  for (const Find& find : finds) {
    text += Cat("| `", find.mutant->name, "` | ", find.mutant->what, " | ",
                find.violation.has_value() ? std::to_string(find.seeds)
                                           : std::string("not found"),
                " | ",
                find.violation.has_value()
                    ? std::string(1, find.violation->invariant)
                    : std::string(),
                " |\n");
  }
  return text;
}

void Write(const Arguments& arguments, const Sum& sum,
           const std::vector<Find>& finds) {
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&now));
  char speed[32];
  std::snprintf(speed, sizeof(speed), "%.1f",
                static_cast<double>(sum.played) / std::max(sum.seconds, 1e-3));
  std::string text =
      Cat("# What the simulation found\n\nSeeds ", arguments.seeds, ", ", date,
          ", on a shared machine of ", std::thread::hardware_concurrency(),
          " cores: ", speed,
          " seeds a second in one process. No invariant broken. "
          "Written by\n`moebius-simulation --seeds ",
          arguments.seeds);
  if (arguments.hunt > 0) text += Cat(" --hunt ", arguments.hunt);
  text += Cat(" --write FILE`.\n\n", TableOf(sum));
  if (!finds.empty()) text += Cat("\n", TableOf(finds));
  WriteFile(arguments.write, text);
}

int PlayAndHunt(const Arguments& arguments, const MutantInfo* mutant) {
  Sum sum;
  int missed = 0;
  if (!arguments.seeds.empty()) {
    unsigned long long first = 0, last = 0;
    if (std::sscanf(arguments.seeds.c_str(), "%llu..%llu", &first, &last) !=
        2) {
      std::fprintf(stderr, "--seeds takes A..B\n");
      return 2;
    }
    if (!PlayMany(arguments, mutant, first, last, sum)) return 1;
    std::printf("%s%.1f seeds a second\n", TableOf(sum).c_str(),
                static_cast<double>(sum.played) / sum.seconds);
    if (!arguments.quiet) missed += CountMissed(sum);
  }
  std::vector<Find> finds;
  if (arguments.hunt > 0) {
    finds = Hunt(arguments);
    int free = 0;
    for (const Find& find : finds) free += !find.violation.has_value();
    std::printf("%zu planted bugs, %d not found\n", finds.size(), free);
    missed += free;
  }
  if (!arguments.write.empty()) Write(arguments, sum, finds);
  return missed == 0 ? 0 : 1;
}

int PrintScript() {
  const absl::StatusOr<std::string> text = PlayScript();
  if (!text.ok()) {
    std::fprintf(stderr, "%s\n", text.status().ToString().c_str());
    return 1;
  }
  std::printf("%s", text->c_str());
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app(
      "Plays a group of Moebius in one thread under virtual time, with "
      "faults. A seed always plays the same.");
  Arguments arguments;
  app.add_option("--seeds", arguments.seeds, "play these: A..B");
  auto* const seed = app.add_option("--seed", arguments.seed, "play this one");
  app.add_flag("--trace", arguments.trace, "with --seed: print what happens");
  app.add_flag("--quiet", arguments.quiet, "leave the faults out");
  app.add_option("--minutes", arguments.minutes, "stop after so long");
  app.add_option("--mutant", arguments.mutant, "with this planted bug");
  app.add_flag("--list-mutants", arguments.list_mutants, "the planted bugs");
  app.add_option("--hunt", arguments.hunt,
                 "every planted bug must be found within so many seeds");
  app.add_option("--write", arguments.write, "a file for the figures");
  app.add_flag("--script", arguments.script,
               "play one scene and print it: the protocol in five minutes");
  CLI11_PARSE(app, argc, argv);
  spdlog::set_pattern("              | %v");
  if (arguments.script) return PrintScript();
  if (arguments.list_mutants) {
    for (const MutantInfo& info : AllMutants()) {
      std::printf("%-26s %s\n", std::string(info.name).c_str(),
                  std::string(info.what).c_str());
    }
    return 0;
  }
  const MutantInfo* mutant = nullptr;
  if (!arguments.mutant.empty()) {
    mutant = FindMutant(arguments.mutant);
    if (mutant == nullptr) {
      std::fprintf(stderr, "no mutant %s\n", arguments.mutant.c_str());
      return 2;
    }
  }
  if (seed->count() > 0) return PlayOne(arguments, mutant);
  if (arguments.seeds.empty() && arguments.hunt == 0)
    arguments.seeds = "1..100";
  return PlayAndHunt(arguments, mutant);
}

}  // namespace
}  // namespace moebius::simulation

int main(int argc, char** argv) {
  return moebius::simulation::Main(argc, argv);
}
