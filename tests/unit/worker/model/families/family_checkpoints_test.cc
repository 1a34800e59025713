// What each family makes of a config.json that is not quite right, and of a
// checkpoint whose tensors are not quite those.
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/checkpoint_writer.h"
#include "tests/unit/worker/model/test_group.h"
#include "worker/model/families/families.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using Json = nlohmann::json;

std::string DirOf(const char* checkpoint) {
  return SourceDir(absl::StrCat("tests/checkpoints/", checkpoint));
}

struct BadKey {
  const char* checkpoint;
  const char* key;
  const char* value;    // JSON; empty: the key is taken away
  const char* message;  // "": it is accepted
};
void PrintTo(const BadKey& bad, std::ostream* out) {
  *out << bad.checkpoint << ": " << bad.key << ": " << bad.value;
}

class BadFamilyConfig : public testing::TestWithParam<BadKey> {};

TEST_P(BadFamilyConfig, ErrorNamesFileKeyAndWhatIsAllowed) {
  const BadKey& bad = GetParam();
  Json json = Json::parse(ReadFile(DirOf(bad.checkpoint) + "/config.json"));
  if (*bad.value == '\0') {
    json.erase(bad.key);
  } else {
    json[bad.key] = Json::parse(bad.value);
  }
  const auto model = ParseModel(json.dump(), "dir/config.json");
  if (*bad.message == '\0') {
    EXPECT_THAT(model, IsOk());
    return;
  }
  EXPECT_THAT(model,
              StatusIs(StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("dir/config.json: "), HasSubstr(bad.key),
                             HasSubstr(bad.message))));
}

INSTANTIATE_TEST_SUITE_P(
    Mixtral, BadFamilyConfig,
    testing::Values(
        BadKey{"mixtral", "model_type", R"("qwen3_moe")",
               "allowed: \"mixtral\""},
        BadKey{"mixtral", "num_local_experts", "0", "at least 1"},
        BadKey{"mixtral", "num_experts_per_tok", "9", "from 1 to 8"},
        BadKey{"mixtral", "intermediate_size", "", "missing"},
        BadKey{"mixtral", "hidden_act", R"("gelu")", "allowed: \"silu\""},
        BadKey{"mixtral", "sliding_window", "0", "from 1"},
        BadKey{"mixtral", "layer_types", R"(["linear_attention"])",
               "full_attention"},
        BadKey{"mixtral", "router_jitter_noise", "0.5", ""},
        BadKey{"mixtral", "head_dim", "", ""},
        BadKey{"mixtral", "rope_parameters", R"({"rope_type": "dynamic"})",
               "allowed: "}));

INSTANTIATE_TEST_SUITE_P(
    Olmoe, BadFamilyConfig,
    testing::Values(
        BadKey{"olmoe", "clip_qkv", "8.0", "allowed: null"},
        BadKey{"olmoe", "attention_bias", "true", "allowed: false"},
        BadKey{"olmoe", "num_experts", "0", "at least 1"},
        BadKey{"olmoe", "num_experts_per_tok", "17", "from 1 to 16"},
        BadKey{"olmoe", "intermediate_size", "", "missing"},
        BadKey{"olmoe", "norm_topk_prob", "1", "neither true nor false"},
        BadKey{"olmoe", "norm_topk_prob", "true", ""}));

INSTANTIATE_TEST_SUITE_P(
    Qwen2Moe, BadFamilyConfig,
    testing::Values(
        BadKey{"qwen2_moe", "use_sliding_window", "true", "allowed: false"},
        BadKey{"qwen2_moe", "shared_expert_intermediate_size", "", "missing"},
        BadKey{"qwen2_moe", "moe_intermediate_size", "", "missing"},
        BadKey{"qwen2_moe", "qkv_bias", "\"yes\"", "neither true nor false"},
        BadKey{"qwen2_moe", "layer_types",
               R"(["full_attention", "sliding_attention"])", "full_attention"},
        BadKey{"qwen2_moe", "decoder_sparse_step", "2", ""},
        BadKey{"qwen2_moe", "mlp_only_layers", "[9]", "allowed: 0 to 3"},
        BadKey{"qwen2_moe", "mlp_only_layers", "[0, 3]", ""}));

