#include <cuda_runtime_api.h>

#include <algorithm>

#include "common/base/status_macros.h"
#include "worker/model/pass_graphs.h"

namespace moebius {

bool PassGraphs::Replay(const PassKey& key) {
  const auto found =
      std::find_if(graphs_.begin(), graphs_.end(),
                   [&](const Graph& graph) { return graph.key == key; });
  if (found == graphs_.end()) return false;
  found->last_replay = ++replays_;
  failure_->Note(CudaStatus(cudaGraphLaunch(found->graph, stream_),
                            "the launch of a captured pass"));
  return true;
}

bool PassGraphs::WasSeen(const PassKey& key) {
  if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) return true;
  // What was seen longest ago is forgotten, and so found new once more.
  if (static_cast<int>(seen_.size()) >= most_) seen_.erase(seen_.begin());
  seen_.push_back(key);
  return false;
}

absl::Status PassGraphs::Capture(const PassKey& key,
                                 absl::FunctionRef<absl::Status()> launch) {
  MakeRoom();
  RETURN_IF_ERROR(CudaStatus(
      cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
      "the begin of a captured pass"));
  const absl::Status launched = launch();
  cudaGraph_t graph = nullptr;
  absl::Status status = CudaStatus(cudaStreamEndCapture(stream_, &graph),
                                   "the end of a captured pass");
  if (!launched.ok()) status = launched;
  cudaGraphExec_t ready = nullptr;
  if (status.ok()) {
    status = CudaStatus(cudaGraphInstantiate(&ready, graph, 0),
                        "a graph of a captured pass");
  }
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (status.ok()) {
    status = CudaStatus(cudaGraphUpload(ready, stream_), "a captured pass");
  }
  if (status.ok()) {
    graphs_.push_back({key, ready, ++replays_});
  } else {
    if (ready != nullptr) cudaGraphExecDestroy(ready);
    cudaGetLastError();  // it is told here, and not to be found by a launch
  }
  return status;
}

void PassGraphs::MakeRoom() {
  if (static_cast<int>(graphs_.size()) < most_) return;
  const auto oldest = std::min_element(graphs_.begin(), graphs_.end(),
                                       [](const Graph& a, const Graph& b) {
                                         return a.last_replay < b.last_replay;
                                       });
  cudaGraphExecDestroy(oldest->graph);
  graphs_.erase(oldest);
}

void PassGraphs::Clear() {
  for (const Graph& graph : graphs_) cudaGraphExecDestroy(graph.graph);
  graphs_.clear();
}

}  // namespace moebius
