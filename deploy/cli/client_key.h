// The API key that a command shows to a server: from a file, or from the
// environment, and never from its command line, which every user of a machine
// can read.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "deploy/client/http_client.h"

namespace moebius {

// Variables with the keys of the two listeners.
inline constexpr char kApiKeyVariable[] = "MOEBIUS_API_KEY";
inline constexpr char kAdminKeyVariable[] = "MOEBIUS_ADMIN_KEY";

// ClientKey
//
// A flag FILE with a key in it, and a variable that holds one where the flag is
// not given.
class ClientKey {
 public:
  // `variable`: one of the above. It outlives this.
  explicit ClientKey(const char* variable) : variable_(variable) {}

  // Registers the flag (`name`: "--api-key-file"), for `listener` ("the admin
  // listener") as help calls it.
  void AddTo(CLI::App& command, const char* name, const char* listener);

  // `url` with the key, if there is one.
  // Errors: kInvalidArgument, kNotFound, for a file that is none of keys or
  // that others may read, and a variable that is no key.
  absl::StatusOr<Url> With(Url url) const;

 private:
  const char* const variable_;
  std::string file_;
};

}  // namespace moebius
