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
    "architectures": ["Qwen3MoeForCausalLM"], "max_position_embeddings": 4096,
    "num_attention_heads": 8, "num_experts": 16, "num_hidden_layers": 4,
    "num_key_value_heads": 4, "vocab_size": 4096})");
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
        BadKey{"quantization_config", "{}", "allowed: null"},
        BadKey{"num_attention_heads", "0", "from 1 to"},
        BadKey{"num_key_value_heads", "3", "does not divide the 8 heads"},
        BadKey{"num_key_value_heads", "16", "from 1 to 8"},
        BadKey{"vocab_size", "1048577", "from 1 to 1048576"},
        BadKey{"max_position_embeddings", "0", "from 1 to"},
        BadKey{"num_hidden_layers", "1025", "from 1 to 1024"},
        BadKey{"num_experts", "5000", "from 0 to 4096"},
        BadKey{"decoder_sparse_step", "0", "from 1 to"},
        BadKey{"mlp_only_layers", "3", "is not a list"},
        BadKey{"mlp_only_layers", "[4]", "allowed: 0 to 3"},
        BadKey{"mlp_only_layers", "[-1]", "allowed: 0 to 3"},
        BadKey{"mlp_only_layers", "[18446744073709551615]", "allowed: 0 to 3"},
        BadKey{"mlp_only_layers", "[1.0]", "allowed: 0 to 3"}));

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
  EXPECT_EQ(config->num_moe_layers(), 4);
  EXPECT_EQ(config->num_experts, 16);
  EXPECT_EQ(config->num_q_heads, 8);
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->vocab_size, 4096);
  EXPECT_EQ(config->max_positions, 4096);
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
  const auto config = Parse(json);
  ASSERT_THAT(config, IsOk());
  EXPECT_EQ(config->num_moe_layers(), 0);
  EXPECT_EQ(config->is_moe_layer.size(), 4u);
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

}  // namespace
}  // namespace moebius
