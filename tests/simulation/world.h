// Virtual time, the events in it, and the record of a run.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/faults/fault_point.h"

namespace moebius::simulation {

// What was done to a run, and how often.
struct Tally {
  uint64_t events = 0;
  std::map<std::string, uint64_t> faults;  // by kind
  std::array<uint64_t, kNumFaultIds> reached{};
  std::array<uint64_t, kNumFaultIds> struck{};  // a fault was injected there

  void Add(const Tally& other);
};

// An invariant that does not hold.
struct Violation {
  char invariant = '?';  // its letter
  std::string what;
  int64_t at_us = 0;
};

// World
//
// One event at a time, in the order of their times; of equal times, in the
// order in which they were planned.
class World {
 public:
  using Action = std::function<void()>;
  // `trace`: whether notes are printed as they come. The last ones are kept if
  // `keep_notes`.
  World(bool trace, bool keep_notes) : trace_(trace), keep_(keep_notes) {}

  int64_t now_us() const { return now_us_; }
  std::chrono::steady_clock::time_point Now() const {
    return std::chrono::steady_clock::time_point(
        std::chrono::hours(1) + std::chrono::microseconds(now_us_));
  }

  void At(int64_t time_us, Action action);
  void After(int64_t delay_us, Action action) {
    At(now_us_ + delay_us, std::move(action));
  }
  // The next event; false when there is none.
  bool RunOne();

  // Adds to the record by which two runs are compared.
  void Note(std::string_view kind, int rank, uint64_t a = 0, uint64_t b = 0);
  using NoteListener =
      std::function<void(std::string_view, int, uint64_t, uint64_t)>;
  void SetNoteListener(NoteListener listener) {
    note_listener_ = std::move(listener);
  }
  uint64_t hash() const { return hash_; }
  const std::deque<std::string>& notes() const { return notes_; }
  // Whether the production code's log lines are to be seen.
  bool trace() const { return trace_; }

  void CountFault(const std::string& kind) { ++tally_.faults[kind]; }
  Tally& tally() { return tally_; }

  // The first violation stands and ends the run.
  void Violate(char invariant, std::string what);
  const std::optional<Violation>& violation() const { return violation_; }

 private:
  struct Event {
    int64_t time_us;
    uint64_t number;
    Action action;
  };
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.time_us != b.time_us ? a.time_us > b.time_us
                                    : a.number > b.number;
    }
  };
  void Mix(uint64_t value) {
    hash_ = (hash_ ^ value) * 0x9e3779b97f4a7c15u;
    hash_ ^= hash_ >> 29;
  }

  const bool trace_, keep_;
  int64_t now_us_ = 0;
  uint64_t next_number_ = 0;
  std::vector<Event> events_;  // a heap
  uint64_t hash_ = 0x6d6f6562697573u;
  std::deque<std::string> notes_;
  NoteListener note_listener_;
  Tally tally_;
  std::optional<Violation> violation_;
};

}  // namespace moebius::simulation
