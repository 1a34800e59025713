#include "coordinator/engine/token_ends.h"

#include <algorithm>

#include "absl/types/span.h"

namespace moebius {
namespace {

bool Contains(absl::Span<const int32_t> ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TokenEnds::TokenEnds(const StopCriteria& stop)
    : min_tokens_(stop.min_tokens),
      max_tokens_(stop.max_tokens),
      stop_token_ids_(stop.stop_token_ids) {
  if (!stop.ignore_eos) {
    eos_ids_.assign(stop.eos_ids.begin(), stop.eos_ids.end());
  }
}

TokenEnd TokenEnds::Take(int32_t token) {
  ++num_tokens_;
  if (may_stop()) {
    if (Contains(eos_ids_, token)) return TokenEnd::kEos;
    if (Contains(stop_token_ids_, token)) return TokenEnd::kStopToken;
  }
  return num_tokens_ >= max_tokens_ ? TokenEnd::kLength : TokenEnd::kNone;
}

}  // namespace moebius
