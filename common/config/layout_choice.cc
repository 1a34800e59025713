#include "common/config/layout_choice.h"

#include "common/base/cat.h"
#include "common/base/ids.h"

namespace moebius {

std::optional<LayoutChoice> ParseLayoutChoice(std::string_view name) {
  if (name == "ep") return LayoutChoice::kEp;
  if (name == "tp") return LayoutChoice::kTp;
  if (name == "auto") return LayoutChoice::kAuto;
  for (int width = 2; width <= kMaxRanks; ++width) {
    if (name == Cat("tp", width)) return LayoutChoice::Of(Layout{width});
  }
  return std::nullopt;
}

std::string LayoutChoiceName(LayoutChoice choice) {
  if (choice.is_auto()) return "auto";
  if (choice == LayoutChoice::kEp) return "ep";
  return choice.tp_size().has_value() ? Cat("tp", *choice.tp_size()) : "tp";
}

}  // namespace moebius
