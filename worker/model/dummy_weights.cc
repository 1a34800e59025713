#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "common/base/fnv.h"
#include "kernels/made_up.h"
#include "worker/model/tensor_source.h"

namespace moebius {
namespace {

class DummyWeights : public TensorSource {
 public:
  absl::Status Check(const std::string&, absl::Span<const int64_t>) override {
    return absl::OkStatus();
  }

  absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                        absl::Span<Bf16> out) override {
    CHECK(static_cast<int64_t>(out.size()) == slice.num_elements());
    const uint64_t seed = MadeUpSeed(name);
    Bf16* next = out.data();
    for (int64_t row = slice.row_begin; row < slice.row_end; ++row) {
      const uint64_t base = static_cast<uint64_t>(row * slice.cols);
      for (int64_t col = slice.col_begin; col < slice.col_end; ++col) {
        *next++ = MadeUpElement(seed, base + static_cast<uint64_t>(col));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadFloat(const std::string& name,
                         absl::Span<float> out) override {
    const uint64_t seed = MadeUpSeed(name);
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = MadeUpNorm(seed, i);
    }
    return absl::OkStatus();
  }

  int64_t bytes_read() const override { return 0; }
  bool made_up() const override { return true; }
};

}  // namespace

uint64_t MadeUpSeed(std::string_view name) {
  Fnv1a hash;
  for (const char c : name) hash.Add(static_cast<unsigned char>(c));
  return hash.hash();
}

std::unique_ptr<TensorSource> MakeDummyWeights() {
  return std::make_unique<DummyWeights>();
}

}  // namespace moebius
