// ZeroMQ body of channel_keys.h.
#include <sys/mman.h>
#include <unistd.h>
#include <zmq.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/errno_status.h"
#include "common/base/ids.h"
#include "common/channel/channel_keys.h"

namespace moebius {
namespace {

constexpr size_t kKeyBytes = 32;
// Two keys of its own and those of every rank, a line each.
constexpr size_t kMaxFileBytes = (2 + kMaxRanks) * (kChannelKeyChars + 1);

absl::Status NotKeys(int fd) {
  return absl::InvalidArgumentError(
      absl::StrCat("descriptor ", fd,
                   " does not hold the keys of a control channel: the "
                   "launcher hands them over, start the group with `moebius "
                   "serve`"));
}

}  // namespace

absl::StatusOr<ChannelKeyPair> MakeChannelKeyPair() {
  char public_key[kChannelKeyChars + 1], secret_key[kChannelKeyChars + 1];
  if (zmq_curve_keypair(public_key, secret_key) != 0) {
    return absl::UnimplementedError(
        "this build of ZeroMQ has no CURVE, which control.transport: tcp "
        "needs; use ipc, or a ZeroMQ with libsodium");
  }
  return ChannelKeyPair{secret_key, public_key};
}

absl::StatusOr<UniqueFd> WriteChannelKeys(const ChannelKeys& keys) {
  UniqueFd fd(memfd_create("moebius-control-keys", MFD_CLOEXEC));
  if (!fd) return ErrnoStatus("memfd_create");
  std::string text =
      absl::StrCat(keys.own.secret_key, "\n", keys.own.public_key, "\n");
  for (const std::string& peer : keys.peers) absl::StrAppend(&text, peer, "\n");
  if (pwrite(fd.get(), text.data(), text.size(), 0) !=
      static_cast<ssize_t>(text.size())) {
    return ErrnoStatus("writing the keys of a control channel");
  }
  return fd;
}

absl::StatusOr<ChannelKeys> ReadChannelKeys(int fd) {
  const UniqueFd owner(fd);
  std::string text(kMaxFileBytes + 1, '\0');
  const ssize_t n = pread(fd, text.data(), text.size(), 0);
  if (n <= 0 || n > static_cast<ssize_t>(kMaxFileBytes)) return NotKeys(fd);
  text.resize(static_cast<size_t>(n));
  const std::vector<std::string> lines =
      absl::StrSplit(text, '\n', absl::SkipEmpty());
  if (lines.size() < 3) return NotKeys(fd);
  for (const std::string& line : lines) {
    if (ChannelKeyBytes(line).empty()) return NotKeys(fd);
  }
  return ChannelKeys{{lines[0], lines[1]}, {lines.begin() + 2, lines.end()}};
}

std::string ChannelKeyBytes(std::string_view key) {
  std::string bytes(kKeyBytes, '\0');
  if (key.size() != kChannelKeyChars ||
      zmq_z85_decode(reinterpret_cast<uint8_t*>(bytes.data()),
                     std::string(key).c_str()) == nullptr) {
    return "";
  }
  return bytes;
}

}  // namespace moebius
