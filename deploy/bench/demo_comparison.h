// What the demonstration compares, and what a difference means. Pure.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "deploy/client/completion_stream.h"

namespace moebius {

// Exact unless somebody asked for fast: what there is to see is that every bit
// is the same. By itself a GPU computes fast.
NumericsChoice DemoNumerics(NumericsChoice configured);

// Of the streams of a run with switches, those that got other tokens than in a
// quiet one.
struct StreamDifferences {
  size_t num_streams = 0;
  size_t num_different = 0;
  size_t first_token = 0;  // the earliest one that differs, in any of them
};

// `switched` and `quiet` are results of the same requests.
// Errors: kInternal with the stream, whatever the numerics: it has not
// `num_tokens` tokens, or the same tokens and another text or end.
absl::StatusOr<StreamDifferences> CompareStreams(
    const std::vector<CompletionResult>& switched,
    const std::vector<CompletionResult>& quiet, size_t num_tokens);

// "all 8 equal, token for token", or how many are not and from which token on.
std::string DescribeDifferences(const StreamDifferences& found);

// kInternal for differences that there may not be.
absl::Status CheckDifferences(const StreamDifferences& found,
                              NumericsChoice numerics,
                              const std::string& layout);

}  // namespace moebius
