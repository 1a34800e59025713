// By how much rotary embedding turns what, of a model. Pure.
#pragma once

#include "kernels/rotary.h"
#include "worker/model/decoder_spec.h"

namespace moebius {

// REQUIRES: the scaling is not Llama 3's.
RotaryAngles AnglesOf(const RotarySpec& rotary);

}  // namespace moebius
