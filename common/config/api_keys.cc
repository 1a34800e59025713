#include "common/config/api_keys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {
namespace {

absl::Status Invalid(std::string message) {
  return absl::InvalidArgumentError(std::move(message));
}

absl::Status CheckFile(int fd, const std::string& path) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return ErrnoStatus(path);
  if (!S_ISREG(info.st_mode)) {
    return Invalid(Cat(path, ": allowed is a regular file of API keys"));
  }
  if (info.st_uid != geteuid() && info.st_uid != 0) {
    return Invalid(Cat(path, ": a file of API keys must belong to user ",
                       geteuid(), " or root, not to user ", info.st_uid));
  }
  if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    const char octal[] = {static_cast<char>('0' + (info.st_mode >> 6 & 7)),
                          static_cast<char>('0' + (info.st_mode >> 3 & 7)),
                          static_cast<char>('0' + (info.st_mode & 7)), '\0'};
    return Invalid(Cat(path,
                       ": others than its owner may use this file of API keys "
                       "(mode ",
                       octal, "): chmod 600 ", path));
  }
  return absl::OkStatus();
}

bool IsPrintable(std::string_view key) {
  return std::all_of(key.begin(), key.end(),
                     [](char c) { return c > 0x20 && c < 0x7f; });
}

// Without spaces, tabs and carriage returns at both ends.
std::string_view Trimmed(std::string_view line) {
  const size_t begin = line.find_first_not_of(" \t\r");
  if (begin == line.npos) return "";
  return line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1);
}

// Keeps the compiler from drawing conclusions from a value.
inline void Hide(uint64_t& value) { asm volatile("" : "+r"(value)); }

}  // namespace

ApiKeys::Padded ApiKeys::Pad(std::string_view key) {
  Padded padded{};
  std::memcpy(padded.data(), key.data(), key.size());
  padded.back() = key.size();
  return padded;
}

absl::StatusOr<ApiKeys> ApiKeys::Load(const std::string& path) {
  // Not blocking: it may be a pipe.
  UniqueFd file(
      open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file) {
    if (errno == ENOENT) {
      return absl::NotFoundError(
          Cat(path, ": there is no such file of API keys"));
    }
    return Invalid(Cat(
        path, ": the file of API keys cannot be opened: ", strerror(errno)));
  }
  RETURN_IF_ERROR(CheckFile(file.get(), path));
  ASSIGN_OR_RETURN(const std::string text,
                   ReadDescriptor(file.get(), path, kMaxFileBytes));
  return Parse(text, path);
}

absl::StatusOr<ApiKeys> ApiKeys::Parse(std::string_view text,
                                       std::string_view file_name) {
  if (text.size() > kMaxFileBytes) {
    return Invalid(
        Cat(file_name, ": allowed are at most ", kMaxFileBytes, " bytes"));
  }
  ApiKeys keys;
  int number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = Trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.empty() || line[0] == '#') continue;
    if (line.size() < kMinKeyBytes || line.size() > kMaxKeyBytes ||
        !IsPrintable(line)) {
      return Invalid(Cat(file_name, ":", number, ": allowed is a key of ",
                         kMinKeyBytes, " to ", kMaxKeyBytes,
                         " printable ASCII characters without spaces, or a "
                         "comment that begins with '#'"));
    }
    if (keys.size() == kMaxKeys) {
      return Invalid(Cat(file_name, ":", number, ": allowed are at most ",
                         kMaxKeys, " keys"));
    }
    keys.keys_.push_back(Pad(line));
  }
  if (keys.keys_.empty()) {
    return Invalid(Cat(file_name, ": no key is in it; allowed are 1 to ",
                       kMaxKeys, ", one a line"));
  }
  return keys;
}

bool ApiKeys::Contains(std::string_view shown) const {
  if (shown.size() > kMaxKeyBytes) return false;
  const Padded padded = Pad(shown);
  uint64_t found = 0;
  for (const Padded& key : keys_) {
    uint64_t difference = 0;
    for (size_t i = 0; i < key.size(); ++i) difference |= key[i] ^ padded[i];
    Hide(difference);
    // The top bit: 1 if `difference` is 0, else 0.
    found |= (~difference & (difference - 1)) >> 63;
    Hide(found);
  }
  return found != 0;
}

std::string ApiKeys::First() const {
  const Padded& key = keys_.front();
  return std::string(reinterpret_cast<const char*>(key.data()), key.back());
}

bool IsSendableKey(std::string_view key) {
  return !key.empty() && key.size() <= ApiKeys::kMaxKeyBytes &&
         IsPrintable(key);
}

}  // namespace moebius
