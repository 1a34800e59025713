#include "tests/unit/worker/model/checkpoint_writer.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "nlohmann/json.hpp"
#include "worker/model/tensor_source.h"

namespace moebius {

TempDir::TempDir() {
  std::string path =
      (std::filesystem::temp_directory_path() / "moebius-test-XXXXXX").string();
  CHECK(::mkdtemp(path.data()) != nullptr);
  path_ = path;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  CHECK(file.good());
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good());
  return {std::istreambuf_iterator<char>(file), {}};
}

uint16_t HalfFromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude < 0x33000001) return static_cast<uint16_t>(sign);
  if (magnitude < 0x38800000) {  // subnormal: a multiple of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign |
                                 static_cast<uint32_t>(std::nearbyint(scaled)));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

std::string RawSafetensors(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
  return bytes + header + std::string(data_bytes, '\0');
}

std::string Safetensors(const std::vector<NamedTensor>& tensors,
                        TensorType type) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const NamedTensor& tensor : tensors) {
    const size_t begin = data.size();
    for (const float value : tensor.values) {
      if (type == TensorType::kF32) {
        data.append(reinterpret_cast<const char*>(&value), 4);
        continue;
      }
      const uint16_t bits =
          type == TensorType::kF16 ? HalfFromFloat(value) : ToBf16(value).bits;
      data.append(reinterpret_cast<const char*>(&bits), 2);
    }
    header[tensor.name] = {{"dtype", type == TensorType::kF32   ? "F32"
                                     : type == TensorType::kF16 ? "F16"
                                                                : "BF16"},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, data.size()}}};
  }
  return RawSafetensors(header.dump(), 0) + data;
}

std::vector<NamedTensor> DummyTensors(const DecoderSpec& spec) {
  const auto source = MakeDummyWeights();
  std::vector<NamedTensor> tensors;
  const auto vector = [&](const std::string& name, int64_t size) {
    NamedTensor tensor{name + ".weight", {size}, {}};
    tensor.values.resize(static_cast<size_t>(size));
    CHECK(source->ReadFloat(tensor.name, absl::MakeSpan(tensor.values)).ok());
    tensors.push_back(std::move(tensor));
  };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    NamedTensor tensor{name + ".weight", {rows, cols}, {}};
    std::vector<Bf16> values(static_cast<size_t>(rows * cols));
    CHECK(source
              ->ReadBf16(tensor.name, MatrixSlice::Whole(rows, cols),
                         absl::MakeSpan(values))
              .ok());
    for (const Bf16 value : values) tensor.values.push_back(ToFloat(value));
    tensors.push_back(std::move(tensor));
  };
  const int hidden = spec.hidden_size;
  matrix("model.embed_tokens", spec.vocab_size, hidden);
  if (!spec.tied_embedding) matrix("lm_head", spec.vocab_size, hidden);
  vector("model.norm", hidden);
  for (int l = 0; l < spec.num_layers(); ++l) {
    const std::string layer = absl::StrCat("model.layers.", l, ".");
    const auto& attention =
        std::get<GroupedQueryAttention>(spec.layers[l].attention);
    const int q = attention.q_heads * attention.head_dim;
    const int kv = attention.kv_heads * attention.head_dim;
    vector(layer + "input_layernorm", hidden);
    vector(layer + "post_attention_layernorm", hidden);
    vector(layer + "self_attn.q_norm", attention.head_dim);
    vector(layer + "self_attn.k_norm", attention.head_dim);
    matrix(layer + "self_attn.q_proj", q, hidden);
    matrix(layer + "self_attn.k_proj", kv, hidden);
    matrix(layer + "self_attn.v_proj", kv, hidden);
    matrix(layer + "self_attn.o_proj", hidden, q);
    const auto mlp = [&](const std::string& name, int rows) {
      matrix(name + "gate_proj", rows, hidden);
      matrix(name + "up_proj", rows, hidden);
      matrix(name + "down_proj", hidden, rows);
    };
    const MoeMlp* moe = spec.layers[l].moe();
    if (moe == nullptr) {
      mlp(layer + "mlp.", spec.layers[l].dense()->rows);
      continue;
    }
    matrix(layer + "mlp.gate", moe->router.num_experts, hidden);
    for (int e = 0; e < moe->router.num_experts; ++e) {
      mlp(absl::StrCat(layer, "mlp.experts.", e, "."), moe->rows);
    }
  }
  return tensors;
}

void WriteCheckpoint(const std::string& dir,
                     const std::vector<NamedTensor>& tensors, TensorType type,
                     int num_shards) {
  if (num_shards == 1) {
    WriteFile(dir + "/model.safetensors", Safetensors(tensors, type));
    return;
  }
  nlohmann::json map;
  std::vector<std::vector<NamedTensor>> shards(num_shards);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const size_t shard = i % shards.size();
    shards[shard].push_back(tensors[i]);
    map[tensors[i].name] = absl::StrCat("model-", shard, ".safetensors");
  }
  for (size_t s = 0; s < shards.size(); ++s) {
    WriteFile(absl::StrCat(dir, "/model-", s, ".safetensors"),
              Safetensors(shards[s], type));
  }
  WriteFile(dir + "/model.safetensors.index.json",
            nlohmann::json{{"weight_map", map}}.dump());
}

}  // namespace moebius
