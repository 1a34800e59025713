#include "tests/simulation/script_words.h"

#include <utility>
#include <variant>

#include "common/base/cat.h"
#include "common/layout/layout.h"

namespace moebius::simulation {
namespace {

std::string_view NameOf(Layout layout) { return layout.is_ep() ? "ep" : "tp"; }

std::string WordsOf(const ExpertsState& experts) {
  const char* const side = experts.side == Side::kLow ? "low" : "high";
  if (experts.steady()) return Cat(NameOf(experts.to), ", ", side);
  return Cat(NameOf(experts.from), " to ", NameOf(experts.to), ", from ", side,
             ", ", Count(experts.layers_done, "layer"), " done");
}

std::string WordsOf(const KvPlan& plan) {
  return Cat(Count(plan.num_moves(), "page"),
             plan.num_moves() == 1 ? " moves in " : " move in ",
             Count(plan.waves.size(), "wave"));
}

std::string KvOf(uint32_t computed) {
  return computed == 0 ? std::string("nothing") : Tokens(0, computed - 1);
}

std::string DoneOf(int layers, int waves) {
  return Cat(Count(layers, "layer"),
             waves > 0 ? Cat(" and ", Count(waves, "wave")) : std::string());
}

const char* NameOf(FinishReason reason) {
  return reason == FinishReason::kStop     ? "stop"
         : reason == FinishReason::kLength ? "length"
         : reason == FinishReason::kAbort  ? "abort"
                                           : "error";
}

struct CommandWords {
  Term term;
  std::string operator()(const wire::Greet&) {
    return Cat("GREET of term ", term.value);
  }
  std::string operator()(const wire::Halt& halt) {
    return Cat("HALT round ", halt.round,
               halt.tell_sequences ? "; tell your sequences" : "");
  }
  std::string operator()(const wire::Load& load) {
    return Cat("LOAD ", WordsOf(load.experts));
  }
  std::string operator()(const wire::Restore& restore) {
    std::string words = "RESTORE";
    for (const RestoredSequence& one : restore.sequences) {
      words += Cat(" slot ", one.admission.slot, ": request ",
                   one.admission.request.value, ", ",
                   Tokens(0, one.admission.tokens.size() - 1), "; KV of ",
                   KvOf(one.computed));
    }
    return words;
  }
  std::string operator()(const wire::Resume& resume) {
    std::string words =
        Cat("RESUME ", WordsOf(resume.experts), "; next step ",
            resume.next_step.value, ", barrier ", resume.next_barrier);
    if (resume.tail.has_value()) {
      words += Cat("; finish epoch ", resume.tail->epoch.value);
    }
    if (resume.check_weights) {
      words += Cat("; check epoch ", resume.last_epoch.value);
    }
    return words;
  }
  std::string operator()(const StepPlan& plan) {
    std::string words =
        Cat("STEP ", plan.step.value, " ", NameOf(plan.layout.attention));
    const char* between = ": ";
    const auto add = [&](const std::string& more) {
      words += Cat(std::exchange(between, "; "), more);
    };
    for (uint32_t slot : plan.released) add(Cat("slot ", slot, " is free"));
    for (const Admission& admission : plan.admissions) {
      add(Cat("request ", admission.request.value, " into slot ",
              admission.slot));
    }
    size_t pages = 0;
    for (const PageRow& row : plan.page_rows) pages += row.pages.size();
    if (pages > 0) add(Count(pages, "new page"));
    for (const WorkItem& item : plan.items) {
      const uint32_t end = item.position + item.num_tokens;
      add(Cat("slot ", item.slot, ": ", Tokens(item.position, end - 1),
              item.sample ? Cat(", draw ", end) : std::string()));
    }
    return words;
  }
  std::string operator()(const wire::Prepare& prepare) {
    return Cat("PREPARE epoch ", prepare.epoch.value, ": to ",
               NameOf(prepare.target), ", ", WordsOf(prepare.kv));
  }
  std::string operator()(const wire::Commit& commit) {
    return Cat("COMMIT epoch ", commit.epoch.value, " before step ",
               commit.boundary.value);
  }
  std::string operator()(const wire::Abort& abort) {
    return Cat("ABORT epoch ", abort.epoch.value);
  }
  std::string operator()(const wire::Shutdown&) { return "SHUTDOWN"; }
};

struct ReportWords {
  std::string operator()(const wire::Hello& hello) {
    return Cat("HELLO, with the memory of incarnation ", hello.memory.value);
  }
  std::string operator()(const wire::Halted& halted) {
    const Stand& stand = halted.stand;
    std::string words = Cat("HALTED round ", halted.round, ": ");
    if (!stand.loaded) return words + "no weights";
    words += Cat("step ", stand.last_executed.value);
    if (stand.switch_epoch.value > 0) {
      words += Cat("; epoch ", stand.switch_epoch.value, ": ",
                   DoneOf(stand.layers_done, stand.waves_done));
    }
    for (const HeldSequence& held : halted.sequences) {
      words += Cat("; slot ", held.slot, ": KV of ", KvOf(held.computed));
    }
    return words;
  }
  std::string operator()(const wire::Loaded&) { return "LOADED"; }
  std::string operator()(const wire::Interrupted& interrupted) {
    return Cat("INTERRUPTED before step ", interrupted.step.value, ": ",
               interrupted.reason);
  }
  std::string operator()(const StepResult& result) {
    std::string words = Cat("RESULT of step ", result.step.value);
    for (const SampledToken& token : result.sampled) {
      words += Cat(": ", Tokens(token.position, token.position), " of slot ",
                   token.slot);
    }
    return words;
  }
  std::string operator()(const wire::Prepared& prepared) {
    return Cat("PREPARED epoch ", prepared.epoch.value,
               prepared.ok ? "" : ": no, ", prepared.reason);
  }
  std::string operator()(const wire::Switched& switched) {
    return Cat("SWITCHED epoch ", switched.epoch.value);
  }
  std::string operator()(const wire::WeightsChecked& checked) {
    return Cat("WEIGHTS CHECKED epoch ", checked.epoch.value);
  }
  std::string operator()(const wire::Fault& fault) {
    return Cat("FAULT in step ", fault.step.value, ": ", fault.reason);
  }
};

struct RecordWords {
  std::string operator()(const journal::TermBegun& begun) {
    return Cat("TERM BEGUN ", begun.term.value);
  }
  std::string operator()(const journal::GroupBegun& begun) {
    return Cat("GROUP BEGUN in ", NameOf(begun.layout));
  }
  std::string operator()(const journal::WorkerJoined& joined) {
    return Cat("WORKER JOINED ", joined.rank, ", incarnation ",
               joined.incarnation.value);
  }
  std::string operator()(const journal::Accepted& accepted) {
    std::string words = "ACCEPTED";
    for (const journal::AcceptedGeneration& one : accepted.generations) {
      words += Cat(" request ", one.request.value);
    }
    return words;
  }
  std::string operator()(const journal::StepTokens& step) {
    std::string words = Cat("TOKENS of step ", step.step.value);
    for (const journal::AddedToken& added : step.tokens) {
      words += Cat(": ", Tokens(added.token.position, added.token.position),
                   " of request ", added.request.value);
    }
    return words;
  }
  std::string operator()(const journal::Ended& ended) {
    return Cat("ENDED request ", ended.request.value, ", ",
               NameOf(ended.finish));
  }
  std::string operator()(const journal::Forgotten& forgotten) {
    return Cat("FORGOTTEN request ", forgotten.request.value);
  }
  std::string operator()(const journal::EpochProposed& proposed) {
    return Cat("EPOCH PROPOSED ", proposed.epoch.value);
  }
  std::string operator()(const journal::SwitchDecided& decided) {
    return Cat("SWITCH DECIDED epoch ", decided.epoch.value, ": ",
               NameOf(decided.from), " to ", NameOf(decided.to),
               " before step ", decided.boundary.value);
  }
  std::string operator()(const journal::SwitchDone& done) {
    return Cat("SWITCH DONE epoch ", done.epoch.value);
  }
  std::string operator()(const journal::LayoutChosen& chosen) {
    return Cat("LAYOUT CHOSEN ", LayoutChoiceName(chosen.choice));
  }
  std::string operator()(const journal::DrainSet& set) {
    return set.draining ? "DRAIN SET" : "DRAIN ENDED";
  }
  std::string operator()(const journal::OperationBegun& begun) {
    return Cat("OPERATION BEGUN ", begun.operation.id);
  }
  std::string operator()(const journal::OperationEnded& ended) {
    return Cat("OPERATION ENDED ", ended.id);
  }
  std::string operator()(const journal::Summary&) { return "SUMMARY"; }
};

}  // namespace

std::string WordsOf(const wire::CommandMessage& message) {
  return std::visit(CommandWords{message.envelope.term}, message.command);
}

std::string WordsOf(const wire::Report& report) {
  return std::visit(ReportWords{}, report);
}

std::string WordsOf(const journal::Record& record) {
  return std::visit(RecordWords{}, record);
}

std::string WordsOf(const SwitchProgress& progress) {
  return Cat("epoch ", progress.epoch.value, ": ",
             DoneOf(progress.layers_done, progress.waves_done), " done");
}

std::string Count(uint64_t count, const char* what) {
  return Cat(count, " ", what, count == 1 ? "" : "s");
}

std::string Tokens(uint64_t first, uint64_t last) {
  return first == last ? Cat("token ", first)
                       : Cat("tokens ", first, " to ", last);
}

}  // namespace moebius::simulation
