// The checksum of a rank's expert weights, taken beside the steps.
#pragma once

#include <cstdint>
#include <optional>

#include "common/base/ids.h"
#include "common/layout/experts_state.h"

namespace moebius {

// WeightCheck
//
// A switch is over when its copies are; whether they are right is found out
// while steps go on, which only read the slots as this does.
// Threading: the worker's thread.
class WeightCheck {
 public:
  // WeightChecksum() of what the slots held after the switch of an epoch.
  struct Sum {
    Epoch epoch;
    uint64_t checksum = 0;
  };

  virtual ~WeightCheck() = default;

  // Begins to read the slots of `state`. What is under way is given up.
  virtual void Begin(Epoch epoch, const ExpertsState& state) = 0;

  // Gives up what is under way; nothing reads the slots when this returns. To
  // be called before anything writes them: the sum would be of a mixture.
  virtual void GiveUp() = 0;

  // The sum, once, when it is done.
  virtual std::optional<Sum> Take() = 0;
};

}  // namespace moebius
