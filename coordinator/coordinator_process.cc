#include "coordinator/coordinator_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <memory>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/synchronization/notification.h"
#include "common/channel.h"
#include "common/config_yaml.h"
#include "common/fault_table.h"
#include "common/model_config.h"
#include "common/status_macros.h"
#include "common/unique_fd.h"
#include "common/version.h"
#include "coordinator/api/admin_api.h"
#include "coordinator/api/http_server.h"
#include "coordinator/api/openai_api.h"
#include "coordinator/checkpoint_codec.h"
#include "coordinator/engine_host.h"
#include "coordinator/faulty_hub.h"
#include "coordinator/throughput_bench.h"

namespace moebius {
namespace {

// How long answers may take to leave once the engine has stopped.
constexpr int kFlushTurnMs = 10;
constexpr int kMaxFlushTurns = 200;

// The end of a group: a signal, or a failure. Threading: Fail from any thread.
class EndOfService {
 public:
  static absl::StatusOr<std::unique_ptr<EndOfService>> Create() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    auto end = std::unique_ptr<EndOfService>(new EndOfService);
    end->signal_fd_ = UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC));
    int pipe_fds[2];
    if (end->signal_fd_.get() < 0 || pipe2(pipe_fds, O_CLOEXEC) != 0) {
      return absl::ErrnoToStatus(errno, "signalfd");
    }
    end->read_fd_ = UniqueFd(pipe_fds[0]);
    end->write_fd_ = UniqueFd(pipe_fds[1]);
    return end;
  }

  void Notify() { [[maybe_unused]] ssize_t n = write(write_fd_.get(), "x", 1); }

  // Returns after SIGTERM, Notify() or `timeout_ms` (-1: without end).
  void Wait(int timeout_ms) {
    pollfd fds[] = {{signal_fd_.get(), POLLIN, 0}, {read_fd_.get(), POLLIN, 0}};
    while (poll(fds, 2, timeout_ms) < 0 && errno == EINTR) {
    }
    if (fds[0].revents != 0) {
      signalfd_siginfo info;
      [[maybe_unused]] ssize_t n = read(signal_fd_.get(), &info, sizeof(info));
    }
  }

 private:
  EndOfService() = default;
  UniqueFd signal_fd_, read_fd_, write_fd_;
};

// `vault` outlives the engine.
absl::StatusOr<EngineOptions> MakeEngineOptions(
    const CoordinatorOptions& options, const CheckpointCodec& codec,
    VaultClient& vault) {
  EngineOptions engine;
  engine.config = options.config;
  ASSIGN_OR_RETURN(engine.model, LoadModelConfig(options.config.model_path));
  engine.max_model_len =
      ContextLength(engine.model, options.config.max_model_len);
  engine.term = options.term;
  engine.tokenizer = &codec.tokenizer();
  engine.replace_worker = [&vault](Rank rank, Incarnation incarnation) {
    if (absl::Status sent = vault.Replace(rank, incarnation); !sent.ok()) {
      spdlog::warn("worker {} cannot be replaced: {}", rank, sent.ToString());
    }
  };
  return engine;
}

