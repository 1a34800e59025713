#include "worker/model/families/fused_experts.h"

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

// One matrix or vector of one expert.
struct ExpertTensor {
  std::string prefix;  // up to "experts."
  int expert = 0;
  std::string_view matrix;  // "gate", "up_bias" ...

  bool down() const { return matrix.substr(0, 4) == "down"; }
  bool bias() const { return matrix.find("_bias") != std::string_view::npos; }
  // 0 of gates and 1 of ups, among each two columns.
  int turn() const { return matrix.substr(0, 2) == "up" ? 1 : 0; }
  // What it is in.
  std::string Fused() const {
    return absl::StrCat(prefix, down() ? "down_proj" : "gate_up_proj",
                        bias() ? "_bias" : "");
  }
};

std::optional<ExpertTensor> Parse(std::string_view name) {
  constexpr std::string_view kExperts = ".mlp.experts.";
  const size_t at = name.find(kExperts);
  if (at == std::string_view::npos) return std::nullopt;
  ExpertTensor tensor;
  tensor.prefix = std::string(name.substr(0, at + kExperts.size()));
  const std::string_view rest = name.substr(at + kExperts.size());
  const auto [end, error] =
      std::from_chars(rest.data(), rest.data() + rest.size(), tensor.expert);
  if (error != std::errc() || end == rest.data() + rest.size()) {
    return std::nullopt;
  }
  tensor.matrix = rest.substr(static_cast<size_t>(end - rest.data()) + 1);
  return tensor;
}

class FusedExperts final : public TensorSource {
 public:
  FusedExperts(std::unique_ptr<TensorSource> source, const DecoderSpec& spec)
      : source_(std::move(source)), hidden_(spec.hidden_size) {
    for (const LayerSpec& layer : spec.layers) {
      if (const MoeMlp* moe = layer.moe()) {
        experts_ = moe->router.num_experts;
        rows_ = moe->rows;
      }
    }
  }

  absl::Status Check(const std::string& name,
                     absl::Span<const int64_t> shape) override {
    const std::optional<ExpertTensor> tensor = Parse(name);
    if (!tensor.has_value()) return source_->Check(name, shape);
    const std::vector<int64_t> fused =
        tensor->bias()
            ? std::vector<int64_t>{experts_, Cols(*tensor)}
            : std::vector<int64_t>{experts_, Steps(*tensor), Cols(*tensor)};
    return source_->Check(tensor->Fused(), fused);
  }

  absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                        absl::Span<Bf16> out) override {
    const std::optional<ExpertTensor> tensor = Parse(name);
    if (!tensor.has_value()) return source_->ReadBf16(name, slice, out);
    CHECK(!tensor->bias() &&
          static_cast<int64_t>(out.size()) == slice.num_elements());
    // Transposed: its rows are our columns.
    const int64_t every = tensor->down() ? 1 : 2;
    const int64_t first = int64_t{tensor->expert} * Steps(*tensor);
    MatrixSlice there;
    there.rows = experts_ * Steps(*tensor);
    there.cols = Cols(*tensor);
    there.row_begin = first + slice.col_begin;
    there.row_end = first + slice.col_end;
    there.col_begin = every * slice.row_begin;
    there.col_end = every * slice.row_end;
    std::vector<Bf16> room(static_cast<size_t>(there.num_elements()));
    RETURN_IF_ERROR(
        source_->ReadBf16(tensor->Fused(), there, absl::MakeSpan(room)));
    const int64_t rows = slice.num_rows(), cols = slice.num_cols();
    for (int64_t j = 0; j < cols; ++j) {
      const Bf16* const from =
          room.data() + j * there.num_cols() + tensor->turn();
      for (int64_t i = 0; i < rows; ++i) out[i * cols + j] = from[i * every];
    }
    return absl::OkStatus();
  }

  absl::Status ReadFloat(const std::string& name,
                         absl::Span<float> out) override {
    const std::optional<ExpertTensor> tensor = Parse(name);
    if (!tensor.has_value()) return source_->ReadFloat(name, out);
    CHECK(tensor->bias());
    const int64_t every = tensor->down() ? 1 : 2;
    const int64_t cols = Cols(*tensor);
    CHECK(static_cast<int64_t>(out.size()) * every == cols);
    std::vector<Bf16> room(static_cast<size_t>(cols));
    RETURN_IF_ERROR(
        source_->ReadBf16(tensor->Fused(),
                          MatrixSlice::RowRange(experts_, cols, tensor->expert,
                                                tensor->expert + 1),
                          absl::MakeSpan(room)));
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = ToFloat(room[i * every + tensor->turn()]);
    }
    return absl::OkStatus();
  }

  int64_t bytes_read() const override { return source_->bytes_read(); }

 private:
  // Of one expert in the fused tensor.
  int64_t Steps(const ExpertTensor& tensor) const {
    return tensor.down() ? rows_ : hidden_;
  }
  int64_t Cols(const ExpertTensor& tensor) const {
    return tensor.down() ? hidden_ : 2 * rows_;
  }

  const std::unique_ptr<TensorSource> source_;
  const int64_t hidden_;
  int64_t experts_ = 0;
  int64_t rows_ = 0;
};

}  // namespace

std::unique_ptr<TensorSource> SplitFusedExperts(
    std::unique_ptr<TensorSource> source, const DecoderSpec& spec) {
  return std::make_unique<FusedExperts>(std::move(source), spec);
}

}  // namespace moebius
