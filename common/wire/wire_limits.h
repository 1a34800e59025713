// What a message may hold; both ends of the codec keep to it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moebius {

inline constexpr uint32_t kMaxSlotNumber = 1u << 20;
inline constexpr uint32_t kMaxPosition = 1u << 24;
inline constexpr size_t kMaxReasonBytes = 4096;

}  // namespace moebius
