// Where operators run.
//
// A device is a value. Operators are free functions overloaded on it, and what
// they are given is typed by it (view.h): memory of one device never reaches an
// operator of another, and model code, a template over the device, is written
// once. ARCHITECTURE.md ("A second device") lists what a device type brings.
#pragma once

#include <cstdint>

#include "kernels/thread_pool.h"

namespace moebius {

// The type says which numerics a device has. Exact: the same bits in every
// layout, for any number of ranks, and whatever else is in a step. Fast:
// rounding may differ, within a stated tolerance.

// The processor's cores, exact. Operators return when they are done.
struct Cpu {
  // Its memory can be read and written by the host.
  static constexpr bool kHostMemory = true;
  // Of row-parallel products: fixed point (formats.h).
  using Partial = int64_t;

  ThreadPool* pool = nullptr;  // null: the calling thread alone
};

}  // namespace moebius
