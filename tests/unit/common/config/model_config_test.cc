#include "common/config/model_config.h"

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/checkpoint_writer.h"
#include "tests/unit/worker/model/test_group.h"

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

absl::StatusOr<ModelConfig> Parse(const Json& json) {
  return ParseModelConfig(json.dump(), "dir/config.json");
}

struct BadKey {
  const char* key;
  const char* value;  // JSON; empty: the key is taken away
  const char* message;
};

void PrintTo(const BadKey& bad, std::ostream* out) {
  *out << bad.key << ": " << bad.value;
}

class BadConfig : public testing::TestWithParam<BadKey> {};

TEST_P(BadConfig, ErrorNamesFileKeyAndWhatIsAllowed) {
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
    Table, BadConfig,
    testing::Values(
        BadKey{"architectures", R"(["LlamaForCausalLM"])",
               "allowed: [\"Qwen3MoeForCausalLM\"]"},
        BadKey{"architectures", "", "missing"},
        BadKey{"architectures", "[]", "not supported"},
        BadKey{"architectures", "7", "not supported"},
        BadKey{"model_type", R"("llama")", "allowed: \"qwen3_moe\""},
        BadKey{"hidden_act", R"("gelu")", "allowed: \"silu\""},
        BadKey{"hidden_act", "1", "allowed: \"silu\""},
        BadKey{"attention_bias", "true", "allowed: false"},
        BadKey{"attention_bias", "\"no\"", "neither true nor false"},
        BadKey{"use_sliding_window", "true", "allowed: false"},
        BadKey{"quantization_config", "{}", "allowed: null"},
        BadKey{"hidden_size", "", "missing; must be an integer"},
        BadKey{"hidden_size", "0", "not an integer from 1 to"},
        BadKey{"hidden_size", "-256", "not an integer from 1 to"},
        BadKey{"hidden_size", "256.5", "not an integer from 1 to"},
        BadKey{"hidden_size", "\"256\"", "not an integer from 1 to"},
        BadKey{"hidden_size", "65537", "from 1 to 65536"},
        BadKey{"hidden_size", "18446744073709551615", "from 1 to 65536"},
        BadKey{"num_hidden_layers", "1025", "from 1 to 1024"},
        BadKey{"num_attention_heads", "0", "from 1 to"},
        BadKey{"num_key_value_heads", "3", "does not divide the 8 heads"},
        BadKey{"num_key_value_heads", "16", "from 1 to 8"},
        BadKey{"head_dim", "33", "even number"},
        BadKey{"head_dim", "2048", "from 2 to 1024"},
        BadKey{"num_experts", "5000", "from 0 to 4096"},
        BadKey{"num_experts_per_tok", "17", "from 1 to 16"},
        BadKey{"num_experts_per_tok", "0", "from 1 to 16"},
        BadKey{"moe_intermediate_size", "", "missing"},
        BadKey{"decoder_sparse_step", "0", "from 1 to"},
        BadKey{"mlp_only_layers", "3", "is not a list"},
        BadKey{"mlp_only_layers", "[4]", "allowed: 0 to 3"},
        BadKey{"mlp_only_layers", "[-1]", "allowed: 0 to 3"},
        BadKey{"mlp_only_layers", "[18446744073709551615]", "allowed: 0 to 3"},
        BadKey{"mlp_only_layers", "[1.0]", "allowed: 0 to 3"},
        BadKey{"norm_topk_prob", "1", "neither true nor false"},
        BadKey{"tie_word_embeddings", "[]", "neither true nor false"},
        BadKey{"vocab_size", "1048577", "from 1 to 1048576"},
        BadKey{"max_position_embeddings", "0", "from 1 to"},
        BadKey{"rms_norm_eps", "0", "not a number from"},
        BadKey{"rms_norm_eps", "\"small\"", "not a number from"},
        BadKey{"rope_theta", "0.5", "not a number from"},
        BadKey{"rope_theta", "1e13", "not a number from"},
        BadKey{"rope_scaling", R"({"rope_type": "yarn", "factor": 4})",
               "allowed: \"default\""},
        BadKey{"rope_scaling", R"({"type": "linear"})", "allowed: \"default\""},
        BadKey{"rope_scaling", "[1]", "neither null nor an object"},
        BadKey{"rope_parameters", R"({"rope_type": "llama3"})",
               "allowed: \"default\""},
        BadKey{"rope_parameters", R"({"partial_rotary_factor": 0.5})",
               "allowed: 1"},
        BadKey{"rope_parameters", R"({"rope_theta": "x"})",
               "not a number from"}));

