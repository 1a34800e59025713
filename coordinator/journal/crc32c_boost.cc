#include <boost/crc.hpp>

#include "coordinator/journal/crc32c.h"

namespace moebius {

uint32_t Crc32c(absl::Span<const char> first, absl::Span<const char> second) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(first.data(), first.size());
  crc.process_bytes(second.data(), second.size());
  return crc.checksum();
}

}  // namespace moebius
