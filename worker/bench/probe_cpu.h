// DeviceProbe for the processor.
#pragma once

#include <memory>

#include "worker/bench/device_probe.h"
#include "worker/model/decoder.h"

namespace moebius {

// Both outlive it.
std::unique_ptr<DeviceProbe> MakeCpuProbe(const Cpu& device,
                                          Decoder<Cpu>* decoder);

// By all threads of the pool at once.
CopyRates MeasureCpuCopies(const Cpu& device);

}  // namespace moebius
