// In place of nccl_nccl.cc where NCCL's header was not found.
#include "worker/peers/nccl.h"

namespace moebius {

absl::Status NcclGroup::Find() {
  return absl::UnavailableError(
      "this program was built without NCCL's header (nccl.h beside the CUDA "
      "Toolkit's)");
}

absl::StatusOr<NcclId> NcclGroup::MakeId() { return Find(); }

absl::StatusOr<std::unique_ptr<NcclGroup>> NcclGroup::Create(const NcclId&, int,
                                                             Rank) {
  return Find();
}

}  // namespace moebius
