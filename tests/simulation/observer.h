// Watches what coordinator and workers say, and holds it against what must be
// so after every event.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/wire/wire.h"
#include "tests/simulation/vault.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

// Observer
//
//   C  a step number stands for one plan and one layout, on all ranks
//   D  no page belongs to two sequences
//   E  a worker writes no other's signals, and only the newest process writes
//   F  what was committed is not reversed, and what was refused not committed;
//      every switch turns the side of the slots
class Observer {
 public:
  Observer(World* world, int num_ranks, Layout layout);

  // The coordinator sends that to a worker.
  void OnCommand(Rank rank, Incarnation incarnation,
                 const wire::Command& command);
  // The worker takes it from its channel.
  void OnTaken(Rank rank, Incarnation incarnation,
               const wire::Command& command);
  // Another coordinator begins. It may give numbers again that nobody has
  // executed.
  void OnNewCoordinator();
  // Of the workers nothing is left. Incarnations are counted anew.
  void OnPowerLost();
  // How a switch ended, as its caller hears.
  void OnSwitchReport(Epoch epoch, bool done);

  // Takes in what the signals say now: before a slice of any worker, and when
  // memory is lost.
  void Look(const VaultStore& store);
  // After a slice of a worker of `rank`.
  void AfterSlice(const VaultStore& store, Rank rank, Incarnation incarnation);

  // What the last decision says.
  const ExpertsState& experts() const;
  int num_decisions() const { return static_cast<int>(decisions_.size()); }
  StepId last_step() const { return StepId{last_planned_}; }

 private:
  struct Decision {
    Epoch epoch;
    StepId boundary;
    ExpertsState experts;  // once it is done
  };
  // Who has which pages, as a worker that missed nothing would know.
  struct Tables {
    using Block = std::pair<Rank, uint32_t>;
    std::map<uint32_t, std::map<Block, std::vector<PageId>>> pages;  // by slot
    std::map<std::pair<Rank, PageId>, uint32_t> owner;               // the slot
    uint64_t round = 0;  // of the last Restore
  };
  struct Words {
    uint64_t incarnation = 0, sequence = 0, aborted = 0, step = 0, record = 0;
    uint64_t loaded = 0;
    friend bool operator==(const Words&, const Words&) = default;
  };

  void On(Rank rank, const StepPlan& plan);
  void On(Rank rank, const wire::Prepare& prepare);
  void On(Rank rank, const wire::Commit& commit);
  void On(Rank rank, const wire::Abort& abort);
  void On(Rank rank, const wire::Restore& restore);
  void On(Rank rank, const wire::Resume& resume);
  template <typename Other>
  void On(Rank, const Other&) {}

  void Release(Tables& tables, uint32_t slot);
  void Put(Tables& tables, uint32_t slot, uint32_t block, Rank rank,
           absl::Span<const PageId> pages);
  void Put(Tables& tables, const KvTable& table);
  static Words WordsOf(const SignalsBlock& block);

  World* const world_;
  const int num_ranks_;
  const ExpertsState first_;
  std::vector<Decision> decisions_;
  std::map<uint64_t, wire::Prepare> prepared_;  // by epoch
  std::set<uint64_t> aborted_;
  std::array<Tables, kMaxRanks> tables_;
  std::map<uint64_t, uint64_t> plans_;  // step -> hash
  uint64_t last_planned_ = 0;
  // The plans that a rank's process took.
  struct Taken {
    Incarnation incarnation;
    std::map<uint64_t, uint64_t> hashes;  // by step
  };
  std::array<Taken, kMaxRanks> taken_{};
  std::map<uint64_t, uint64_t> executed_;  // step -> hash
  std::array<Words, kMaxRanks> words_{};
};

}  // namespace moebius::simulation
