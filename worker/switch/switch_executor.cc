#include "worker/switch/switch_executor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/core_binding.h"
#include "common/base/fnv.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"
#include "worker/memory/signals.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

// The bytes of the moves that `begin` begins of `all`, with a fault point in
// the middle where faults may be injected.
template <typename T, typename Begin>
absl::StatusOr<int64_t> InHalves(absl::Span<const T> all, FaultId id,
                                 Mover& mover, const Begin& begin) {
  const size_t half = FaultsInstalled() ? all.size() / 2 : all.size();
  RETURN_IF_ERROR(begin(all.first(half)));
  ASSIGN_OR_RETURN(const Moved first, mover.Wait());
  if (!FaultsInstalled()) return first.bytes;
  RETURN_IF_ERROR(FaultPoint(id));
  RETURN_IF_ERROR(begin(all.subspan(half)));
  ASSIGN_OR_RETURN(const Moved second, mover.Wait());
  return first.bytes + second.bytes;
}

uint32_t MicrosSince(Clock::time_point begin) {
  return static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() -
                                                            begin)
          .count());
}

// This thread and those of the pool.
std::vector<pthread_t> ThreadsOf(ThreadPool* pool) {
  std::vector<pthread_t> threads;
  if (pool != nullptr) threads = pool->extra_threads();
  threads.push_back(pthread_self());
  return threads;
}

// A hash of what every rank must agree on after a switch: layout, epoch and all
// page tables.
uint64_t TablesChecksum(Epoch epoch, Layout layout,
                        absl::Span<const KvTable> tables) {
  Fnv1a hash;
  hash.Add(epoch.value);
  hash.Add(layout.tp_size);
  for (const KvTable& table : tables) {
    hash.Add(table.slot);
    hash.Add(table.num_blocks);
    for (const RankTable& rank : table.tables) {
      hash.Add(rank.rank);
      hash.Add(rank.kv_begin);
      hash.Add(rank.num_kv);
      for (PageId page : rank.pages) hash.Add(page);
    }
  }
  return hash.hash();
}

}  // namespace

SwitchExecutor::SwitchExecutor(const SwitchContext& context)
    : context_(context) {}

absl::Status SwitchExecutor::Check(const wire::Prepare& prepare) const {
  if (prepare.epoch <= last_epoch_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "epoch ", prepare.epoch.value, " after ", last_epoch_.value));
  }
  if (!HeadsDivide(context_.attention, prepare.target) || !experts_.steady() ||
      prepare.target == experts_.to) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot switch from tp_size ", experts_.to.tp_size, " to ",
                     prepare.target.tp_size));
  }
  if (!context_.memory->peers_mapped()) {
    return absl::UnavailableError("peers are not mapped");
  }
  RETURN_IF_ERROR(CheckMoves(prepare.kv));
  RETURN_IF_ERROR(context_.sequences->CheckTables(prepare.kv.tables));
  for (const KvTable& table : prepare.kv.tables) {
    for (const RankTable& rank : table.tables) {
      if (rank.rank < 0 || rank.rank >= context_.num_ranks) {
        return absl::InvalidArgumentError(
            absl::StrCat("slot ", table.slot, ": rank ", rank.rank, " of ",
                         context_.num_ranks));
      }
      const HeadRange heads =
          HeadsOf(context_.attention, prepare.target, rank.rank);
      if (rank.kv_begin != heads.kv_begin || rank.num_kv != heads.num_kv()) {
        return absl::InvalidArgumentError(
            absl::StrCat("slot ", table.slot, ": heads of rank ", rank.rank));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status SwitchExecutor::CheckMoves(const KvPlan& plan) const {
  for (const auto& wave : plan.waves) {
    for (const PageMove& move : wave) {
      if (move.src_rank >= context_.num_ranks ||
          move.dst_rank >= context_.num_ranks ||
          move.src_page >= context_.num_pages ||
          move.dst_page >= context_.num_pages) {
        return absl::OutOfRangeError(absl::StrCat(
            "a move to page ", move.dst_page, " of rank ", move.dst_rank));
      }
    }
  }
  return absl::OkStatus();
}

wire::Prepared SwitchExecutor::Prepare(wire::Prepare prepare) {
  const Epoch epoch = prepare.epoch;
  if (const absl::Status status = Check(prepare); !status.ok()) {
    return wire::Prepared{
        epoch, false,
        absl::StrCat("worker ", context_.rank, ": ", status.message())};
  }
  last_epoch_ = epoch;
  prepared_ = std::move(prepare);
  return wire::Prepared{epoch, true, ""};
}

void SwitchExecutor::Abort(Epoch epoch) {
  if (prepared_.has_value() && prepared_->epoch == epoch) prepared_.reset();
}

absl::Status SwitchExecutor::GoOn(const ExpertsState& experts, Epoch last) {
  RETURN_IF_ERROR(Validate(experts, context_.experts));
  experts_ = experts;
  last_epoch_ = last;
  prepared_.reset();
  return absl::OkStatus();
}

// How far we are, for the ranks that finish the switch: a rank that has passed
// the barrier behind a layer proves it done everywhere.
void SwitchExecutor::Record(const SwitchTail& tail) const {
  StoreSwitchProgress(context_.memory->own_signals(),
                      SwitchProgress{tail.epoch, experts_.side,
                                     experts_.layers_done, tail.waves_done});
}

SlotPull SwitchExecutor::PullOf(int index) const {
  const ExpertShape& shape = context_.experts;
  const int layer = experts_.LayerAt(shape, index);
  return {shape.slot_bytes(), experts_.SourceSlot(shape, layer),
          experts_.TargetSlot(shape, layer)};
}

// Ends the next layer of the order. With several spare slots those of the
// layers behind it are free as well: they are copied while ranks meet.
absl::StatusOr<int64_t> SwitchExecutor::PullLayer(
    absl::Span<const CopySegment> segments, int& begun) {
  Mover& mover = *context_.mover;
  if (FaultsInstalled()) {
    return InHalves(segments, FaultId::kWorkerPull, mover,
                    [&](absl::Span<const CopySegment> some) {
                      return mover.BeginLayer(PullOf(experts_.layers_done),
                                              some);
                    });
  }
  const ExpertShape& shape = context_.experts;
  const int most = std::min(shape.spare_slots, mover.MostLayers());
  const int end = std::min(shape.num_moe_layers, experts_.layers_done + most);
  for (; begun < end; ++begun) {
    RETURN_IF_ERROR(mover.BeginLayer(PullOf(begun), segments));
  }
  ASSIGN_OR_RETURN(const Moved moved, mover.Wait());
  return moved.bytes;
}

absl::StatusOr<int64_t> SwitchExecutor::PullLayers(
    absl::Span<const CopySegment> segments, const SwitchTail& tail) {
  const ExpertShape& shape = context_.experts;
  int64_t bytes = 0;
  int begun = experts_.layers_done;
  while (experts_.layers_done < shape.num_moe_layers) {
    ASSIGN_OR_RETURN(const int64_t moved, PullLayer(segments, begun));
    bytes += moved;
    RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerPulled));
    RETURN_IF_ERROR(context_.barrier->Wait());
    RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerPassed));
    ++experts_.layers_done;
    Record(tail);
  }
  return bytes;
}

