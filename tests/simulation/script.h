// One run as a script that teaches the protocol: who says what to whom, what
// the journal has on disk, what workers record. protocol.script is what it must
// be.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/faults/fault_point.h"
#include "common/wire/wire.h"
#include "tests/simulation/front.h"
#include "tests/simulation/options.h"
#include "tests/simulation/vault.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

// Script
//
// The scene: a group of two with one request. A switch is ordered when its
// client has heard some tokens, then a worker and a coordinator die at a fault
// point each. A cluster that is given the script plays the scene, and tells it
// what happens.
class Script {
 public:
  Script();

  // ---- the scene
  static Options SceneOptions();
  Wish wish() const;
  // Whether that process dies here: a rank, or kCoordinatorRank.
  bool Strikes(int process, FaultId id);
  // Whether the switch is to be ordered now. True once.
  bool OrdersSwitch(const std::vector<Front::Choice>& choices);
  // Whether all that is to be seen has been.
  bool over() const { return checked_; }

  // ---- what happens, in its order
  void Bind(const World* world, const VaultStore* store);
  // Of the record of the run (World::Note).
  void OnNote(std::string_view kind, int rank, uint64_t a, uint64_t b);
  void OnCommand(Rank rank, const wire::CommandMessage& message);
  void OnReport(Rank rank, const wire::Report& report);
  // Bytes of a segment are on disk.
  void OnJournal(absl::Span<const char> bytes);
  // After outputs: what the client knows now.
  void OnOutputs(const std::vector<Front::Choice>& choices);
  // The coordinator found the weights right, so often since it began.
  void OnChecked(uint64_t times);
  // What the workers' signals say now.
  void Look();

  // The whole, with its comments. kInternal when a comment finds no place.
  absl::StatusOr<std::string> Text() const;

 private:
  struct Line {
    int64_t at_us = 0;
    // '@' stands for the ranks, '#' for the tokens.
    std::string who, what;
    std::set<Rank> ranks;
    uint64_t first = 0, last = 0;
    uint64_t decode = 0;  // of this step, one like any other; 0: it is not
    // The end of what such a step is made of.
    bool result = false, heard = false;
  };
  struct Signals {
    uint64_t record = 0, aborted = 0;
  };

  // Events that are one to the reader become one line.
  void Say(Line line);
  void SayFrame(absl::Span<const char> payload);
  void Say(std::string who, std::string what) {
    Say(Line{.who = std::move(who), .what = std::move(what)});
  }
  std::string Render(const Line& line) const;
  // The lines, those of steps that are like the one before in short.
  std::vector<Line> Shorten() const;

  const World* world_ = nullptr;
  const VaultStore* store_ = nullptr;
  std::vector<FaultSpec> faults_;  // `nth` counts down
  bool ordered_ = false;

  std::vector<Line> lines_;
  std::array<Signals, kMaxRanks> signals_{};
  std::string segment_;  // the bytes of the newest
  size_t frames_seen_ = 0;
  std::string beginning_;  // of a segment; stands before its first frame
  bool coordinator_alive_ = false;
  bool accepted_ = false, ended_ = false, checked_ = false;
  uint64_t decode_ = 0;  // the last step whose token was written
};

// Plays the scene. The text, or how the run or its telling went wrong.
absl::StatusOr<std::string> PlayScript();

}  // namespace moebius::simulation
