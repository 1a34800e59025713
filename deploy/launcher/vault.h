// The vault: the launcher's side of vault_protocol.h.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/base/deadline.h"
#include "common/base/ids.h"
#include "common/base/unique_fd.h"
#include "common/vault/vault_protocol.h"
#include "deploy/launcher/vault_checks.h"

namespace moebius {

// What a process reported about itself. Its numbers are checked to be possible
// (done <= total, ports are ports), its text is printable.
struct VaultReport {
  // Or kReady, kFailed, kReplace, kStrayStop, kAlive.
  VaultMessageType type = VaultMessageType::kProgress;
  Rank rank = 0;  // -1: the coordinator; kReplace: whom to replace
  pid_t pid = 0;
  uint64_t done_bytes = 0;   // kProgress
  uint64_t total_bytes = 0;  // kProgress
  int port = 0;              // kReady of the coordinator
  int admin_port = 0;        // kReady of the coordinator
  uint64_t checkpoint = 0;   // kReady of the coordinator
  uint64_t incarnation = 0;  // kReplace
  std::string text;          // kFailed
};

// What a process said of itself before it ended. text "": nothing.
struct LastWords {
  std::string text;
  bool lasting = false;  // a successor would fail in the same way
};

struct VaultOptions {
  // How long a process of our uid that connects before it was allowed may wait
  // for Allow().
  absl::Duration stranger_timeout = absl::Seconds(5);
};

// Vault
//
// Keeps the descriptors of the workers' memory and hands them to successors
// (read-write) and peers (opened anew read-only; signals read-write). One
// thread serves all connections.
//
// Trust: only processes of our uid whose pid was allowed are listened to. What
// they send is checked all the same: a message that is malformed, speaks for
// another rank or attaches what was not asked for is logged, ends its
// connection and changes nothing. A descriptor is kept only as its class allows
// (AdmitRegion): host memory is a sealed memfd of the stated size, so that no
// holder can shrink the memory under another's feet. All of it guards against
// mistakes: processes of one uid could always harm one another through /proc.
// Bounds: kMaxConnections, one pending borrow a connection, kNumRegionKinds
// descriptors a rank. A peer that does not read its answers is disconnected.
// Threading: thread-safe. The callback runs on the vault's thread, one call at
// a time, under no lock; it may call back into the vault.
class Vault {
 public:
  static constexpr int kMaxConnections = 64;

  using Callback = std::function<void(const VaultReport&)>;

  // Listens on `directory`/vault.sock and starts the thread. The caller made
  // the directory; kPermissionDenied unless it is a directory of ours with mode
  // 0700 (not through a symbolic link).
  static absl::StatusOr<std::unique_ptr<Vault>> Start(
      const std::string& directory, Callback on_report,
      VaultOptions options = {});

  // Disconnects everyone, closes every descriptor (memory that nobody maps is
  // freed) and removes the socket. Must not run inside the callback.
  ~Vault();
  Vault(const Vault&) = delete;
  Vault& operator=(const Vault&) = delete;

  // From now on `pid` speaks for `rank` (-1: the coordinator). The process
  // that spoke for it before is disconnected and refused.
  void Allow(pid_t pid, Rank rank, uint64_t incarnation = 1);

  // Ends what Allow began: call it when the process has ended, before its pid
  // can be another's, which is when it is reaped. A kFailed that it sent before
  // it died still counts: it is returned, and reported through the callback as
  // well. Handles of its memory are closed.
  LastWords Disallow(pid_t pid);

  // Closes the descriptors kept for `rank`, so that its successor may
  // deposit. REQUIRES (death certificate): its process was killed and reaped.
  void Forget(Rank rank);

  // Listens again if somebody has removed the socket's file, without which no
  // successor of a child would find us. True: it was removed.
  absl::StatusOr<bool> Restore();

  // Why worker `rank` does not stay up, for the coordinator to tell; "": it
  // does. Cut to what a message holds.
  void SetTrouble(Rank rank, std::string why);

  // Descriptors kept for `rank` now.
  int NumKept(Rank rank) const;

 private:
  struct Borrow {
    RegionKind region = RegionKind::kExperts;
    Rank rank = 0;
  };
  struct Connection {
    UniqueFd socket;
    pid_t pid = 0;
    std::optional<Rank> rank;      // once allowed
    Deadline stranger_until;       // until then
    std::optional<Borrow> borrow;  // waits for its deposit
  };
  struct Speaker {
    Rank rank = 0;
    uint64_t incarnation = 0;
    LastWords last_words;
    uint64_t done_bytes = 0, total_bytes = 0;  // of its last kProgress
  };
  using Connections = std::map<uint64_t, Connection>;

  static constexpr int kMaxStrangers = 16;
  static constexpr int kMaxMessagesARound = 16;

  Vault(Callback on_report, VaultOptions options);

  absl::Status Open(const std::string& directory);
  void ThreadMain();
  void Wake();
  absl::Status Watch(int fd, uint64_t id);

  void AcceptAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddConnection(UniqueFd socket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Reads what a connection has sent, a bounded number of messages; drops it
  // at its end or at its first fault.
  void Serve(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ServeOne(Connection* connection)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleReport(const Connection& connection,
                            const VaultMessage& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleRequest(Connection* connection,
                             const VaultMessage& message, UniqueFd attached)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleWhoIs(const Connection& connection,
                           const VaultMessage& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleTrouble(const Connection& connection,
                             const VaultMessage& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status HandleDeposit(Connection* connection,
                             const VaultMessage& message, UniqueFd attached)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AnswerBorrow(Connection* connection)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AnswerBorrowsOf(RegionKind region, Rank rank)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Removes `pid` and its connections; what it said with kFailed.
  LastWords RemoveSpeaker(pid_t pid) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  const KeptRegion* Find(RegionKind region, Rank rank) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drop(uint64_t id, const absl::Status& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Close(Connections::iterator it) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExpireStrangers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int PollTimeoutMs() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Callback on_report_;
  const VaultOptions options_;
  std::string path_;   // of the socket, once it exists
  UniqueFd listener_;  // replaced under the mutex
  UniqueFd epoll_;
  UniqueFd wake_;  // eventfd

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_);
  Connections connections_ ABSL_GUARDED_BY(mutex_);  // by id, never reused
  std::map<pid_t, Speaker> speakers_ ABSL_GUARDED_BY(mutex_);
  std::map<Rank, KeptRegions> kept_ ABSL_GUARDED_BY(mutex_);
  std::map<Rank, std::string> troubles_ ABSL_GUARDED_BY(mutex_);
  // Checked and waiting for the callback; emptied each round of the thread,
  // which adds at most kMaxMessagesARound for each connection.
  std::vector<VaultReport> reports_ ABSL_GUARDED_BY(mutex_);
  // Gives way when the process is out of descriptors, so that a connection can
  // still be accepted and closed.
  UniqueFd spare_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace moebius