INSTANTIATE_TEST_SUITE_P(
    GptOss, BadFamilyConfig,
    testing::Values(
        BadKey{"gpt_oss", "quantization_config", R"({"quant_method": "mxfp4"})",
               "quantised weights (\"mxfp4\") are not supported"},
        BadKey{"gpt_oss", "layer_types", R"(["full_attention"])",
               "a list of 4 types"},
        BadKey{"gpt_oss", "layer_types", R"(["a", "b", "c", "d"])",
               "allowed: \"sliding_attention\""},
        BadKey{"gpt_oss", "layer_types", "", ""},
        BadKey{"gpt_oss", "rope_parameters", "", "missing"},
        BadKey{"gpt_oss", "rope_parameters", R"({"rope_type": "longrope"})",
               "allowed: "},
        BadKey{"gpt_oss", "sliding_window", "0", "from 1"},
        BadKey{"gpt_oss", "swiglu_limit", "0", "not a number from"},
        BadKey{"gpt_oss", "attention_bias", "1", "neither true nor false"},
        BadKey{"gpt_oss", "num_local_experts", "0", "at least 1"}));

// Every second tensor of model.safetensors goes into another file.
void SplitIntoShards(const std::string& from, const TempDir& to) {
  const std::string bytes = ReadFile(from + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  const Json header = Json::parse(bytes.substr(8, header_bytes));
  Json headers[2], index;
  std::string data[2];
  int turn = 0;
  for (const auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t begin = tensor["data_offsets"][0];
    const size_t size = tensor["data_offsets"][1].get<size_t>() - begin;
    Json moved = tensor;
    moved["data_offsets"] = {data[turn].size(), data[turn].size() + size};
    data[turn] += bytes.substr(8 + header_bytes + begin, size);
    headers[turn][name] = moved;
    index["weight_map"][name] = absl::StrCat("part", turn, ".safetensors");
    turn ^= 1;
  }
  for (int i = 0; i < 2; ++i) {
    const std::string text = headers[i].dump();
    const uint64_t size = text.size();
    WriteFile(
        to.File(absl::StrCat("part", i, ".safetensors")),
        std::string(reinterpret_cast<const char*>(&size), 8) + text + data[i]);
  }
  WriteFile(to.File("model.safetensors.index.json"), index.dump());
}

struct BadTensor {
  const char* checkpoint;
  const char* name;
  const char* instead;  // of the same length
  StatusCode code;
};
void PrintTo(const BadTensor& bad, std::ostream* out) {
  *out << bad.checkpoint << ": " << bad.name;
}

class BadFamilyTensor : public testing::TestWithParam<BadTensor> {};

// The file with one word of its header changed.
TEST_P(BadFamilyTensor, TheErrorNamesIt) {
  const BadTensor& bad = GetParam();
  const std::string from = DirOf(bad.checkpoint);
  TempDir dir;
  std::string bytes = ReadFile(from + "/model.safetensors");
  const std::string name = absl::StrCat("\"", bad.name, "\"");
  const size_t at = bytes.find(name);
  ASSERT_NE(at, std::string::npos);
  if (bad.code == StatusCode::kNotFound) {
    bytes.replace(at + 1, 1, "x");  // the name is another one
  } else {
    const size_t shape = bytes.find("\"shape\":[", at) + 9;
    const size_t end = bytes.find(']', shape);
    bytes.replace(shape, end - shape, bad.instead);
    ASSERT_EQ(std::string(bad.instead).size(), end - shape);
  }
  WriteFile(dir.File("model.safetensors"), bytes);
  const auto model = LoadModel(from);
  ASSERT_THAT(model, IsOk());
  const auto shape = MakeModelShape(model->spec, 2);
  ASSERT_THAT(shape, IsOk());
  const AlignedBytes dense(PlanDense(*shape).size_bytes);
  const AlignedBytes experts(shape->experts.region_bytes());
  EXPECT_THAT(
      LoadWeights(*shape, model->names, dir.path(), false,
                  {0, ExpertsState::At(ExpertParallel(), Side::kLow),
                   dense.data(), experts.data(), model->adapt}),
      StatusIs(bad.code, AllOf(HasSubstr(dir.path()), HasSubstr(bad.name))));
}

INSTANTIATE_TEST_SUITE_P(
    Mixtral, BadFamilyTensor,
    testing::Values(
        BadTensor{"mixtral", "model.layers.1.block_sparse_moe.gate.weight", "",
                  StatusCode::kNotFound},
        BadTensor{"mixtral",
                  "model.layers.2.block_sparse_moe.experts.7.w2.weight", "",
                  StatusCode::kNotFound},
        BadTensor{"mixtral",
                  "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                  "128,192", StatusCode::kInvalidArgument}));

INSTANTIATE_TEST_SUITE_P(
    Olmoe, BadFamilyTensor,
    testing::Values(BadTensor{"olmoe", "model.layers.2.self_attn.q_norm.weight",
                              "", StatusCode::kNotFound},
                    BadTensor{"olmoe",
                              "model.layers.1.mlp.experts.15.up_proj.weight",
                              "", StatusCode::kNotFound}));

INSTANTIATE_TEST_SUITE_P(
    Qwen2Moe, BadFamilyTensor,
    testing::Values(
        BadTensor{"qwen2_moe", "model.layers.3.self_attn.v_proj.bias", "",
                  StatusCode::kNotFound},
        BadTensor{"qwen2_moe", "model.layers.0.mlp.shared_expert_gate.weight",
                  "", StatusCode::kNotFound},
        BadTensor{"qwen2_moe",
                  "model.layers.1.mlp.shared_expert.gate_proj.weight",
                  "128,160", StatusCode::kInvalidArgument}));

INSTANTIATE_TEST_SUITE_P(
    GptOss, BadFamilyTensor,
    testing::Values(
        BadTensor{"gpt_oss", "model.layers.0.self_attn.sinks", "",
                  StatusCode::kNotFound},
        BadTensor{"gpt_oss", "model.layers.3.mlp.router.bias", "",
                  StatusCode::kNotFound},
        BadTensor{"gpt_oss", "model.layers.2.mlp.experts.gate_up_proj_bias", "",
                  StatusCode::kNotFound},
        BadTensor{"gpt_oss", "model.layers.1.mlp.experts.gate_up_proj",
                  "8,256,128", StatusCode::kInvalidArgument},
        BadTensor{"gpt_oss", "model.layers.1.mlp.experts.down_proj_bias",
                  "128,8", StatusCode::kInvalidArgument}));

// Of the sizes that made-up weights are served in.
TEST(FamilyCheckpoints, PublishedSizesCanBeDivided) {
  for (const char* name : {"mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b",
                           "gpt-oss-20b", "qwen3-30b-a3b", "qwen3-235b-a22b"}) {
    SCOPED_TRACE(name);
    const auto model =
        LoadModel(SourceDir(absl::StrCat("configs/models/", name)));
    ASSERT_THAT(model, IsOk());
    for (const int num_ranks : {1, 2, 4, 8}) {
      EXPECT_THAT(MakeModelShape(model->spec, num_ranks), IsOk());
    }
  }
}

TEST(FamilyCheckpoints, ASharedExpertIsInEveryMoeLayerOrInNone) {
  auto model = LoadModel(DirOf("qwen2_moe"));
  ASSERT_THAT(model, IsOk());
  std::get<MoeMlp>(model->spec.layers[1].mlp).shared.reset();
  EXPECT_THAT(MakeModelShape(model->spec, 2),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("in some of the MoE layers")));
}

// As a checkpoint of two shards with an index.
TEST(FamilyCheckpoints, AreReadFromShardsToo) {
  for (const char* name : {"mixtral", "olmoe", "qwen2_moe", "gpt_oss"}) {
    SCOPED_TRACE(name);
    const std::string from = DirOf(name);
    const auto model = LoadModel(from);
    ASSERT_THAT(model, IsOk());
    TempDir dir;
    SplitIntoShards(from, dir);
    const auto shape = MakeModelShape(model->spec, 2);
    ASSERT_THAT(shape, IsOk());
    std::vector<std::vector<std::byte>> loaded;
    for (const std::string& folder : {from, dir.path()}) {
      const AlignedBytes dense(PlanDense(*shape).size_bytes);
      const AlignedBytes experts(shape->experts.region_bytes());
      ASSERT_THAT(
          LoadWeights(*shape, model->names, folder, false,
                      {1, ExpertsState::At(TensorParallel(2), Side::kLow),
                       dense.data(), experts.data(), model->adapt}),
          IsOk());
      loaded.emplace_back(dense.span().begin(), dense.span().end());
      loaded.emplace_back(experts.span().begin(), experts.span().end());
    }
    EXPECT_EQ(loaded[0], loaded[2]);
    EXPECT_EQ(loaded[1], loaded[3]);
  }
}

}  // namespace
}  // namespace moebius
