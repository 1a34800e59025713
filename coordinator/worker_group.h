// The coordinator's view of its workers: who is there, and messages to and
// from them with their envelopes checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/channel.h"
#include "common/ids.h"
#include "common/wire.h"

namespace moebius {

// WorkerGroup
//
// A worker joins with Hello and is answered with Welcome. From then on each
// direction counts its messages: a repeated one is dropped, a gap is an error,
// as is a report of another term. Reports of a life that has not said Hello are
// dropped and logged.
// Threading: one thread; Wake of the hub from any.
class WorkerGroup {
 public:
  struct Member {
    bool joined = false;
    Incarnation incarnation;
    Hello hello;
  };
  struct Received {
    Rank rank = 0;
    Report report;
  };

  // `hub` must outlive this.
  WorkerGroup(Hub* hub, int num_ranks, Term term);

  bool complete() const { return num_joined_ == num_ranks(); }
  int num_ranks() const { return static_cast<int>(members_.size()); }
  const Member& member(Rank rank) const { return members_[rank].member; }

  // Sends `command` to every joined worker. An error names the worker; others
  // may have got it.
  absl::Status Broadcast(const Command& command);

  // Waits as Hub::Receive does. Hello of a new life comes out as a report too,
  // after the member was recorded. Errors: a gap in a worker's messages, a
  // malformed one, a group of another size or model.
  absl::StatusOr<std::vector<Received>> Receive(int timeout_ms);

 private:
  struct Peer {
    Member member;
    uint64_t next_out = 1;
    uint64_t next_in = 1;
  };

  absl::Status Join(Rank rank, Incarnation incarnation, const Hello& hello);

  Hub* hub_;
  Term term_;
  std::vector<Peer> members_;
  int num_joined_ = 0;
};

}  // namespace moebius
