// What the launcher knows of a worker.
#pragma once

#include <cstdint>
#include <string>

#include "common/base/ids.h"

namespace moebius {

struct WorkerNews {
  Incarnation incarnation;  // that there is now, 0 for none
  std::string trouble;      // why it does not stay up; "": it does
  // Of its weights. total_bytes 0: it has not begun to load.
  uint64_t done_bytes = 0, total_bytes = 0;
};

}  // namespace moebius
