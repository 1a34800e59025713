// The version that the programs report.
#pragma once

namespace moebius {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace moebius
