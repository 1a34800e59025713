// Where operators run.
//
// A device is a value. Operators are free functions overloaded on it, and what
// they are given is typed by it (view.h): memory of one device never reaches an
// operator of another, and model code, a template over the device, is written
// once. ARCHITECTURE.md ("A second device") lists what a device type brings.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/thread_pool.h"

struct CUstream_st;

namespace moebius {

// The type says which numerics a device has. Exact: the same bits in every
// layout, for any number of ranks, and whatever else is in a step. Fast:
// rounding may differ, within a stated tolerance.
enum class Numerics : uint8_t { kExact, kFast };

// The processor's cores, exact. Operators return when they are done.
struct Cpu {
  // Its memory can be read and written by the host.
  static constexpr bool kHostMemory = true;
  // Of row-parallel products: fixed point (formats.h).
  using Partial = int64_t;

  ThreadPool* pool = nullptr;  // null: the calling thread alone
};

class CudaFailure;
class Workspace;

// A GPU. Operators are launched on the stream and return at once; what cannot
// be launched or allocated is noted, and told when the pass has ended
// (cuda/failure.h). Device memory that they are given is current on the device
// that the calling thread has chosen.
template <Numerics N>
struct Cuda {
  static constexpr bool kHostMemory = false;
  // Exact: fixed point, whose sums have no order.
  using Partial = std::conditional_t<N == Numerics::kExact, int64_t, float>;

  CUstream_st* stream = nullptr;  // a cudaStream_t
  CudaFailure* failure = nullptr;
  int num_multiprocessors = 0;
  // Of the stream alone. Null: operators do without, and take longer.
  Workspace* workspace = nullptr;
};
using CudaExact = Cuda<Numerics::kExact>;
using CudaFast = Cuda<Numerics::kFast>;

}  // namespace moebius
