// Names of a journal's files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace moebius {

// "journal-000012.log".
inline std::string SegmentName(uint64_t segment) {
  return absl::StrFormat("journal-%06d.log", segment);
}
// Until it is whole.
inline std::string TemporarySegmentName(uint64_t segment) {
  return absl::StrFormat("journal-%06d.tmp", segment);
}
inline bool IsTemporarySegment(absl::string_view name) {
  return absl::StartsWith(name, "journal-") && absl::EndsWith(name, ".tmp");
}

// The number in a segment's name; none for other names.
inline std::optional<uint64_t> SegmentOf(absl::string_view name) {
  uint64_t number = 0;
  absl::string_view digits = name;
  if (!absl::ConsumePrefix(&digits, "journal-") ||
      !absl::ConsumeSuffix(&digits, ".log") ||
      !absl::SimpleAtoi(digits, &number) || number == 0 ||
      SegmentName(number) != name) {
    return std::nullopt;
  }
  return number;
}

}  // namespace moebius
