#include "worker/model/decoder_spec.h"

#include <functional>
#include <ostream>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Three layers, the second of them dense.
DecoderSpec Supported() {
  SmallModel model;
  model.hidden_size = 48;
  model.num_q_heads = 8;
  model.num_kv_heads = 2;
  model.head_dim = 16;
  model.intermediate_size = 80;
  model.moe_intermediate_size = 128;
  model.num_experts = 8;
  model.experts_per_token = 2;
  model.vocab_size = 101;
  model.max_positions = 512;
  model.is_moe_layer = {true, false, true};
  return SpecOf(model);
}

struct Feature {
  const char* name;  // as the error says it
  std::function<void(DecoderSpec&)> add;
};

void PrintTo(const Feature& feature, std::ostream* out) {
  *out << feature.name;
}

GroupedQueryAttention& Attention(DecoderSpec& spec) {
  return std::get<GroupedQueryAttention>(spec.layers[2].attention);
}
RotarySpec& Rotary(DecoderSpec& spec) { return spec.layers[2].rotary; }
MoeMlp& Moe(DecoderSpec& spec) { return std::get<MoeMlp>(spec.layers[2].mlp); }
DenseMlp& Dense(DecoderSpec& spec) {
  return std::get<DenseMlp>(spec.layers[1].mlp);
}

class Unsupported : public testing::TestWithParam<Feature> {};

TEST_P(Unsupported, IsRefusedByItsName) {
  DecoderSpec spec = Supported();
  ASSERT_THAT(CheckSupported(spec), IsOk());
  GetParam().add(spec);
  EXPECT_THAT(
      CheckSupported(spec),
      StatusIs(absl::StatusCode::kUnimplemented,
               AllOf(HasSubstr(GetParam().name), HasSubstr("not supported"))));
}

using QkNorm = GroupedQueryAttention::QkNorm;

INSTANTIATE_TEST_SUITE_P(
    Attention, Unsupported,
    testing::Values(
        Feature{"layer 2: QK-norm over the whole row of one KV head",
                [](auto& s) {
                  Attention(s).qk_norm = QkNorm::kWholeRow;
                  Attention(s).kv_heads = 1;
                }},
        Feature{"layer 2: latent attention",
                [](auto& s) { s.layers[2].attention = LatentAttention{}; }},
        Feature{"layer 2: rotary embedding of a part of a head",
                [](auto& s) { Rotary(s).dims = 8; }},
        Feature{
            "layer 2: interleaved rotary embedding",
            [](auto& s) { Rotary(s).pairs = RotarySpec::Pairs::kInterleaved; }},
        Feature{"layer 2: Llama 3 scaling",
                [](auto& s) { Rotary(s).scaling = Llama3Scaling{}; }},
        Feature{"layers of different rotary embedding",
                [](auto& s) { Rotary(s).theta = 1e6; }}));

INSTANTIATE_TEST_SUITE_P(
    Mlps, Unsupported,
    testing::Values(
        Feature{"layer 1: biases of a dense MLP",
                [](auto& s) { Dense(s).bias = true; }},
        Feature{"layer 1: clamped SwiGLU of a dense MLP",
                [](auto& s) { Dense(s).activation = ClampedSwiGlu{}; }},
        Feature{"layer 2: a shared expert without a gate",
                [](auto& s) { Moe(s).shared = SharedExpert{}; }},
        Feature{
            "layer 2: sigmoid routers",
            [](auto& s) { Moe(s).router.score = RouterSpec::Score::kSigmoid; }},
        Feature{"layer 2: a router's correction bias",
                [](auto& s) { Moe(s).router.correction_bias = true; }},
        Feature{"layer 2: groups of experts",
                [](auto& s) { Moe(s).router.groups = 4; }},
        Feature{"layer 2: scaling of a router's weights",
                [](auto& s) { Moe(s).router.scale = 2.5; }},
        Feature{"scaling of logits", [](auto& s) { s.logit_scale = 0.5; }}));

}  // namespace
}  // namespace moebius
