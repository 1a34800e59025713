// The coordinator's view of its workers: who is there, and messages to and
// from them with their envelopes checked.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/channel/channel.h"
#include "common/wire/wire.h"
#include "coordinator/decisions/rank_set.h"

namespace moebius {

// WorkerGroup
//
// A worker that connects is greeted, and joins with its Hello; so does each
// further incarnation of it. From then on each direction counts its messages: a
// repeated one is dropped, a gap is noted, as is a worker that cannot be
// reached. Reports of another term, or of an incarnation that has not said
// Hello, are dropped and logged. Halted is taken whatever was lost before it.
// Threading: one thread; Wake of the hub from any.
class WorkerGroup {
 public:
  struct Member {
    bool joined = false;
    Incarnation incarnation;
    wire::Hello hello;
  };
  struct Received {
    Rank rank = 0;
    wire::Report report;
  };

  // `hub` must outlive this.
  WorkerGroup(Hub* hub, int num_ranks, Term term);

  int num_ranks() const { return static_cast<int>(members_.size()); }
  const Member& member(Rank rank) const { return members_[rank].member; }

  // Sends `command` to every joined worker, or to those of `ranks`. A worker
  // that it does not reach is lost.
  void Broadcast(const wire::Command& command);
  void SendTo(RankSet ranks, const wire::Command& command);

  // Whether a worker was greeted and has not answered, and to greet them again.
  bool greeting() const;
  void GreetAgain();

  // Nothing more is sent to this incarnation of the worker.
  void Leave(Rank rank) { members_[rank].member.joined = false; }

  // Workers that a command did not reach since the last call.
  RankSet TakeLost() { return std::exchange(lost_, RankSet()); }
  // Whether a report was lost since the last call.
  bool TakeGap() { return std::exchange(gap_, false); }
  // Whether a joined worker has connected again since the last call: what was
  // on its way to or from it may be lost, and nothing may follow to show it.
  bool TakeReconnected() { return std::exchange(reconnected_, false); }

  // Waits as Hub::Receive does. Hello of a new incarnation comes out as a
  // report too, after the member was recorded. Errors: the channel's, and a
  // group of another size or model.
  absl::StatusOr<std::vector<Received>> Receive(int timeout_ms);

 private:
  struct Peer {
    Member member;
    uint64_t next_out = 1;
    uint64_t next_in = 1;
    // The incarnation that was greeted last, which may have joined or not.
    Incarnation greeted;
  };

  void Greet(Rank rank, Incarnation incarnation);

  absl::Status Join(Rank rank, const wire::Envelope& envelope,
                    const wire::Hello& hello);
  // Whether a report of a joined worker is to be taken now.
  bool Accept(Rank rank, const wire::Envelope& envelope,
              const wire::Report& report);

  Hub* hub_;
  Term term_;
  std::vector<Peer> members_;
  RankSet lost_;
  bool gap_ = false;
  bool reconnected_ = false;
};

}  // namespace moebius
