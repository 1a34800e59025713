// Keys of a control channel over TCP, where nobody can ask the kernel who is at
// the other end: CURVE (ZeroMQ RFC 26). Each end has a pair of keys and knows
// the public ones of those that it speaks with. The launcher makes them and
// hands each process its own through a descriptor that the process inherits,
// so they are in no file and on no command line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace moebius {

// Characters of a key as text (Z85).
inline constexpr size_t kChannelKeyChars = 40;

struct ChannelKeyPair {
  std::string secret_key;
  std::string public_key;
};

// What one end knows.
struct ChannelKeys {
  ChannelKeyPair own;
  // The hub's: public keys of the ranks, in their order. A link's: the hub's.
  std::vector<std::string> peers;
};

// kUnimplemented where ZeroMQ was built without CURVE.
absl::StatusOr<ChannelKeyPair> MakeChannelKeyPair();

// An open file of which only the descriptor remains (close-on-exec).
absl::StatusOr<UniqueFd> WriteChannelKeys(const ChannelKeys& keys);
// Reads what WriteChannelKeys wrote, through an inherited descriptor, and
// closes it. kInvalidArgument for anything else.
absl::StatusOr<ChannelKeys> ReadChannelKeys(int fd);

// The 32 bytes of a key; empty for what is none.
std::string ChannelKeyBytes(std::string_view key);

}  // namespace moebius
