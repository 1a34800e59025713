// A meeting of all ranks of a group.
#pragma once

#include "absl/status/status.h"

namespace moebius {

// Barrier
//
// Wait() returns OK once every rank has called it as often as the caller has.
// What a rank wrote to memory before its call, every rank sees after its own.
// Errors: when a rank is dead or late (the implementation has a deadline); the
// group is then out of step, and the caller gives the step up.
class Barrier {
 public:
  virtual ~Barrier() = default;
  virtual absl::Status Wait() = 0;
};

}  // namespace moebius
