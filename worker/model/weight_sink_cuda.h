// Weights onto a GPU.
#pragma once

#include <cstddef>
#include <memory>

#include "worker/model/weight_sink.h"

namespace moebius {

// Packs into regions in memory of this GPU, in the order that its operators
// want (kernels/cuda/tiles.h). Parts are read into pinned memory and copied
// while the next ones are read; made-up weights are made where they belong.
// Either region may be missing as long as no part goes there.
//
// kInvalidArgument, from Put, for a matrix whose reduced dimension is no
// multiple of 16.
std::unique_ptr<WeightSink> MakeGpuWeightSink(std::byte* dense,
                                              std::byte* experts, int gpu);

}  // namespace moebius
