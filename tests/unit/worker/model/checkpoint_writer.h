// Writes small safetensors checkpoints for tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/bf16.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/safetensors.h"

namespace moebius {

// A folder of its own that goes away with the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

void WriteFile(const std::string& path, const std::string& bytes);
std::string ReadFile(const std::string& path);

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// The bytes of a file with these tensors in the given type.
std::string Safetensors(const std::vector<NamedTensor>& tensors,
                        TensorType type);
// 8 bytes of length, the header, and `data_bytes` zeros.
std::string RawSafetensors(const std::string& header, size_t data_bytes);

// Every tensor of a Qwen3-MoE model, with the values of MakeDummyWeights().
std::vector<NamedTensor> DummyTensors(const DecoderSpec& spec);

// model.safetensors, or `num_shards` files and their index.
void WriteCheckpoint(const std::string& dir,
                     const std::vector<NamedTensor>& tensors, TensorType type,
                     int num_shards);

// IEEE binary16, nearest, ties to even; for normal numbers and zero.
uint16_t HalfFromFloat(float value);

}  // namespace moebius
