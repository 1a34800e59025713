#include "common/faults/fault_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <new>
#include <thread>

#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {

// Zero bytes are an empty table. Each word is written by one process at a time:
// the spec before `armed` is stored with release, the counts by any process.
struct FaultTable::Block {
  struct Entry {
    std::atomic<uint32_t> armed;
    int32_t point, process, action, argument;
    uint32_t nth, times;
    std::atomic<uint32_t> reached, fired;
  };
  std::array<std::atomic<uint64_t>, 64> reached;  // [FaultId]
  std::array<Entry, kMaxArmed> entries;
};
static_assert(std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<uint64_t>::is_always_lock_free);
static_assert(kNumFaultIds <= 64);

absl::StatusOr<std::unique_ptr<FaultTable>> FaultTable::Map(
    const std::string& directory, int flags) {
  const std::string path = Cat(directory, "/", kFaultTableName);
  UniqueFd fd(::open(path.c_str(), flags | O_RDWR | O_CLOEXEC | O_NOFOLLOW,
                     S_IRUSR | S_IWUSR));
  if (!fd) return ErrnoStatus(path);
  if (::ftruncate(fd.get(), sizeof(Block)) != 0) {
    return ErrnoStatus(path);
  }
  void* const base = ::mmap(nullptr, sizeof(Block), PROT_READ | PROT_WRITE,
                            MAP_SHARED, fd.get(), 0);
  if (base == MAP_FAILED) return ErrnoStatus(path);
  return std::unique_ptr<FaultTable>(
      new FaultTable(std::launder(static_cast<Block*>(base))));
}

absl::StatusOr<std::unique_ptr<FaultTable>> FaultTable::Create(
    const std::string& directory) {
  return Map(directory, O_CREAT);
}

absl::StatusOr<std::unique_ptr<FaultTable>> FaultTable::Open(
    const std::string& directory) {
  return Map(directory, 0);
}

FaultTable::~FaultTable() { ::munmap(block_, sizeof(Block)); }

absl::Status FaultTable::Arm(const FaultSpec& spec) {
  for (Block::Entry& entry : block_->entries) {
    const bool used_up =
        entry.armed.load(std::memory_order_acquire) != 0 &&
        entry.fired.load(std::memory_order_relaxed) >= entry.times;
    if (entry.armed.load(std::memory_order_relaxed) != 0 && !used_up) continue;
    entry.armed.store(0, std::memory_order_release);
    entry.point = static_cast<int32_t>(spec.point);
    entry.process = spec.process;
    entry.action = static_cast<int32_t>(spec.action);
    entry.argument = spec.argument;
    entry.nth = spec.nth;
    entry.times = spec.times;
    entry.reached.store(0, std::memory_order_relaxed);
    entry.fired.store(0, std::memory_order_relaxed);
    entry.armed.store(1, std::memory_order_release);
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      AbslView(Cat(kMaxArmed, " faults are armed already")));
}

void FaultTable::DisarmAll() {
  for (Block::Entry& entry : block_->entries) {
    entry.armed.store(0, std::memory_order_release);
  }
}

std::vector<ArmedFault> FaultTable::armed() const {
  std::vector<ArmedFault> all;
  for (const Block::Entry& entry : block_->entries) {
    if (entry.armed.load(std::memory_order_acquire) == 0) continue;
    ArmedFault& one = all.emplace_back();
    one.spec = {static_cast<FaultId>(entry.point),
                entry.process,
                static_cast<FaultAction>(entry.action),
                entry.argument,
                entry.nth,
                entry.times};
    one.reached = entry.reached.load(std::memory_order_relaxed);
    one.fired = entry.fired.load(std::memory_order_relaxed);
  }
  return all;
}

uint64_t FaultTable::reached(FaultId id) const {
  return block_->reached[static_cast<size_t>(id)].load(
      std::memory_order_relaxed);
}

FaultSpec FaultTable::Reach(FaultId id, int process) {
  block_->reached[static_cast<size_t>(id)].fetch_add(1,
                                                     std::memory_order_relaxed);
  FaultSpec found;
  for (Block::Entry& entry : block_->entries) {
    if (entry.armed.load(std::memory_order_acquire) == 0 ||
        entry.point != static_cast<int32_t>(id) ||
        (entry.process != kAnyProcess && entry.process != process)) {
      continue;
    }
    const uint64_t number =
        uint64_t{entry.reached.fetch_add(1, std::memory_order_relaxed)} + 1;
    if (found.action != FaultAction::kNone || number < entry.nth ||
        number >= uint64_t{entry.nth} + entry.times) {
      continue;
    }
    entry.fired.fetch_add(1, std::memory_order_relaxed);
    found = {id,
             entry.process,
             static_cast<FaultAction>(entry.action),
             entry.argument,
             entry.nth,
             entry.times};
  }
  return found;
}

absl::Status TableFaultHandler::OnFaultPoint(FaultId id) {
  const FaultSpec fault = table_->Reach(id, process_);
  if (fault.action == FaultAction::kNone) return absl::OkStatus();
  LogWarn("fault ", FaultText(fault));
  switch (fault.action) {
    case FaultAction::kNone:
      break;
    case FaultAction::kCrash:
      ::kill(::getpid(), SIGKILL);
      for (;;) ::pause();  // not one instruction of ours more
    case FaultAction::kStop:
      ::kill(::getpid(), SIGSTOP);
      break;
    case FaultAction::kSleep:
      std::this_thread::sleep_for(std::chrono::milliseconds(fault.argument));
      break;
    case FaultAction::kError:
      return InjectedError(id, fault.argument);
  }
  return absl::OkStatus();
}

}  // namespace moebius
