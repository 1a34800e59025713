// A layout as somebody asks for it: a name, before it is known how many ranks
// there are. Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/layout/layout.h"

namespace moebius {

// LayoutChoice
//
// One of "ep", "tp", "tp2" and so on (common/layout/layout.h), or "auto": the
// load decides. A group of 8 ranks has one layout under the names "tp" and
// "tp8": InGroup() makes equal what means the same.
class LayoutChoice {
 public:
  static const LayoutChoice kEp, kTp, kAuto;

  constexpr LayoutChoice() = default;  // EP
  // Groups of that many ranks. REQUIRES: 1 <= tp_size <= kMaxRanks.
  static constexpr LayoutChoice Of(Layout layout) {
    return LayoutChoice(static_cast<uint8_t>(layout.tp_size));
  }

  constexpr bool is_auto() const { return width_ == kByLoad; }
  // The ranks in a group, where the name says it: of "tp" and "auto" nothing.
  constexpr std::optional<int> tp_size() const {
    if (width_ == kByLoad || width_ == kAllRanks) return std::nullopt;
    return width_;
  }
  // What it means to `num_ranks`, be it a layout that they have or not.
  // REQUIRES: !is_auto().
  constexpr Layout LayoutIn(int num_ranks) const {
    return Layout{width_ == kAllRanks ? num_ranks : width_};
  }
  constexpr LayoutChoice InGroup(int num_ranks) const {
    if (is_auto() || LayoutIn(num_ranks).is_ep())
      return is_auto() ? *this : kEp;
    return width_ == num_ranks ? kTp : *this;
  }

  friend constexpr bool operator==(LayoutChoice, LayoutChoice) = default;

 private:
  static constexpr uint8_t kByLoad = 0, kAllRanks = 255;
  explicit constexpr LayoutChoice(uint8_t width) : width_(width) {}

  uint8_t width_ = 1;  // ranks in a group, kByLoad or kAllRanks
};

inline constexpr LayoutChoice LayoutChoice::kEp{1};
inline constexpr LayoutChoice LayoutChoice::kTp{LayoutChoice::kAllRanks};
inline constexpr LayoutChoice LayoutChoice::kAuto{LayoutChoice::kByLoad};

// Of a name: nothing if it is none, whatever the number of ranks.
std::optional<LayoutChoice> ParseLayoutChoice(std::string_view name);
std::string LayoutChoiceName(LayoutChoice choice);

// What ParseLayoutChoice() takes, for messages.
inline constexpr std::string_view kLayoutNames =
    "ep, tp, or tpN with N workers in a group (tp2)";

}  // namespace moebius
