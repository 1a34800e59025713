#include "coordinator/engine/checkpoint_fingerprint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/match.h"
#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxWholeBytes = uint64_t{64} << 20;
constexpr uint64_t kBlockBytes = 4096;
constexpr uint64_t kMaxBlocksOfFile = 4096;
// Of all files together: 256 MiB to be read.
constexpr uint64_t kMaxBlocks = uint64_t{1} << 16;
constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;
constexpr size_t kMaxWeightFiles = 100'000;
constexpr size_t kReadBytes = size_t{1} << 20;

// For telling files apart, not for anything hostile. Every bit of a word
// reaches all of the hash with the words that follow; those of Fnv1a reach the
// higher ones alone. Its numbers are in journals, so it stays as it is.
class Mixer {
 public:
  void Add(uint64_t word) {
    hash_ = std::rotl((hash_ ^ word) * 0x9e3779b97f4a7c15u, 29);
  }
  void Add(std::string_view bytes) {
    Add(bytes.size());
    while (!bytes.empty()) {
      uint64_t word = 0;
      const size_t size = std::min(bytes.size(), sizeof word);
      std::memcpy(&word, bytes.data(), size);
      Add(word);
      bytes.remove_prefix(size);
    }
  }
  uint64_t hash() const { return hash_ ^ hash_ >> 32; }

 private:
  uint64_t hash_ = 0x6d6f656269757321u;
};

class File {
 public:
  static absl::StatusOr<File> Open(const fs::path& path) {
    File file;
    file.path_ = path.string();
    file.fd_.reset(open(file.path_.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat info;
    if (!file.fd_ || fstat(file.fd_.get(), &info) != 0) {
      return ErrnoStatus(Cat("cannot read ", file.path_));
    }
    file.size_bytes_ = static_cast<uint64_t>(info.st_size);
    return file;
  }

  uint64_t size_bytes() const { return size_bytes_; }

  // Adds [offset, offset + size) as far as the file has it.
  absl::Status AddRange(uint64_t offset, uint64_t size, Mixer& mixer) {
    const uint64_t end = std::min(size_bytes_, offset + size);
    while (offset < end) {
      buffer_.resize(std::min<uint64_t>(kReadBytes, end - offset));
      // Whole pieces: where they end is part of the hash.
      size_t done = 0;
      while (done < buffer_.size()) {
        const ssize_t n =
            pread(fd_.get(), buffer_.data() + done, buffer_.size() - done,
                  static_cast<off_t>(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
          return ErrnoStatus(Cat("cannot read ", path_));
        }
        if (n == 0) break;  // it has become shorter
        done += static_cast<size_t>(n);
      }
      mixer.Add(std::string_view(buffer_.data(), done));
      offset += buffer_.size();
    }
    return absl::OkStatus();
  }

  // Bytes of a safetensors file before its data, if it is one: 8 of a size, and
  // so many of JSON.
  uint64_t HeaderBytes() const {
    uint64_t size = 0;
    if (pread(fd_.get(), &size, sizeof size, 0) != sizeof size) return 0;
    return size > kMaxHeaderBytes ? 0 : sizeof size + size;
  }

 private:
  UniqueFd fd_;
  std::string path_;
  uint64_t size_bytes_ = 0;
  std::string buffer_;
};

absl::Status AddFile(const fs::path& path, uint64_t max_blocks, Mixer& mixer) {
  ASSIGN_OR_RETURN(File file, File::Open(path));
  mixer.Add(path.filename().string());
  mixer.Add(file.size_bytes());
  if (file.size_bytes() <= kMaxWholeBytes) {
    return file.AddRange(0, file.size_bytes(), mixer);
  }
  RETURN_IF_ERROR(
      file.AddRange(0, std::max(kBlockBytes, file.HeaderBytes()), mixer));
  const uint64_t distance =
      std::max(kBlockBytes, file.size_bytes() / max_blocks);
  for (uint64_t offset = distance; offset < file.size_bytes();
       offset += distance) {
    RETURN_IF_ERROR(file.AddRange(offset, kBlockBytes, mixer));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<fs::path>> WeightFiles(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (absl::EndsWith(name, ".safetensors") ||
        absl::EndsWith(name, ".safetensors.index.json")) {
      files.push_back(it->path());
    }
    if (files.size() > kMaxWeightFiles) {
      return absl::ResourceExhaustedError(
          Cat(folder.string(), " has more than ", kMaxWeightFiles, " files"));
    }
  }
  if (error) {
    return absl::UnavailableError(
        Cat("cannot list ", folder.string(), ": ", error.message()));
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

absl::StatusOr<uint64_t> FingerprintCheckpoint(const Config& config) {
  const fs::path folder(config.model.path);
  Mixer mixer;
  // Once the value of a key of the configuration. It stays, since fingerprints
  // are in journals.
  mixer.Add("exact");
  mixer.Add(uint64_t{HasBfloat16Kv(config.workers)});
  if (config.workers.device != DeviceChoice::kCpu) {  // other tokens there
    mixer.Add("device");
    mixer.Add(static_cast<uint64_t>(config.workers.device));
    mixer.Add(static_cast<uint64_t>(config.workers.numerics));
  }
  for (const char* name :
       {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
        "merges.txt"}) {
    std::error_code ignored;
    if (!fs::exists(folder / name, ignored)) continue;
    RETURN_IF_ERROR(AddFile(folder / name, kMaxBlocksOfFile, mixer));
  }
  if (config.model.load_format == LoadFormat::kDummy) {
    mixer.Add("dummy");
    return mixer.hash();
  }
  ASSIGN_OR_RETURN(const std::vector<fs::path> files, WeightFiles(folder));
  const uint64_t max_blocks = std::clamp<uint64_t>(
      kMaxBlocks / std::max<size_t>(1, files.size()), 1, kMaxBlocksOfFile);
  for (const fs::path& file : files) {
    RETURN_IF_ERROR(AddFile(file, max_blocks, mixer));
  }
  return mixer.hash();
}

}  // namespace moebius