// The channel, with the faults that are wanted on it.
absl::StatusOr<std::unique_ptr<Hub>> BindHub(
    const CoordinatorOptions& options) {
  ASSIGN_OR_RETURN(auto hub, Hub::Bind(options.dir));
  const Config& config = options.config;
  if (!config.faults_enabled || config.message_faults.empty()) return hub;
  ASSIGN_OR_RETURN(MessageFaults faults,
                   ParseMessageFaults(config.message_faults));
  spdlog::warn("faults of messages: {}", config.message_faults);
  return std::make_unique<FaultyHub>(std::move(hub), std::move(faults));
}

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options,
                            VaultClient& vault) {
  const Config& config = options.config;
  ASSIGN_OR_RETURN(const auto end, EndOfService::Create());
  ASSIGN_OR_RETURN(const auto codec, CheckpointCodec::Load(config.model_path));
  ASSIGN_OR_RETURN(GenerationDefaults defaults,
                   LoadGenerationDefaults(config.model_path));
  ASSIGN_OR_RETURN(auto hub, BindHub(options));
  ASSIGN_OR_RETURN(EngineOptions engine_options,
                   MakeEngineOptions(options, *codec, vault));
  const int max_model_len = engine_options.max_model_len;
  const int vocab_size = engine_options.model.vocab_size;

  // Outputs reach the API through this pointer; it is set before any request
  // can be submitted, since requests come from the API itself.
  OpenAiApi* listener = nullptr;
  absl::Notification ready;
  absl::Mutex failure_mutex;
  absl::Status failure;
  engine_options.listener = [&listener](std::vector<Output> outputs) {
    listener->OnOutputs(std::move(outputs));
  };
  engine_options.on_ready = [&ready] { ready.Notify(); };
  engine_options.on_failed = [&](absl::Status status) {
    absl::MutexLock lock(&failure_mutex);
    failure = std::move(status);
    end->Notify();
  };
  EngineHost engine(std::move(engine_options), std::move(hub));

  FrontMetrics metrics;
  IoThreads threads(config.http_threads, "http");
  IoThreads admin_threads(1, "admin");
  OpenAiApiOptions api_options;
  api_options.limits = {ServedModelName(config), max_model_len, vocab_size,
                        std::move(defaults)};
  api_options.model_root = config.model_path;
  api_options.version = kVersion;
  api_options.write_interval =
      std::chrono::microseconds(config.write_interval_us);
  OpenAiApi api(engine, *codec, threads, metrics, std::move(api_options));
  listener = &api;

  HttpServerOptions public_options, admin_options_http;
  public_options.listen = config.listen;
  admin_options_http.listen = config.admin;
  std::unique_ptr<HttpServer> server, admin_server;
  AdminApiOptions admin_options;
  admin_options.info = {kVersion,
                        ServedModelName(config),
                        config.model_path,
                        max_model_len,
                        config.num_workers,
                        0,
                        0};
  admin_options.info.pid = getpid();
  admin_options.info.term = options.term.value;
  admin_options.num_connections = [&server] {
    return server->num_connections();
  };
  std::unique_ptr<FaultTable> faults;
  if (config.faults_enabled) {
    ASSIGN_OR_RETURN(faults, FaultTable::Open(options.dir));
    admin_options.faults = faults.get();
  }
  AdminApi admin(engine, metrics, std::move(admin_options));
  // Whatever ends us, sockets and their threads end before the APIs do.
  const auto stop_front = absl::MakeCleanup([&] {
    if (server != nullptr) server->Stop();
    if (admin_server != nullptr) admin_server->Stop();
    threads.Stop();
    admin_threads.Stop();
  });
  ASSIGN_OR_RETURN(server, HttpServer::Start(public_options, threads, api));
  ASSIGN_OR_RETURN(admin_server,
                   HttpServer::Start(admin_options_http, admin_threads, admin));
  engine.Start();

  // Listeners answer probes while workers load; requests get 503 until then.
  std::thread announce([&] {
    ready.WaitForNotification();
    if (absl::Status status = vault.Ready(server->port(), admin_server->port());
        !status.ok()) {
      spdlog::debug("{}", status.ToString());
    }
  });
  end->Wait(-1);

  absl::Status status;
  {
    absl::MutexLock lock(&failure_mutex);
    status = failure;
  }
  if (status.ok()) {
    spdlog::info("draining");
    engine.Drain([&end] { end->Notify(); });
    end->Wait(config.drain_timeout_ms);
  }
  engine.Stop();
  // Clients get what has been said to them.
  server->StopAccepting();
  for (int i = 0; i < kMaxFlushTurns && server->num_connections() > 0; ++i) {
    end->Wait(kFlushTurnMs);
  }
  if (!ready.HasBeenNotified()) ready.Notify();
  announce.join();
  return status;
}

absl::Status RunThroughputBench(const CoordinatorOptions& options,
                                VaultClient& vault) {
  ASSIGN_OR_RETURN(const auto codec,
                   CheckpointCodec::Load(options.config.model_path));
  ASSIGN_OR_RETURN(auto hub, BindHub(options));
  ASSIGN_OR_RETURN(EngineOptions engine_options,
                   MakeEngineOptions(options, *codec, vault));
  ThroughputBench bench(engine_options.model.vocab_size);
  engine_options.listener = [&bench](std::vector<Output> outputs) {
    bench.OnOutputs(outputs);
  };
  engine_options.on_ready = [&bench, &vault] {
    vault.Ready().IgnoreError();
    bench.Ready();
  };
  engine_options.on_failed = [&bench](absl::Status status) {
    bench.Fail(std::move(status));
  };
  EngineHost engine(std::move(engine_options), std::move(hub));
  engine.Start();
  const absl::Status status =
      bench.Run(engine, options.bench_spec, options.bench_result);
  engine.Stop();
  return status;
}

}  // namespace moebius
