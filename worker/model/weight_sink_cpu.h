// The weights' sink of CPU memory.
#pragma once

#include <cstddef>
#include <memory>

#include "worker/model/weight_sink.h"

namespace moebius {

// Packs each part in place before Put() returns. Stages one part at a time, in
// memory as large as the largest so far.
//
//   dense    PlanDense(shape).size_bytes
//   experts  shape.experts.region_bytes(); null without experts
// REQUIRES: both are multiples of 64 and outlive the sink.
std::unique_ptr<WeightSink> MakeCpuWeightSink(std::byte* dense,
                                              std::byte* experts);

}  // namespace moebius
