#include "worker/model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kPageBytes = 4096;
constexpr int kMaxShards = 10000;  // of a folder without an index
// Of a conversion or of a block with bytes to leave out.
constexpr int64_t kBufferBytes = 1 << 20;

int64_t SizeOf(TensorType type) { return type == TensorType::kF32 ? 4 : 2; }

// IEEE binary16 to float32, exactly.
float FloatFromF16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  if (exponent == 0) {  // zero and subnormals: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t bits = exponent == 31
                            ? 0x7f800000u | (fraction << 13)
                            : ((exponent + 112) << 23) | (fraction << 13);
  return std::bit_cast<float>(sign | bits);
}

float LoadFloat(TensorType type, const std::byte* from) {
  if (type == TensorType::kF32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return type == TensorType::kF16 ? FloatFromF16(bits) : ToFloat(Bf16{bits});
}

void Convert(TensorType type, const std::byte* from, int64_t count, Bf16* to) {
  if (type == TensorType::kBf16) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(Bf16));
    return;
  }
  const int64_t size = SizeOf(type);
  for (int64_t i = 0; i < count; ++i) {
    to[i] = ToBf16(LoadFloat(type, from + i * size));
  }
}

absl::Status ReadExactly(int fd, const std::string& path, int64_t offset,
                         int64_t size, std::byte* out) {
  while (size > 0) {
    const ssize_t got = ::pread(
        fd, out, static_cast<size_t>(std::min<int64_t>(size, 1 << 30)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return absl::InternalError(
          absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
    }
    if (got == 0) {
      return absl::DataLossError(absl::StrCat(path, ": ends at byte ", offset,
                                              ", ", size, " bytes early"));
    }
    out += got;
    offset += got;
    size -= got;
  }
  return absl::OkStatus();
}

// Opens a regular file and says how long it is.
absl::StatusOr<std::pair<UniqueFd, int64_t>> OpenFile(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) {
    const std::string why =
        absl::StrCat(path, ": cannot be opened: ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(why)
                           : absl::InternalError(why);
  }
  struct stat info;
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": not a regular file"));
  }
  return std::pair(std::move(fd), static_cast<int64_t>(info.st_size));
}

// "model-00001-of-00003.safetensors" as {"model", 1, 3}.
struct ShardName {
  std::string prefix;
  int number = 0;
  int count = 0;
};
std::optional<ShardName> ParseShardName(std::string name) {
  constexpr std::string_view kOf = "-of-", kEnding = ".safetensors";
  if (!name.ends_with(kEnding)) return std::nullopt;
  name.resize(name.size() - kEnding.size());
  const size_t of = name.rfind(kOf);
  if (of == name.npos) return std::nullopt;
  const size_t dash = name.rfind('-', of - 1);
  if (of == 0 || dash == name.npos) return std::nullopt;
  ShardName shard{name.substr(0, dash)};
  if (!absl::SimpleAtoi(name.substr(dash + 1, of - dash - 1), &shard.number) ||
      !absl::SimpleAtoi(name.substr(of + kOf.size()), &shard.count) ||
      shard.count < 1 || shard.count > kMaxShards) {
    return std::nullopt;
  }
  return shard;
}

// The shards of a folder that has no index, in order: those whose names count
// from 1 to all that there are. None if no file is named so.
absl::StatusOr<std::vector<std::string>> CountedShards(
    const std::string& model_dir) {
  std::vector<std::string> names;
  std::optional<ShardName> first;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(model_dir, error), end;
       !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const auto shard = ParseShardName(name);
    if (!shard.has_value()) continue;
    if (!first.has_value()) {
      first = shard;
      names.resize(static_cast<size_t>(shard->count));
    }
    if (shard->prefix != first->prefix || shard->count != first->count ||
        shard->number < 1 || shard->number > shard->count ||
        !names[static_cast<size_t>(shard->number - 1)].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(model_dir, ": ", name, " does not belong to the ",
                       first->count, " shards of '", first->prefix,
                       "', and there is no model.safetensors.index.json"));
    }
    names[static_cast<size_t>(shard->number - 1)] = name;
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (!names[i].empty()) continue;
    return absl::NotFoundError(
        absl::StrCat(model_dir, ": shard ", i + 1, " of ", names.size(),
                     " is missing, and so is model.safetensors.index.json"));
  }
  return names;
}

}  // namespace

struct Checkpoint::File {
  std::string path;
  UniqueFd fd;
  int64_t data_start;
};

