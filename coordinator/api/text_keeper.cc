#include "coordinator/api/text_keeper.h"

namespace moebius {

std::string TextKeeper::Get(const EngineStatus& status,
                            const std::function<std::string()>& make) {
  const auto now = std::chrono::steady_clock::now();
  std::lock_guard lock(mutex_);
  const bool good = made_ && version_ == status.version &&
                    draining_ == status.draining && now - made_at_ < kFreshFor;
  if (!good) {
    text_ = make();
    made_ = true;
    version_ = status.version;
    draining_ = status.draining;
    made_at_ = now;
  }
  return text_;
}

}  // namespace moebius
