// Graphs of passes that come again and again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/failure.h"

struct CUstream_st;
struct CUgraphExec_st;

namespace moebius {

// PassGraphs
//
// What a pass launches follows from numbers that the host knows. The first
// passes of some numbers are launched as they are, and so find all the room
// they need; then one is captured, and those that follow are one launch. To
// capture takes as long as a few passes do, so numbers have to come again
// first. Of graphs that are too many the one goes that was not used for
// longest. Threading: thread-compatible.
class PassGraphs {
 public:
  static constexpr size_t kMaxGraphs = 64;
  static constexpr int kPassesBefore = 3;  // a pass is captured
  // All that a pass's launches depend on.
  using Key = std::vector<int64_t>;

  PassGraphs(CUstream_st* stream, CudaFailure* failure)
      : stream_(stream), failure_(failure) {}
  ~PassGraphs();

  // Launches the pass of `key`: by `launch`, or as a graph of what that has
  // launched before. `renew` does what the host does for a pass, instead.
  absl::Status Launch(const Key& key,
                      const std::function<absl::Status()>& launch,
                      const std::function<void()>& renew);

 private:
  struct Graph {
    Key key;
    int passes = 0;                  // launched as they are
    CUgraphExec_st* exec = nullptr;  // null: not yet
    uint64_t last_use = 0;
  };
  // The one of this key, new if there was none.
  Graph& Find(const Key& key);
  absl::Status Capture(Graph& graph,
                       const std::function<absl::Status()>& launch);

  CUstream_st* const stream_;
  CudaFailure* const failure_;
  std::vector<std::unique_ptr<Graph>> graphs_;
  uint64_t uses_ = 0;
};

}  // namespace moebius
