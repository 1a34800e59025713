// Passes on a GPU, as the host has put them together.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sample.h"
#include "worker/model/decoder.h"
#include "worker/model/pass.h"
#include "worker/model/pass_buckets.h"
#include "worker/model/pass_graphs.h"
#include "worker/peers/collectives_cuda.h"

namespace moebius {

class BlockWriter;

// GpuPasses
//
// Runs a pass of the host's: its numbers go to the GPU in one copy, the
// decoder follows, the stream is waited for, and what was sampled is collected.
//
// Captured passes: a pass that wants all logits in steady layouts is padded
// (pass_buckets.h). If its sequences have one row each, it is captured when its
// key comes the second time, and replayed from then on; what its kernels read
// of the host lies in places of the block that follow from the key. When memory
// that a graph has in it is replaced by a larger one, all graphs are forgotten.
// Of the ranks each may run or replay, since padding is the same everywhere.
//
// Errors: of the GPU, which stay; kInvalidArgument for a pass that cannot be,
// before anything of it is done; and of the meetings, after which the next pass
// is as good as any.
// Threading: one Run() at a time, from any thread.
template <Numerics N>
class GpuPasses {
 public:
  struct Options {
    int gpu = 0;
    int max_rows = 0;  // of a step, over the whole group
    int vocabulary = 0;
    // Room to begin with: ids in the tables of a step's sequences.
    int64_t page_ids = 0;
    // Whether passes are padded, and captured. The same on every rank.
    bool graphs = true;
    int max_graphs = 256;
    // All of them outlive this. The stream is the device's.
    const GpuStream* stream = nullptr;
    Decoder<Cuda<N>>* decoder = nullptr;
    Collectives<Cuda<N>>* peers = nullptr;
  };
  static absl::StatusOr<std::unique_ptr<GpuPasses>> Create(
      const Cuda<N>& device, const Options& options);
  ~GpuPasses();

  absl::Status Run(const Pass<Cpu>& pass);
  // Makes all room that passes need in these steady layouts, and captures all
  // passes that there are. Before the first pass; without the other ranks.
  absl::Status CaptureAhead(absl::Span<const StepLayout> layouts);

  int num_graphs() const { return graphs_.size(); }

 private:
  using D = Cuda<N>;
  // Where memory lies that graphs have in them, and that can be replaced.
  using Rooms = std::array<const void*, 7>;
  // To what a pass is padded; no rows: it is not.
  struct Padding {
    int rows = 0;
    int positions = 0;
  };

  GpuPasses(const D& device, const Options& options);

  void Reserve(int64_t size_bytes);
  absl::Status MakeRoom(const Pass<Cpu>& pass);
  PadLimits Limits() const;
  Padding PaddingOf(const Pass<Cpu>& pass) const;
  // The pass as the GPU sees it, in the block.
  Pass<D> Put(const Pass<Cpu>& pass, const Padding& padding);
  void PutPages(const Pass<Cpu>& pass, BlockWriter& block, Pass<D>& out);
  void SendBlock();
  absl::Status LaunchOrReplay(const Pass<D>& pass);
  absl::Status Capture(const PassKey& key, const Pass<D>& pass);
  Rooms RoomsNow() const;
  void ForgetIfMoved();
  // Passes of padding alone.
  Pass<D> PutNothing(const StepLayout& layout, const Padding& padding);
  absl::Status RunNothing(const Pass<D>& pass);
  absl::Status MakeAllRoom(const StepLayout& layout);

  const D device_;
  const Options options_;
  // One block, here pinned and there, for the numbers of a pass.
  int64_t room_bytes_ = 0;
  std::byte* host_ = nullptr;
  Buffer<std::byte, D> block_;
  int64_t used_bytes_ = 0;
  AttentionScratch<N> scratch_;
  GpuSampling<N> sampling_;
  std::vector<int> padded_of_rank_;
  Rooms rooms_{};  // at which the graphs were captured
  PassGraphs graphs_;
  bool can_capture_ = true;
};

}  // namespace moebius
