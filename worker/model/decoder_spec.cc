#include "worker/model/decoder_spec.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

// Empty when all is computed; otherwise what is not.
using Missing = std::string_view;

Missing MissingOf(const GroupedQueryAttention& attention) {
  const bool whole_row =
      attention.qk_norm == GroupedQueryAttention::QkNorm::kWholeRow;
  // A norm of as many elements as a head has is that of each head.
  if (whole_row && attention.kv_heads == 1) {
    return "QK-norm over the whole row of one KV head";
  }
  return {};
}

Missing MissingOf(const LatentAttention&) { return "latent attention"; }

Missing MissingOf(const RotarySpec& rotary, int head_dim) {
  if (rotary.dims != head_dim) return "rotary embedding of a part of a head";
  if (rotary.pairs != RotarySpec::Pairs::kHalfSplit) {
    return "interleaved rotary embedding";
  }
  if (std::holds_alternative<Llama3Scaling>(rotary.scaling)) {
    return "Llama 3 scaling of rotary embedding";
  }
  return {};
}

Missing MissingOf(const RouterSpec& router) {
  switch (router.score) {
    case RouterSpec::Score::kSoftmax:
    case RouterSpec::Score::kSoftmaxOfChosen:
      break;
    case RouterSpec::Score::kSigmoid:
      return "sigmoid routers";
  }
  if (router.correction_bias) return "a router's correction bias";
  if (router.groups != 1 || router.top_groups != 1) {
    return "groups of experts in a router";
  }
  if (router.scale != 1) return "scaling of a router's weights";
  return {};
}

Missing MissingOf(const DenseMlp& mlp) {
  if (mlp.bias) return "biases of a dense MLP";
  if (std::holds_alternative<ClampedSwiGlu>(mlp.activation)) {
    return "clamped SwiGLU of a dense MLP";
  }
  return {};
}

Missing MissingOf(const MoeMlp& mlp) {
  if (mlp.shared.has_value() && !mlp.shared->gated) {
    return "a shared expert without a gate";
  }
  return MissingOf(mlp.router);
}

Missing MissingOf(const LayerSpec& layer) {
  const auto of = [](const auto& part) { return MissingOf(part); };
  Missing missing = std::visit(of, layer.attention);
  if (missing.empty()) {
    missing =
        MissingOf(layer.rotary,
                  std::get<GroupedQueryAttention>(layer.attention).head_dim);
  }
  return missing.empty() ? std::visit(of, layer.mlp) : missing;
}

absl::Status Unimplemented(std::string_view where, Missing missing) {
  return absl::UnimplementedError(
      absl::StrCat("model: ", std::string(where), std::string(missing),
                   ": not supported, there is no operator for it yet"));
}

}  // namespace

int DecoderSpec::num_moe_layers() const {
  return static_cast<int>(std::count_if(
      layers.begin(), layers.end(),
      [](const LayerSpec& layer) { return layer.moe() != nullptr; }));
}

absl::Status CheckSupported(const DecoderSpec& spec) {
  for (int l = 0; l < spec.num_layers(); ++l) {
    const Missing missing = MissingOf(spec.layers[l]);
    if (missing.empty()) continue;
    return Unimplemented(absl::StrCat("layer ", l, ": "), missing);
  }
  // There is one table of rotary embedding.
  for (const LayerSpec& layer : spec.layers) {
    if (layer.rotary == spec.layers[0].rotary) continue;
    return Unimplemented("", "layers of different rotary embedding");
  }
  if (spec.logit_scale != 1) return Unimplemented("", "scaling of logits");
  return absl::OkStatus();
}

}  // namespace moebius
