#include "tests/simulation/world.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "common/base/cat.h"
#include "common/base/check.h"

namespace moebius::simulation {
namespace {

constexpr size_t kNotesKept = 60;

}  // namespace

void Tally::Add(const Tally& other) {
  events += other.events;
  for (const auto& [kind, count] : other.faults) faults[kind] += count;
  for (int i = 0; i < kNumFaultIds; ++i) {
    reached[i] += other.reached[i];
    struck[i] += other.struck[i];
  }
}

void World::At(int64_t time_us, Action action) {
  events_.push_back(
      {std::max(time_us, now_us_), next_number_++, std::move(action)});
  std::push_heap(events_.begin(), events_.end(), Later{});
}

bool World::RunOne() {
  if (events_.empty()) return false;
  std::pop_heap(events_.begin(), events_.end(), Later{});
  Event event = std::move(events_.back());
  events_.pop_back();
  now_us_ = event.time_us;
  ++tally_.events;
  event.action();
  return true;
}

void World::Note(std::string_view kind, int rank, uint64_t a, uint64_t b) {
  Mix(static_cast<uint64_t>(now_us_));
  for (char c : kind) Mix(static_cast<unsigned char>(c));
  Mix(static_cast<uint64_t>(rank) << 32);
  Mix(a);
  Mix(b);
  if (note_listener_) note_listener_(kind, rank, a, b);
  if (!trace_ && !keep_) return;
  char line[160];
  std::snprintf(line, sizeof(line), "%10.3f ms  %-28.*s %3d  %llu %llu",
                static_cast<double>(now_us_) / 1000,
                static_cast<int>(kind.size()), kind.data(), rank,
                static_cast<unsigned long long>(a),
                static_cast<unsigned long long>(b));
  if (trace_) std::printf("%s\n", line);
  if (!keep_) return;
  notes_.emplace_back(line);
  if (notes_.size() > kNotesKept) notes_.pop_front();
}

void World::Violate(char invariant, std::string what) {
  if (violation_.has_value()) return;
  if (trace_) std::printf("VIOLATION %c: %s\n", invariant, what.c_str());
  violation_ = Violation{invariant, std::move(what), now_us_};
}

}  // namespace moebius::simulation