Checkpoint::Checkpoint() = default;
Checkpoint::~Checkpoint() = default;

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& model_dir) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint);
  const std::string index = model_dir + "/model.safetensors.index.json";
  if (::access(index.c_str(), F_OK) == 0) {
    RETURN_IF_ERROR(checkpoint->AddShards(model_dir, index));
    return checkpoint;
  }
  std::vector<std::string> names;
  const std::string single = model_dir + "/model.safetensors";
  if (::access(single.c_str(), F_OK) != 0) {
    ASSIGN_OR_RETURN(names, CountedShards(model_dir));
  }
  if (names.empty()) names.push_back("model.safetensors");
  for (const std::string& name : names) {
    RETURN_IF_ERROR(checkpoint->AddFile(model_dir, name));
  }
  return checkpoint;
}

absl::Status Checkpoint::AddFile(const std::string& model_dir,
                                 const std::string& name) {
  const std::string path = absl::StrCat(model_dir, "/", name);
  ASSIGN_OR_RETURN(auto opened, OpenFile(path));
  auto& [fd, file_bytes] = opened;
  uint64_t header_bytes = 0;
  if (file_bytes < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", file_bytes,
                     " bytes are no safetensors file: too short for the "
                     "header's length"));
  }
  RETURN_IF_ERROR(ReadExactly(fd.get(), path, 0, 8,
                              reinterpret_cast<std::byte*>(&header_bytes)));
  if (std::memcmp(&header_bytes, "version ", 8) == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": a Git LFS pointer of ", file_bytes,
        " bytes, not the weights; `git lfs pull` in its folder gets them"));
  }
  if (header_bytes > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes) ||
      static_cast<int64_t>(header_bytes) > file_bytes - 8) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": header of ", header_bytes, " bytes in a file of ", file_bytes,
        "; allowed: at most the file and ", kMaxSafetensorsHeaderBytes));
  }
  std::string header(header_bytes, '\0');
  RETURN_IF_ERROR(ReadExactly(fd.get(), path, 8,
                              static_cast<int64_t>(header_bytes),
                              reinterpret_cast<std::byte*>(header.data())));
  const int64_t data_start = 8 + static_cast<int64_t>(header_bytes);
  ASSIGN_OR_RETURN(
      std::vector<TensorInfo> tensors,
      ParseSafetensorsHeader(header, file_bytes - data_start, path));
  files_.push_back(
      std::make_unique<File>(File{path, std::move(fd), data_start}));
  for (TensorInfo& tensor : tensors) {
    std::string key = tensor.name;
    const auto [at, added] = tensors_.try_emplace(
        std::move(key), Entry{std::move(tensor), files_.back().get()});
    if (!added) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor '",
                                                     at->first, "' is also in ",
                                                     at->second.file->path));
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::AddShards(const std::string& model_dir,
                                   const std::string& index_path) {
  ASSIGN_OR_RETURN(auto opened, OpenFile(index_path));
  auto& [fd, file_bytes] = opened;
  if (file_bytes > kMaxSafetensorsIndexBytes) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", file_bytes,
                                                   " bytes; allowed: at most ",
                                                   kMaxSafetensorsIndexBytes));
  }
  std::string json(static_cast<size_t>(file_bytes), '\0');
  RETURN_IF_ERROR(ReadExactly(fd.get(), index_path, 0, file_bytes,
                              reinterpret_cast<std::byte*>(json.data())));
  ASSIGN_OR_RETURN(const auto files, ParseSafetensorsIndex(json, index_path));
  std::vector<std::string> names;
  for (const auto& [tensor, file] : files) names.push_back(file);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  for (const std::string& name : names) {
    RETURN_IF_ERROR(AddFile(model_dir, name));
  }
  for (const auto& [tensor, file] : files) {
    const auto found = tensors_.find(tensor);
    if (found == tensors_.end() ||
        found->second.file->path != absl::StrCat(model_dir, "/", file)) {
      return absl::InvalidArgumentError(absl::StrCat(
          index_path, ": weight_map: tensor '", tensor, "' is not in ", file));
    }
  }
  return absl::OkStatus();
}

const TensorInfo* Checkpoint::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second.info;
}

absl::StatusOr<const Checkpoint::Entry*> Checkpoint::Typed(
    const std::string& name, absl::Span<const int64_t> shape) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(
        files_.empty() ? "checkpoint" : files_.front()->path, ": no tensor '",
        name, "'", files_.size() > 1 ? " there or in the other shards" : ""));
  }
  const TensorInfo& info = found->second.info;
  if (!std::equal(shape.begin(), shape.end(), info.shape.begin(),
                  info.shape.end())) {
    return absl::InvalidArgumentError(absl::StrCat(
        found->second.file->path, ": tensor '", name, "' has shape [",
        absl::StrJoin(info.shape, ", "), "]; config.json makes it [",
        absl::StrJoin(shape, ", "), "]"));
  }
  if (info.type == TensorType::kOther) {
    return absl::InvalidArgumentError(absl::StrCat(
        found->second.file->path, ": tensor '", name, "' has dtype ",
        info.type_name, "; allowed: BF16, F16, F32"));
  }
  return &found->second;
}

