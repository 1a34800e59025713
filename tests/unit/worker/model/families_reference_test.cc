// The checkpoints of each family against what transformers computes, on the
// processor in every layout; and that layouts, groups and chunks give the same
// bits.
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/unit/worker/model/decoder_tests.h"
#include "tests/unit/worker/model/reference_tests.h"

namespace moebius {

// Its tests are those of devices; runs of a group are used here.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(DecoderTest);

namespace {

constexpr const char* kCheckpoints[] = {"mixtral", "olmoe", "qwen2_moe",
                                        "gpt_oss"};

std::string FolderOf(const char* checkpoint) {
  return std::string("tests/checkpoints/") + checkpoint;
}

std::vector<ReferenceCase> Cases() {
  static auto* const folders = new std::vector<std::string>;
  for (const char* name : kCheckpoints) folders->push_back(FolderOf(name));
  std::vector<ReferenceCase> cases;
  for (const std::string& folder : *folders) {
    for (ReferenceCase one :
         {ReferenceCase{1, false, {600}},
          ReferenceCase{1, false, {1, 7, 64, 33}},
          ReferenceCase{2, false, {100, 3}}, ReferenceCase{2, true, {17, 200}},
          ReferenceCase{4, false, {50}}, ReferenceCase{4, true, {128, 5}}}) {
      one.model = folder.c_str();
      cases.push_back(one);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Families, ReferenceTest, testing::ValuesIn(Cases()),
                         [](const auto& info) {
                           const std::string folder = info.param.model;
                           return folder.substr(folder.rfind('/') + 1) +
                                  NameOf(info);
                         });

// All that families ask for at once, and experts and rows that do not divide.
DecoderSpec EveryRule() {
  SmallModel config = OddConfig();
  config.num_experts = 6;
  config.moe_intermediate_size = 80;
  config.is_moe_layer = {true, true, true};
  DecoderSpec spec = SpecOf(config);
  for (int l = 0; l < spec.num_layers(); ++l) {
    auto& attention = std::get<GroupedQueryAttention>(spec.layers[l].attention);
    attention.qk_norm = GroupedQueryAttention::QkNorm::kWholeRow;
    attention.qkv_bias = attention.output_bias = attention.sinks = true;
    attention.window = l % 2 == 0 ? 21 : 0;
    auto& moe = std::get<MoeMlp>(spec.layers[l].mlp);
    moe.bias = moe.router.bias = true;
    moe.router.score = RouterSpec::Score::kSoftmaxOfChosen;
    moe.activation = ClampedSwiGlu{1.702, 0.75};
    moe.shared = SharedExpert{112, true};
  }
  return spec;
}

std::string AnyTensorName(TensorRole role, int layer, int expert) {
  return absl::StrCat("tensor ", static_cast<int>(role), " of ", layer, ", ",
                      expert);
}

TEST(FamilyRules, AllAtOnceGiveTheSameBitsInEveryLayoutWithPadding) {
  GroupOptions options;
  options.spec = EveryRule();
  options.names = &AnyTensorName;
  const LogitMap expected = RunAll(options, 1000, kSequences, Want::kAll);
  ASSERT_NE(expected.at({0, 0}), expected.at({1, 0}));
  for (const int n : {2, 4, 8}) {
    const auto shape = MakeModelShape(options.spec, n);
    ASSERT_THAT(shape, IsOk());
    EXPECT_EQ(shape->experts.padded_rows() > 80, n > 1);
    for (const Layout layout : LayoutsOf(shape->attention)) {
      SCOPED_TRACE(testing::Message() << n << " ranks, " << layout.tp_size);
      options.num_ranks = n;
      options.layout = layout;
      ExpectSameBits(RunAll(options, 16, 2, Want::kAll), expected);
      ExpectSameBits(RunAll(options, 7, 1, Want::kLast), expected);
    }
  }
}

class FamilyLayouts : public testing::TestWithParam<const char*> {};

TEST_P(FamilyLayouts, LogitsAreTheSameBitsInEveryLayoutGroupAndChunking) {
  const std::string dir = SourceDir(FolderOf(GetParam()));
  const auto model = LoadModel(dir);
  ASSERT_THAT(model, IsOk());
  GroupOptions options;
  options.spec = model->spec;
  options.names = model->names;
  options.adapt = model->adapt;
  options.model_dir = dir;
  const LogitMap expected = RunAll(options, 1000, kSequences, Want::kAll);
  for (const int n : {1, 2, 4}) {
    const auto shape = MakeModelShape(model->spec, n);
    ASSERT_THAT(shape, IsOk());
    for (const Layout layout : LayoutsOf(shape->attention)) {
      SCOPED_TRACE(testing::Message() << n << " ranks, " << layout.tp_size);
      options.num_ranks = n;
      options.layout = layout;
      ExpectSameBits(RunAll(options, 16, 2, Want::kAll), expected);
      ExpectSameBits(RunAll(options, 7, 1, Want::kLast), expected);
    }
    for (const auto& [attention, experts] :
         {std::pair(ExpertParallel(), TensorParallel(n)),
          std::pair(TensorParallel(n), ExpertParallel())}) {
      options.num_ranks = n;
      options.layout = attention;
      options.experts = ExpertsState::At(experts, Side::kHigh);
      ExpectSameBits(RunAll(options, 33, 3, Want::kLast), expected);
      options.experts.reset();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyLayouts,
                         testing::ValuesIn(kCheckpoints), [](const auto& info) {
                           return std::string(info.param);
                         });

}  // namespace
}  // namespace moebius
