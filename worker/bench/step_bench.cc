#include "worker/bench/step_bench.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/load_part.h"
#include "worker/peers/group_barrier.h"
#include "worker/steps/sequence_table.h"
#include "worker/steps/thread_step_engine.h"
#include "worker/switch/thread_weight_check.h"
#include "worker/worker_device.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

// Of a decode: the third replays what the second has captured.
constexpr int kWarmUpSteps = 5;
constexpr int kWatchedSteps = 3;
// A prefill takes long, and its times vary little.
constexpr int kMostPrefills = 5;
// How long loading may take without a word.
constexpr auto kSilence = std::chrono::seconds(1);

// Of a decode, which counts `steps`.
int StepsAfterBegin(int steps) { return kWarmUpSteps + steps + kWatchedSteps; }

SequenceTable::Options TableOptions(const Config& config, Rank rank,
                                    const WorkerPlan& plan) {
  SequenceTable::Options options;
  options.rank = rank;
  options.num_ranks = config.workers.count;
  options.attention = plan.shape.attention;
  options.max_slots = static_cast<uint32_t>(config.scheduler.max_running);
  options.max_rows = static_cast<uint32_t>(config.scheduler.token_budget);
  options.num_pages = plan.num_pages;
  options.max_positions = static_cast<uint32_t>(plan.context_length);
  options.vocab_size = plan.shape.spec.vocab_size;
  return options;
}

// All ranks are in this process.
class NoVault final : public MemoryVault {
 public:
  absl::Status Deposit(RegionKind, RegionClass, int, uint64_t,
                       absl::Duration) override {
    return None();
  }
  absl::StatusOr<RegionDescriptor> Withdraw(RegionKind,
                                            absl::Duration) override {
    return None();
  }
  absl::StatusOr<RegionDescriptor> Borrow(RegionKind, Rank,
                                          absl::Duration) override {
    return None();
  }

 private:
  static absl::Status None() {
    return absl::UnimplementedError("there is no vault");
  }
};

// There is neither a launcher nor a coordinator.
class LocalHost final : public WorkerHost {
 public:
  LocalHost(const Config& config, Rank rank) : config_(config), rank_(rank) {}

  MemoryVault& vault() override { return vault_; }
  absl::StatusOr<std::unique_ptr<Link>> Connect() override {
    return absl::UnimplementedError("there is no coordinator");
  }
  std::unique_ptr<CpuFence> MakeFence(
      absl::Span<std::byte* const> signals) override {
    const int cores =
        std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    BarrierOptions options;
    options.spin_us =
        config_.workers.spin_us >= 0
            ? config_.workers.spin_us
            : DefaultSpinUs(config_.workers.count, ThreadsOf(config_), cores);
    return std::make_unique<SignalsFence>(
        rank_, signals, options,
        absl::Milliseconds(config_.workers.step_timeout_ms));
  }
  absl::StatusOr<std::unique_ptr<StepEngine>> MakeStepEngine(
      StepRunner* runner) override {
    return ThreadStepEngine::Create(runner, ThreadStepEngine::Tell::kErrors);
  }
  std::unique_ptr<WeightCheck> MakeWeightCheck(
      const ExpertShape& shape, Rank rank, const std::byte* experts) override {
    return std::make_unique<ThreadWeightCheck>(shape, rank, experts);
  }
  void OnProgress(int64_t, int64_t) override {}
  absl::Status OnReady() override { return absl::OkStatus(); }
  void OnFailed(const absl::Status&) override {}

 private:
  const Config& config_;
  const Rank rank_;
  NoVault vault_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

}  // namespace

struct StepBench::RankState {
  explicit RankState(const Config& config, Rank rank)
      : rank(rank), host(config, rank) {}

  // The first of the steps under way.
  absl::Status TakeOne() {
    device->engine().Await();
    const std::optional<StepEnd> end = device->engine().Collect();
    if (!end.has_value()) return absl::InternalError("a step was lost");
    --under_way;
    if (!end->status.ok()) {
      device->engine().Drain();
      under_way = 0;
      return end->status;
    }
    sequences->NoteDone();
    ended.push_back(Clock::now());
    return absl::OkStatus();
  }

