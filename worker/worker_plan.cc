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
#include "worker/worker_platform.h"

namespace moebius {
namespace {

// KV memory of a worker when the configuration does not say: touched only as
// far as it is used.
constexpr int64_t kDefaultKvBytes = int64_t{512} << 20;

// Pages where the configuration leaves their number open: what is left of
// `free_bytes`, or as many as scheduler.max_running sequences may need where
// there is no limit (0).
int64_t PagesByDefault(const Config& config, int64_t page_bytes,
                       int64_t pages_of_longest, int64_t free_bytes) {
  if (free_bytes != 0) return free_bytes / page_bytes;
  return std::max(
      pages_of_longest,
      std::min<int64_t>(kDefaultKvBytes / page_bytes,
                        pages_of_longest * config.scheduler.max_running));
}

// How many pages a worker has, whose regions may take `region_bytes`; 0: as
// much as they want.
absl::StatusOr<int64_t> PlanPages(const Config& config, const WorkerPlan& plan,
                                  int64_t region_bytes) {
  const int64_t page_bytes = plan.kv.page_bytes();
  const int64_t blocks = (plan.context_length + kPageTokens - 1) / kPageTokens;
  const int64_t pages_of_longest = blocks * plan.kv.num_heads;
  const int64_t longest_bytes = pages_of_longest * page_bytes;
  if (config.workers.kv_bytes != 0) {
    const int64_t pages = config.workers.kv_bytes / page_bytes;
    if (pages >= pages_of_longest) return std::min<int64_t>(pages, kNoPage - 1);
    return absl::InvalidArgumentError(absl::StrCat(
        "workers.kv_bytes is ", config.workers.kv_bytes,
        ", but one sequence of ", plan.context_length, " tokens needs ",
        longest_bytes, ": raise it, or lower model.max_model_len"));
  }
  int64_t others = 0;
  for (const int64_t bytes : plan.geometry.bytes) {
    others += RoundUpToRegion(bytes);
  }
  // Nothing is left, not no limit, where the others take all.
  const int64_t free_bytes =
      region_bytes == 0 ? 0 : std::max<int64_t>(1, region_bytes - others);
  const int64_t pages =
      PagesByDefault(config, page_bytes, pages_of_longest, free_bytes);
  if (pages >= pages_of_longest) return std::min<int64_t>(pages, kNoPage - 1);
  return absl::InvalidArgumentError(absl::StrCat(
      "a worker may take ", region_bytes >> 20,
      " MiB of its GPU; weights and exchange take ", others >> 20,
      " of them, and one sequence of ", plan.context_length, " tokens needs ",
      longest_bytes >> 20,
      ": use more GPUs, lower model.max_model_len or scheduler.token_budget, "
      "or raise workers.gpu_memory_fraction"));
}

// How much of what there is.
absl::Status PlanSizes(const Config& config, const WorkerPlatform& platform,
                       WorkerPlan& plan) {
  const ModelShape& shape = plan.shape;
  plan.context_length =
      ContextLength(shape.spec.max_positions, config.model.max_model_len);
  plan.kv = MakeKvLayout(shape.spec, HasBfloat16Kv(config.workers)
                                         ? KvType::kBf16
                                         : KvType::kFloat32);
  plan.geometry[RegionKind::kExperts] = shape.experts.region_bytes();
  plan.geometry[RegionKind::kDense] = PlanDense(shape).size_bytes;
  platform.PlanRegions(config, shape, plan.geometry);
  ASSIGN_OR_RETURN(
      const int64_t pages,
      PlanPages(config, plan, platform.RegionBytes(config, shape)));
  plan.num_pages = static_cast<uint32_t>(pages);
  plan.geometry[RegionKind::kKv] = pages * plan.kv.page_bytes();
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

absl::StatusOr<WorkerPlan> PlanWorker(const Config& config,
                                      const WorkerPlatform& platform) {
  WorkerPlan plan;
  ASSIGN_OR_RETURN(const Model model, LoadModel(config.model.path));
  plan.names = model.names;
  plan.adapt = model.adapt;
  ASSIGN_OR_RETURN(plan.shape,
                   MakeModelShape(model.spec, config.workers.count, 1));
  ExpertShape& experts = plan.shape.experts;
  experts.spare_slots = config.layout.spare_slots > 0
                            ? config.layout.spare_slots
                            : platform.SpareSlots(experts);
  RETURN_IF_ERROR(PlanSizes(config, platform, plan));
  ASSIGN_OR_RETURN(plan.model_digest, ModelDigest(config.model.path));
  return plan;
}

}  // namespace moebius
