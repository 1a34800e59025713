// The decoder on a GPU.
#include "kernels/cuda/operators.h"
#include "worker/model/decoder-inl.h"
#include "worker/peers/collectives_cuda.h"

namespace moebius {

template class Decoder<CudaExact>;
template class Decoder<CudaFast>;

}  // namespace moebius
