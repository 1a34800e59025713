// Any bytes as a command and as a report; what decodes must encode again to
// something that decodes to the same.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "common/wire/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moebius;
  const absl::Span<const char> bytes(reinterpret_cast<const char*>(data), size);
  if (const auto command = wire::DecodeCommand(bytes); command.ok()) {
    const std::string again = Encode(*command);
    const auto back = wire::DecodeCommand(again);
    if (!back.ok() || Encode(*back) != again) abort();
  }
  if (const auto report = wire::DecodeReport(bytes); report.ok()) {
    const std::string again = Encode(*report);
    const auto back = wire::DecodeReport(again);
    if (!back.ok() || Encode(*back) != again) abort();
  }
  return 0;
}
