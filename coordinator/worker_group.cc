#include "coordinator/worker_group.h"

#include <spdlog/spdlog.h>

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace moebius {

WorkerGroup::WorkerGroup(Hub* hub, int num_ranks, Term term)
    : hub_(hub), term_(term), members_(num_ranks) {}

absl::Status WorkerGroup::Broadcast(const Command& command) {
  // One encoding serves every worker whose envelope is the same, which is all
  // of them unless one has had another life.
  CommandMessage message{{}, command};
  std::string bytes;
  for (Rank rank = 0; rank < num_ranks(); ++rank) {
    Peer& peer = members_[rank];
    if (!peer.member.joined) continue;
    const Envelope envelope{term_, peer.member.incarnation, peer.next_out};
    if (bytes.empty() || envelope.incarnation != message.envelope.incarnation ||
        envelope.sequence != message.envelope.sequence) {
      message.envelope = envelope;
      bytes = Encode(message);
    }
    RETURN_IF_ERROR(hub_->Send(rank, peer.member.incarnation, bytes));
    ++peer.next_out;
  }
  return absl::OkStatus();
}

absl::Status WorkerGroup::Join(Rank rank, Incarnation incarnation,
                               const Hello& hello) {
  if (hello.rank != rank || hello.num_ranks != num_ranks()) {
    return absl::FailedPreconditionError(
        absl::StrCat("worker ", rank, " says it is rank ", hello.rank, " of ",
                     hello.num_ranks, "; this group has ", num_ranks()));
  }
  for (const Peer& peer : members_) {
    if (!peer.member.joined) continue;
    const Hello& other = peer.member.hello;
    if (other.model_digest != hello.model_digest ||
        other.num_pages != hello.num_pages) {
      return absl::FailedPreconditionError(
          absl::StrCat("workers ", other.rank, " and ", rank,
                       " loaded different models or cache sizes"));
    }
  }
  Peer& peer = members_[rank];
  if (!peer.member.joined) ++num_joined_;
  peer.member = Member{true, incarnation, hello};
  peer.next_out = 1;
  peer.next_in = 2;  // Hello was number 1
  return absl::OkStatus();
}

absl::StatusOr<std::vector<WorkerGroup::Received>> WorkerGroup::Receive(
    int timeout_ms) {
  ASSIGN_OR_RETURN(auto messages, hub_->Receive(timeout_ms));
  std::vector<Received> received;
  received.reserve(messages.size());
  for (Hub::Message& raw : messages) {
    const Rank rank = raw.rank;
    auto message = DecodeReport(raw.bytes);
    if (!message.ok()) {
      return absl::DataLossError(
          absl::StrCat("from worker ", rank, ": ", message.status().message()));
    }
    const Envelope& envelope = message->envelope;
    if (rank >= num_ranks() || envelope.incarnation != raw.incarnation) {
      spdlog::warn("dropped a message of rank {} incarnation {}", rank,
                   raw.incarnation.value);
      continue;
    }
    Peer& peer = members_[rank];
    if (const Hello* hello = std::get_if<Hello>(&message->report)) {
      if (peer.member.joined && raw.incarnation <= peer.member.incarnation) {
        continue;  // repeated, or of an earlier life
      }
      RETURN_IF_ERROR(Join(rank, raw.incarnation, *hello));
    } else if (!peer.member.joined ||
               raw.incarnation != peer.member.incarnation ||
               envelope.term != term_) {
      spdlog::warn("dropped a message of worker {} incarnation {} term {}",
                   rank, raw.incarnation.value, envelope.term.value);
      continue;
    } else if (envelope.sequence < peer.next_in) {
      continue;
    } else if (envelope.sequence > peer.next_in) {
      return absl::DataLossError(absl::StrCat(
          "message ", peer.next_in, " of worker ", rank, " was lost"));
    } else {
      ++peer.next_in;
    }
    received.push_back(Received{rank, std::move(message->report)});
  }
  return received;
}

}  // namespace moebius
