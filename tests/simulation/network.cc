#include "tests/simulation/network.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"

namespace moebius::simulation {

Network::Network(World* world, const Options& options, Rng rng, Ends ends)
    : world_(world), options_(options), rng_(rng), ends_(std::move(ends)) {}

void Network::Connect(Rank rank, Incarnation incarnation) {
  connected_[rank] = incarnation;
  introduced_[rank] = false;
  waiting_[rank] = 0;
  if (hub_up_) Introduce(rank, incarnation, rng_.Between(1, 50));
}

void Network::Introduce(Rank rank, Incarnation incarnation, int64_t delay_us) {
  const uint64_t hub = hub_number_;
  world_->After(delay_us, [this, rank, incarnation, hub] {
    if (hub != hub_number_ || connected_[rank] != incarnation) return;
    introduced_[rank] = true;
    inbox_.push_back({rank, incarnation, ""});
    ends_.to_hub();
  });
}

void Network::LoseHub() {
  hub_up_ = false;
  ++hub_number_;
  inbox_.clear();
  introduced_ = {};
}

void Network::BindHub() {
  hub_up_ = true;
  for (Rank r = 0; r < options_.num_workers; ++r) {
    if (connected_[r].value == 0) continue;
    Introduce(r, connected_[r], rng_.Between(100, 40'000));
  }
}

void Network::LosePower() {
  LoseHub();
  ++boot_;
  connected_ = {};
}

void Network::Disconnect(Rank rank, Incarnation incarnation) {
  if (connected_[rank] == incarnation) connected_[rank] = Incarnation{0};
}

void Network::Partition(Rank rank, bool to_worker, int64_t until_us) {
  int64_t& until = ways_[rank][to_worker].partitioned_until_us;
  until = std::max(until, until_us);
}

std::vector<int64_t> Network::Arrivals(Way& way, Rank rank, bool to_worker) {
  std::vector<int64_t> arrivals;
  const size_t link = static_cast<size_t>(to_worker ? FaultId::kLinkCommand
                                                    : FaultId::kLinkReport);
  ++world_->tally().reached[link];
  int copies = 1;
  if (faults_ && world_->now_us() < way.partitioned_until_us) {
    world_->CountFault("message partitioned");
    copies = 0;
  } else if (faults_ && rng_.Chance(options_.loss)) {
    world_->CountFault("message lost");
    world_->Note(to_worker ? "command lost" : "report lost", rank);
    copies = 0;
  } else if (faults_ && rng_.Chance(options_.repetition)) {
    world_->CountFault("message repeated");
    copies = 2;
  }
  if (copies == 0) ++world_->tally().struck[link];
  for (int i = 0; i < copies; ++i) {
    int64_t at =
        world_->now_us() +
        (faults_ ? rng_.Between(options_.delay_min_us, options_.delay_max_us)
                 : rng_.Between(20, 200));
    if (at < way.last_us) {
      if (faults_ && options_.reorder) {
        world_->CountFault("message reordered");
      } else {
        at = way.last_us;
      }
    }
    way.last_us = std::max(way.last_us, at);
    arrivals.push_back(at);
  }
  return arrivals;
}

absl::Status Network::SendToWorker(Rank rank, Incarnation incarnation,
                                   std::string bytes) {
  if (connected_[rank] != incarnation || !introduced_[rank]) {
    return absl::UnavailableError("that incarnation is not connected");
  }
  if (waiting_[rank] >= options_.queue_limit) {
    world_->CountFault("queue full");
    return absl::UnavailableError("its queue is full");
  }
  for (int64_t at : Arrivals(ways_[rank][1], rank, true)) {
    ++waiting_[rank];
    world_->At(at, [this, boot = boot_, rank, incarnation, bytes] {
      if (boot != boot_ || connected_[rank] != incarnation) return;
      ends_.to_worker(rank, incarnation, bytes);
    });
  }
  return absl::OkStatus();
}

absl::Status Network::SendToHub(Rank rank, Incarnation incarnation,
                                std::string bytes) {
  if (!hub_up_ || !introduced_[rank]) {
    return absl::UnavailableError("no coordinator is connected");
  }
  const uint64_t hub = hub_number_;
  for (int64_t at : Arrivals(ways_[rank][0], rank, false)) {
    world_->At(at, [this, rank, incarnation, hub, bytes] {
      if (hub != hub_number_) return;
      inbox_.push_back({rank, incarnation, bytes});
      ends_.to_hub();
    });
  }
  return absl::OkStatus();
}

std::vector<Hub::Message> Network::TakeAll() {
  return std::exchange(inbox_, {});
}

}  // namespace moebius::simulation
