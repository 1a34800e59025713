#include "deploy/bench/demo_comparison.h"

#include <algorithm>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

absl::Status CheckLength(size_t stream, const CompletionResult& result,
                         size_t num_tokens) {
  if (result.token_ids.size() == num_tokens) return absl::OkStatus();
  return absl::InternalError(Cat("stream ", stream, " has ",
                                 result.token_ids.size(), " tokens, not ",
                                 num_tokens));
}

}  // namespace

NumericsChoice DemoNumerics(NumericsChoice configured) {
  return configured == NumericsChoice::kAuto ? NumericsChoice::kExact
                                             : configured;
}

absl::StatusOr<StreamDifferences> CompareStreams(
    const std::vector<CompletionResult>& switched,
    const std::vector<CompletionResult>& quiet, size_t num_tokens) {
  CHECK(switched.size() == quiet.size());
  StreamDifferences found;
  found.num_streams = switched.size();
  for (size_t i = 0; i < switched.size(); ++i) {
    const CompletionResult& a = switched[i];
    const CompletionResult& b = quiet[i];
    RETURN_IF_ERROR(CheckLength(i, a, num_tokens));
    RETURN_IF_ERROR(CheckLength(i, b, num_tokens));
    const auto differs = std::mismatch(a.token_ids.begin(), a.token_ids.end(),
                                       b.token_ids.begin())
                             .first;
    const auto token = static_cast<size_t>(differs - a.token_ids.begin());
    if (token < num_tokens) {
      found.first_token =
          found.num_different == 0 ? token : std::min(found.first_token, token);
      ++found.num_different;
    } else if (a.text != b.text || a.finish_reason != b.finish_reason) {
      return absl::InternalError(
          Cat("stream ", i,
              " has the tokens of the quiet run, but not its text or end"));
    }
  }
  return found;
}

std::string DescribeDifferences(const StreamDifferences& found) {
  if (found.num_different == 0) {
    return Cat("all ", found.num_streams, " equal, token for token");
  }
  return Cat(found.num_different, " of ", found.num_streams,
             " differ, the first from token ", found.first_token, " on");
}

absl::Status CheckDifferences(const StreamDifferences& found,
                              NumericsChoice numerics,
                              const std::string& layout) {
  if (found.num_different == 0 || numerics == NumericsChoice::kFast) {
    return absl::OkStatus();
  }
  return absl::InternalError(
      Cat("of the streams, compared with a quiet run in ", layout, ", ",
          DescribeDifferences(found)));
}

}  // namespace moebius
