// Passes on a GPU, as the host has put them together.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sample.h"
#include "worker/model/decoder.h"
#include "worker/model/pass.h"
#include "worker/model/pass_graphs.h"
#include "worker/peers/collectives_cuda.h"

namespace moebius {

// GpuPasses
//
// Runs a pass of the host's: its numbers go to the GPU in one copy, the
// decoder follows, the stream is waited for, and what was sampled is collected.
// Passes of single rows are graphs once they have come again (pass_graphs.h).
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
    bool graphs = true;  // where they help
    // All of them outlive this. The stream is the device's.
    const GpuStream* stream = nullptr;
    Decoder<Cuda<N>>* decoder = nullptr;
    Collectives<Cuda<N>>* peers = nullptr;
  };
  static absl::StatusOr<std::unique_ptr<GpuPasses>> Create(
      const Cuda<N>& device, const Options& options);
  ~GpuPasses();

  absl::Status Run(const Pass<Cpu>& pass);

 private:
  // Where memory lies that graphs were told of, and that a larger pass
  // replaces.
  using Rooms = std::array<const void*, 7>;

  GpuPasses(const Cuda<N>& device, const Options& options);

  void Reserve(int64_t size_bytes);
  void DropGraphs();
  Rooms RoomsNow() const;
  absl::Status MakeRoom(const Pass<Cpu>& pass);
  // The pass as the GPU sees it, in the block.
  Pass<Cuda<N>> Put(const Pass<Cpu>& pass);
  absl::Status Launch(const Pass<Cuda<N>>& pass);

  const Cuda<N> device_;
  const Options options_;
  // One block, here pinned and there, for the numbers of a pass.
  int64_t room_bytes_ = 0;
  std::byte* host_ = nullptr;
  Buffer<std::byte, Cuda<N>> block_;
  int64_t used_bytes_ = 0;
  AttentionScratch<N> scratch_;
  GpuSampling<N> sampling_;
  std::unique_ptr<PassGraphs> graphs_;
  Rooms rooms_{};  // of the graphs
};

}  // namespace moebius
