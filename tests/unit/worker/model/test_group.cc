#include "tests/unit/worker/model/test_group.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/thread_pool.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_sink_cpu.h"

namespace moebius {
namespace {

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
    std::abort();
  }
  return *std::move(result);
}

}  // namespace

std::string VerseMoeDir() {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/models/verse-moe";
}

AlignedBytes::AlignedBytes(int64_t size_bytes) : size_(size_bytes) {
  const size_t rounded = (static_cast<size_t>(size_bytes) + 127) / 64 * 64;
  data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
  CHECK(data_ != nullptr);
  std::memset(data_, 0x7f, rounded);  // large numbers, and NaN in some types
}

absl::StatusOr<LoadStats> LoadWeights(const ModelShape& shape,
                                      TensorNames names,
                                      const std::string& model_dir,
                                      bool dummy_weights,
                                      const LoadTarget& target,
                                      const LoadProgress& progress) {
  std::unique_ptr<TensorSource> source;
  if (dummy_weights) {
    source = MakeDummyWeights();
  } else {
    ASSIGN_OR_RETURN(source, Checkpoint::Open(model_dir));
  }
  const auto sink = MakeCpuWeightSink(target.dense, target.experts);
  return LoadWeights({shape, names, target.rank, target.state}, *source, *sink,
                     progress);
}

absl::Status ThreadBarrier::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t round = round_;
  if (++waiting_ == num_threads_) {
    waiting_ = 0;
    ++round_;
    changed_.notify_all();
    return absl::OkStatus();
  }
  changed_.wait(lock, [&] { return round_ != round || given_up_; });
  return round_ != round ? absl::OkStatus()
                         : absl::AbortedError("another rank gave up");
}

void ThreadBarrier::GiveUp() {
  const std::lock_guard<std::mutex> lock(mutex_);
  given_up_ = true;
  changed_.notify_all();
}

struct TestGroup::RankState {
  AlignedBytes dense, experts, kv, exchange;
  std::vector<PageId> free_pages;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Forward> forward;
};

TestGroup::TestGroup(const GroupOptions& options)
    : options_(options),
      shape_(Must(MakeModelShape(options.spec, options.num_ranks,
                                 options.spare_slots))),
      barrier_(std::make_unique<ThreadBarrier>(options.num_ranks)) {
  const int64_t page_bytes = static_cast<int64_t>(
      Forward::KvFormat(shape_, options.kv_type).page_bytes());
  for (Rank r = 0; r < options.num_ranks; ++r) {
    auto rank = std::make_unique<RankState>(RankState{
        AlignedBytes(PlanDense(shape_).size_bytes),
        AlignedBytes(shape_.experts.region_bytes()),
        AlignedBytes(page_bytes * options.num_pages),
        AlignedBytes(Forward::ExchangeBytes(shape_, options.max_rows)),
        {},
        nullptr,
        nullptr});
    Must(LoadWeights(shape_, kSmallModelNames, options.model_dir,
                     options.model_dir.empty(),
                     {r, experts(), rank->dense.data(), rank->experts.data()}));
    for (int page = 0; page < options.num_pages; ++page) {
      rank->free_pages.push_back(static_cast<PageId>(page));
    }
    std::shuffle(rank->free_pages.begin(), rank->free_pages.end(),
                 std::mt19937(static_cast<unsigned>(r)));
    ranks_.push_back(std::move(rank));
  }
  for (Rank r = 0; r < options.num_ranks; ++r) {
    RankState& rank = *ranks_[r];
    ForwardOptions forward;
    forward.shape = shape_;
    forward.rank = r;
    forward.max_rows = options.max_rows;
    forward.kv_type = options.kv_type;
    forward.num_pages = static_cast<uint32_t>(options.num_pages);
    forward.dense = rank.dense.data();
    forward.experts = rank.experts.data();
    forward.kv = rank.kv.data();
    forward.exchange = rank.exchange.data();
    for (const auto& peer : ranks_) {
      forward.peer_exchange.push_back(peer->exchange.data());
    }
    forward.barrier = barrier_.get();
    if (options.extra_threads > 0) {
      rank.pool = std::make_unique<ThreadPool>(options.extra_threads);
      forward.pool = rank.pool.get();
    }
    rank.forward = Must(Forward::Create(forward));
  }
}

TestGroup::~TestGroup() = default;

ExpertsState TestGroup::experts() const {
  return options_.experts.value_or(
      ExpertsState::At(options_.layout, Side::kLow));
}

Forward& TestGroup::forward(Rank rank) { return *ranks_[rank]->forward; }