  absl::Status Run(const StepCase& one, StepId step, int first, int count) {
    ended.clear();
    begun = Clock::now();
    for (int i = 0; i < count; ++i) {
      if (under_way >= StepEngine::kEnough) RETURN_IF_ERROR(TakeOne());
      ASSIGN_OR_RETURN(
          Batch batch,
          sequences->Apply(PlanStep(
              one, num_ranks, StepId{step.value + static_cast<uint64_t>(i)},
              first + i)));
      device->engine().Issue(std::move(batch));
      ++under_way;
    }
    while (under_way > 0) RETURN_IF_ERROR(TakeOne());
    return absl::OkStatus();
  }

  const Rank rank;
  int num_ranks = 1;
  LocalHost host;
  std::unique_ptr<WorkerDevice> device;
  std::unique_ptr<SequenceTable> sequences;
  std::unique_ptr<DeviceProbe> probe;
  int under_way = 0;
  Clock::time_point begun;
  std::vector<Clock::time_point> ended;  // of the steps that were run last
  CopyRates copies;
  double products = 0;
  PassShares shares;
};

StepBench::StepBench(const Config& config, int steps, Say say)
    : config_(config), steps_(steps), say_(std::move(say)) {}

StepBench::~StepBench() = default;

absl::StatusOr<std::unique_ptr<StepBench>> StepBench::Create(
    const Config& config, absl::Span<const StepCase> cases, int steps,
    Say say) {
  std::unique_ptr<StepBench> bench(
      new StepBench(config, steps, std::move(say)));
  RETURN_IF_ERROR(bench->Init(cases));
  return bench;
}

// Says which layouts there are, where the heads do not divide.
absl::Status StepBench::CheckLayout(Layout layout) const {
  return ParseLayout(LayoutName(layout, config_.workers.count),
                     plan_.shape.attention)
      .status();
}

// The processor's default would be too little for many long sequences.
absl::Status StepBench::Plan(absl::Span<const StepCase> cases) {
  constexpr int64_t kMostKvBytes = int64_t{8} << 30;
  ASSIGN_OR_RETURN(plan_, PlanWorker(config_, *platforms_.front()));
  for (const StepCase& one : cases) RETURN_IF_ERROR(CheckLayout(one.layout));
  if (config_.workers.kv_bytes != 0 ||
      platforms_.front()->RegionBytes(config_, plan_.shape) != 0) {
    return absl::OkStatus();
  }
  int64_t pages = plan_.num_pages;
  for (const StepCase& one : cases) {
    pages = std::max(pages, PagesOf(one, plan_.shape, StepsAfterBegin(steps_)));
  }
  const int64_t page_bytes = plan_.kv.page_bytes();
  config_.workers.kv_bytes = std::min(
      pages * page_bytes, std::max(plan_.num_pages * page_bytes, kMostKvBytes));
  ASSIGN_OR_RETURN(plan_, PlanWorker(config_, *platforms_.front()));
  return absl::OkStatus();
}

absl::Status StepBench::Init(absl::Span<const StepCase> cases) {
  const int num_ranks = config_.workers.count;
  if (config_.workers.device == DeviceChoice::kCuda && num_ranks > 1) {
    // Whatever waits for the whole context of a GPU, as memory that is given
    // back does, would wait for a kernel that waits for another rank.
    return absl::InvalidArgumentError(
        "on a GPU steps of one worker are measured (--workers 1): several need "
        "a process each, as `moebius bench throughput` has them");
  }
  // What `auto` comes to then.
  if (num_ranks > 1) config_.workers.device = DeviceChoice::kCpu;
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    ASSIGN_OR_RETURN(auto platform, ChoosePlatform(config_, rank));
    platforms_.push_back(std::move(platform));
  }
  RETURN_IF_ERROR(Plan(cases));
  WorkerMemoryOptions options;
  options.maker = &platforms_.front()->maker();
  ASSIGN_OR_RETURN(memories_, WorkerMemory::CreateInProcess(
                                  num_ranks, plan_.geometry, options));
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    auto state = std::make_unique<RankState>(config_, rank);
    state->num_ranks = num_ranks;
    ASSIGN_OR_RETURN(state->device,
                     platforms_[static_cast<size_t>(rank)]->MakeDevice(
                         config_, plan_, *memories_[static_cast<size_t>(rank)],
                         state->host));
    state->sequences = std::make_unique<SequenceTable>(
        TableOptions(config_, rank, plan_), &state->device->slots());
    ASSIGN_OR_RETURN(state->probe, state->device->MakeProbe());
    ranks_.push_back(std::move(state));
  }
  return absl::OkStatus();
}

