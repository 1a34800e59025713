// Experts out of tensors that hold all experts of a layer, as gpt-oss has them
// (transformers, GptOssExperts).
#pragma once

#include <memory>

#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_source.h"

namespace moebius {

// Reads tensors "PREFIX.mlp.experts.EXPERT.MATRIX" out of those of `source`;
// all others are the source's own. With hidden = 2, 3 rows and experts e:
//
//   PREFIX.mlp.experts.gate_up_proj       [e][hidden][2 * rows]
//                       hidden 0   g0 u0 g1 u1 g2 u2
//                       hidden 1   g0 u0 g1 u1 g2 u2
//     gate  [rows][hidden]: row i is column 2i;     gate_bias  [rows]
//     up    [rows][hidden]: row i is column 2i + 1; up_bias    [rows]
//   PREFIX.mlp.experts.gate_up_proj_bias  [e][2 * rows], g and u in turn
//   PREFIX.mlp.experts.down_proj          [e][rows][hidden]
//     down  [hidden][rows];                         down_bias  [hidden]
//   PREFIX.mlp.experts.down_proj_bias     [e][hidden]
std::unique_ptr<TensorSource> SplitFusedExperts(
    std::unique_ptr<TensorSource> source, const DecoderSpec& spec);

}  // namespace moebius
