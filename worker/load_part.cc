#include "worker/load_part.h"

#include <memory>
#include <utility>

#include "common/base/status_macros.h"
#include "worker/model/families/families.h"
#include "worker/model/safetensors.h"

namespace moebius {

absl::StatusOr<LoadStats> LoadPart(const Config& config, const WorkerPlan& plan,
                                   Rank rank, const ExpertsState& experts,
                                   WorkerDevice& device,
                                   const LoadProgress& progress) {
  RETURN_IF_ERROR(Validate(experts, plan.shape.experts));
  std::unique_ptr<TensorSource> source;
  if (config.model.load_format == LoadFormat::kDummy) {
    source = MakeDummyWeights();
  } else {
    ASSIGN_OR_RETURN(source, Checkpoint::Open(config.model.path));
    source = TensorsOf(plan.adapt, plan.shape.spec, std::move(source));
  }
  const auto sink = device.MakeSink();
  return LoadWeights({plan.shape, plan.names, rank, experts}, *source, *sink,
                     progress);
}

}  // namespace moebius
