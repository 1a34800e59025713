#include "coordinator/coordinator_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/synchronization/notification.h"
#include "common/base/deadline.h"
#include "common/base/descriptors.h"
#include "common/base/errno_status.h"
#include "common/base/lasting_failure.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/base/version.h"
#include "common/config/api_keys.h"
#include "common/config/config_yaml.h"
#include "common/faults/fault_table.h"
#include "coordinator/api/admin_api.h"
#include "coordinator/api/checkpoint_codec.h"
#include "coordinator/api/control.h"
#include "coordinator/api/openai_api.h"
#include "coordinator/engine/checkpoint_fingerprint.h"
#include "coordinator/engine/engine_host.h"
#include "coordinator/engine/text_thread.h"
#include "coordinator/http/connection_budget.h"
#include "coordinator/http/http_server.h"
#include "coordinator/http/line_server.h"
#include "coordinator/journal/disk_posix.h"
#include "coordinator/journal/journal.h"

namespace moebius {
namespace {

// How long answers may take to leave once the engine has stopped.
constexpr int kFlushTurnMs = 10;
constexpr int kMaxFlushTurns = 200;

// Of the admin listener: operators, probes and scrapers.
constexpr int kMaxAdminConnections = 256;

// The end of a group: the launcher's signal, or a failure. Threading: Notify
// from any thread.
//
// A SIGTERM of somebody else is none: it may go to every process of the group,
// of which the launcher makes a drain, or to us alone, and then a successor is
// to take over. Only the launcher can tell the two apart.
class EndOfService {
 public:
  // `on_stray` runs for each SIGTERM that is not the launcher's.
  static absl::StatusOr<std::unique_ptr<EndOfService>> Create(
      std::function<void()> on_stray) {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    auto end = std::unique_ptr<EndOfService>(new EndOfService);
    end->on_stray_ = std::move(on_stray);
    end->signal_fd_ = UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC));
    int pipe_fds[2];
    if (end->signal_fd_.get() < 0 || pipe2(pipe_fds, O_CLOEXEC) != 0) {
      return ErrnoStatus("signalfd");
    }
    end->read_fd_ = UniqueFd(pipe_fds[0]);
    end->write_fd_ = UniqueFd(pipe_fds[1]);
    return end;
  }

  void Notify() { [[maybe_unused]] ssize_t n = write(write_fd_.get(), "x", 1); }

  // Returns after the launcher's first SIGTERM, Notify() or `timeout_ms` (-1:
  // without end).
  void Wait(int timeout_ms) {
    const Deadline deadline =
        timeout_ms < 0 ? Deadline()
                       : Deadline::After(absl::Milliseconds(timeout_ms));
    for (;;) {
      pollfd fds[] = {{signal_fd_.get(), POLLIN, 0},
                      {read_fd_.get(), POLLIN, 0}};
      const int ready = poll(fds, 2, deadline.left_ms());
      if (ready < 0 && errno == EINTR) continue;
      if (ready <= 0) return;
      if (fds[0].revents != 0 && TakeSignal()) return;
      if (fds[1].revents == 0) continue;
      // Or every later wait would end at once.
      char taken[16];
      [[maybe_unused]] ssize_t n = read(read_fd_.get(), taken, sizeof taken);
      return;
    }
  }

 private:
  EndOfService() = default;

  // Whether it ends us: once, since what follows has a time of its own.
  bool TakeSignal() {
    signalfd_siginfo info;
    if (read(signal_fd_.get(), &info, sizeof(info)) != sizeof(info)) {
      return false;
    }
    if (static_cast<pid_t>(info.ssi_pid) == launcher_) {
      return !std::exchange(told_, true);
    }
    LogWarn("SIGTERM of process ", info.ssi_pid,
            ", which is not the launcher: it decides");
    on_stray_();
    return false;
  }

  const pid_t launcher_ = getppid();
  std::function<void()> on_stray_;
  bool told_ = false;
  UniqueFd signal_fd_, read_fd_, write_fd_;
};

int64_t UnixMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// The journal in its folder, and a term above all that it knows.
struct OpenedJournal {
  std::unique_ptr<PosixDisk> disk;
  std::unique_ptr<Journal> journal;
};

