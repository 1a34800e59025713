#include "coordinator/coordinator_setup.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/errno_status.h"
#include "common/base/lasting_failure.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/channel/channel_keys.h"
#include "common/config/layout_config.h"
#include "common/config/model_config.h"
#include "coordinator/engine/faulty_hub.h"

namespace moebius {
namespace {

// How long the launcher may take to tell who somebody is.
constexpr absl::Duration kWhoIsTimeout = absl::Seconds(5);
// How long it may take to tell what it knows of a worker.
constexpr absl::Duration kNewsTimeout = absl::Milliseconds(200);

}  // namespace

absl::StatusOr<UniqueFd> LockGroup(const std::string& dir) {
  UniqueFd lock(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!lock) return ErrnoStatus(dir);
  if (flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return ErrnoStatus(dir);
  return absl::FailedPreconditionError(
      absl::StrCat(dir, ": another coordinator serves this group"));
}

absl::StatusOr<EngineOptions> MakeEngineOptions(
    const CoordinatorOptions& options, const Tokenizer& tokenizer,
    VaultClient& vault) {
  EngineOptions engine;
  engine.config = options.config;
  ASSIGN_OR_RETURN(engine.model, LoadModelConfig(options.config.model.path));
  const AttentionShape attention = {options.config.workers.count,
                                    engine.model.num_q_heads,
                                    engine.model.num_kv_heads};
  // Workers say what is wrong with the heads themselves.
  if (Validate(attention).ok()) {
    RETURN_IF_ERROR(
        Lasting(CheckLayouts(options.config, LayoutsOf(attention))));
  }
  engine.max_model_len = ContextLength(engine.model.max_positions,
                                       options.config.model.max_model_len);
  engine.term = options.term;
  engine.served_before = options.term.value > 1;
  engine.tokenizer = &tokenizer;
  engine.replace_worker = [&vault](Rank rank, Incarnation incarnation) {
    if (absl::Status sent = vault.Replace(rank, incarnation); !sent.ok()) {
      LogWarn("worker ", rank, " cannot be replaced: ", sent.ToString());
    }
  };
  engine.news_of = [&vault](Rank rank) -> std::optional<WorkerNews> {
    auto news = vault.NewsOf(rank, kNewsTimeout);
    if (!news.ok()) return std::nullopt;
    return *std::move(news);
  };
  engine.alive = [&vault] { vault.Alive().IgnoreError(); };
  return engine;
}

absl::StatusOr<std::unique_ptr<Hub>> BindHub(const CoordinatorOptions& options,
                                             FaultTable* faults,
                                             VaultClient& vault) {
  const Config& config = options.config;
  std::unique_ptr<Hub> hub;
  if (config.control.transport == ControlTransport::kTcp) {
    ASSIGN_OR_RETURN(const ChannelKeys keys,
                     ReadChannelKeys(options.control_keys_fd));
    ASSIGN_OR_RETURN(hub,
                     Hub::BindTcp(UniqueFd(options.control_listener_fd), keys));
  } else {
    ASSIGN_OR_RETURN(hub, Hub::Bind(options.dir, [&vault](pid_t pid) {
                       return vault.WhoIs(pid, kWhoIsTimeout);
                     }));
  }
  if (faults == nullptr) return hub;
  ASSIGN_OR_RETURN(MessageFaults messages,
                   ParseMessageFaults(config.faults.messages));
  if (messages.any()) {
    LogWarn("faults of messages: ", config.faults.messages);
  }
  return std::make_unique<FaultyHub>(
      std::move(hub), std::move(messages),
      [faults](Direction direction, Rank rank) {
        const FaultId id = direction == Direction::kCommand
                               ? FaultId::kLinkCommand
                               : FaultId::kLinkReport;
        const FaultSpec fault = faults->Reach(id, rank);
        if (fault.action != FaultAction::kError) {
          return FaultyHub::LinkState::kOpen;
        }
        return fault.argument == EAGAIN ? FaultyHub::LinkState::kFull
                                        : FaultyHub::LinkState::kCut;
      });
}

absl::StatusOr<std::unique_ptr<FaultTable>> OpenFaults(
    const CoordinatorOptions& options) {
  if (!options.config.faults.enabled) return nullptr;
  return FaultTable::Open(options.dir);
}

}  // namespace moebius
