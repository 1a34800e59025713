// The checkpoints of each family against what transformers computes, and that
// layouts, groups and chunks give the same bits, on any device. To be included
// by the test of a device, which says what to test by INSTANTIATE_TEST_SUITE_P.
#pragma once

#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/unit/worker/model/decoder_tests.h"
#include "tests/unit/worker/model/reference_tests.h"

namespace moebius {

inline constexpr const char* kFamilyCheckpoints[] = {"mixtral", "olmoe",
                                                     "qwen2_moe", "gpt_oss"};

inline std::string FolderOf(const char* checkpoint) {
  return std::string("tests/checkpoints/") + checkpoint;
}

// Each in every layout, on a device.
inline std::vector<ReferenceCase> FamilyCases(const MakeTestRanks& make_ranks) {
  static auto* const folders = new std::vector<std::string>;
  if (folders->empty()) {
    for (const char* name : kFamilyCheckpoints) {
      folders->push_back(FolderOf(name));
    }
  }
  std::vector<ReferenceCase> cases;
  for (const std::string& folder : *folders) {
    for (ReferenceCase one :
         {ReferenceCase{1, false, {600}},
          ReferenceCase{1, false, {1, 7, 64, 33}},
          ReferenceCase{2, false, {100, 3}}, ReferenceCase{2, true, {17, 200}},
          ReferenceCase{4, false, {50}}, ReferenceCase{4, true, {128, 5}}}) {
      one.model = folder.c_str();
      one.make_ranks = make_ranks;
      cases.push_back(one);
    }
  }
  return cases;
}

inline std::string NameOfFamilyCase(
    const testing::TestParamInfo<ReferenceCase>& info) {
  const std::string folder = info.param.model;
  return folder.substr(folder.rfind('/') + 1) + NameOf(info);
}

// All that families ask for at once, and experts and rows that do not divide.
inline DecoderSpec EveryRule() {
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

inline std::string AnyTensorName(TensorRole role, int layer, int expert) {
  return absl::StrCat("tensor ", static_cast<int>(role), " of ", layer, ", ",
                      expert);
}

struct FamilyCase {
  const char* checkpoint = "";
  MakeTestRanks make_ranks;  // empty: on the processor
};

inline std::vector<FamilyCase> FamiliesOn(const MakeTestRanks& make_ranks) {
  std::vector<FamilyCase> cases;
  for (const char* name : kFamilyCheckpoints) {
    cases.push_back({name, make_ranks});
  }
  return cases;
}

class FamilyLayouts : public testing::TestWithParam<FamilyCase> {};

TEST_P(FamilyLayouts, LogitsAreTheSameBitsInEveryLayoutGroupAndChunking) {
  const std::string dir = SourceDir(FolderOf(GetParam().checkpoint));
  const auto model = LoadModel(dir);
  ASSERT_THAT(model, IsOk());
  GroupOptions options;
  options.spec = model->spec;
  options.names = model->names;
  options.adapt = model->adapt;
  options.model_dir = dir;
  options.make_ranks = GetParam().make_ranks;
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

}  // namespace moebius
