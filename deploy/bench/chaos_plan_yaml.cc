// Reads chaos plans.
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <array>
#include <optional>
#include <set>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/config/layout_choice.h"
#include "common/faults/fault_point.h"
#include "deploy/bench/chaos_plan.h"

namespace moebius {
namespace {

constexpr int kHourMs = 3'600'000;
constexpr size_t kMaxPlanBytes = 1 << 20;
constexpr size_t kMaxActions = 100;
constexpr std::array<ChaosDeed, 5> kDeeds = {
    ChaosDeed::kKillWorker, ChaosDeed::kStopWorker, ChaosDeed::kKillCoordinator,
    ChaosDeed::kSwitch, ChaosDeed::kFault};

// One mapping of the file; remembers which keys were asked for.
class Section {
 public:
  Section(std::string path, std::string name, YAML::Node node)
      : path_(std::move(path)), name_(std::move(name)), node_(node) {}

  absl::Status Wrong(const YAML::Node& node, std::string_view what) const {
    return absl::InvalidArgumentError(
        AbslView(Cat(path_, ":", node.Mark().line + 1, ": ", what)));
  }

  template <typename Number>
  absl::Status Get(const std::string& key, Number least, Number most,
                   Number& value) {
    known_.insert(key);
    const YAML::Node node = node_[key];
    if (!node.IsDefined()) return absl::OkStatus();
    Number read{};
    if (!YAML::convert<Number>::decode(node, read) || read < least ||
        read > most) {
      return Wrong(node, Cat(name_, key, " is to be a number from ", least,
                             " to ", most));
    }
    value = read;
    return absl::OkStatus();
  }

  // Empty where the key is absent.
  absl::StatusOr<std::string> Word(const std::string& key) {
    known_.insert(key);
    const YAML::Node node = node_[key];
    if (!node.IsDefined()) return std::string();
    if (!node.IsScalar()) return Wrong(node, Cat(name_, key, ": a word"));
    return node.Scalar();
  }

  YAML::Node Child(const std::string& key) {
    known_.insert(key);
    return node_[key];
  }

  // Fails on a key that nobody asked for.
  absl::Status Done() const {
    if (!node_.IsDefined() || node_.IsNull()) return absl::OkStatus();
    if (!node_.IsMap()) return Wrong(node_, Cat(name_, " keys and values"));
    for (const auto& entry : node_) {
      if (entry.first.IsScalar() && known_.count(entry.first.Scalar()) > 0) {
        continue;
      }
      std::string known;
      for (const std::string& key : known_) {
        known += Cat(known.empty() ? "" : ", ", key);
      }
      return Wrong(entry.first,
                   Cat("unknown key ",
                       entry.first.IsScalar() ? entry.first.Scalar() : "",
                       "; there are ", known));
    }
    return absl::OkStatus();
  }

  const YAML::Node& node() const { return node_; }

