// A process's line to the launcher, which is the vault (vault_protocol.h).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "common/base/unique_fd.h"
#include "common/vault/memory_vault.h"
#include "common/vault/vault_protocol.h"
#include "common/vault/worker_news.h"

namespace moebius {

// VaultClient
//
// Owns: the connection. It ends when this is destroyed or the process dies; the
// vault keeps what was deposited.
// Threading: thread-safe. Requests (Deposit, Withdraw, Borrow, WhoIs,
// NewsOf) go one after another; reports (Progress, Ready, Failed) never wait
// for a request. Errors of every call are those of MemoryVault.
class VaultClient final : public MemoryVault {
 public:
  // Connects to `directory`/vault.sock to speak for `rank`, kCoordinatorRank
  // for the coordinator. Who we really are the launcher sees for itself.
  static absl::StatusOr<std::unique_ptr<VaultClient>> Connect(
      const std::string& directory, Rank rank, absl::Duration timeout);

  Rank rank() const { return rank_; }

  // Becomes readable (hang-up) when the launcher is gone, for poll(2).
  int fd() const { return socket_.get(); }

  absl::Status Deposit(RegionKind kind, RegionClass region_class, int fd,
                       uint64_t size_bytes, absl::Duration timeout) override;
  absl::StatusOr<RegionDescriptor> Withdraw(RegionKind kind,
                                            absl::Duration timeout) override;
  absl::StatusOr<RegionDescriptor> Borrow(RegionKind kind, Rank rank,
                                          absl::Duration timeout) override;

  // Reports that `done_bytes` of `total_bytes` are loaded. May be called for
  // every block: only the first, the last and one each kProgressPeriod are
  // sent, and a full line drops all but the last.
  absl::Status Progress(uint64_t done_bytes, uint64_t total_bytes);
  static constexpr absl::Duration kProgressPeriod = absl::Milliseconds(50);

  // Reports that we serve. The coordinator: at which ports, and from which
  // checkpoint, by its fingerprint, which later coordinators are given.
  absl::Status Ready(int port = 0, int admin_port = 0, uint64_t checkpoint = 0);

  // The coordinator's: somebody else than the launcher told us to end. What
  // follows is the launcher's to say: it may have been told so as well.
  absl::Status StrayStop();

  // The coordinator's: its engine gets on. Never waits: who does not hear it
  // hears the next.
  absl::Status Alive();

  // The coordinator's: asks for the end of that incarnation of a worker.
  absl::Status Replace(Rank rank, Incarnation incarnation);

  // The coordinator's: the rank of the worker that process `pid` is by the
  // launcher's word, nothing if it is none.
  absl::StatusOr<std::optional<Rank>> WhoIs(pid_t pid, absl::Duration timeout);

  // The coordinator's: what the launcher knows of a worker.
  absl::StatusOr<WorkerNews> NewsOf(Rank rank, absl::Duration timeout);

  // Reports why this process ends next: the message of `why`, cut to what there
  // is room for, and whether it is lasting (lasting_failure.h).
  absl::Status Failed(const absl::Status& why);

 private:
  VaultClient(UniqueFd socket, Rank rank)
      : socket_(std::move(socket)), rank_(rank) {}

  absl::Status Report(const VaultMessage& message, absl::Duration timeout);
  struct Answer {
    VaultMessage message;
    UniqueFd attached;
  };
  // Sends `request` and waits for its answer; answers to requests given up
  // earlier are thrown away.
  absl::StatusOr<Answer> Ask(const VaultMessage& request, int attach,
                             absl::Duration timeout);
  // Of a request whose answer brings a descriptor.
  absl::StatusOr<RegionDescriptor> AskForRegion(const VaultMessage& request,
                                                absl::Duration timeout);

  const UniqueFd socket_;
  const Rank rank_;
  absl::Mutex asking_;                        // one request at a time
  std::atomic<int64_t> next_progress_ns_{0};  // monotonic; 0: send the first
};

}  // namespace moebius
