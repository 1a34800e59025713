// DeviceProbe for the processor.
#pragma once

#include <memory>

#include "worker/bench/device_probe.h"
#include "worker/model/decoder.h"

namespace moebius {

// Both outlive it.
std::unique_ptr<DeviceProbe> MakeCpuProbe(const Cpu& device,
                                          Decoder<Cpu>* decoder);

}  // namespace moebius
