// Passes that the host need not wait for.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/results.h"
#include "worker/model/pass.h"

namespace moebius {

// PassLauncher
//
// Passes are numbered by who launches them, in their order, one after the
// other. A token of one may be such that a pass before it draws (TokenAtPlace).
// An error of a pass is one of all behind it, until nothing is under way.
// Threading: one call at a time, but for AwaitEnd(), which may be beside
// others.
class PassLauncher {
 public:
  // Passes that may be under way: launched and not finished. A peer's results
  // of a pass stay as they are until it is finished here (result_board.h).
  static constexpr int kMostUnderWay = kPassCopies / 2;

  virtual ~PassLauncher() = default;
  // Does not wait for the device, but where its memory has to grow. What `pass`
  // points to may go then, but for what DrawOnHost() needs.
  // REQUIRES: fewer than kMostUnderWay are under way. An error: it is not.
  virtual absl::Status Launch(const Pass<Cpu>& pass, uint64_t number) = 0;
  // Waits for the end of a pass that is under way, on every rank.
  virtual void AwaitEnd(uint64_t number) = 0;
  // The first pass under way, which has ended, is so no longer. OK: its results
  // are there, on every rank.
  virtual absl::Status Finish(uint64_t number) = 0;
  // Draws those rows of the pass launched last that the host has to draw
  // (SamplingParams::allowed_ids), into the results. REQUIRES: it has ended.
  virtual void DrawOnHost() = 0;
  // Waits until nothing runs; nothing is under way then.
  virtual void Drain() = 0;
};

}  // namespace moebius
