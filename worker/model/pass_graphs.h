// Passes that a GPU has been taught, to be replayed by one launch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/cuda/failure.h"
#include "worker/model/pass_buckets.h"

struct CUgraphExec_st;
struct CUstream_st;

namespace moebius {

// PassGraphs
//
// CUDA graphs by key, a bounded number: the one that was replayed longest ago
// makes room. A graph has addresses in it, which its owner keeps where they
// are, or calls Clear().
// Threading: one call at a time, on a thread that has chosen the stream's GPU.
class PassGraphs {
 public:
  PassGraphs(int most, CUstream_st* stream, CudaFailure* failure)
      : most_(most), stream_(stream), failure_(failure) {}
  ~PassGraphs() { Clear(); }
  PassGraphs(const PassGraphs&) = delete;
  PassGraphs& operator=(const PassGraphs&) = delete;

  // From now on there may be at least so many.
  void AllowUpTo(int most) { most_ = std::max(most_, most); }
  // Launches the key's graph; false if there is none.
  bool Replay(const PassKey& key);
  // Whether this was asked of the key before: then its pass has run, and
  // whatever it needs is there. Remembers as many keys as there may be graphs.
  bool WasSeen(const PassKey& key);
  // Makes a graph of what `launch` launches on the stream, and runs none of it.
  // `launch` must not wait for the stream, nor allocate. On an error, as for
  // want of memory, nothing has changed.
  absl::Status Capture(const PassKey& key,
                       absl::FunctionRef<absl::Status()> launch);
  // REQUIRES: the stream is done with them.
  void Clear();

  int size() const { return static_cast<int>(graphs_.size()); }

 private:
  struct Graph {
    PassKey key;
    CUgraphExec_st* graph = nullptr;
    uint64_t last_replay = 0;
  };
  void MakeRoom();

  int most_;
  CUstream_st* const stream_;
  CudaFailure* const failure_;
  std::vector<Graph> graphs_;
  std::vector<PassKey> seen_;
  uint64_t replays_ = 0;
};

}  // namespace moebius
