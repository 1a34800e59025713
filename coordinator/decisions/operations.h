// Whether an operation may begin, and what a new coordinator does with one that
// had not ended. Pure.
#pragma once

#include <optional>

#include "absl/types/span.h"
#include "common/layout/layout.h"
#include "coordinator/journal/journal_state.h"
#include "coordinator/journal/operation.h"

namespace moebius {

enum class OperationVerdict {
  kBegins,   // it is new, and nothing is in its way
  kKnown,    // the same one was asked for before
  kOtherId,  // another one was asked for under its id
  kBusy,     // another one of its kind runs
};

struct OperationJudgement {
  OperationVerdict verdict = OperationVerdict::kBegins;
  const KnownOperation* known = nullptr;  // the one that says so
};

// Layouts wait for layouts and drains for drains. To undrain is always
// possible: it ends a drain.
OperationJudgement Judge(absl::Span<const KnownOperation> known,
                         const Operation& asked);

enum class OperationResume {
  kRepeat,       // nothing is left of what was done for it, or it is the same
                 // to do it again
  kAwaitSwitch,  // its switch was decided, and is being finished
  kSwitchDone,   // its switch is done, but the figures died with who had them
};

// REQUIRES: `one` has not ended. `target`: the layout that it wants, nothing
// where the policy is to choose.
OperationResume HowToResume(const KnownOperation& one,
                            std::optional<Layout> target,
                            const JournalState& state);

}  // namespace moebius
