#include "worker/worker_plan.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/fnv.h"
#include "common/base/status_macros.h"
#include "common/config/model_config.h"
#include "common/layout/kv_plan.h"
#include "worker/model/families/families.h"
#include "worker/model/weights.h"

namespace moebius {
namespace {

// KV memory of a worker when the configuration does not say: touched only as
// far as it is used.
constexpr int64_t kDefaultKvBytes = int64_t{512} << 20;

// How much of what there is.
absl::Status PlanSizes(const Config& config, WorkerPlan& plan) {
  const ModelShape& shape = plan.shape;
  plan.context_length =
      ContextLength(shape.spec.max_positions, config.model.max_model_len);
  plan.kv =
      MakeKvLayout(shape.spec, config.workers.kv_dtype == KvDtype::kBfloat16
                                   ? KvType::kBf16
                                   : KvType::kFloat32);
  const int64_t page_bytes = plan.kv.page_bytes();
  const int64_t blocks = (plan.context_length + kPageTokens - 1) / kPageTokens;
  const int64_t pages_of_longest = blocks * plan.kv.num_heads;
  int64_t pages = config.workers.kv_bytes / page_bytes;
  if (config.workers.kv_bytes == 0) {
    pages = std::max(
        pages_of_longest,
        std::min<int64_t>(kDefaultKvBytes / page_bytes,
                          pages_of_longest * config.scheduler.max_running));
  }
  if (pages < pages_of_longest) {
    return absl::InvalidArgumentError(
        absl::StrCat("workers.kv_bytes is ", config.workers.kv_bytes,
                     ", but one sequence of ", plan.context_length,
                     " tokens needs ", pages_of_longest * page_bytes,
                     ": raise it, or lower model.max_model_len"));
  }
  plan.num_pages = static_cast<uint32_t>(std::min<int64_t>(pages, kNoPage - 1));
  plan.geometry[RegionKind::kExperts] = shape.experts.region_bytes();
  plan.geometry[RegionKind::kDense] = PlanDense(shape).size_bytes;
  plan.geometry[RegionKind::kKv] = plan.num_pages * page_bytes;
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ModelDigest(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(model_dir + "/config.json", kMaxModelConfigBytes));
  Fnv1a hash;
  for (unsigned char c : text) hash.Add(c);
  return hash.hash();
}

}  // namespace

absl::StatusOr<WorkerPlan> PlanWorker(const Config& config) {
  WorkerPlan plan;
  ASSIGN_OR_RETURN(const Model model, LoadModel(config.model.path));
  plan.names = model.names;
  ASSIGN_OR_RETURN(plan.shape, MakeModelShape(model.spec, config.workers.count,
                                              config.layout.spare_slots));
  RETURN_IF_ERROR(PlanSizes(config, plan));
  ASSIGN_OR_RETURN(plan.model_digest, ModelDigest(config.model.path));
  return plan;
}

}  // namespace moebius
