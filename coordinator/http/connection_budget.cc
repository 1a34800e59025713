#include "coordinator/http/connection_budget.h"

#include <algorithm>

#include "absl/status/status.h"
#include "common/base/cat.h"

namespace moebius {

int DescriptorsFor(int open, ConnectionBudget wanted) {
  return open + kSpareDescriptors + wanted.api + wanted.admin;
}

absl::StatusOr<ConnectionBudget> ShareDescriptors(int limit, int open,
                                                  ConnectionBudget wanted) {
  if (limit >= DescriptorsFor(open, wanted)) return wanted;
  const int left = limit - open - kSpareDescriptors;
  ConnectionBudget budget;
  budget.admin = std::min(wanted.admin, std::max(left / 8, 2));
  budget.api = std::min(wanted.api, left - budget.admin);
  if (budget.api >= std::min(wanted.api, kFewestConnections)) return budget;
  return absl::ResourceExhaustedError(
      Cat("only ", limit, " file descriptors are allowed, ", open,
          " of them are in use; allow at least ",
          open + kSpareDescriptors + kFewestConnections + 2,
          " (ulimit -n, LimitNOFILE=)"));
}

}  // namespace moebius
