#include "kernels/cuda/operators.h"

namespace moebius {}  // namespace moebius
