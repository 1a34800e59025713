#include "common/faults/fault_point.h"

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "common/base/check.h"

namespace moebius {
namespace {

constexpr std::array<FaultInfo, kNumFaultIds> kInfos = {{
    {FaultId::kWorkerAdopt, "worker.adopt",
     "a successor has its predecessor's memory and has not said Hello"},
    {FaultId::kWorkerMemory, "worker.memory",
     "a worker is about to make a region of memory"},
    {FaultId::kWorkerHalted, "worker.halted",
     "a worker was told to halt and has not answered"},
    {FaultId::kWorkerRestored, "worker.restored",
     "a worker has taken in the sequences of a recovery"},
    {FaultId::kWorkerResumed, "worker.resumed",
     "a worker was told to go on and has not yet"},
    {FaultId::kWorkerStep, "worker.step", "a step begins"},
    {FaultId::kWorkerStepDone, "worker.step.done",
     "a step is executed and not reported"},
    {FaultId::kWorkerPrepare, "worker.prepare",
     "a worker has checked a PREPARE and not answered"},
    {FaultId::kWorkerPrepared, "worker.prepared",
     "a worker has answered a PREPARE"},
    {FaultId::kWorkerCommit, "worker.commit",
     "a worker has a COMMIT and has copied nothing"},
    {FaultId::kWorkerPull, "worker.pull", "half of a layer is pulled"},
    {FaultId::kWorkerPulled, "worker.pulled",
     "a layer is pulled, the barrier behind it not reached"},
    {FaultId::kWorkerBarrier, "worker.barrier",
     "a worker has arrived at a barrier, others have not"},
    {FaultId::kWorkerPassed, "worker.passed",
     "the barrier behind a layer is passed, the layer not recorded"},
    {FaultId::kWorkerPages, "worker.pages",
     "half of a wave of KV pages is pulled"},
    {FaultId::kWorkerPagesPassed, "worker.pages.passed",
     "the barrier behind a wave is passed, the wave not recorded"},
    {FaultId::kWorkerSwitched, "worker.switched",
     "a switch is complete and not reported"},
    {FaultId::kCoordinatorAccepted, "coordinator.accepted",
     "a request is in the journal, its client has no answer"},
    {FaultId::kCoordinatorTokens, "coordinator.tokens",
     "the tokens of a step are in the journal, and nobody has them"},
    {FaultId::kCoordinatorPrepared, "coordinator.prepared", "PREPARE is out"},
    {FaultId::kCoordinatorDecided, "coordinator.decided",
     "the decision for a switch is in the journal, and nobody has it"},
    {FaultId::kCoordinatorCommitting, "coordinator.committing",
     "COMMIT is out to half of the workers"},
    {FaultId::kCoordinatorRecovering, "coordinator.recovering",
     "a new coordinator has read the journal"},
    {FaultId::kCoordinatorHalted, "coordinator.halted",
     "all workers have halted for a recovery"},
    {FaultId::kCoordinatorResumed, "coordinator.resumed",
     "all workers were told to go on"},
    {FaultId::kJournalWrite, "journal.write", "the journal is to be written"},
    {FaultId::kJournalSync, "journal.sync", "the journal is to be synced"},
    {FaultId::kVaultKept, "vault.kept",
     "a worker died; an error here loses the memory kept for it"},
    {FaultId::kLinkCommand, "link.command",
     "a message to the worker is to be sent; an error here loses it, EAGAIN "
     "finds the queue full"},
    {FaultId::kLinkReport, "link.report",
     "a message of the worker has come; an error here loses it"},
}};

struct NamedErrno {
  std::string_view name;
  int error;
};
constexpr std::array<NamedErrno, 5> kErrnos = {{{"ENOSPC", ENOSPC},
                                                {"EIO", EIO},
                                                {"ENOMEM", ENOMEM},
                                                {"EMFILE", EMFILE},
                                                {"EAGAIN", EAGAIN}}};
constexpr std::array<std::pair<std::string_view, FaultAction>, 4> kActions = {
    {{"crash", FaultAction::kCrash},
     {"stop", FaultAction::kStop},
     {"sleep", FaultAction::kSleep},
     {"error", FaultAction::kError}}};
constexpr int kMaxSleepMs = 3'600'000;

constexpr bool InOrder() {
  for (int i = 0; i < kNumFaultIds; ++i) {
    if (static_cast<int>(kInfos[i].id) != i || kInfos[i].name.empty()) {
      return false;
    }
  }
  return true;
}
static_assert(InOrder());

absl::Status Wrong(std::string_view text, std::string_view what) {
  return absl::InvalidArgumentError(AbslView(
      Cat("fault \"", text, "\": ", what,
          "; the form is POINT[@RANK|@coordinator]=ACTION[:ARGUMENT][#NTH]"
          "[*TIMES]")));
}

// Cuts `text` at the last `mark` and returns what stood behind it, or nothing
// when there is none.
std::optional<std::string_view> CutBehind(std::string_view& text, char mark) {
  const size_t at = text.rfind(mark);
  if (at == text.npos) return std::nullopt;
  const std::string_view behind = text.substr(at + 1);
  text = text.substr(0, at);
  return behind;
}

bool ParseCount(std::optional<std::string_view> text, uint32_t& count) {
  return !text.has_value() ||
         (absl::SimpleAtoi(AbslView(*text), &count) && count > 0);
}

bool ParseArgument(std::string_view text, FaultSpec& spec) {
  if (spec.action == FaultAction::kSleep) {
    return absl::SimpleAtoi(AbslView(text), &spec.argument) &&
           spec.argument >= 0 && spec.argument <= kMaxSleepMs;
  }
  if (spec.action != FaultAction::kError) return false;
  for (const NamedErrno& named : kErrnos) {
    if (named.name == text) {
      spec.argument = named.error;
      return true;
    }
  }
  return false;
}

std::string AllNames() {
  std::string names;
  for (const FaultInfo& info : kInfos) {
    names += Cat(names.empty() ? "" : ", ", info.name);
  }
  return names;
}

}  // namespace

const FaultInfo& InfoOf(FaultId id) { return kInfos[static_cast<int>(id)]; }

absl::StatusOr<FaultSpec> ParseFault(std::string_view text) {
  FaultSpec spec;
  std::string_view point = text;
  std::optional<std::string_view> action = CutBehind(point, '=');
  if (!action.has_value()) return Wrong(text, "no action");
  if (!ParseCount(CutBehind(*action, '*'), spec.times)) {
    return Wrong(text, "how many times?");
  }
  if (!ParseCount(CutBehind(*action, '#'), spec.nth)) {
    return Wrong(text, "the how-manieth time?");
  }
  const std::optional<std::string_view> argument = CutBehind(*action, ':');
  for (const auto& [name, value] : kActions) {
    if (name == *action) spec.action = value;
  }
  if (spec.action == FaultAction::kNone) {
    return Wrong(text, "the action is none of crash, stop, sleep, error");
  }
  if (argument.has_value() && !ParseArgument(*argument, spec)) {
    return Wrong(text,
                 "sleep takes milliseconds up to an hour, error one of ENOSPC, "
                 "EIO, ENOMEM, EMFILE, EAGAIN, the others nothing");
  }
  if (const auto process = CutBehind(point, '@')) {
    if (*process == "coordinator") {
      spec.process = kCoordinatorRank;
    } else if (!absl::SimpleAtoi(AbslView(*process), &spec.process) ||
               spec.process < 0 || spec.process >= kMaxRanks) {
      return Wrong(text, "behind @ stands a rank or coordinator");
    }
  }
  for (const FaultInfo& info : kInfos) {
    if (info.name != point) continue;
    spec.point = info.id;
    return spec;
  }
  return Wrong(text, Cat("the points are ", AllNames()));
}

std::string FaultText(const FaultSpec& spec) {
  std::string text(InfoOf(spec.point).name);
  if (spec.process == kCoordinatorRank) {
    text += "@coordinator";
  } else if (spec.process != kAnyProcess) {
    text += Cat("@", spec.process);
  }
  for (const auto& [name, value] : kActions) {
    if (value == spec.action) text += Cat("=", name);
  }
  if (spec.action == FaultAction::kSleep) text += Cat(":", spec.argument);
  for (const NamedErrno& named : kErrnos) {
    if (spec.action == FaultAction::kError && named.error == spec.argument) {
      text += Cat(":", named.name);
    }
  }
  if (spec.nth != 1) text += Cat("#", spec.nth);
  if (spec.times != 1) text += Cat("*", spec.times);
  return text;
}

absl::Status InjectedError(FaultId id, int error) {
  const std::string what = Cat("injected at ", InfoOf(id).name);
  return error == 0 ? absl::InternalError(AbslView(what))
                    : absl::ErrnoToStatus(error, AbslView(what));
}

}  // namespace moebius
