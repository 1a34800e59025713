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
  if (attention.qk_norm == GroupedQueryAttention::QkNorm::kWholeRow) {
    return "QK-norm over the whole row";
  }
  if (attention.qkv_bias) return "biases of queries, keys and values";
  if (attention.output_bias) return "a bias of attention's output";
  if (attention.sinks) return "attention sinks";
  if (attention.window != 0) return "a sliding window";
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

Missing MissingOf(const ActivationSpec& activation) {
  if (std::holds_alternative<ClampedSwiGlu>(activation)) {
    return "clamped SwiGLU";
  }
  return {};
}

Missing MissingOf(const RouterSpec& router) {
  switch (router.score) {
    case RouterSpec::Score::kSoftmax:
      break;
    case RouterSpec::Score::kSoftmaxOfChosen:
      return "a router's softmax after the choice";
    case RouterSpec::Score::kSigmoid:
      return "sigmoid routers";
  }
  if (router.bias) return "a router's bias";
  if (router.correction_bias) return "a router's correction bias";
  if (router.groups != 1 || router.top_groups != 1) {
    return "groups of experts in a router";
  }
  if (router.scale != 1) return "scaling of a router's weights";
  return {};
}

Missing MissingOf(const DenseMlp& mlp) {
  if (mlp.bias) return "biases of a dense MLP";
  return MissingOf(mlp.activation);
}

Missing MissingOf(const MoeMlp& mlp) {
  if (mlp.bias) return "biases of experts";
  if (mlp.shared.has_value()) return "a shared expert";
  const Missing missing = MissingOf(mlp.router);
  return missing.empty() ? MissingOf(mlp.activation) : missing;
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