void TestGroup::Grow(Sequence& sequence, int id, int length) {
  const bool tp = !options_.layout.is_ep();
  sequence.pages.resize(options_.num_ranks);
  const int blocks = (length + kPageTokens - 1) / kPageTokens;
  for (Rank r = 0; r < options_.num_ranks; ++r) {
    if (!tp && r != id % options_.num_ranks) continue;
    const int heads = HeadsOf(shape_.attention, options_.layout, r).num_kv();
    std::vector<PageId>& pages = sequence.pages[r];
    std::vector<PageId>& free_pages = ranks_[r]->free_pages;
    while (pages.size() < static_cast<size_t>(blocks) * heads) {
      CHECK(!free_pages.empty());
      pages.push_back(free_pages.back());
      free_pages.pop_back();
    }
  }
  sequence.length = length;
}

absl::Status TestGroup::Step(absl::Span<const Piece> pieces,
                             const LogitsSeen& on_logits) {
  const bool tp = !options_.layout.is_ep();
  struct RankBatch : LogitsSink {
    std::vector<int32_t> tokens;
    std::vector<uint32_t> positions, row_sequence, logit_rows;
    std::vector<SequencePages> sequences;
    std::vector<std::pair<int, int>> wanted;  // sequence, position
    std::vector<int> delivered;
    const LogitsSeen* on_logits = nullptr;
    absl::Status status;
    void OnLogits(size_t j, absl::Span<float> logits) override {
      CHECK(j < wanted.size());
      delivered.push_back(static_cast<int>(j));
      (*on_logits)(wanted[j].first, wanted[j].second, logits);
    }
  };
  std::vector<RankBatch> batches(options_.num_ranks);
  std::vector<int> starts;
  for (const Piece& piece : pieces) {
    if (static_cast<int>(sequences_.size()) <= piece.sequence) {
      sequences_.resize(piece.sequence + 1);
    }
    Sequence& sequence = sequences_[piece.sequence];
    starts.push_back(sequence.length);
    Grow(sequence, piece.sequence,
         sequence.length + static_cast<int>(piece.tokens.size()));
  }
  std::vector<int> rows_of_rank(options_.num_ranks, 0);
  for (Rank r = 0; r < options_.num_ranks; ++r) {
    RankBatch& batch = batches[r];
    batch.on_logits = &on_logits;
    for (size_t p = 0; p < pieces.size(); ++p) {
      const Piece& piece = pieces[p];
      if (!tp && piece.sequence % options_.num_ranks != r) continue;
      const std::vector<PageId>& pages = sequences_[piece.sequence].pages[r];
      const int heads = HeadsOf(shape_.attention, options_.layout, r).num_kv();
      for (size_t i = 0; i < piece.tokens.size(); ++i) {
        const uint32_t row = static_cast<uint32_t>(batch.tokens.size());
        const int position = starts[p] + static_cast<int>(i);
        batch.tokens.push_back(piece.tokens[i]);
        batch.positions.push_back(static_cast<uint32_t>(position));
        batch.row_sequence.push_back(
            static_cast<uint32_t>(batch.sequences.size()));
        if (piece.want == Want::kAll ||
            (piece.want == Want::kLast && i + 1 == piece.tokens.size())) {
          batch.logit_rows.push_back(row);
          batch.wanted.emplace_back(piece.sequence, position);
        }
      }
      batch.sequences.push_back(
          {pages.data(), static_cast<int>(pages.size()) / heads});
    }
    rows_of_rank[r] = static_cast<int>(batch.tokens.size());
  }
  const auto run = [&](Rank r) {
    RankBatch& batch = batches[r];
    ForwardBatch step;
    step.layout = {options_.layout, experts()};
    step.tokens = batch.tokens;
    step.positions = batch.positions;
    step.row_sequence = batch.row_sequence;
    step.sequences = batch.sequences;
    step.rows_of_rank = rows_of_rank;
    step.logit_rows = batch.logit_rows;
    batch.status = ranks_[r]->forward->Run(step, batch);
    if (!batch.status.ok()) barrier_->GiveUp();
  };
  std::vector<std::thread> threads;
  for (Rank r = 1; r < options_.num_ranks; ++r) threads.emplace_back(run, r);
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (Rank r = 0; r < options_.num_ranks; ++r) {
    const RankBatch& batch = batches[r];
    if (!batch.status.ok()) return batch.status;
    std::vector<int> expected;
    for (size_t j = 0; j < batch.wanted.size(); ++j) {
      if (!tp || static_cast<int>(j) % options_.num_ranks == r) {
        expected.push_back(static_cast<int>(j));
      }
    }
    CHECK(batch.delivered == expected);
  }
  return absl::OkStatus();
}

double LogProbability(absl::Span<const float> logits, int token) {
  double max = logits[0];
  for (const float logit : logits) max = std::max<double>(max, logit);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return logits[token] - max - std::log(sum);
}

int ArgMax(absl::Span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) -
                          logits.begin());
}

}  // namespace moebius
