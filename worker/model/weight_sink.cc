#include "worker/model/weight_sink.h"

#include "kernels/formats.h"

namespace moebius {
namespace {

int64_t Bytes(size_t num_elements) {
  return static_cast<int64_t>(num_elements * sizeof(Bf16));
}

int64_t HostBytes(const VectorPacking& part) {
  return int64_t{part.size} * int64_t{sizeof(float)};
}
int64_t HostBytes(const MatrixPacking& part) {
  return int64_t{part.n} * part.k * int64_t{sizeof(Bf16)};
}
int64_t HostBytes(const RowParallelPacking& part) {
  return int64_t{part.n} * part.k * int64_t{sizeof(Bf16)};
}
int64_t HostBytes(const ExpertPacking& part) {
  return Bytes(ExpertBlock::NumElements(part.hidden, part.rows));
}

int64_t PackedBytes(const VectorPacking& part) {
  return (int64_t{part.size} + part.zeros) * int64_t{sizeof(float)};
}
int64_t PackedBytes(const MatrixPacking& part) {
  return Bytes(PackedMatrix::NumElements(part.n, part.k));
}
int64_t PackedBytes(const RowParallelPacking& part) {
  return Bytes(RowParallelMatrix::NumElements(part.n, part.k));
}
int64_t PackedBytes(const ExpertPacking& part) {
  return part.num_pieces *
         Bytes(ExpertBlock::NumElements(part.hidden, part.piece_rows));
}

}  // namespace

int64_t WeightPart::host_bytes() const {
  return std::visit([](const auto& part) { return HostBytes(part); }, packing);
}

int64_t WeightPart::packed_bytes() const {
  return std::visit([](const auto& part) { return PackedBytes(part); },
                    packing);
}

}  // namespace moebius
