#include "worker/switch/thread_mover.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

// The first of what is left, which `left` loses.
template <typename T>
absl::Span<const T> TakeFirst(absl::Span<const T>& left, size_t most) {
  const absl::Span<const T> first = left.first(std::min(most, left.size()));
  left.remove_prefix(first.size());
  return first;
}

}  // namespace

absl::Status ThreadMover::Begin(std::variant<Layer, Wave> what) {
  if (move_.has_value()) {
    return absl::FailedPreconditionError("another move is under way");
  }
  move_ = Move{std::move(what), Clock::now()};
  return absl::OkStatus();
}

absl::Status ThreadMover::BeginLayer(const SlotPull& pull,
                                     absl::Span<const CopySegment> segments) {
  RETURN_IF_ERROR(CheckSlotPull(*memory_, pull));
  return Begin(Layer{pull, segments});
}

absl::Status ThreadMover::BeginWave(absl::Span<const PageMove> wave) {
  RETURN_IF_ERROR(pages_.Check(wave));
  return Begin(Wave{wave});
}

absl::Status ThreadMover::Copy(size_t most_segments, size_t most_moves) {
  absl::StatusOr<int64_t> copied;
  bool ended = false;
  if (auto* layer = std::get_if<Layer>(&move_->what)) {
    copied = PullSlot(*memory_, layer->pull,
                      TakeFirst(layer->left, most_segments), pool_);
    ended = layer->left.empty();
  } else {
    auto& wave = std::get<Wave>(move_->what);
    copied = pages_.Pull(TakeFirst(wave.left, most_moves), pool_);
    ended = wave.left.empty();
  }
  if (!copied.ok()) {
    move_.reset();
    return copied.status();
  }
  move_->bytes += *copied;
  if (ended) move_->ended = Clock::now();
  return absl::OkStatus();
}

absl::StatusOr<bool> ThreadMover::Poll() {
  if (!move_.has_value() || move_->ended.has_value()) return true;
  RETURN_IF_ERROR(Copy(1, kMovesAPoll));
  return move_->ended.has_value();
}

absl::StatusOr<Moved> ThreadMover::Wait() {
  if (!move_.has_value()) {
    return absl::FailedPreconditionError("no move was begun");
  }
  constexpr size_t kAll = std::numeric_limits<size_t>::max();
  if (!move_->ended.has_value()) RETURN_IF_ERROR(Copy(kAll, kAll));
  const Move move = *std::exchange(move_, std::nullopt);
  return Moved{move.bytes,
               std::chrono::duration_cast<std::chrono::microseconds>(
                   *move.ended - move.begun)};
}

}  // namespace moebius