// How much of it goes on.
void LogTakenUp(const Journal::Opened& opened) {
  size_t taken_up = 0, results = 0;
  for (const auto& [first, request] : opened.journal->state().requests()) {
    taken_up += request.num_unfinished;
    results += request.choices.size() - request.num_unfinished;
  }
  const size_t given_up = opened.num_given_up;
  if (taken_up + results == 0) return;
  const std::string text = absl::StrCat(
      "journal: ", taken_up, " unfinished answers are taken up, ", given_up,
      " are not; ", results - given_up, " finished ones are kept");
  if (!opened.other_checkpoint) return LogInfo(text);
  LogWarn(text,
          "; it was written with another checkpoint, which cannot continue "
          "them");
}

// How a damaged one is mended.
absl::Status WithAdvice(const std::string& dir, const absl::Status& status) {
  if (!absl::IsDataLoss(status)) return status;
  return Lasting(absl::DataLossError(
      absl::StrCat("the journal is damaged; `moebius journal check ", dir,
                   "` tells more, `moebius journal repair ", dir,
                   "` keeps what is whole: ", status.message())));
}

absl::StatusOr<OpenedJournal> OpenJournal(const CoordinatorOptions& options,
                                          uint64_t checkpoint) {
  const Config& config = options.config;
  const std::string dir = config.journal.dir.empty() ? options.dir + "/journal"
                                                     : config.journal.dir;
  OpenedJournal opened;
  ASSIGN_OR_RETURN(opened.disk, PosixDisk::Open(dir));
  JournalOptions journal_options;
  journal_options.checkpoint = checkpoint;
  journal_options.unix_ms = UnixMs();
  std::random_device random;
  journal_options.salt = uint64_t{random()} << 32 | random();
  journal_options.fsync = config.journal.fsync;
  journal_options.rotate_bytes = config.journal.rotate_bytes;
  auto found = Journal::Open(journal_options, *opened.disk);
  if (!found.ok()) return WithAdvice(dir, found.status());
  Journal::Opened& journal = *found;
  if (journal.cut_off.has_value()) {
    LogWarn("journal: ", journal.cut_off->size_bytes,
            " bytes that were not written whole are cut off ",
            journal.cut_off->file, " at byte ", journal.cut_off->offset);
  }
  LogTakenUp(journal);
  opened.journal = std::move(journal.journal);
  const Term term{
      std::max(options.term.value, opened.journal->state().term().value + 1)};
  RETURN_IF_ERROR(opened.journal->Append(journal::TermBegun{term}));
  if (absl::Status status = opened.journal->Commit(); !status.ok()) {
    LogError("journal: ", status.ToString());
  }
  return opened;
}

HttpServerOptions ServerOptions(const Config& config,
                                const ListenAddress& listen,
                                int max_connections) {
  HttpServerOptions options;
  options.listen = listen;
  options.max_connections = max_connections;
  options.header_timeout_ms = config.http.header_timeout_ms;
  options.body_timeout_ms = config.http.body_timeout_ms;
  options.write_timeout_ms = config.http.write_timeout_ms;
  options.log_requests = config.log.requests;
  options.max_body_bytes = static_cast<size_t>(config.http.max_body_bytes);
  options.max_stream_buffer_bytes =
      static_cast<size_t>(config.http.stream_buffer_bytes);
  return options;
}

// How many connections the listeners may hold; says it if they are fewer than
// was wanted.
absl::StatusOr<ConnectionBudget> ReserveDescriptors(const Config& config) {
  const ConnectionBudget wanted = {config.http.max_connections,
                                   kMaxAdminConnections};
  const int open = NumOpenDescriptors();
  const int limit = RaiseDescriptorLimit(DescriptorsFor(open, wanted));
  ASSIGN_OR_RETURN(const ConnectionBudget budget,
                   ShareDescriptors(limit, open, wanted));
  if (budget != wanted) {
    LogWarn("only ", limit, " file descriptors are allowed: takes ", budget.api,
            " connections at a time, not http.max_connections = ", wanted.api,
            " (ulimit -n, LimitNOFILE=)");
  }
  return budget;
}