absl::StatusOr<int64_t> SwitchExecutor::PullWeights(const SwitchTail& tail) {
  // They outlive what an error leaves under way.
  const std::vector<CopySegment> segments =
      PlanSlot(context_.experts, experts_.from, experts_.to, context_.rank);
  auto bytes = PullLayers(segments, tail);
  // Whoever gives up reads no peer's memory any more, whichever layer failed.
  if (!bytes.ok()) {
    for (int i = 0; i < context_.mover->MostLayers(); ++i) {
      context_.mover->Wait().IgnoreError();
    }
  }
  return bytes;
}

absl::StatusOr<int64_t> SwitchExecutor::PullPages(const SwitchTail& tail) {
  int64_t bytes = 0;
  for (size_t i = tail.waves_done; i < tail.kv.waves.size(); ++i) {
    ASSIGN_OR_RETURN(
        const int64_t moved,
        InHalves(absl::MakeConstSpan(tail.kv.waves[i]), FaultId::kWorkerPages,
                 *context_.mover, [&](absl::Span<const PageMove> some) {
                   return context_.mover->BeginWave(some);
                 }));
    bytes += moved;
    RETURN_IF_ERROR(context_.barrier->Wait());
    RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerPagesPassed));
    Record({tail.epoch, static_cast<int>(i) + 1, {}});
  }
  return bytes;
}

absl::StatusOr<wire::Switched> SwitchExecutor::Copy(const SwitchTail& tail) {
  wire::Switched switched;
  switched.epoch = tail.epoch;
  const auto begin = Clock::now();
  // The ranks copy side by side, a barrier apart: two that the kernel had woken
  // on one core would take turns there for the whole switch.
  const std::vector<pthread_t> threads = ThreadsOf(context_.pool);
  const int num_threads = static_cast<int>(threads.size());
  const CoreBinding binding(threads, context_.rank * num_threads,
                            context_.num_ranks * num_threads);
  // Nobody's slots or pages may be read before every rank has finished the
  // step before the boundary.
  RETURN_IF_ERROR(context_.barrier->Wait());
  const auto weights = Clock::now();
  ASSIGN_OR_RETURN(const int64_t weight_bytes, PullWeights(tail));
  switched.weight_us = MicrosSince(weights);
  const auto pages = Clock::now();
  ASSIGN_OR_RETURN(const int64_t kv_bytes, PullPages(tail));
  switched.kv_us = MicrosSince(pages);
  experts_ = experts_.Finished();
  switched.weight_bytes = weight_bytes;
  switched.kv_bytes = kv_bytes;
  switched.checksum = TablesChecksum(tail.epoch, experts_.to, tail.kv.tables);
  switched.total_us = MicrosSince(begin);
  return switched;
}

absl::StatusOr<wire::Switched> SwitchExecutor::Commit(
    const wire::Commit& commit) {
  if (!prepared_.has_value() || prepared_->epoch != commit.epoch) {
    return absl::FailedPreconditionError(absl::StrCat(
        "commit of epoch ", commit.epoch.value, ", which is not prepared"));
  }
  wire::Prepare prepared = *std::exchange(prepared_, std::nullopt);
  experts_ = experts_.Towards(prepared.target);
  const SwitchTail whole{prepared.epoch, 0, std::move(prepared.kv)};
  ASSIGN_OR_RETURN(const wire::Switched switched, Copy(whole));
  RETURN_IF_ERROR(context_.sequences->ReplaceTables(whole.kv.tables));
  return switched;
}

absl::StatusOr<wire::Switched> SwitchExecutor::Finish(const SwitchTail& tail) {
  if (experts_.steady() || tail.waves_done < 0 ||
      tail.waves_done > static_cast<int>(tail.kv.waves.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "no switch to finish in tp_size ", experts_.to.tp_size, " with ",
        tail.waves_done, " of ", tail.kv.waves.size(), " waves done"));
  }
  RETURN_IF_ERROR(CheckMoves(tail.kv));
  // What is complete everywhere, before we overwrite the sources of the layer
  // before it: the others' records may be lost with their memory.
  Record(tail);
  return Copy(tail);
}

}  // namespace moebius
