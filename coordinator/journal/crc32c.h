// CRC-32C (Castagnoli), the checksum of the journal's frames.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace moebius {

// Of `first` and `second`, one behind the other.
uint32_t Crc32c(absl::Span<const char> first, absl::Span<const char> second);

}  // namespace moebius
