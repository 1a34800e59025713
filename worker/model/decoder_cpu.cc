// The decoder on the CPU.
#include "kernels/cpu/routing_cpu.h"
#include "kernels/embed.h"
#include "kernels/experts.h"
#include "worker/model/decoder-inl.h"
#include "worker/peers/collectives_cpu.h"

namespace moebius {

template class Decoder<Cpu>;

}  // namespace moebius
