#include "worker/model/families/families.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "worker/model/families/fused_experts.h"
#include "worker/model/families/gpt_oss.h"
#include "worker/model/families/mixtral.h"
#include "worker/model/families/olmoe.h"
#include "worker/model/families/qwen2_moe.h"
#include "worker/model/families/qwen3_moe.h"

namespace moebius {

absl::Span<const ModelFamily> ModelFamilies() {
  static constexpr ModelFamily kFamilies[] = {
      {"Qwen3MoeForCausalLM", "qwen3_moe", &ReadQwen3Moe, &Qwen3MoeTensorName},
      {"MixtralForCausalLM", "mixtral", &ReadMixtral, &MixtralTensorName},
      {"OlmoeForCausalLM", "olmoe", &ReadOlmoe, &OlmoeTensorName},
      {"Qwen2MoeForCausalLM", "qwen2_moe", &ReadQwen2Moe, &Qwen2MoeTensorName},
      {"GptOssForCausalLM", "gpt_oss", &ReadGptOss, &GptOssTensorName,
       &SplitFusedExperts},
  };
  return kFamilies;
}

absl::StatusOr<Model> ParseModel(std::string_view json,
                                 std::string_view file_name) {
  ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(json, file_name));
  ASSIGN_OR_RETURN(const nlohmann::json document,
                   ParseJsonObject(json, file_name, kMaxModelConfigBytes));
  const JsonKeys keys(document, file_name);
  const absl::Span<const ModelFamily> families = ModelFamilies();
  const auto family = std::find_if(
      families.begin(), families.end(), [&](const ModelFamily& candidate) {
        return candidate.architecture == config.architecture;
      });
  CHECK(family != families.end());  // a test compares the lists
  RETURN_IF_ERROR(keys.Only("model_type", family->model_type));
  Model model;
  ASSIGN_OR_RETURN(model.spec, family->read(keys, config));
  model.names = family->names;
  model.adapt = family->adapt;
  return model;
}

std::unique_ptr<TensorSource> TensorsOf(
    AdaptTensors adapt, const DecoderSpec& spec,
    std::unique_ptr<TensorSource> checkpoint) {
  return adapt == nullptr ? std::move(checkpoint)
                          : adapt(std::move(checkpoint), spec);
}

absl::StatusOr<Model> LoadModel(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(path, kMaxModelConfigBytes));
  return ParseModel(text, path);
}

}  // namespace moebius
