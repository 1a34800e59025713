#include "common/layout/layout.h"

#include <array>
#include <string>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {

namespace {

// By tp_size, of the layouts between EP and TP.
constexpr std::array<std::string_view, kMaxRanks> kMiddleNames = {
    "",    "",    "tp2",  "tp3",  "tp4",  "tp5",  "tp6",  "tp7",
    "tp8", "tp9", "tp10", "tp11", "tp12", "tp13", "tp14", "tp15"};

// "ep, tp2 and tp".
std::string ListOf(const std::vector<Layout>& layouts, int num_ranks) {
  std::string list;
  for (size_t i = 0; i < layouts.size(); ++i) {
    const char* before = i + 1 == layouts.size() ? " and " : ", ";
    absl::StrAppend(&list, i == 0 ? "" : before,
                    std::string(LayoutName(layouts[i], num_ranks)));
  }
  return list;
}

absl::StatusOr<Layout> ParseOneOf(const std::vector<Layout>& layouts,
                                  std::string_view text, int num_ranks) {
  Layout layout{0};
  if (text == "ep") {
    layout = ExpertParallel();
  } else if (text == "tp") {
    layout = TensorParallel(num_ranks);
  } else if (text.substr(0, 2) == "tp") {
    const std::string size(text.substr(2));
    if (!absl::c_all_of(size, absl::ascii_isdigit) ||
        !absl::SimpleAtoi(size, &layout.tp_size)) {
      layout = Layout{0};
    }
  }
  if (absl::c_linear_search(layouts, layout)) return layout;
  return absl::InvalidArgumentError(absl::StrCat(
      "no layout \"", absl::CEscape(std::string(text.substr(0, 32))), "\" of ",
      num_ranks, num_ranks == 1 ? " rank" : " ranks", "; there ",
      layouts.size() == 1 ? "is " : "are ", ListOf(layouts, num_ranks)));
}

}  // namespace

std::string_view LayoutName(Layout layout, int num_ranks) {
  CHECK(num_ranks <= kMaxRanks && layout.divides(num_ranks));
  if (layout.is_ep()) return "ep";
  if (layout.tp_size == num_ranks) return "tp";
  return kMiddleNames[layout.tp_size];
}

absl::StatusOr<Layout> ParseLayout(std::string_view text, int num_ranks) {
  RETURN_IF_ERROR(ValidateNumRanks(num_ranks));
  std::vector<Layout> layouts;
  for (int t = 1; t <= num_ranks; ++t) {
    if (Layout{t}.divides(num_ranks)) layouts.push_back(Layout{t});
  }
  return ParseOneOf(layouts, text, num_ranks);
}

absl::Status ValidateNumRanks(int num_ranks) {
  if (num_ranks < 1 || num_ranks > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a group has 1 to ", kMaxRanks, " ranks, not ", num_ranks));
  }
  return absl::OkStatus();
}

absl::Status Validate(const AttentionShape& shape) {
  RETURN_IF_ERROR(ValidateNumRanks(shape.num_ranks));
  if (shape.num_q_heads < 1 || shape.num_kv_heads < 1 ||
      shape.num_q_heads % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shape.num_q_heads, " query heads cannot share ",
                     shape.num_kv_heads, " KV heads evenly"));
  }
  if (shape.num_q_heads % shape.num_ranks != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shape.num_q_heads, " query heads cannot be divided over ",
                     shape.num_ranks, " ranks"));
  }
  if (shape.num_kv_heads % shape.num_ranks != 0 &&
      shape.num_ranks % shape.num_kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("of ", shape.num_kv_heads, " KV heads and ",
                     shape.num_ranks, " ranks neither divides the other"));
  }
  return absl::OkStatus();
}

bool HeadsDivide(const AttentionShape& shape, Layout layout) {
  const int t = layout.tp_size, kv = shape.num_kv_heads;
  return layout.divides(shape.num_ranks) && (kv % t == 0 || t % kv == 0);
}

std::vector<Layout> LayoutsOf(const AttentionShape& shape) {
  std::vector<Layout> layouts;
  for (int t = 1; t <= shape.num_ranks; ++t) {
    if (HeadsDivide(shape, Layout{t})) layouts.push_back(Layout{t});
  }
  return layouts;
}

absl::StatusOr<Layout> ParseLayout(std::string_view text,
                                   const AttentionShape& shape) {
  return ParseOneOf(LayoutsOf(shape), text, shape.num_ranks);
}

HeadRange HeadsOf(const AttentionShape& shape, Layout layout, Rank rank) {
  CHECK(HeadsDivide(shape, layout));
  CHECK(rank >= 0 && rank < shape.num_ranks);
  const int t = layout.tp_size, part = layout.part_of(rank);
  const int q = shape.num_q_heads / t;
  HeadRange range{part * q, (part + 1) * q, 0, 0};
  if (t <= shape.num_kv_heads) {
    const int kv = shape.num_kv_heads / t;
    range.kv_begin = part * kv;
    range.kv_end = range.kv_begin + kv;
  } else {
    range.kv_begin = part / (t / shape.num_kv_heads);
    range.kv_end = range.kv_begin + 1;
  }
  return range;
}

}  // namespace moebius