std::string StepBench::device_name() const {
  return ranks_.front()->probe->device_name();
}

absl::Status StepBench::ForAll(
    absl::FunctionRef<absl::Status(RankState&)> task) {
  std::vector<absl::Status> statuses(ranks_.size());
  const auto run = [&](size_t rank) {
    statuses[rank] = task(*ranks_[rank]);
    // Whoever waits for it waits in vain.
    if (!statuses[rank].ok()) ranks_[rank]->device->fence().Abandon();
  };
  std::vector<std::thread> threads;
  for (size_t rank = 1; rank < ranks_.size(); ++rank) {
    threads.emplace_back(run, rank);
  }
  run(0);
  for (std::thread& thread : threads) thread.join();
  absl::Status first;
  for (const absl::Status& status : statuses) {
    if (first.ok() || absl::IsAborted(first)) {
      if (!status.ok()) first = status;
    }
  }
  return first;
}

absl::StatusOr<CopyRates> StepBench::MeasureCopies() {
  RETURN_IF_ERROR(ForAll([](RankState& rank) -> absl::Status {
    ASSIGN_OR_RETURN(rank.copies, rank.probe->MeasureCopies());
    return absl::OkStatus();
  }));
  CopyRates sum;
  for (const auto& rank : ranks_) {
    sum.kernel += rank->copies.kernel;
    sum.driver += rank->copies.driver;
  }
  return sum;
}

absl::StatusOr<double> StepBench::MeasureProducts() {
  RETURN_IF_ERROR(ForAll([](RankState& rank) -> absl::Status {
    ASSIGN_OR_RETURN(rank.products, rank.probe->MeasureProducts());
    return absl::OkStatus();
  }));
  double sum = 0;
  for (const auto& rank : ranks_) sum += rank->products;
  return sum;
}

absl::Status StepBench::LoadFor(Layout layout) {
  if (layout == loaded_) return absl::OkStatus();
  const Clock::time_point begin = Clock::now();
  const ExpertsState experts = ExpertsState::AtHome(layout);
  std::vector<int64_t> bytes(ranks_.size());
  RETURN_IF_ERROR(ForAll([&](RankState& rank) -> absl::Status {
    ASSIGN_OR_RETURN(
        const LoadStats stats,
        LoadPart(config_, plan_, rank.rank, experts, *rank.device, nullptr));
    bytes[static_cast<size_t>(rank.rank)] = stats.bytes_written;
    return absl::OkStatus();
  }));
  loaded_ = layout;
  int64_t all = 0;
  for (const int64_t of_rank : bytes) all += of_rank;
  say_(absl::StrCat("loaded ", all / 1000000, " MB of weights for ",
                    std::string(LayoutName(layout, config_.workers.count)),
                    " in ",
                    std::chrono::duration_cast<std::chrono::milliseconds>(
                        Clock::now() - begin)
                        .count(),
                    " ms"));
  return absl::OkStatus();
}

absl::Status StepBench::Put(const std::vector<RestoredSequence>& sequences) {
  return ForAll([&](RankState& rank) -> absl::Status {
    rank.sequences->Reset();
    for (const RestoredSequence& sequence : sequences) {
      RETURN_IF_ERROR(rank.sequences->Put(sequence));
    }
    return absl::OkStatus();
  });
}

