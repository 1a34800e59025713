#include "coordinator/decisions/operations.h"

namespace moebius {

OperationJudgement Judge(absl::Span<const KnownOperation> known,
                         const Operation& asked) {
  OperationJudgement out;
  for (const KnownOperation& one : known) {
    if (one.operation.id == asked.id) {
      return {one.operation == asked ? OperationVerdict::kKnown
                                     : OperationVerdict::kOtherId,
              &one};
    }
    if (!one.end.has_value() && one.operation.kind == asked.kind &&
        asked.kind != OperationKind::kUndrain) {
      out = {OperationVerdict::kBusy, &one};
    }
  }
  return out;
}

OperationResume HowToResume(const KnownOperation& one,
                            std::optional<Layout> target,
                            const JournalState& state) {
  const bool decided_since = state.decided() > one.decided;
  if (one.operation.kind != OperationKind::kLayout || !target.has_value() ||
      !decided_since) {
    return OperationResume::kRepeat;
  }
  if (state.undone().has_value()) {
    return state.undone()->to == *target ? OperationResume::kAwaitSwitch
                                         : OperationResume::kRepeat;
  }
  return state.layout() == *target ? OperationResume::kSwitchDone
                                   : OperationResume::kRepeat;
}

}  // namespace moebius
