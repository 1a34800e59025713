#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "worker/model/pass_graphs.h"

namespace moebius {

PassGraphs::~PassGraphs() {
  cudaStreamSynchronize(stream_);
  for (const auto& graph : graphs_) {
    if (graph->exec != nullptr) cudaGraphExecDestroy(graph->exec);
  }
}

PassGraphs::Graph& PassGraphs::Find(const Key& key) {
  ++uses_;
  for (const auto& graph : graphs_) {
    if (graph->key != key) continue;
    graph->last_use = uses_;
    return *graph;
  }
  if (graphs_.size() == kMaxGraphs) {
    const auto oldest = std::min_element(
        graphs_.begin(), graphs_.end(),
        [](const auto& a, const auto& b) { return a->last_use < b->last_use; });
    if ((*oldest)->exec != nullptr) cudaGraphExecDestroy((*oldest)->exec);
    graphs_.erase(oldest);
  }
  graphs_.push_back(std::make_unique<Graph>(Graph{key, 0, nullptr, uses_}));
  return *graphs_.back();
}

absl::Status PassGraphs::Capture(Graph& graph,
                                 const std::function<absl::Status()>& launch) {
  const absl::Status begun = CudaStatus(
      cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
      "the capture of a pass");
  RETURN_IF_ERROR(begun);
  const absl::Status launched = launch();
  cudaGraph_t captured = nullptr;
  absl::Status status = CudaStatus(cudaStreamEndCapture(stream_, &captured),
                                   "the capture of a pass");
  if (status.ok()) status = launched;
  if (status.ok()) {
    status = CudaStatus(cudaGraphInstantiate(&graph.exec, captured, 0),
                        "the graph of a pass");
  }
  if (captured != nullptr) cudaGraphDestroy(captured);
  return status;
}

absl::Status PassGraphs::Launch(const Key& key,
                                const std::function<absl::Status()>& launch,
                                const std::function<void()>& renew) {
  Graph& graph = Find(key);
  if (graph.exec != nullptr) {
    renew();
  } else if (graph.passes < kPassesBefore) {
    ++graph.passes;
    return launch();
  } else {
    // What is captured has done the host's part for this pass.
    RETURN_IF_ERROR(Capture(graph, launch));
  }
  failure_->Note(
      CudaStatus(cudaGraphLaunch(graph.exec, stream_), "a pass as a graph"));
  return failure_->status();
}

}  // namespace moebius
