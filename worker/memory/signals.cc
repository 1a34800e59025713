#include "worker/memory/signals.h"

#include <new>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace moebius {
namespace {

constexpr int kEpochBits = 39;
constexpr int kCountBits = 12;
constexpr uint64_t kMaxCount = (uint64_t{1} << kCountBits) - 1;

}  // namespace

SignalsBlock* InitSignals(std::byte* base, Rank rank, int num_ranks,
                          Incarnation incarnation) {
  auto* const block = new (base) SignalsBlock;
  block->identity.rank = rank;
  block->identity.num_ranks = num_ranks;
  block->identity.memory = incarnation.value;
  block->identity.incarnation.store(incarnation.value,
                                    std::memory_order_release);
  return block;
}

SignalsBlock* SignalsAt(std::byte* base) {
  return std::launder(reinterpret_cast<SignalsBlock*>(base));
}

absl::Status CheckSignals(const std::byte* base, Rank rank, int num_ranks) {
  const SignalsIdentity& identity =
      std::launder(reinterpret_cast<const SignalsBlock*>(base))->identity;
  if (identity.magic != SignalsIdentity::kMagic) {
    return absl::FailedPreconditionError("not a signals region");
  }
  if (identity.rank != rank || identity.num_ranks != num_ranks) {
    return absl::FailedPreconditionError(absl::StrCat(
        "signals of rank ", identity.rank, " of ", identity.num_ranks,
        " where those of rank ", rank, " of ", num_ranks, " belong"));
  }
  return absl::OkStatus();
}

void StoreSwitchProgress(SignalsBlock* own, const SwitchProgress& progress) {
  const uint64_t layers = progress.layers_done;
  const uint64_t waves = progress.waves_done;
  const uint64_t high = progress.side == Side::kHigh;
  CHECK(progress.epoch.value < uint64_t{1} << kEpochBits);
  CHECK(layers <= kMaxCount && waves <= kMaxCount);
  own->progress.switch_record.store((progress.epoch.value << 1 | high)
                                            << 2 * kCountBits |
                                        layers << kCountBits | waves,
                                    std::memory_order_release);
}

SwitchProgress LoadSwitchProgress(const SignalsBlock& block) {
  const uint64_t record =
      block.progress.switch_record.load(std::memory_order_acquire);
  return SwitchProgress{
      Epoch{record >> (2 * kCountBits + 1)},
      (record >> 2 * kCountBits & 1) != 0 ? Side::kHigh : Side::kLow,
      static_cast<int>(record >> kCountBits & kMaxCount),
      static_cast<int>(record & kMaxCount),
  };
}

}  // namespace moebius
