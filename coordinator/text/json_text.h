// Writing JSON by hand, where every microsecond counts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moebius {

// Appends `text` quoted and escaped. REQUIRES: valid UTF-8.
void AppendJsonString(std::string_view text, std::string* out);

// Appends the shortest decimal that reads back as the same float, so equal
// bits give equal text. What JSON cannot carry becomes a number: -infinity and
// NaN -9999.0, +infinity 9999.0 (log-probabilities of masked tokens).
void AppendFloat(float value, std::string* out);
// The same for doubles; non-finite ones become null.
void AppendDouble(double value, std::string* out);

void AppendInt(int64_t value, std::string* out);

}  // namespace moebius
