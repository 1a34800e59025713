#include "worker/model/weight_sink_cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/base/check.h"
#include "kernels/formats.h"

namespace moebius {
namespace {

constexpr size_t kAlign = 64;

bool Aligned(const std::byte* base) {
  return reinterpret_cast<uintptr_t>(base) % kAlign == 0;
}

// The three matrices of an expert, as they are handed over.
struct ExpertRows {
  const Bf16* gate = nullptr;
  const Bf16* up = nullptr;
  const Bf16* down = nullptr;
  int hidden = 0;
  int rows = 0;
};

// Rows [first, first + count) as a block of `block_rows`, zeros behind them.
void PackWithZeros(const ExpertRows& expert, int first, int count,
                   int block_rows, Bf16* out) {
  const int hidden = expert.hidden;
  std::fill_n(out, ExpertBlock::NumElements(hidden, block_rows), Bf16{});
  if (count == 0) return;
  const size_t size = static_cast<size_t>(block_rows) * hidden;
  std::vector<Bf16> gate(size), up(size), down(size);
  const size_t bytes = static_cast<size_t>(count) * hidden * sizeof(Bf16);
  const ptrdiff_t at = static_cast<ptrdiff_t>(first) * hidden;
  std::memcpy(gate.data(), expert.gate + at, bytes);
  std::memcpy(up.data(), expert.up + at, bytes);
  for (int h = 0; h < hidden; ++h) {
    std::memcpy(down.data() + static_cast<ptrdiff_t>(h) * block_rows,
                expert.down + static_cast<ptrdiff_t>(h) * expert.rows + first,
                count * sizeof(Bf16));
  }
  PackExpert(gate.data(), up.data(), down.data(), hidden, block_rows, 0,
             block_rows, out);
}

void Pack(const VectorPacking& part, const std::byte* host, std::byte* out) {
  const size_t bytes = static_cast<size_t>(part.size) * sizeof(float);
  std::memcpy(out, host, bytes);
  std::memset(out + bytes, 0, static_cast<size_t>(part.zeros) * sizeof(float));
}

void Pack(const MatrixPacking& part, const std::byte* host, std::byte* out) {
  PackMatrix(reinterpret_cast<const Bf16*>(host), part.n, part.k, part.k,
             reinterpret_cast<Bf16*>(out));
}

void Pack(const RowParallelPacking& part, const std::byte* host,
          std::byte* out) {
  PackRowParallel(reinterpret_cast<const Bf16*>(host), part.n, part.k, part.k,
                  reinterpret_cast<Bf16*>(out));
}

void Pack(const ExpertPacking& part, const std::byte* host, std::byte* out) {
  const ptrdiff_t matrix = static_cast<ptrdiff_t>(part.rows) * part.hidden;
  const Bf16* const gate = reinterpret_cast<const Bf16*>(host);
  const ExpertRows expert{gate, gate + matrix, gate + 2 * matrix, part.hidden,
                          part.rows};
  for (int p = 0; p < part.num_pieces; ++p, out += part.stride_bytes) {
    const int first = p * part.piece_rows;
    const int count = std::clamp(part.rows - first, 0, part.piece_rows);
    Bf16* const block = reinterpret_cast<Bf16*>(out);
    if (count == part.piece_rows) {
      PackExpert(expert.gate, expert.up, expert.down, part.hidden, part.rows,
                 first, first + count, block);
    } else {
      PackWithZeros(expert, first, count, part.piece_rows, block);
    }
  }
}

class CpuWeightSink : public WeightSink {
 public:
  CpuWeightSink(std::byte* dense, std::byte* experts)
      : dense_(dense), experts_(experts), host_(nullptr, &std::free) {
    CHECK(dense != nullptr && Aligned(dense) && Aligned(experts));
  }

  absl::StatusOr<std::byte*> Stage(int64_t size_bytes) override {
    CHECK(size_bytes >= 0);
    const size_t size =
        (static_cast<size_t>(size_bytes) + kAlign - 1) / kAlign * kAlign;
    if (size > capacity_) {
      host_.reset();  // before the larger one is there
      capacity_ = 0;
      host_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlign, size)));
      if (host_ == nullptr) {
        return absl::ResourceExhaustedError("no memory to read weights into");
      }
      capacity_ = size;
    }
    return host_.get();
  }

  absl::Status Put(const WeightPart& part) override {
    std::byte* const base =
        part.region == WeightRegion::kDense ? dense_ : experts_;
    CHECK(base != nullptr &&
          part.host_bytes() <= static_cast<int64_t>(capacity_));
    std::visit(
        [&](const auto& packing) {
          Pack(packing, host_.get(), base + part.offset);
        },
        part.packing);
    return absl::OkStatus();
  }

  absl::Status Finish() override { return absl::OkStatus(); }

 private:
  std::byte* const dense_;
  std::byte* const experts_;
  std::unique_ptr<std::byte, decltype(&std::free)> host_;
  size_t capacity_ = 0;
};

}  // namespace

std::unique_ptr<WeightSink> MakeCpuWeightSink(std::byte* dense,
                                              std::byte* experts) {
  return std::make_unique<CpuWeightSink>(dense, experts);
}

}  // namespace moebius
