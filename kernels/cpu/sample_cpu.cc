#include "common/base/check.h"
#include "kernels/sample.h"

namespace moebius {

void Sample(const Cpu& device, Rows logits, const Samples<Cpu>& samples) {
  CHECK(logits.rows == samples.count);
  ParallelFor(device.pool, logits.rows, [&](int i) {
    thread_local Sampler sampler;
    SampleOne(absl::MakeSpan(logits.row(i), static_cast<size_t>(logits.cols)),
              samples.first[i * samples.step], sampler);
  });
}

}  // namespace moebius
