// The mover of a host: its threads copy.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <variant>

#include "kernels/thread_pool.h"
#include "worker/memory/worker_memory.h"
#include "worker/switch/mover.h"

namespace moebius {

// Poll() does one segment or kMovesAPoll moves of a wave with the caller's
// thread and the pool's; Wait() all that is left.
class ThreadMover final : public Mover {
 public:
  static constexpr size_t kMovesAPoll = 64;

  // `memory` and `pool` (null: the caller alone) outlive it. REQUIRES:
  // page_bytes > 0.
  ThreadMover(const WorkerMemory* memory, int64_t page_bytes, ThreadPool* pool)
      : memory_(memory), pages_(memory, page_bytes), pool_(pool) {}

  int MostLayers() const override { return 1; }
  absl::Status BeginLayer(const SlotPull& pull,
                          absl::Span<const CopySegment> segments) override;
  absl::Status BeginWave(absl::Span<const PageMove> wave) override;
  absl::StatusOr<bool> Poll() override;
  absl::StatusOr<Moved> Wait() override;

 private:
  struct Layer {
    SlotPull pull;
    absl::Span<const CopySegment> left;
  };
  struct Wave {
    absl::Span<const PageMove> left;
  };
  struct Move {
    std::variant<Layer, Wave> what;
    std::chrono::steady_clock::time_point begun;
    int64_t bytes = 0;
    std::optional<std::chrono::steady_clock::time_point> ended;
  };

  absl::Status Begin(std::variant<Layer, Wave> what);
  // Copies at most so many segments or moves; an error ends the move.
  absl::Status Copy(size_t most_segments, size_t most_moves);

  const WorkerMemory* const memory_;
  PagePuller pages_;
  ThreadPool* const pool_;
  std::optional<Move> move_;
};

}  // namespace moebius
