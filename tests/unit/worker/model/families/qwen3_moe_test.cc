#include "worker/model/families/qwen3_moe.h"

#include <ostream>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/families/families.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using Json = nlohmann::json;

Json Base() {
  return Json::parse(R"({
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
    "attention_bias": false, "decoder_sparse_step": 1, "head_dim": 32,
    "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512,
    "max_position_embeddings": 4096, "mlp_only_layers": [],
    "moe_intermediate_size": 128, "norm_topk_prob": true,
    "num_attention_heads": 8, "num_experts": 16, "num_experts_per_tok": 4,
    "num_hidden_layers": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 10000.0, "sliding_window": null,
    "tie_word_embeddings": true, "use_sliding_window": false,
    "vocab_size": 4096})");
}

absl::StatusOr<DecoderSpec> Parse(const Json& json) {
  const auto model = ParseModel(json.dump(), "dir/config.json");
  if (!model.ok()) return model.status();
  return model->spec;
}

struct BadKey {
  const char* key;
  const char* value;  // JSON; empty: the key is taken away
  const char* message;
};

void PrintTo(const BadKey& bad, std::ostream* out) {
  *out << bad.key << ": " << bad.value;
}

class BadQwen3MoeConfig : public testing::TestWithParam<BadKey> {};

TEST_P(BadQwen3MoeConfig, ErrorNamesFileKeyAndWhatIsAllowed) {
  Json json = Base();
  const BadKey& bad = GetParam();
  if (*bad.value == '\0') {
    json.erase(bad.key);
  } else {
    json[bad.key] = Json::parse(bad.value);
  }
  EXPECT_THAT(Parse(json),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("dir/config.json: "), HasSubstr(bad.key),
                             HasSubstr(bad.message))));
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadQwen3MoeConfig,
    testing::Values(
        BadKey{"architectures", R"(["LlamaForCausalLM"])",
               "allowed: [\"Qwen3MoeForCausalLM\"]"},
        BadKey{"model_type", R"("llama")", "allowed: \"qwen3_moe\""},
        BadKey{"hidden_act", R"("gelu")", "allowed: \"silu\""},
        BadKey{"hidden_act", "1", "allowed: \"silu\""},
        BadKey{"attention_bias", "true", "allowed: false"},
        BadKey{"attention_bias", "\"no\"", "neither true nor false"},
        BadKey{"use_sliding_window", "true", "allowed: false"},
        BadKey{"hidden_size", "", "missing; must be an integer"},
        BadKey{"hidden_size", "0", "not an integer from 1 to"},
        BadKey{"hidden_size", "-256", "not an integer from 1 to"},
        BadKey{"hidden_size", "256.5", "not an integer from 1 to"},
        BadKey{"hidden_size", "\"256\"", "not an integer from 1 to"},
        BadKey{"hidden_size", "65537", "from 1 to 65536"},
        BadKey{"hidden_size", "18446744073709551615", "from 1 to 65536"},
        BadKey{"head_dim", "33", "even number"},
        BadKey{"head_dim", "2048", "from 2 to 1024"},
        BadKey{"num_experts_per_tok", "17", "from 1 to 16"},
        BadKey{"num_experts_per_tok", "0", "from 1 to 16"},
        BadKey{"moe_intermediate_size", "", "missing"},
        BadKey{"norm_topk_prob", "1", "neither true nor false"},
        BadKey{"tie_word_embeddings", "[]", "neither true nor false"},
        BadKey{"rms_norm_eps", "0", "not a number from"},
        BadKey{"rms_norm_eps", "\"small\"", "not a number from"},
        BadKey{"rope_theta", "0.5", "not a number from"},
        BadKey{"rope_theta", "1e13", "not a number from"},
        BadKey{"rope_scaling", R"({"rope_type": "yarn", "factor": 0.5})",
               "not a number from 1"},
        BadKey{"rope_scaling", R"({"type": "linear", "factor": "x"})",
               "not a number from 1"},
        BadKey{
            "rope_scaling",
            R"({"rope_type": "yarn", "original_max_position_embeddings": 0})",
            "not an integer from 1"},
        BadKey{"rope_scaling", R"({"rope_type": "dynamic"})",
               "allowed: \"default\", \"linear\" or \"yarn\""},
        BadKey{"rope_scaling", "[1]", "neither null nor an object"},
        BadKey{"rope_parameters", R"({"rope_type": "llama3"})",
               "allowed: \"default\""},
        BadKey{"rope_parameters", R"({"partial_rotary_factor": 0.5})",
               "allowed: 1"},
        BadKey{"rope_parameters", R"({"rope_theta": "x"})",
               "not a number from"}));

