// A group of ranks on one GPU, in one process: a thread, a stream and memory of
// its own for each.
//
// Ranks of one process share a context: what waits for all of it (memory that
// is freed, code that is loaded late) would wait for a kernel that waits for a
// rank which waits. So all of it is done before ranks meet: code is loaded when
// the program starts, and every rank rehearses passes of all sizes alone, on
// the thread that runs all of its passes. It has given up its barriers then, so
// that it meets nobody.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/routing.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/decoder.h"
#include "worker/model/pass_cuda.h"
#include "worker/peers/collectives_cuda.h"
#include "worker/peers/group_fence.h"

namespace moebius {

// What the driver is told before it starts: from main() of a test program, or
// whatever comes before.
void PrepareForRanksOnOneGpu();

struct GpuRanksOptions {
  absl::Duration timeout = absl::Seconds(20);  // of a meeting
  // Whether passes are graphs, and of which layouts all are captured ahead; by
  // default of the group's own, if it is steady.
  bool graphs = true;
  int max_graphs = 256;
  std::optional<std::vector<Layout>> captured;  // as GpuPasses takes it
  bool rehearse = true;                         // one rank can do without
  std::vector<StepLayout> rehearsed;            // beside the group's own
  std::optional<std::vector<StepLayout>> ahead;
  // States whose weights are there as well.
  std::vector<ExpertsState> more_experts;
};

template <Numerics N>
class GpuRanks final : public TestRanks {
 public:
  GpuRanks(const GroupOptions& options, const ModelShape& shape,
           const GpuRanksOptions& how = {});
  ~GpuRanks() override;

  // On the rank's own thread, which is waited for.
  absl::Status Run(Rank rank, const Pass<Cpu>& pass) override;
  // On the rank's own thread, which is waited for.
  using Task = absl::FunctionRef<absl::Status(GpuPasses<N>&)>;
  absl::Status Do(Rank rank, Task task);
  // Ends the meetings at which others wait for anybody.
  void GiveUp() override { fence(0).Abandon(); }
  SignalsFence& fence(Rank rank);
  // Whether passes from now on are graphs; all of them are by default.
  void SetGraphs(bool graphs) { graphs_ = graphs; }
  int num_graphs(Rank rank) const;
  CUstream_st* stream(Rank rank) const;
  // Of the last pass's last MoE layer.
  const Routing<Cuda<N>>& routing(Rank rank) const;

 private:
  struct OneRank;
  void Load(OneRank& rank, Rank r, const GroupOptions& options,
            const ModelShape& shape);
  void Build(Rank r, const GroupOptions& options, const ModelShape& shape);
  void Rehearse(Rank r, const GroupOptions& options, const ModelShape& shape);
  void RunAlone(Rank r, const Pass<Cpu>& pass);
  void RehearseRows(Rank r, const GroupOptions& options,
                    const ModelShape& shape, int rows, bool all_wanted);
  void RehearsePositions(Rank r, const GroupOptions& options,
                         const ModelShape& shape);

  const GpuRanksOptions how_;
  bool graphs_;
  CudaFailure failure_;
  std::vector<std::unique_ptr<OneRank>> ranks_;
};

// As TestGroup takes them.
template <Numerics N>
std::unique_ptr<TestRanks> MakeGpuRanks(const GroupOptions& options,
                                        const ModelShape& shape) {
  return std::make_unique<GpuRanks<N>>(options, shape);
}

}  // namespace moebius
