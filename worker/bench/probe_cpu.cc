#include "worker/bench/probe_cpu.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "absl/status/status.h"
#include "kernels/cpu/routing_cpu.h"
#include "kernels/project.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::max(1e-9,
                  std::chrono::duration<double>(Clock::now() - begin).count());
}

class CpuProbe final : public DeviceProbe, private PassObserver<Cpu> {
 public:
  CpuProbe(const Cpu& device, Decoder<Cpu>* decoder)
      : device_(device), decoder_(decoder) {}
  ~CpuProbe() override { decoder_->Observe(nullptr); }

  std::string device_name() const override { return "processor"; }

  absl::Status Watch() override {
    shares_ = {};
    decoder_->Observe(this);
    return absl::OkStatus();
  }

  absl::StatusOr<PassShares> Take() override {
    decoder_->Observe(nullptr);
    if (shares_.passes == 0) {
      return absl::FailedPreconditionError("no pass was watched");
    }
    PassShares means = shares_;
    for (double& ms : means.part_ms) ms /= shares_.passes;
    for (double& named : means.experts_named) named /= shares_.passes;
    return means;
  }

  absl::StatusOr<CopyRates> MeasureCopies() override {
    return MeasureCpuCopies(device_);
  }

  absl::StatusOr<double> MeasureProducts() override {
    constexpr int kSize = 1024, kProducts = 3;
    constexpr int64_t kElements = int64_t{kSize} * kSize;
    const Buffer<Bf16, Cpu> weights(device_, "weights", kElements);
    const Buffer<float, Cpu> x(device_, "x", kElements),
        y(device_, "y", kElements);
    std::fill_n(weights.data(), kElements, ToBf16(0.01f));
    std::fill_n(x.data(), kElements, 0.5f);
    const PackedMatrix w{weights.data(), kSize, kSize};
    double best = 0;
    for (int i = 0; i < kProducts; ++i) {
      const Clock::time_point begin = Clock::now();
      Project(device_, ConstRows{x.data(), kSize, kSize, kSize}, {&w, 1},
              Rows{y.data(), kSize, kSize, kSize});
      best = std::max(best, 2.0 * kElements * kSize / SecondsSince(begin));
    }
    return best;
  }

 private:
  void OnBegin() override {
    ++shares_.passes;
    part_ = PassPart::kOther;
  }
  void OnPart(PassPart part) override {
    const Clock::time_point now = Clock::now();
    if (part_ != PassPart::kOther) {
      shares_.part_ms[static_cast<size_t>(part_)] +=
          std::chrono::duration<double, std::milli>(now - since_).count();
    }
    part_ = part;
    since_ = now;
  }
  void OnGrouped(int moe_layer, const Routing<Cpu>& routing) override {
    OnPart(PassPart::kOther);
    const size_t layer = static_cast<size_t>(moe_layer);
    if (shares_.experts_named.size() <= layer) {
      shares_.experts_named.resize(layer + 1);
    }
    const std::vector<int32_t>& offsets = routing.groups.offsets;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) {
      if (offsets[e + 1] > offsets[e]) shares_.experts_named[layer] += 1;
    }
  }
  void OnEnd() override { OnPart(PassPart::kOther); }

  const Cpu device_;
  Decoder<Cpu>* const decoder_;
  PassShares shares_;  // sums
  PassPart part_ = PassPart::kOther;
  Clock::time_point since_;
};

}  // namespace

CopyRates MeasureCpuCopies(const Cpu& device) {
  constexpr int64_t kBytes = int64_t{64} << 20;  // far more than caches hold
  constexpr int kCopies = 5;
  const Buffer<std::byte, Cpu> from(device, "copy", kBytes),
      to(device, "copy", kBytes);
  const int threads = NumThreads(device.pool);
  const auto copy = [&](int task) {
    const int64_t begin = kBytes * task / threads;
    const int64_t end = kBytes * (task + 1) / threads;
    std::memcpy(to.data() + begin, from.data() + begin,
                static_cast<size_t>(end - begin));
  };
  std::memset(from.data(), 1, kBytes);
  std::memset(to.data(), 1, kBytes);
  double best = 0;
  for (int i = 0; i < kCopies; ++i) {
    const Clock::time_point begin = Clock::now();
    ParallelFor(device.pool, threads, copy);
    best = std::max(best, 2.0 * kBytes / SecondsSince(begin));
  }
  return CopyRates{best, 0};
}

std::unique_ptr<DeviceProbe> MakeCpuProbe(const Cpu& device,
                                          Decoder<Cpu>* decoder) {
  return std::make_unique<CpuProbe>(device, decoder);
}

}  // namespace moebius
