// The launcher's part of a control channel over TCP: the socket that workers
// connect to, and everybody's keys.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/base/unique_fd.h"
#include "common/channel/channel_keys.h"
#include "common/config/config.h"

namespace moebius {

// ControlEnds
//
// Listens for the coordinator, each term of which inherits the socket: so
// the port stays the same and nobody else's, and a worker that connects
// while there is no coordinator is taken in by the next one. Keys are made
// once; a rank's serves all its incarnations. Threading: thread-compatible.
class ControlEnds {
 public:
  // For control.transport: tcp. Puts the port into `config` if it was 0.
  // Errors: what bind and listen say, naming the keys to change.
  static absl::StatusOr<ControlEnds> Make(Config& config);

  // What a child is started with.
  struct End {
    std::vector<std::string> arguments;
    std::vector<int> inherited;
    UniqueFd keys;  // of `inherited`: to be kept until the child has started
  };
  absl::StatusOr<End> ForCoordinator() const;
  absl::StatusOr<End> ForWorker(Rank rank) const;

 private:
  ControlEnds() = default;
  UniqueFd listener_;
  ChannelKeyPair hub_;
  std::vector<ChannelKeyPair> ranks_;
};

}  // namespace moebius
