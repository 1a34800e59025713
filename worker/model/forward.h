// The forward pass of one rank, in any state of the layouts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "kernels/formats.h"
#include "kernels/thread_pool.h"
#include "worker/model/model_shape.h"
#include "worker/peers/barrier.h"

namespace moebius {

// Pages of one sequence on this rank.
struct SequencePages {
  const PageId* pages = nullptr;  // [num_blocks][KV heads held here]
  int num_blocks = 0;
};

// One step, as one rank sees it. Everything it points to outlives Run().
struct ForwardBatch {
  // The experts may be in another layout than attention, and in the midst of a
  // switch: each layer is computed where it lies.
  StepLayout layout;
  // Rows are tokens to compute. EP: the rows of this rank's sequences, maybe
  // none. TP: all rows of the step, the same on every rank.
  absl::Span<const int32_t> tokens;
  absl::Span<const uint32_t> positions;
  // Index into `sequences`. A sequence's rows are adjacent, at consecutive
  // positions; KV of all earlier positions is in its pages.
  absl::Span<const uint32_t> row_sequence;
  absl::Span<const SequencePages> sequences;
  absl::Span<const int> rows_of_rank;  // EP: [num_ranks]; TP: not used
  // Rows whose logits are wanted, ascending. TP: the same on every rank.
  absl::Span<const uint32_t> logit_rows;
};

class LogitsSink {
 public:
  virtual ~LogitsSink() = default;
  // Logits of batch.logit_rows[j]: [vocab_size]. May be changed; valid until
  // it returns. EP: called for every j; TP: for j % num_ranks == rank. In
  // ascending order, on the thread that called Run().
  virtual void OnLogits(size_t j, absl::Span<float> logits) = 0;
};

struct ForwardOptions {
  ModelShape shape;
  Rank rank = 0;
  int max_rows = 0;       // of a step, over the whole group
  int max_positions = 0;  // longest sequence; 0: what the model allows
  KvType kv_type = KvType::kFloat32;
  uint32_t num_pages = 0;  // of the KV region
  // This rank's regions, multiples of 64, as long as the Forward exists.
  const std::byte* dense = nullptr;    // PlanDense(shape).size_bytes
  const std::byte* experts = nullptr;  // shape.experts.region_bytes()
  std::byte* kv = nullptr;             // num_pages * KvFormat().page_bytes()
  std::byte* exchange = nullptr;       // ExchangeBytes()
  // Every rank's exchange region as mapped here; our own entry is ignored.
  // Empty for a group of one.
  std::vector<const std::byte*> peer_exchange;
  Barrier* barrier = nullptr;  // null for a group of one
  ThreadPool* pool = nullptr;  // null: the calling thread alone
};

// Forward
//
// Qwen3-MoE over the operators of kernels/. The logits of a row are the same
// bits in every layout, for any number of ranks, and whatever else is in the
// step (kernels/gemm.h says why).
//
// The layouts of attention and of the experts are two axes. A MoE layer enters
// from attention's (every rank gets the rows that its experts want), computes
// the experts of this layer's, and leaves for attention's again (the sums go
// where the rows are).
//
// Collectives are pulls (worker/peers/exchange.h): every rank of the group
// calls Run() for the same step with the same layouts, also without rows. With
// attention in EP a rank waits twice a MoE layer; in TP twice a layer and once
// for each chunk of logit rows.
//
// Cost: no allocation once the largest step has been seen.
// Threading: one Run() at a time; nothing but Run() may write this rank's
// exchange region, or the pages it is given.
class Forward {
 public:
  static KvPageFormat KvFormat(const ModelShape& shape, KvType type);
  static int64_t ExchangeBytes(const ModelShape& shape, int max_rows);

  // kInvalidArgument when an option is out of range.
  static absl::StatusOr<std::unique_ptr<Forward>> Create(
      const ForwardOptions& options);
  virtual ~Forward() = default;

  // kInvalidArgument, before anything is written or waited for, when the batch
  // does not hold together: the other ranks of the step are then left to their
  // barrier's deadline. Otherwise the barrier's error, or kDataLoss when a peer
  // shows impossible numbers. After an error the step may be run again once the
  // group is in step again.
  virtual absl::Status Run(const ForwardBatch& batch, LogitsSink& sink) = 0;
};

}  // namespace moebius
