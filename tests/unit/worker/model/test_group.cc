#include "tests/unit/worker/model/test_group.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <utility>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/thread_pool.h"
#include "worker/model/kv_layout.h"
#include "worker/model/pass_cpu.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_sink_cpu.h"
#include "worker/peers/exchange.h"

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

std::string SourceDir(const std::string& folder) {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/" + folder;
}

std::string VerseMoeDir() { return SourceDir("models/verse-moe"); }

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
    source = TensorsOf(target.adapt, shape.spec, std::move(source));
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

namespace {

// One on the processor.
struct CpuRank {
  CpuRank(const GroupOptions& options, const ModelShape& shape)
      : dense(PlanDense(shape).size_bytes),
        experts(shape.experts.region_bytes()),
        kv(MakeKvLayout(shape.spec, options.kv_type).page_bytes() *
           options.num_pages),
        exchange(PlanExchange(shape, options.max_rows).size_bytes),
        pool(options.extra_threads > 0
                 ? std::make_unique<ThreadPool>(options.extra_threads)
                 : nullptr) {}

  AlignedBytes dense, experts, kv, exchange;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Collectives<Cpu>> peers;
  std::unique_ptr<Decoder<Cpu>> decoder;
};

class CpuRanks final : public TestRanks {
 public:
  CpuRanks(const GroupOptions& options, const ModelShape& shape)
      : barrier_(options.num_ranks) {
    for (Rank r = 0; r < options.num_ranks; ++r) {
      ranks_.push_back(std::make_unique<CpuRank>(options, shape));
      Must(LoadWeights(shape, options.names, options.model_dir,
                       options.model_dir.empty(),
                       {r, options.experts_state(), ranks_[r]->dense.data(),
                        ranks_[r]->experts.data(), options.adapt}));
    }
    for (Rank r = 0; r < options.num_ranks; ++r) Build(r, options, shape);
  }

  absl::Status Run(Rank rank, const Pass<Cpu>& pass) override {
    return ranks_[rank]->decoder->Run(pass);
  }
  void GiveUp() override { barrier_.GiveUp(); }

 private:
  void Build(Rank r, const GroupOptions& options, const ModelShape& shape) {
    CpuRank& rank = *ranks_[r];
    const Cpu device{rank.pool.get()};
    Collectives<Cpu>::Options peers;
    peers.shape = shape;
    peers.rank = r;
    peers.max_rows = options.max_rows;
    peers.exchange = rank.exchange.data();
    for (const auto& peer : ranks_) {
      peers.peer_exchange.push_back(peer->exchange.data());
    }
    peers.barrier = &barrier_;
    rank.peers = Must(Collectives<Cpu>::Create(device, peers));
    DecoderOptions<Cpu> decoder;
    decoder.shape = shape;
    decoder.rank = r;
    decoder.max_rows = options.max_rows;
    decoder.dense = rank.dense.data();
    decoder.experts = rank.experts.data();
    decoder.kv = {rank.kv.data(), static_cast<uint32_t>(options.num_pages),
                  PageFormatOf(MakeKvLayout(shape.spec, options.kv_type))};
    decoder.peers = rank.peers.get();
    rank.decoder = Must(Decoder<Cpu>::Create(device, decoder));
  }

  ThreadBarrier barrier_;
  std::vector<std::unique_ptr<CpuRank>> ranks_;
};

}  // namespace

TestGroup::TestGroup(const GroupOptions& options)
    : options_(options),
      shape_(Must(MakeModelShape(options.spec, options.num_ranks,
                                 options.spare_slots))),
      ranks_(options.make_ranks ? options.make_ranks(options, shape_)
                                : std::make_unique<CpuRanks>(options, shape_)) {
  for (Rank r = 0; r < options.num_ranks; ++r) {
    std::vector<PageId>& pages = free_pages_.emplace_back();
    for (int page = 0; page < options.num_pages; ++page) {
      pages.push_back(static_cast<PageId>(page));
    }
    std::shuffle(pages.begin(), pages.end(),
                 std::mt19937(static_cast<unsigned>(r)));
  }
}

TestGroup::~TestGroup() = default;

void TestGroup::Grow(Sequence& sequence, int id, int length) {
  sequence.pages.resize(options_.num_ranks);
  const int blocks = (length + kPageTokens - 1) / kPageTokens;
  for (Rank r = 0; r < options_.num_ranks; ++r) {
    if (options_.layout.group_of(r) != GroupOf(id)) continue;
    const int heads = HeadsOf(shape_.attention, options_.layout, r).num_kv();
    std::vector<PageId>& pages = sequence.pages[r];
    std::vector<PageId>& free_pages = free_pages_[r];
    while (pages.size() < static_cast<size_t>(blocks) * heads) {
      CHECK(!free_pages.empty());
      pages.push_back(free_pages.back());
      free_pages.pop_back();
    }
  }
  sequence.length = length;
}

absl::Status TestGroup::RunPieces(Rank rank, absl::Span<const Piece> pieces,
                                  absl::Span<const int> starts,
                                  const LogitsSeen& on_logits) {
  const Layout layout = options_.layout;
  const int vocab = shape_.spec.vocab_size;
  const SamplingParams greedy{.temperature = 0.0f};
  PassBuilder builder;
  builder.Begin({options_.layout, options_.experts_state()}, options_.num_ranks,
                rank);
  struct Wanted {
    int sequence, position;
    std::vector<float> logits;
  };
  std::deque<Wanted> wanted;
  for (size_t p = 0; p < pieces.size(); ++p) {
    const Piece& piece = pieces[p];
    const int count = static_cast<int>(piece.tokens.size());
    const int first = piece.want == Want::kAll    ? 0
                      : piece.want == Want::kLast ? std::max(count - 1, 0)
                                                  : count;
    const int group = GroupOf(piece.sequence);
    if (group != layout.group_of(rank)) {
      builder.AddOthers(group, count, count - first);
      continue;
    }
    builder.AddChunk(piece.tokens, starts[p],
                     sequences_[piece.sequence].pages[rank]);
    for (int i = first; i < count; ++i) {
      Wanted& one = wanted.emplace_back(
          Wanted{piece.sequence, starts[p] + i, std::vector<float>(vocab)});
      builder.Want(i, {.sampling = &greedy, .logits = one.logits.data()});
    }
  }
  const absl::Status status = Run(rank, builder.Build());
  if (!status.ok()) return status;
  for (size_t j = layout.part_of(rank); j < wanted.size();
       j += layout.tp_size) {
    CHECK(builder.results()[j].value.token == ArgMax(wanted[j].logits));
    on_logits(wanted[j].sequence, wanted[j].position,
              absl::MakeSpan(wanted[j].logits));
  }
  return absl::OkStatus();
}

absl::Status TestGroup::Step(absl::Span<const Piece> pieces,
                             const LogitsSeen& on_logits) {
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
  std::vector<absl::Status> statuses(options_.num_ranks);
  const auto run = [&](Rank r) {
    statuses[r] = RunPieces(r, pieces, starts, on_logits);
    if (!statuses[r].ok()) ranks_->GiveUp();
  };
  std::vector<std::thread> threads;
  for (Rank r = 1; r < options_.num_ranks; ++r) threads.emplace_back(run, r);
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
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
