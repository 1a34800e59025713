// Passes on a GPU, as the host has put them together.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
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
#include "worker/model/pass_launcher.h"
#include "worker/peers/collectives_cuda.h"

struct CUevent_st;

namespace moebius {

class BlockWriter;

// GpuPasses
//
// Runs passes of the host's: its first kernel brings a pass's numbers, the
// decoder follows, and what was sampled goes to memory of the host.
//
// Captured passes: a pass that wants all logits in steady layouts is padded
// (pass_buckets.h). If its sequences have one row each, it is replayed; what
// its kernels read of the host lies in places of the block that follow from the
// key. CaptureAhead() captures what is foreseen, and what was not is captured
// when its key comes the second time, in layouts that may be captured. When
// memory that a graph has in it is replaced, by a larger one or by that of a
// peer's successor, all graphs are forgotten. Of the ranks each may run or
// replay, since padding is the same everywhere.
//
// Errors: of the GPU, which stay; kInvalidArgument for a pass that cannot be,
// before anything of it is done; and of the meetings, after which the next pass
// is as good as any.
// Threading: as PassLauncher's, from any thread.
template <Numerics N>
class GpuPasses final : public PassLauncher {
 public:
  struct Options {
    int gpu = 0;
    int max_rows = 0;  // of a step, over the whole group
    int vocabulary = 0;
    // Room to begin with: ids in the tables of a step's sequences.
    int64_t page_ids = 0;
    // Whether passes are padded, and captured. The same on every rank.
    bool graphs = true;
    // Those that are captured beside the ones ahead.
    int max_graphs = 256;
    // Layouts, of attention and experts, whose passes may be captured; all, if
    // there is nothing.
    std::optional<std::vector<Layout>> captured;
    // As GpuSampling takes it.
    GpuSampledRow* results = nullptr;
    // All of them outlive this. The stream is the device's.
    const GpuStream* stream = nullptr;
    Decoder<Cuda<N>>* decoder = nullptr;
    Collectives<Cuda<N>>* peers = nullptr;
  };
  static absl::StatusOr<std::unique_ptr<GpuPasses>> Create(
      const Cuda<N>& device, const Options& options);
  ~GpuPasses() override;

  absl::Status Launch(const Pass<Cpu>& pass, uint64_t number) override;
  void AwaitEnd(uint64_t number) override;
  absl::Status Finish(uint64_t number) override;
  void DrawOnHost() override { sampling_.DrawOnHost(); }
  void Drain() override;
  // What our rows of a pass gave, once it has ended, by wanted row.
  const GpuSampledRow* results(uint64_t number) const {
    return sampling_.ResultsOf(static_cast<int>(number % kPassCopies));
  }

  // All of that for one pass, whose rows get their results.
  absl::Status Run(const Pass<Cpu>& pass);
  // Makes all room that passes need in these steady layouts, and captures all
  // passes that there are. Before the first pass; without the other ranks.
  absl::Status CaptureAhead(absl::Span<const StepLayout> layouts);
  // Memories of peers may have been replaced: captures ahead once more, if what
  // was captured is void. Between passes; without the other ranks.
  absl::Status FollowPeers();

  int num_graphs() const { return graphs_.size(); }
  // Of those captured ahead, of the GPU.
  int64_t graph_bytes() const { return graph_bytes_; }

 private:
  using D = Cuda<N>;
  // Where memory lies that graphs have in them, and that can be replaced.
  using Rooms = std::array<const void*, 8>;
  // What the host has of a pass under way.
  struct Copy {
    std::byte* numbers = nullptr;  // pinned
    CUevent_st* end = nullptr;
    MeetingStart meetings;
  };
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
  // Positions from which on a pass of so many rows launches the same.
  int PositionsAlike(const StepLayout& layout, int rows) const;
  size_t NumGroups(const StepLayout& layout) const {
    return static_cast<size_t>(
        layout.attention.num_groups(options_.peers->num_ranks()));
  }
  // The pass as the GPU sees it, in the block.
  Pass<D> Put(const Pass<Cpu>& pass, const Padding& padding, int copy);
  void PutPages(const Pass<Cpu>& pass, BlockWriter& block, Pass<D>& out);
  // The first kernel of what was put last.
  void Begin(const MeetingStart& meetings);
  absl::Status LaunchOrReplay(const Pass<D>& pass);
  bool MayCapture(const StepLayout& layout);
  absl::Status Capture(const PassKey& key, const Pass<D>& pass);
  Rooms RoomsNow() const;
  void ForgetIfMoved();
  // Passes of padding alone.
  Pass<D> PutNothing(const StepLayout& layout, const Padding& padding);
  absl::Status RunNothing(const Pass<D>& pass);
  absl::Status MakeAllRoom(const StepLayout& layout);
  std::vector<Padding> Foreseen(const StepLayout& layout) const;
  absl::Status CaptureForeseen();

  const D device_;
  const Options options_;
  // One block for the numbers of a pass, there, and several here.
  int64_t room_bytes_ = 0;
  Buffer<std::byte, D> block_;
  std::array<Copy, kPassCopies> copies_;
  // Of what was put last.
  std::byte* host_ = nullptr;
  int64_t used_bytes_ = 0;
  int num_tokens_ = 0;
  int under_way_ = 0;
  uint64_t next_ = 0;  // number of a pass that is run
  AttentionScratch<N> scratch_;
  GpuSampling<N> sampling_;
  std::vector<int> padded_of_group_;
  Rooms rooms_{};  // at which the graphs were captured
  PassGraphs graphs_;
  std::vector<StepLayout> ahead_;
  int64_t graph_bytes_ = 0;
  bool can_capture_ = true;
  bool told_of_uncaptured_ = false;
};

}  // namespace moebius
