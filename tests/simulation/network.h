// The channel between a coordinator and its workers, with all that can happen
// to messages.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/channel/channel.h"
#include "tests/simulation/options.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

// Network
//
// Carries bytes. Loses, repeats, delays and reorders them while faults are on;
// a process that has ended is not connected, but what it sent may still arrive.
class Network {
 public:
  struct Ends {
    // A message has reached a worker that is connected: how many wait there now
    // is its own business.
    std::function<void(Rank, Incarnation, std::string)> to_worker;
    // The hub has something.
    std::function<void()> to_hub;
  };
  Network(World* world, const Options& options, Rng rng, Ends ends);

  // ---- what there is
  void Connect(Rank rank, Incarnation incarnation);
  void Disconnect(Rank rank, Incarnation incarnation);
  // The coordinator has gone, with all that was on its way to it; and another
  // is there, to whom the workers connect in their own time.
  void LoseHub();
  void BindHub();
  // Nothing that is on its way arrives.
  void LosePower();
  // The worker has taken a message.
  void Taken(Rank rank) { --waiting_[rank]; }

  // ---- faults
  void SetFaults(bool on) { faults_ = on; }
  // Until then nothing passes in that direction.
  void Partition(Rank rank, bool to_worker, int64_t until_us);

  // ---- messages
  absl::Status SendToWorker(Rank rank, Incarnation incarnation,
                            std::string bytes);
  absl::Status SendToHub(Rank rank, Incarnation incarnation, std::string bytes);
  std::vector<Hub::Message> TakeAll();

 private:
  struct Way {
    int64_t partitioned_until_us = 0;
    int64_t last_us = 0;  // arrival of the latest message
  };
  // When the copies of a message arrive.
  std::vector<int64_t> Arrivals(Way& way, Rank rank, bool to_worker);

  World* const world_;
  const Options& options_;
  Rng rng_;
  const Ends ends_;
  // Tells the hub, after `delay_us`, that a worker has connected.
  void Introduce(Rank rank, Incarnation incarnation, int64_t delay_us);

  bool faults_ = false;
  bool hub_up_ = false;
  uint64_t hub_number_ = 0;
  uint64_t boot_ = 0;
  std::array<bool, kMaxRanks> introduced_{};  // to this hub
  std::array<std::array<Way, 2>, kMaxRanks> ways_{};
  std::array<Incarnation, kMaxRanks> connected_{};  // 0: nobody
  std::array<int, kMaxRanks> waiting_{};            // on their way, too
  std::vector<Hub::Message> inbox_;
};

}  // namespace moebius::simulation
