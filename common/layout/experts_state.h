// How far a switch of the experts is: one value for steps, wire, loading,
// recovery and checksums. Pure.
//
// Slots slide. There are S spare slots, and all L layers lie either low (layer
// l in slot l) or high (in slot l + S); a switch moves them to the other side,
// whichever layouts it is between: from high to low it goes through the layers
// upward, from low to high downward, so the slot that is written is always
// free.
//
//   L = 3, S = 1          slots   0   1   2   3
//   high, in EP                   .   0   1   2
//   2 layers done                 0'  1'  .   2     next: layer 2 into slot 2
//   low, in TP                    0'  1'  2'  .
//
// The side is state: every switch turns it, and so any two layouts can follow
// one another. New memory is filled on its layout's home side (EP low, all
// others high), so of EP and one other layout that follow each other either
// always lies on its own. The source of a layer stays whole until every rank
// has passed the barrier behind it, so a layer that was interrupted is done
// again.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "common/layout/blocks.h"
#include "common/layout/layout.h"

namespace moebius {

enum class Side : uint8_t { kLow, kHigh };
constexpr Side OtherSide(Side side) {
  return side == Side::kLow ? Side::kHigh : Side::kLow;
}
constexpr Side HomeSide(Layout layout) {
  return layout.is_ep() ? Side::kLow : Side::kHigh;
}

// ExpertsState
//
// The first `layers_done` layers of the switch's order are in `to` and on the
// other side of `side`; the rest are in `from` and on `side`. Steady: from ==
// to and layers_done 0. A switch with all layers done is not yet over:
// Finished() is what follows.
struct ExpertsState {
  Layout from;
  Layout to;
  Side side = Side::kLow;
  int layers_done = 0;

  static constexpr ExpertsState At(Layout layout, Side side) {
    return {layout, layout, side, 0};
  }
  static constexpr ExpertsState AtHome(Layout layout) {
    return At(layout, HomeSide(layout));
  }
  // REQUIRES: steady(); to != layout.
  constexpr ExpertsState Towards(Layout to) const {
    return {from, to, side, 0};
  }

  constexpr bool steady() const { return from == to; }
  constexpr ExpertsState Finished() const { return At(to, OtherSide(side)); }

  // The index-th layer of the switch's order, and whether a layer is done.
  // REQUIRES: 0 <= index, moe_layer < shape.num_moe_layers.
  constexpr int LayerAt(const ExpertShape& shape, int index) const {
    return side == Side::kHigh ? index : shape.num_moe_layers - 1 - index;
  }
  constexpr bool Done(const ExpertShape& shape, int moe_layer) const {
    return (side == Side::kHigh
                ? moe_layer
                : shape.num_moe_layers - 1 - moe_layer) < layers_done;
  }
  constexpr Layout LayoutOf(const ExpertShape& shape, int moe_layer) const {
    return Done(shape, moe_layer) ? to : from;
  }
  constexpr int SlotOf(const ExpertShape& shape, int moe_layer) const {
    return SlotOn(shape, Done(shape, moe_layer) ? OtherSide(side) : side,
                  moe_layer);
  }
  // Where a layer goes from, and where it goes to, whether done or not.
  constexpr int SourceSlot(const ExpertShape& shape, int moe_layer) const {
    return SlotOn(shape, side, moe_layer);
  }
  constexpr int TargetSlot(const ExpertShape& shape, int moe_layer) const {
    return SlotOn(shape, OtherSide(side), moe_layer);
  }

  friend constexpr bool operator==(const ExpertsState&,
                                   const ExpertsState&) = default;

 private:
  static constexpr int SlotOn(const ExpertShape& shape, Side side,
                              int moe_layer) {
    return side == Side::kLow ? moe_layer : moe_layer + shape.spare_slots;
  }
};

// kInvalidArgument with the numbers unless the group has both layouts and the
// layers done are some of those that there are (none in a steady state). Ask it
// of a state from outside.
absl::Status Validate(const ExpertsState& state, const ExpertShape& shape);

// The layouts of one step.
struct StepLayout {
  Layout attention;
  ExpertsState experts;
  friend constexpr bool operator==(const StepLayout&,
                                   const StepLayout&) = default;
};

}  // namespace moebius