 private:
  std::string path_, name_;
  YAML::Node node_;
  std::set<std::string> known_;
};

absl::StatusOr<ChaosAction> ReadAction(const std::string& path,
                                       const YAML::Node& node) {
  Section section(path, "action: ", node);
  if (!node.IsMap()) return section.Wrong(node, "an action has keys");
  ChaosAction action;
  ASSIGN_OR_RETURN(const std::string deed, section.Word("do"));
  bool found = false;
  std::string names;
  for (ChaosDeed known : kDeeds) {
    names += Cat(names.empty() ? "" : ", ", ChaosDeedName(known));
    if (ChaosDeedName(known) != deed) continue;
    action.deed = known;
    found = true;
  }
  if (!found) return section.Wrong(node, Cat("do: is to be one of ", names));
  RETURN_IF_ERROR(section.Get("every_ms", 1, kHourMs, action.every_ms));
  action.first_ms = action.every_ms;
  RETURN_IF_ERROR(section.Get("at_ms", 0, kHourMs, action.first_ms));
  RETURN_IF_ERROR(section.Get("jitter_ms", 0, kHourMs, action.jitter_ms));
  RETURN_IF_ERROR(section.Get("rank", 0, kMaxRanks - 1, action.rank));
  RETURN_IF_ERROR(section.Get("resume_ms", 1, kHourMs, action.resume_ms));
  ASSIGN_OR_RETURN(action.fault, section.Word("fault"));
  RETURN_IF_ERROR(section.Done());
  if ((action.deed == ChaosDeed::kFault) == action.fault.empty()) {
    return section.Wrong(node, "fault: belongs to, and only to, do: fault");
  }
  if (!action.fault.empty()) {
    const auto fault = ParseFault(action.fault);
    if (!fault.ok()) {
      return section.Wrong(node, StdView(fault.status().message()));
    }
  }
  return action;
}

absl::StatusOr<std::vector<std::string>> ReadLayouts(const Section& section,
                                                     const YAML::Node& node) {
  std::vector<std::string> layouts;
  bool good = node.IsSequence() && node.size() >= 2;
  for (size_t i = 0; good && i < node.size(); ++i) {
    const auto choice =
        node[i].IsScalar() ? ParseLayoutChoice(node[i].Scalar()) : std::nullopt;
    good = choice.has_value() && !choice->is_auto() &&
           std::find(layouts.begin(), layouts.end(), node[i].Scalar()) ==
               layouts.end();
    if (good) layouts.push_back(node[i].Scalar());
  }
  if (good) return layouts;
  return section.Wrong(
      node, Cat("layouts: a list of at least two, each once: ", kLayoutNames));
}

absl::StatusOr<ChaosPlan> ReadPlan(const std::string& path,
                                   const YAML::Node& root) {
  ChaosPlan plan;
  Section section(path, "", root);
  RETURN_IF_ERROR(
      section.Get("duration_ms", 1, 24 * kHourMs, plan.duration_ms));
  RETURN_IF_ERROR(section.Get("streams", 1, 4096, plan.streams));
  RETURN_IF_ERROR(section.Get("prompt_tokens", 1, 1 << 16, plan.prompt_tokens));
  RETURN_IF_ERROR(section.Get("output_tokens", 1, 1 << 20, plan.output_tokens));
  RETURN_IF_ERROR(section.Get("seed", uint64_t{0}, UINT64_MAX, plan.seed));
  if (const YAML::Node layouts = section.Child("layouts");
      layouts.IsDefined()) {
    ASSIGN_OR_RETURN(plan.layouts, ReadLayouts(section, layouts));
  }
  Section limits(path, "limits.", section.Child("limits"));
  RETURN_IF_ERROR(
      limits.Get("longest_stall_ms", 0.0, 1e9, plan.limits.longest_stall_ms));
  RETURN_IF_ERROR(
      limits.Get("median_stall_ms", 0.0, 1e9, plan.limits.median_stall_ms));
  if (limits.Child("dropped_tokens").IsDefined()) {
    RETURN_IF_ERROR(limits.Get("dropped_tokens", uint64_t{0}, UINT64_MAX,
                               plan.limits.dropped_tokens.emplace()));
  }
  RETURN_IF_ERROR(limits.Done());
  const YAML::Node actions = section.Child("actions");
  if (actions.IsDefined() &&
      (!actions.IsSequence() || actions.size() > kMaxActions)) {
    return section.Wrong(actions,
                         Cat("actions: a list of at most ", kMaxActions));
  }
  for (const auto& action : actions) {
    ASSIGN_OR_RETURN(plan.actions.emplace_back(), ReadAction(path, action));
  }
  RETURN_IF_ERROR(section.Done());
  return plan;
}

}  // namespace

absl::StatusOr<ChaosPlan> LoadChaosPlan(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxPlanBytes));
  try {
    return ReadPlan(path, YAML::Load(text));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        AbslView(Cat(path, ":", e.mark.line + 1, ": ", e.msg)));
  }
}

}  // namespace moebius