TEST(ModelConfig, FilesThatAreNoJsonObjectAreRefused) {
  for (const char* text : {"", "{", "[]", "7", "{\"hidden_size\": }", "nul",
                           "{\"rope_theta\": 1e400}"}) {
    EXPECT_THAT(
        ParseModelConfig(text, "c.json"),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("c.json: not")));
  }
  const std::string deep(200000, '[');
  EXPECT_THAT(ParseModelConfig(deep, "c.json"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(LoadModelConfig("/nonexistent"),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("/nonexistent/config.json")));
}

TEST(ModelConfig, AFileWithoutEndIsRefused) {
  TempDir dir;
  WriteFile(dir.File("config.json"), std::string((1 << 20) + 1, ' '));
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("allowed: at most 1048576")));
  // A folder can be opened, but not read.
  TempDir other;
  std::filesystem::create_directory(other.File("config.json"));
  EXPECT_FALSE(LoadModelConfig(other.path()).ok());
}

TEST(ModelConfig, TheSmallCheckpointIsRead) {
  const auto config = LoadModelConfig(VerseMoeDir());
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->architecture, "Qwen3MoeForCausalLM");
  EXPECT_EQ(config->hidden_size, 256);
  EXPECT_EQ(config->num_layers, 4);
  EXPECT_EQ(config->num_q_heads, 8);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 32);
  EXPECT_EQ(config->intermediate_size, 512);
  EXPECT_EQ(config->moe_intermediate_size, 128);
  EXPECT_EQ(config->num_experts, 16);
  EXPECT_EQ(config->experts_per_token, 4);
  EXPECT_TRUE(config->norm_topk_prob);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_EQ(config->vocab_size, 4096);
  EXPECT_EQ(config->max_positions, 4096);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_EQ(config->num_moe_layers(), 4);
}

TEST(ModelConfig, SparseStepAndMlpOnlyLayersChooseTheDenseLayers) {
  Json json = Base();
  json["num_hidden_layers"] = 6;
  json["decoder_sparse_step"] = 2;
  json["mlp_only_layers"] = {3, 3};
  const auto config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->is_moe_layer,
            (std::vector<bool>{false, true, false, false, false, true}));
  EXPECT_EQ(config->num_moe_layers(), 2);
}

TEST(ModelConfig, NoExpertsMakesEveryLayerDense) {
  Json json = Base();
  json["num_experts"] = 0;
  json.erase("moe_intermediate_size");
  json.erase("num_experts_per_tok");
  const auto config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->num_moe_layers(), 0);
  json.erase("intermediate_size");
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument,
                                    HasSubstr("intermediate_size: missing")));
}

TEST(ModelConfig, BothNamesOfTheNumberOfExpertsAreRead) {
  Json json = Base();
  json["num_local_experts"] = json["num_experts"];
  EXPECT_THAT(Parse(json), IsOk());
  json.erase("num_experts");
  const auto config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->num_experts, 16);
  json["num_experts"] = 8;
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument,
                                    HasSubstr("num_experts: 8 is not what "
                                              "num_local_experts says, 16")));
}

TEST(ModelConfig, AbsentKeysHaveTheFormatsDefaults) {
  Json json = Base();
  for (const char* key :
       {"head_dim", "norm_topk_prob", "tie_word_embeddings", "rope_theta",
        "rms_norm_eps", "decoder_sparse_step", "mlp_only_layers", "model_type",
        "hidden_act", "attention_bias", "use_sliding_window",
        "intermediate_size"}) {
    json.erase(key);
  }
  const auto config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->head_dim, 32);  // hidden_size / num_attention_heads
  EXPECT_FALSE(config->norm_topk_prob);
  EXPECT_FALSE(config->tie_word_embeddings);
  EXPECT_EQ(config->rope_theta, 10000.0);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_EQ(config->num_moe_layers(), 4);
  json["num_attention_heads"] = 12;
  EXPECT_THAT(Parse(json), StatusIs(absl::StatusCode::kInvalidArgument,
                                    HasSubstr("head_dim: missing")));
}

TEST(ModelConfig, BothSpellingsOfRotaryParametersAreRead) {
  Json json = Base();
  json.erase("rope_theta");
  json["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  auto config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->rope_theta, 1e6);

  json = Base();
  json["rope_theta"] = 5e5;
  json["rope_scaling"] = {{"type", "default"}};
  json["sliding_window"] = 4096;  // of no effect unless it is used
  config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->rope_theta, 5e5);
}

}  // namespace
}  // namespace moebius
