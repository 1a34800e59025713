#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "common/base/fnv.h"
#include "common/base/split_mix.h"
#include "worker/model/tensor_source.h"

namespace moebius {
namespace {

uint64_t HashName(std::string_view name) {
  Fnv1a hash;
  for (const char c : name) hash.Add(static_cast<unsigned char>(c));
  return hash.hash();
}

// The sum of four uniform numbers is near enough to a normal one
// (Irwin-Hall, n = 4): standard deviation 65536 * sqrt(4 / 12).
float Element(uint64_t seed, uint64_t index) {
  const uint64_t z = SplitMixAt(seed, index);
  const int32_t sum = static_cast<int32_t>((z & 0xffff) + ((z >> 16) & 0xffff) +
                                           ((z >> 32) & 0xffff) + (z >> 48));
  return static_cast<float>(sum - 2 * 65535) * (0.02f / 37837.0f);
}

class DummyWeights : public TensorSource {
 public:
  absl::Status Check(const std::string&, absl::Span<const int64_t>) override {
    return absl::OkStatus();
  }

  absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                        absl::Span<Bf16> out) override {
    CHECK(static_cast<int64_t>(out.size()) == slice.num_elements());
    const uint64_t seed = HashName(name);
    Bf16* next = out.data();
    for (int64_t row = slice.row_begin; row < slice.row_end; ++row) {
      const uint64_t base = static_cast<uint64_t>(row * slice.cols);
      for (int64_t col = slice.col_begin; col < slice.col_end; ++col) {
        *next++ = ToBf16(Element(seed, base + static_cast<uint64_t>(col)));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadFloat(const std::string& name,
                         absl::Span<float> out) override {
    const uint64_t seed = HashName(name);
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = ToFloat(ToBf16(1.0f + Element(seed, i)));
    }
    return absl::OkStatus();
  }

  int64_t bytes_read() const override { return 0; }
};

}  // namespace

std::unique_ptr<TensorSource> MakeDummyWeights() {
  return std::make_unique<DummyWeights>();
}

}  // namespace moebius
