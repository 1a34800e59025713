// Places in the code at which a fault can be injected, also in a release build:
// how tests, and operators who want to know, make things go wrong on purpose.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"

namespace moebius {

// One for each place. The names, and what happens there, are in FaultInfos().
enum class FaultId : uint8_t {
  kWorkerAdopt,
  kWorkerMemory,
  kWorkerHalted,
  kWorkerRestored,
  kWorkerResumed,
  kWorkerStep,
  kWorkerStepDone,
  kWorkerPrepare,
  kWorkerPrepared,
  kWorkerCommit,
  kWorkerPull,
  kWorkerPulled,
  kWorkerBarrier,
  kWorkerPassed,
  kWorkerPages,
  kWorkerPagesPassed,
  kWorkerSwitched,
  kCoordinatorAccepted,
  kCoordinatorTokens,
  kCoordinatorPrepared,
  kCoordinatorDecided,
  kCoordinatorCommitting,
  kCoordinatorRecovering,
  kCoordinatorHalted,
  kCoordinatorResumed,
  kJournalWrite,
  kJournalSync,
  kVaultKept,
  kLinkCommand,
  kLinkReport,
};
inline constexpr int kNumFaultIds = static_cast<int>(FaultId::kLinkReport) + 1;

struct FaultInfo {
  FaultId id;
  std::string_view name;   // "worker.pull"
  std::string_view where;  // what has happened, and what has not
};
// All of them, in the order of FaultId.
const FaultInfo& InfoOf(FaultId id);

enum class FaultAction : uint8_t { kNone, kCrash, kStop, kSleep, kError };

// What reaches a point: a rank, the coordinator (kCoordinatorRank), or any
// process.
inline constexpr int kAnyProcess = -2;

// What is to happen at a point, once it has been reached often enough.
struct FaultSpec {
  FaultId point{};
  int process = kAnyProcess;
  FaultAction action = FaultAction::kNone;
  // kSleep: milliseconds. kError: an errno, or 0 for an internal error.
  int argument = 0;
  uint32_t nth = 1;    // the first time that counts, from 1
  uint32_t times = 1;  // how many times in all
  friend bool operator==(const FaultSpec&, const FaultSpec&) = default;
};

// The text form, for configuration, plans and the admin API:
//
//   POINT[@RANK|@coordinator]=ACTION[:ARGUMENT][#NTH][*TIMES]
//
// ACTION is crash (SIGKILL), stop (SIGSTOP), sleep:MILLISECONDS or
// error[:ENOSPC|EIO|ENOMEM|EMFILE|EAGAIN]. "worker.pull@1=crash#3" kills worker
// 1 in its third pull. kInvalidArgument says what is wrong and what is allowed.
absl::StatusOr<FaultSpec> ParseFault(std::string_view text);
std::string FaultText(const FaultSpec& spec);

// The error that an injected kError is.
absl::Status InjectedError(FaultId id, int error);

// Decides what happens when a point is reached. Threading: thread-safe.
class FaultHandler {
 public:
  virtual ~FaultHandler() = default;
  virtual absl::Status OnFaultPoint(FaultId id) = 0;
};

namespace internal {
inline std::atomic<FaultHandler*> fault_handler{nullptr};
}  // namespace internal

// `handler` (null: none) outlives all use of it.
inline void SetFaultHandler(FaultHandler* handler) {
  internal::fault_handler.store(handler, std::memory_order_release);
}

inline bool FaultsInstalled() {
  return internal::fault_handler.load(std::memory_order_relaxed) != nullptr;
}

// Marks the place. OK unless a fault of kind kError is injected here; the
// caller treats that as it would the failure of what it does next. Costs a load
// when faults are off.
inline absl::Status FaultPoint(FaultId id) {
  FaultHandler* const handler =
      internal::fault_handler.load(std::memory_order_acquire);
  if (handler == nullptr) [[likely]]
    return absl::OkStatus();
  return handler->OnFaultPoint(id);
}

}  // namespace moebius
