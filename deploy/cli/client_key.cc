#include "deploy/cli/client_key.h"

#include <cstdlib>
#include <utility>

#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "common/config/api_keys.h"

namespace moebius {

void ClientKey::AddTo(CLI::App& command, const char* name,
                      const char* listener) {
  command
      .add_option(name, file_,
                  Cat("File with the API key of ", listener,
                      ", its first line that is no comment [default: the key "
                      "in ",
                      variable_, ", if that is set]"))
      ->option_text("FILE");
}

absl::StatusOr<Url> ClientKey::With(Url url) const {
  if (!file_.empty()) {
    ASSIGN_OR_RETURN(const ApiKeys keys, ApiKeys::Load(file_));
    url.api_key = keys.First();
    return url;
  }
  const char* key = std::getenv(variable_);
  if (key == nullptr || *key == '\0') return url;
  if (!IsSendableKey(key)) {
    return absl::InvalidArgumentError(
        Cat(variable_, ": allowed is a key of at most ", ApiKeys::kMaxKeyBytes,
            " printable ASCII characters without spaces"));
  }
  url.api_key = key;
  return url;
}

}  // namespace moebius
