// How many connections the listeners may hold, where descriptors are few.
#pragma once

#include "absl/status/statusor.h"

namespace moebius {

// Kept for what comes later: files, the journal's among them, and workers.
inline constexpr int kSpareDescriptors = 32;
// With fewer on the public listener there is no point in serving.
inline constexpr int kFewestConnections = 8;

struct ConnectionBudget {
  int api = 0;
  int admin = 0;
  friend bool operator==(const ConnectionBudget&,
                         const ConnectionBudget&) = default;
};

// Shares out what `limit` descriptors leave beside the `open` ones: what is
// wanted if there is enough, or else an eighth to the admin listener. Pure.
// Errors: kResourceExhausted with the figures.
absl::StatusOr<ConnectionBudget> ShareDescriptors(int limit, int open,
                                                  ConnectionBudget wanted);

// The limit at which ShareDescriptors gives all that is wanted.
int DescriptorsFor(int open, ConnectionBudget wanted);

}  // namespace moebius
