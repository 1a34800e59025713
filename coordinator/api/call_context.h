// What the front needs, beside the generations themselves, to answer a request
// again: the journal keeps it with the request.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace moebius {

struct CallContext {
  bool chat = false;
  // The client gave the key, so it may come back: the request outlives the
  // connection.
  bool durable = false;
  int64_t created = 0;  // of the answer, seconds since 1970
  // Of route and body: a key belongs to one request.
  uint64_t fingerprint = 0;
  std::string key;        // under which the answer is found, see ScopedKey
  std::string answer_id;  // "cmpl-..."
  friend bool operator==(const CallContext&, const CallContext&) = default;
};

// A format of its own: "M1", then the fields as decimal numbers and as
// LENGTH:BYTES. Parse: kInvalidArgument for anything else.
std::string EncodeCallContext(const CallContext& context);
absl::StatusOr<CallContext> ParseCallContext(std::string_view bytes);

// The key of a client, apart from those of clients with other credentials:
// `authorization` is the header's value, or empty.
std::string ScopedKey(std::string_view key, std::string_view authorization);
uint64_t FingerprintOf(std::string_view route, std::string_view body);

// Longest Idempotency-Key that is taken.
inline constexpr size_t kMaxKeyBytes = 256;

}  // namespace moebius