// Nothing if there is no file.
absl::StatusOr<std::optional<ApiKeys>> LoadKeys(const std::string& file,
                                                std::string_view listener) {
  if (file.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(ApiKeys keys, ApiKeys::Load(file));
  LogInfo(listener, ": one of ", keys.size(), " keys must be shown");
  return keys;
}

// The group's directory has a name that none before it had.
std::string InstanceId(const std::string& dir) {
  return dir.substr(dir.find_last_of('/') + 1);
}

// Null if there is none.
absl::StatusOr<std::unique_ptr<LineServer>> StartAgent(
    const Config& config, IoThreads& threads, const ServerReport& report) {
  if (config.admin.agent_port < 0) return nullptr;
  ASSIGN_OR_RETURN(auto agent,
                   LineServer::Start(config.admin.agent_address(), threads,
                                     [&report] { return report.Agent(); }));
  LogInfo("agent-check: ", config.admin.host, ":", agent->port());
  return agent;
}

ServerInfo InfoOf(const CoordinatorOptions& options, const ModelConfig& model,
                  int max_model_len, Term term) {
  const Config& config = options.config;
  return {.version = kVersion,
          .model = ServedModelName(config),
          .model_path = config.model.path,
          .max_model_len = max_model_len,
          .instance_id = InstanceId(options.dir),
          .num_workers = config.workers.count,
          .layouts = LayoutsOf(
              {config.workers.count, model.num_q_heads, model.num_kv_heads}),
          .max_queue = config.scheduler.max_queue,
          .token_budget = config.scheduler.token_budget,
          .started_unix_s = UnixMs() / 1e3,
          .pid = getpid(),
          .term = term.value};
}

CallTableOptions CallOptionsOf(const Config& config) {
  return {std::chrono::milliseconds(config.journal.resume_window_ms),
          std::chrono::microseconds(config.http.write_interval_us),
          std::chrono::milliseconds(config.http.waiting_comment_ms),
          config.log.requests};
}

// Requests of earlier coordinators, for clients that come back for them.
void RestoreCalls(const JournalState& state, CallTable& calls) {
  for (const auto& [first, request] : state.requests()) {
    if (absl::Status status =
            calls.Restore(first, request.choices.size(),
                          request.num_unfinished > 0, request.context);
        !status.ok()) {
      LogWarn("request ", first.value,
              " of an earlier coordinator cannot be asked for: ",
              status.ToString());
    }
  }
}

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options,
                            VaultClient& vault, int* num_cut) {
  const Config& config = options.config;
  ASSIGN_OR_RETURN(const auto end, EndOfService::Create([&vault] {
                     if (absl::Status said = vault.StrayStop(); !said.ok()) {
                       LogWarn(said.ToString());
                     }
                   }));
  RETURN_IF_ERROR(CheckConfig(config));
  ASSIGN_OR_RETURN(auto api_keys, LoadKeys(config.http.api_keys_file, "http"));
  ASSIGN_OR_RETURN(auto admin_keys,
                   LoadKeys(config.admin.api_key_file, "admin"));
  ASSIGN_OR_RETURN(const auto codec, CheckpointCodec::Load(config.model.path));
  ASSIGN_OR_RETURN(GenerationDefaults defaults,
                   LoadGenerationDefaults(config.model.path));
  for (const std::string& warning : defaults.warnings) LogWarn(warning);
  AddEnd(codec->eos_id(), &defaults);
  ASSIGN_OR_RETURN(const auto faults, OpenFaults(options));
  ASSIGN_OR_RETURN(const UniqueFd lock, LockGroup(options.dir));
  uint64_t checkpoint = options.checkpoint;
  if (checkpoint == 0) {
    ASSIGN_OR_RETURN(checkpoint, FingerprintCheckpoint(config));
  }
  ASSIGN_OR_RETURN(const OpenedJournal opened,
                   OpenJournal(options, checkpoint));
  ASSIGN_OR_RETURN(auto hub, BindHub(options, faults.get(), vault));
  ASSIGN_OR_RETURN(EngineOptions engine_options,
                   MakeEngineOptions(options, codec->tokenizer(), vault));
  engine_options.journal = opened.journal.get();
  engine_options.unix_ms = UnixMs;
  engine_options.term = opened.journal->state().term();
  engine_options.answer_operation = EndOf;
  const int max_model_len = engine_options.max_model_len;
  const ModelConfig model = engine_options.model;
  if (const std::string names =
          TokensBeyond(codec->tokenizer(), model.vocab_size);
      !names.empty()) {
    LogWarn(config.model.path, "/tokenizer.json has tokens beyond the ",
            model.vocab_size,
            " of config.json; a text that gives one is refused: ", names);
  }

  // For outputs. Set before there are any, since requests come from the API.
  CallTable* calls = nullptr;
  absl::Notification ready_or_over;
  std::atomic<bool> ready{false};
  absl::Mutex failure_mutex;
  absl::Status failure;
  engine_options.on_forgotten = [&calls](std::vector<RequestId> firsts) {
    calls->OnForgotten(firsts);
  };
  engine_options.on_ready = [&] {
    ready.store(true);
    ready_or_over.Notify();
  };
  engine_options.on_failed = [&](absl::Status status) {
    absl::MutexLock lock(&failure_mutex);
    failure = std::move(status);
    end->Notify();
  };
  EngineHost engine(
      std::move(engine_options), std::move(hub),
      std::make_unique<TextThread>(&codec->tokenizer(), [&calls](auto outputs) {
        calls->OnOutputs(std::move(outputs));
      }));

  FrontMetrics metrics;
  IoThreads threads(config.http.threads, "http");
  IoThreads admin_threads(1, "admin");
  std::unique_ptr<HttpServer> server, admin_server;
  const ServerReport report(
      engine, metrics,
      InfoOf(options, model, max_model_len, opened.journal->state().term()),
      [&server] { return server->num_connections(); });
  OpenAiApiOptions api_options;
  api_options.limits = {
      ServedModelName(config),    max_model_len,
      model.vocab_size,           std::move(defaults),
      config.scheduler.max_queue, config.http.allow_request_templates};
  api_options.model_root = config.model.path;
  api_options.version = kVersion;
  api_options.report = &report;
  api_options.admission = MakeAdmissionRules(
      api_keys.has_value(), config.http.host, config.http.allowed_hosts,
      config.http.allowed_origins);
  api_options.keys = std::move(api_keys);
  api_options.not_ready_status = config.http.not_ready_status;
  api_options.load_header = config.http.load_header;
  api_options.calls = CallOptionsOf(config);
  OpenAiApi api(engine, *codec, threads, metrics, std::move(api_options));
  calls = &api.calls();
  RestoreCalls(opened.journal->state(), *calls);

  AdminApiOptions admin_options;
  admin_options.faults = faults.get();
  admin_options.admission =
      MakeAdmissionRules(admin_keys.has_value(), config.admin.host,
                         config.admin.allowed_hosts, "");
  admin_options.keys = std::move(admin_keys);
  admin_options.not_ready_status = config.http.not_ready_status;
  AdminApi admin(engine, report, std::move(admin_options));
  // Whatever ends us, sockets and their threads end before the APIs do.
  const auto stop_front = absl::MakeCleanup([&] {
    if (server != nullptr) server->Stop();
    if (admin_server != nullptr) admin_server->Stop();
    threads.Stop();
    admin_threads.Stop();
  });
  ASSIGN_OR_RETURN(const ConnectionBudget budget, ReserveDescriptors(config));
  ASSIGN_OR_RETURN(server,
                   HttpServer::Start(
                       ServerOptions(config, config.http.address(), budget.api),
                       threads, api));
  ASSIGN_OR_RETURN(
      admin_server,
      HttpServer::Start(
          ServerOptions(config, config.admin.address(), budget.admin),
          admin_threads, admin));
  ASSIGN_OR_RETURN(const auto agent, StartAgent(config, admin_threads, report));
  engine.Start();

  // Listeners answer probes while workers load; requests get 503 until then.
  std::thread announce([&] {
    ready_or_over.WaitForNotification();
    // One that fails before it serves is not to be taken for one that does.
    if (!ready.load()) return;
    if (absl::Status status =
            vault.Ready(server->port(), admin_server->port(), checkpoint);
        !status.ok()) {
      LogDebug(status.ToString());
    }
  });
  end->Wait(-1);

  const auto failed = [&] {
    absl::MutexLock lock(&failure_mutex);
    return failure;
  };
  if (failed().ok()) {
    LogInfo("draining");
    engine.DrainForGood([&end](bool drained) {
      if (drained) end->Notify();  // on_failed says the other
    });
    end->Wait(config.http.drain_timeout_ms);
  }
  engine.Stop();
  const absl::Status status = failed();
  // Clients get what was said; those of a failed coordinator await the next.
  server->StopAccepting();
  for (int i = 0;
       status.ok() && i < kMaxFlushTurns && server->num_connections() > 0;
       ++i) {
    end->Wait(kFlushTurnMs);
  }
  if (!ready_or_over.HasBeenNotified()) ready_or_over.Notify();
  announce.join();
  *num_cut = engine.num_cut();
  if (!status.ok() || *num_cut == 0) return status;
  return absl::DeadlineExceededError(absl::StrCat(
      "the drain did not end within ", config.http.drain_timeout_ms,
      " ms: ", *num_cut, *num_cut == 1 ? " request" : " requests",
      " in flight had to be cut"));
}

}  // namespace moebius
