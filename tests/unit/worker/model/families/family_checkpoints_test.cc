// What each family makes of a config.json that is not quite right, and of a
// checkpoint whose tensors are not quite those.
#include <ostream>
#include <string>

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
                   dense.data(), experts.data()}),
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

}  // namespace
}  // namespace moebius
