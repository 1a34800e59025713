// A group of ranks in one process: a thread and memory of its own for each, on
// the processor, or where a test says.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/decoder.h"
#include "worker/model/families/families.h"
#include "worker/model/tensor_source.h"
#include "worker/model/weight_loader.h"
#include "worker/model/weights.h"
#include "worker/peers/barrier.h"
#include "worker/peers/collectives_cpu.h"

namespace moebius {

// A folder of the source tree; that of the small checkpoint.
std::string SourceDir(const std::string& folder);
std::string VerseMoeDir();

// 64-byte aligned memory, filled with a pattern that is no zero.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t size_bytes);
  ~AlignedBytes() { std::free(data_); }
  AlignedBytes(AlignedBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  absl::Span<const std::byte> span() const {
    return {data_, static_cast<size_t>(size_)};
  }

 private:
  std::byte* data_;
  int64_t size_;
};

// Loads into memory of this process, from a folder or with dummy weights (the
// folder is not opened).
struct LoadTarget {
  Rank rank = 0;
  ExpertsState state;
  std::byte* dense = nullptr;
  std::byte* experts = nullptr;
  AdaptTensors adapt = nullptr;
};
absl::StatusOr<LoadStats> LoadWeights(const ModelShape& shape,
                                      TensorNames names,
                                      const std::string& model_dir,
                                      bool dummy_weights,
                                      const LoadTarget& target,
                                      const LoadProgress& progress = nullptr);

// Fails every waiter once somebody has given up.
class ThreadBarrier : public Barrier {
 public:
  explicit ThreadBarrier(int num_threads) : num_threads_(num_threads) {}
  absl::Status Wait() override;
  void GiveUp();

 private:
  const int num_threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  uint64_t round_ = 0;
  bool given_up_ = false;
};

// The ranks of a group, over memory of a device.
class TestRanks {
 public:
  virtual ~TestRanks() = default;
  // One rank's pass. From a thread of the rank's.
  virtual absl::Status Run(Rank rank, const Pass<Cpu>& pass) = 0;
  // A rank has failed: nobody waits for it any more.
  virtual void GiveUp() = 0;
};

struct GroupOptions;
// With the weights of `options`, and room for its passes. Aborts the test
// program on an error.
using MakeTestRanks = std::function<std::unique_ptr<TestRanks>(
    const GroupOptions& options, const ModelShape& shape)>;

struct GroupOptions {
  DecoderSpec spec;
  TensorNames names = kSmallModelNames;
  AdaptTensors adapt = nullptr;
  int num_ranks = 1;
  Layout layout;  // of attention
  // The experts: in the same layout, low, unless given.
  std::optional<ExpertsState> experts;
  int spare_slots = 1;
  std::string model_dir;  // empty: dummy weights
  int max_rows = 512;
  int num_pages = 128;  // of each rank
  KvType kv_type = KvType::kFloat32;
  int extra_threads = 0;
  MakeTestRanks make_ranks;  // empty: on the processor

  // What the slots hold.
  ExpertsState experts_state() const {
    return experts.value_or(ExpertsState::At(layout, Side::kLow));
  }
};

// Which rows' logits a piece of a sequence asks for.
enum class Want { kNone, kLast, kAll };

struct Piece {
  int sequence = 0;
  std::vector<int32_t> tokens;  // the next ones of the sequence
  Want want = Want::kLast;
};

// Aborts the test program on an error of set-up.
class TestGroup {
 public:
  explicit TestGroup(const GroupOptions& options);
  ~TestGroup();

  // Called from several threads, each (sequence, position) once, behind the
  // pass.
  using LogitsSeen =
      std::function<void(int sequence, int position, absl::Span<float> logits)>;

  // One step with these pieces, in this order. Sequences are created on first
  // use, in group sequence % num_groups of attention.
  absl::Status Step(absl::Span<const Piece> pieces,
                    const LogitsSeen& on_logits);

  const ModelShape& shape() const { return shape_; }
  // A pass of one rank.
  absl::Status Run(Rank rank, const Pass<Cpu>& pass) {
    return ranks_->Run(rank, pass);
  }

 private:
  struct Sequence {
    int length = 0;
    std::vector<std::vector<PageId>> pages;  // [rank] [block][KV heads]
  };

  int GroupOf(int sequence) const {
    return sequence % options_.layout.num_groups(options_.num_ranks);
  }
  void Grow(Sequence& sequence, int id, int length);
  absl::Status RunPieces(Rank rank, absl::Span<const Piece> pieces,
                         absl::Span<const int> starts,
                         const LogitsSeen& on_logits);

  GroupOptions options_;
  ModelShape shape_;
  std::unique_ptr<TestRanks> ranks_;
  std::vector<std::vector<PageId>> free_pages_;  // [rank]
  std::vector<Sequence> sequences_;
};

// log softmax(logits)[token], in double.
double LogProbability(absl::Span<const float> logits, int token);
int ArgMax(absl::Span<const float> logits);

}  // namespace moebius
