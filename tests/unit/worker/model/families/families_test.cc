#include "worker/model/families/families.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/test_group.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(Families, AnUnsupportedArchitectureIsRefusedWithTheListOfThoseThatAre) {
  const auto model =
      ParseModel(R"({"architectures": ["LlamaForCausalLM"]})", "c.json");
  EXPECT_THAT(model, StatusIs(absl::StatusCode::kInvalidArgument,
                              HasSubstr("c.json: architectures: "
                                        "\"LlamaForCausalLM\" is not "
                                        "supported; allowed: ")));
  for (const ModelFamily& family : ModelFamilies()) {
    EXPECT_THAT(std::string(model.status().message()),
                HasSubstr(std::string(family.architecture)));
  }
  EXPECT_THAT(LoadModel("/nonexistent"),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("/nonexistent/config.json")));
}

// The coordinator accepts what the workers serve.
TEST(Families, EachServedArchitectureHasOneFamilyAndEachFamilyIsServed) {
  EXPECT_EQ(ModelFamilies().size(), std::size(kServedArchitectures));
  for (const std::string_view name : kServedArchitectures) {
    EXPECT_EQ(std::count_if(ModelFamilies().begin(), ModelFamilies().end(),
                            [&](const ModelFamily& family) {
                              return family.architecture == name;
                            }),
              1)
        << name;
  }
}

TEST(Families, TheSmallCheckpointIsRead) {
  const auto model = LoadModel(VerseMoeDir());
  ASSERT_THAT(model, IsOk());
  SmallModel verse;
  verse.hidden_size = 256;
  verse.num_q_heads = 8;
  verse.num_kv_heads = 4;
  verse.head_dim = 32;
  verse.moe_intermediate_size = 128;
  verse.num_experts = 16;
  verse.experts_per_token = 4;
  verse.norm_topk_prob = true;
  verse.tie_word_embeddings = true;
  verse.vocab_size = 4096;
  verse.max_positions = 4096;
  verse.is_moe_layer = {true, true, true, true};
  EXPECT_EQ(model->spec, SpecOf(verse));
  EXPECT_EQ(model->names(TensorRole::kExpertDown, 3, 7),
            "model.layers.3.mlp.experts.7.down_proj.weight");
}

}  // namespace
}  // namespace moebius
