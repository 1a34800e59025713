// Headers and indexes of checkpoints are hostile: parsing ends with a status,
// and what it accepts holds together.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/base/check.h"
#include "worker/model/safetensors.h"

// The first byte chooses header or index; for a header the next two are the
// size of the data, little-endian.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 3,
                              size - 3);
  if (data[0] == 'i') {
    const auto files = moebius::ParseSafetensorsIndex(text, "fuzz");
    if (files.ok()) {
      for (const auto& [tensor, file] : *files) {
        CHECK(!file.empty() && file.find('/') == std::string::npos);
      }
    }
    return 0;
  }
  const int64_t data_bytes = data[1] | int64_t{data[2]} << 8;
  const auto tensors =
      moebius::ParseSafetensorsHeader(text, data_bytes, "fuzz");
  if (!tensors.ok()) {
    CHECK(!tensors.status().message().empty());
    return 0;
  }
  int64_t covered = 0;
  for (const moebius::TensorInfo& tensor : *tensors) {
    CHECK(tensor.begin == covered && tensor.end >= covered);
    covered = tensor.end;
    if (tensor.type == moebius::TensorType::kOther) continue;
    int64_t bytes = tensor.type == moebius::TensorType::kF32 ? 4 : 2;
    for (const int64_t dimension : tensor.shape) bytes *= dimension;
    CHECK(bytes == tensor.end - tensor.begin);
  }
  CHECK(covered == data_bytes);
  return 0;
}
