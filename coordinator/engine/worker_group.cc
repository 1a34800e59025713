#include "coordinator/engine/worker_group.h"

#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"

namespace moebius {

WorkerGroup::WorkerGroup(Hub* hub, int num_ranks, Term term)
    : hub_(hub), term_(term), members_(num_ranks) {}

void WorkerGroup::Broadcast(const wire::Command& command) {
  SendTo(RankSet::All(num_ranks()), command);
}

void WorkerGroup::SendTo(RankSet ranks, const wire::Command& command) {
  // One encoding serves every worker whose envelope is the same, which is all
  // of them unless one has been replaced.
  wire::CommandMessage message{{}, command};
  std::string bytes;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    Peer& peer = members_[rank];
    if (!ranks.contains(rank) || !peer.member.joined) continue;
    const wire::Envelope envelope{term_, peer.member.incarnation,
                                  peer.next_out};
    if (bytes.empty() || envelope.incarnation != message.envelope.incarnation ||
        envelope.sequence != message.envelope.sequence) {
      message.envelope = envelope;
      bytes = Encode(message);
    }
    const absl::Status sent = hub_->Send(rank, peer.member.incarnation, bytes);
    if (sent.ok()) {
      ++peer.next_out;
      continue;
    }
    LogWarn("worker ", rank, " incarnation ", peer.member.incarnation.value,
            " is lost: ", sent.ToString());
    lost_ = lost_.with(rank);
    Leave(rank);
  }
}

absl::Status WorkerGroup::Join(Rank rank, const wire::Envelope& envelope,
                               const wire::Hello& hello) {
  if (hello.rank != rank || hello.num_ranks != num_ranks()) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker ", rank, " says it is rank ", hello.rank, " of ",
                     hello.num_ranks, "; this group has ", num_ranks()));
  }
  for (const Peer& peer : members_) {
    if (!peer.member.joined) continue;
    const wire::Hello& other = peer.member.hello;
    if (other.model_digest != hello.model_digest ||
        other.num_pages != hello.num_pages) {
      return absl::FailedPreconditionError(
          absl::StrCat("workers ", other.rank, " and ", rank,
                       " loaded different models or cache sizes"));
    }
  }
  Peer& peer = members_[rank];
  peer.member = Member{true, envelope.incarnation, hello};
  peer.next_out = 2;  // the greeting was number 1
  peer.next_in = envelope.sequence + 1;
  lost_ = lost_.without(rank);
  return absl::OkStatus();
}

void WorkerGroup::Greet(Rank rank, Incarnation incarnation) {
  members_[rank].greeted = incarnation;
  const absl::Status sent = hub_->Send(
      rank, incarnation,
      Encode(wire::CommandMessage{{term_, incarnation, 1}, wire::Greet{}}));
  if (!sent.ok()) {
    LogDebug("worker ", rank, " was not greeted: ", sent.ToString());
  }
}

bool WorkerGroup::greeting() const {
  for (const Peer& peer : members_) {
    if (peer.greeted > peer.member.incarnation) return true;
  }
  return false;
}

void WorkerGroup::GreetAgain() {
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    const Peer& peer = members_[rank];
    if (peer.greeted > peer.member.incarnation) Greet(rank, peer.greeted);
  }
}

bool WorkerGroup::Accept(Rank rank, const wire::Envelope& envelope,
                         const wire::Report& report) {
  Peer& peer = members_[rank];
  if (!peer.member.joined || envelope.incarnation != peer.member.incarnation ||
      envelope.term != term_) {
    LogWarn("dropped a message of worker ", rank, " incarnation ",
            envelope.incarnation.value, " term ", envelope.term.value);
    return false;
  }
  if (envelope.sequence < peer.next_in) return false;  // repeated, or late
  if (envelope.sequence > peer.next_in &&
      !std::holds_alternative<wire::Halted>(report)) {
    if (!gap_) {
      LogWarn("message ", peer.next_in, " of worker ", rank, " was lost");
    }
    gap_ = true;
    return false;
  }
  peer.next_in = envelope.sequence + 1;
  return true;
}

absl::StatusOr<std::vector<WorkerGroup::Received>> WorkerGroup::Receive(
    int timeout_ms) {
  ASSIGN_OR_RETURN(auto messages, hub_->Receive(timeout_ms));
  std::vector<Received> received;
  received.reserve(messages.size());
  for (Hub::Message& raw : messages) {
    const Rank rank = raw.rank;
    if (raw.bytes.empty()) {  // it has connected
      if (rank < num_ranks() &&
          raw.incarnation > members_[rank].member.incarnation &&
          raw.incarnation >= members_[rank].greeted) {
        Greet(rank, raw.incarnation);
      } else if (rank < num_ranks() && members_[rank].member.joined &&
                 raw.incarnation == members_[rank].member.incarnation) {
        LogWarn("worker ", rank, " has connected again");
        reconnected_ = true;
      }
      continue;
    }
    auto message = wire::DecodeReport(raw.bytes);
    if (!message.ok()) {
      LogWarn("dropped a message of worker ", rank, ": ",
              message.status().ToString());
      continue;
    }
    const wire::Envelope& envelope = message->envelope;
    if (rank >= num_ranks() || envelope.incarnation != raw.incarnation) {
      LogWarn("dropped a message of rank ", rank, " incarnation ",
              raw.incarnation.value);
      continue;
    }
    if (const wire::Hello* hello = std::get_if<wire::Hello>(&message->report)) {
      if (raw.incarnation <= members_[rank].member.incarnation ||
          raw.incarnation != members_[rank].greeted || envelope.term != term_) {
        continue;  // repeated, of an earlier incarnation, or said to another
      }
      RETURN_IF_ERROR(Join(rank, envelope, *hello));
    } else if (!Accept(rank, envelope, message->report)) {
      continue;
    }
    received.push_back(Received{rank, std::move(message->report)});
  }
  return received;
}

}  // namespace moebius