absl::Status StepBench::RunSteps(const StepCase& one, int first, int count) {
  const StepId step = next_step_;
  next_step_.value += static_cast<uint64_t>(count);
  RETURN_IF_ERROR(ForAll(
      [&](RankState& rank) { return rank.Run(one, step, first, count); }));
  step_ms_.clear();
  const RankState& rank = *ranks_.front();
  Clock::time_point before = rank.begun;
  for (const Clock::time_point ended : rank.ended) {
    step_ms_.push_back(
        std::chrono::duration<double, std::milli>(ended - before).count());
    before = ended;
  }
  return absl::OkStatus();
}

// Steps of a decode follow one another; a prefill begins anew each time.
absl::Status StepBench::RunAndTime(
    const StepCase& one, const std::vector<RestoredSequence>& sequences,
    StepFigures& figures) {
  std::vector<double> times;
  if (one.decodes()) {
    RETURN_IF_ERROR(Put(sequences));
    RETURN_IF_ERROR(RunSteps(one, 0, kWarmUpSteps));
    RETURN_IF_ERROR(RunSteps(one, kWarmUpSteps, figures.steps));
    times = step_ms_;
    // The first one has none before it to hide the host's work.
    if (times.size() > 1) times.erase(times.begin());
  } else {
    for (int i = -1; i < figures.steps; ++i) {
      RETURN_IF_ERROR(Put(sequences));
      RETURN_IF_ERROR(RunSteps(one, 0, 1));
      if (i >= 0) times.push_back(step_ms_.front());
    }
  }
  figures.ms_median = Median(times);
  figures.ms_min = *std::min_element(times.begin(), times.end());
  return absl::OkStatus();
}

absl::Status StepBench::Watch(const StepCase& one,
                              const std::vector<RestoredSequence>& sequences,
                              StepFigures& figures) {
  RETURN_IF_ERROR(ForAll([](RankState& rank) { return rank.probe->Watch(); }));
  if (one.decodes()) {
    RETURN_IF_ERROR(RunSteps(one, kWarmUpSteps + figures.steps, kWatchedSteps));
  } else {
    RETURN_IF_ERROR(Put(sequences));
    RETURN_IF_ERROR(RunSteps(one, 0, 1));
  }
  RETURN_IF_ERROR(ForAll([](RankState& rank) -> absl::Status {
    ASSIGN_OR_RETURN(rank.shares, rank.probe->Take());
    return absl::OkStatus();
  }));
  std::vector<std::vector<double>> named;
  for (const auto& rank : ranks_) {
    figures.shares.push_back(rank->shares);
    named.push_back(rank->shares.experts_named);
    named.back().resize(
        static_cast<size_t>(plan_.shape.experts.num_moe_layers));
  }
  figures.work = WorkOf(one, plan_.shape, plan_.kv.type, named,
                        one.tokens + kWarmUpSteps + figures.steps / 2.0);
  return absl::OkStatus();
}

absl::StatusOr<StepFigures> StepBench::Measure(const StepCase& one) {
  RETURN_IF_ERROR(CheckLayout(one.layout));
  StepFigures figures;
  figures.one = one;
  figures.steps = one.decodes() ? steps_ : std::min(steps_, kMostPrefills);
  const int steps = StepsAfterBegin(steps_);
  const int longest = one.length_after(steps) + 1;
  if (longest > plan_.context_length) {
    figures.refused =
        absl::StrCat("sequences of ", longest, " tokens, in a context of ",
                     plan_.context_length);
    return figures;
  }
  auto sequences = PlaceSequences(one, plan_.shape, plan_.num_pages, steps);
  if (absl::IsResourceExhausted(sequences.status())) {
    figures.refused = std::string(sequences.status().message());
    return figures;
  }
  RETURN_IF_ERROR(sequences.status());
  RETURN_IF_ERROR(LoadFor(one.layout));
  RETURN_IF_ERROR(RunAndTime(one, *sequences, figures));
  RETURN_IF_ERROR(Watch(one, *sequences, figures));
  return figures;
}

}  // namespace moebius