absl::StatusOr<const Checkpoint::Entry*> Checkpoint::AsMatrix(
    const std::string& name, int64_t rows, int64_t cols) const {
  const TensorInfo* const info = Find(name);
  if (info == nullptr) return Typed(name, {rows, cols});
  int64_t rows_there = 1;
  for (size_t i = 0; i + 1 < info->shape.size(); ++i) {
    rows_there *= info->shape[i];
  }
  const bool fits =
      !info->shape.empty() && rows_there == rows && info->shape.back() == cols;
  if (fits) return Typed(name, info->shape);
  if (rows == 1) return Typed(name, {cols});
  return Typed(name, {rows, cols});
}

absl::Status Checkpoint::Check(const std::string& name,
                               absl::Span<const int64_t> shape) {
  return Typed(name, shape).status();
}

absl::Status Checkpoint::ReadBytes(const Entry& entry, int64_t offset,
                                   int64_t size, std::byte* out) {
  CHECK(offset >= 0 && size >= 0 &&
        offset + size <= entry.info.end - entry.info.begin);
  RETURN_IF_ERROR(ReadExactly(
      entry.file->fd.get(), entry.file->path,
      entry.file->data_start + entry.info.begin + offset, size, out));
  bytes_read_ += size;
  return absl::OkStatus();
}

absl::Status Checkpoint::ReadBf16(const std::string& name, MatrixSlice slice,
                                  absl::Span<Bf16> out) {
  CHECK(0 <= slice.row_begin && slice.row_begin <= slice.row_end &&
        slice.row_end <= slice.rows && 0 <= slice.col_begin &&
        slice.col_begin <= slice.col_end && slice.col_end <= slice.cols);
  CHECK(static_cast<int64_t>(out.size()) == slice.num_elements());
  ASSIGN_OR_RETURN(const Entry* entry, AsMatrix(name, slice.rows, slice.cols));
  if (slice.num_elements() == 0) return absl::OkStatus();
  const TensorType type = entry->info.type;
  const int64_t size = SizeOf(type);
  const int64_t row_bytes = slice.cols * size;
  const int64_t skipped_bytes = (slice.cols - slice.num_cols()) * size;
  if (skipped_bytes == 0 && type == TensorType::kBf16) {
    return ReadBytes(*entry, slice.row_begin * row_bytes,
                     slice.num_rows() * row_bytes,
                     reinterpret_cast<std::byte*>(out.data()));
  }
  // Row by row where that leaves out whole pages, in blocks of rows otherwise.
  const bool leave_out = skipped_bytes >= kPageBytes;
  const int64_t rows_at_once =
      leave_out ? 1 : std::max<int64_t>(1, kBufferBytes / row_bytes);
  std::vector<std::byte> buffer;
  Bf16* next = out.data();
  for (int64_t row = slice.row_begin; row < slice.row_end;
       row += rows_at_once) {
    const int64_t count = std::min(rows_at_once, slice.row_end - row);
    const int64_t begin = slice.col_begin * size;
    const int64_t bytes = (count - 1) * row_bytes + slice.num_cols() * size;
    if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(bytes);
    RETURN_IF_ERROR(
        ReadBytes(*entry, row * row_bytes + begin, bytes, buffer.data()));
    for (int64_t i = 0; i < count; ++i, next += slice.num_cols()) {
      Convert(type, buffer.data() + i * row_bytes, slice.num_cols(), next);
    }
  }
  return absl::OkStatus();
}

absl::Status Checkpoint::ReadFloat(const std::string& name,
                                   absl::Span<float> out) {
  ASSIGN_OR_RETURN(const Entry* entry,
                   AsMatrix(name, 1, static_cast<int64_t>(out.size())));
  const TensorType type = entry->info.type;
  const int64_t bytes = static_cast<int64_t>(out.size()) * SizeOf(type);
  std::vector<std::byte> buffer(static_cast<size_t>(bytes));
  RETURN_IF_ERROR(ReadBytes(*entry, 0, bytes, buffer.data()));
  for (size_t i = 0; i < out.size(); ++i) {
    // All weights are kept in BF16, these widened again for use.
    out[i] = ToFloat(ToBf16(LoadFloat(type, buffer.data() + i * SizeOf(type))));
  }
  return absl::OkStatus();
}

}  // namespace moebius
