// Reading checkpoints in the safetensors format.
//
// A file is: the header's length (8 bytes, little-endian), the header (JSON),
// the data. The header maps names to {"dtype", "shape", "data_offsets": [begin,
// end]}, offsets counting from the end of the header; the key "__metadata__"
// holds strings and is ignored. A sharded checkpoint has several such files and
// `model.safetensors.index.json`, whose "weight_map" maps names to files.
// (https://github.com/huggingface/safetensors, "Format".)
//
// Files are hostile: every number is checked before it is used.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/bf16.h"
#include "worker/model/tensor_source.h"

namespace moebius {

inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100 << 20;
inline constexpr int64_t kMaxSafetensorsIndexBytes = 100 << 20;

enum class TensorType { kBf16, kF16, kF32, kOther };

struct TensorInfo {
  std::string name;
  TensorType type = TensorType::kOther;
  std::string type_name;  // as the file spells it
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes from the start of the data
  int64_t end = 0;
};

// Parses the JSON header of a file whose data has `data_bytes` bytes. The
// tensors come sorted by place; they are disjoint and cover the data exactly,
// names are unique, and sizes fit type and shape.
// Errors: kInvalidArgument that names the file and the tensor.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(
    std::string_view header, int64_t data_bytes, std::string_view file_name);

// Parses "weight_map" of an index: tensor name -> file name in the same folder.
// Errors: kInvalidArgument; a name occurs once, a file name has no separator.
absl::StatusOr<std::unordered_map<std::string, std::string>>
ParseSafetensorsIndex(std::string_view json, std::string_view file_name);

// Checkpoint
//
// The tensors of a model folder: `model.safetensors.index.json` and its shards
// when there is an index, `model.safetensors` otherwise; without both, shards
// whose names count (`model-00001-of-00003.safetensors`). Opening reads headers
// alone. F32 and F16 are rounded to BF16 (nearest, ties to even).
//
// Bytes outside a slice asked for are read only where leaving them out would
// save less than a page at a time; bytes_read() counts them.
// Threading: once it is open, all methods may be called at once.
class Checkpoint : public TensorSource {
 public:
  // Errors: kNotFound when there is no checkpoint, kInvalidArgument when a file
  // is malformed, kInternal when it cannot be read.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& model_dir);
  ~Checkpoint() override;

  absl::Status Check(const std::string& name,
                     absl::Span<const int64_t> shape) override;
  absl::Status ReadBf16(const std::string& name, MatrixSlice slice,
                        absl::Span<Bf16> out) override;
  absl::Status ReadFloat(const std::string& name,
                         absl::Span<float> out) override;
  int64_t bytes_read() const override { return bytes_read_; }

  // Null when there is no such tensor.
  const TensorInfo* Find(const std::string& name) const;

 private:
  struct File;
  struct Entry {
    TensorInfo info;
    const File* file = nullptr;
  };

  Checkpoint();
  absl::Status AddFile(const std::string& model_dir, const std::string& name);
  absl::Status AddShards(const std::string& model_dir,
                         const std::string& index_path);
  absl::StatusOr<const Entry*> Typed(const std::string& name,
                                     absl::Span<const int64_t> shape) const;
  // The tensor whose last dimension is `cols`, and whose others are `rows`
  // together.
  absl::StatusOr<const Entry*> AsMatrix(const std::string& name, int64_t rows,
                                        int64_t cols) const;
  absl::Status ReadBytes(const Entry& entry, int64_t offset, int64_t size,
                         std::byte* out);

  std::vector<std::unique_ptr<File>> files_;
  std::unordered_map<std::string, Entry> tensors_;
  std::atomic<int64_t> bytes_read_ = 0;
};

}  // namespace moebius