int HeadDimOf(const DecoderSpec& spec) {
  return std::get<GroupedQueryAttention>(spec.layers[0].attention).head_dim;
}

TEST(Qwen3Moe, AConfigGivesExactlyThisDecoder) {
  Json json = Base();
  json["num_hidden_layers"] = 3;
  json["mlp_only_layers"] = {1};
  json["rope_theta"] = 5e6;
  SmallModel model;
  model.hidden_size = 256;
  model.num_q_heads = 8;
  model.num_kv_heads = 4;
  model.head_dim = 32;
  model.intermediate_size = 512;
  model.moe_intermediate_size = 128;
  model.num_experts = 16;
  model.experts_per_token = 4;
  model.norm_topk_prob = true;
  model.tie_word_embeddings = true;
  model.vocab_size = 4096;
  model.max_positions = 4096;
  model.rope_theta = 5e6;
  model.is_moe_layer = {true, false, true};
  const auto spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(*spec, SpecOf(model));
  EXPECT_THAT(CheckSupported(*spec), IsOk());
}

TEST(Qwen3Moe, NoExpertsMakesEveryLayerDense) {
  Json json = Base();
  json["num_experts"] = 0;
  json.erase("moe_intermediate_size");
  json.erase("num_experts_per_tok");
  const auto spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->num_moe_layers(), 0);
  json.erase("intermediate_size");
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument,
                                    HasSubstr("intermediate_size: missing")));
}

TEST(Qwen3Moe, AbsentKeysHaveTheFormatsDefaults) {
  Json json = Base();
  for (const char* key :
       {"head_dim", "norm_topk_prob", "tie_word_embeddings", "rope_theta",
        "rms_norm_eps", "decoder_sparse_step", "mlp_only_layers", "model_type",
        "hidden_act", "attention_bias", "use_sliding_window",
        "intermediate_size"}) {
    json.erase(key);
  }
  const auto spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(HeadDimOf(*spec), 32);  // hidden_size / num_attention_heads
  EXPECT_FALSE(spec->layers[0].moe()->router.renormalize);
  EXPECT_FALSE(spec->tied_embedding);
  EXPECT_EQ(spec->layers[0].rotary.theta, 10000.0);
  EXPECT_EQ(spec->norm_eps, 1e-6);
  EXPECT_EQ(spec->num_moe_layers(), 4);
  json["num_attention_heads"] = 12;
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument,
                                    HasSubstr("head_dim: missing")));
}

// As Qwen3's cards say for contexts beyond 32,768 tokens.
TEST(Qwen3Moe, ScaledRotaryEmbeddingIsRead) {
  Json json = Base();
  json["rope_scaling"] = {{"rope_type", "yarn"},
                          {"factor", 4.0},
                          {"original_max_position_embeddings", 2048}};
  auto spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  const auto* yarn = std::get_if<YarnScaling>(&spec->layers[0].rotary.scaling);
  ASSERT_NE(yarn, nullptr);
  EXPECT_EQ(yarn->factor, 4.0);
  EXPECT_EQ(yarn->original_positions, 2048);
  EXPECT_TRUE(yarn->truncate);
  EXPECT_NEAR(yarn->attention_factor, 1.138629436, 1e-9);
  EXPECT_EQ(spec->max_positions, 8192);
  EXPECT_THAT(CheckSupported(*spec), IsOk());

  json["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};
  spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(std::get<LinearScaling>(spec->layers[0].rotary.scaling).factor,
            2.5);
  EXPECT_EQ(spec->max_positions, 10240);
}

TEST(Qwen3Moe, BothSpellingsOfRotaryParametersAreRead) {
  Json json = Base();
  json.erase("rope_theta");
  json["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  auto spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->layers[0].rotary.theta, 1e6);

  json = Base();
  json["rope_theta"] = 5e5;
  json["rope_scaling"] = {{"type", "default"}};
  json["sliding_window"] = 4096;  // of no effect unless it is used
  spec = Parse(json);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->layers[0].rotary.theta, 5e5);
}

}  // namespace
}  // namespace moebius
