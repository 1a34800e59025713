#include "deploy/launcher/group.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/deadline.h"
#include "common/base/descriptors.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/config/api_keys.h"
#include "common/config/config_yaml.h"
#include "common/faults/fault_table.h"
#include "deploy/launcher/child_process.h"
#include "deploy/launcher/control_ends.h"
#include "deploy/launcher/listen_check.h"
#include "deploy/launcher/machine_limits.h"
#include "deploy/launcher/private_dir.h"
#include "deploy/launcher/report_queue.h"
#include "deploy/launcher/service_manager.h"
#include "deploy/launcher/stop_signals.h"
#include "deploy/launcher/supervision.h"
#include "deploy/launcher/vault.h"
#include "nlohmann/json.hpp"

namespace moebius {
namespace {

constexpr char kConfigName[] = "config.yaml";
// Of the launcher, and of workers, which inherit the limit. The coordinator
// wants more and asks for it itself.
constexpr int kDescriptors = 1024;
// How often it is looked whether the private directory is all there.
constexpr absl::Duration kDirectoryPeriod = absl::Seconds(2);

struct Member {
  ChildProcess process;
  uint64_t incarnation = 1;
  std::chrono::steady_clock::time_point started;
  LineSplitter out, err;
  bool stalled = false;                      // we have killed it for that
  bool up = false;                           // it has said that it is ready
  uint64_t done_bytes = 0, total_bytes = 0;  // of its weights
};

class Group {
 public:
  Group(const GroupOptions& options, Console& console)
      : options_(options), console_(console) {
    console.SetJson(options.config.log.format == LogFormat::kJson);
    policy_.one_shot = options.one_shot;
    policy_.drain_timeout_ms = options.config.http.drain_timeout_ms;
  }
  // Whatever happened: no child outlives it.
  ~Group() {
    for (auto& [child, member] : members_) {
      SignalChild(member.process, SIGKILL).IgnoreError();
      ReapChild(member.process);
    }
  }

  absl::Status Start();
  int Run();

 private:
  absl::Status StartMember(ChildId child);
  void LookAfterDirectory();
  void PollOnce();
  void TakeSignals();
  void ReadOutput(ChildId child, Member& member);
  void OnReport(const VaultReport& report);
  void OnExit(ChildId child);
  void ReplaceWorker(const VaultReport& report);
  void StartWhatIsDue();
  absl::Status ArmFaults();
  int TimeoutMs() const;
  void Handle(const GroupEvent& event);
  void Apply(const GroupEffect& effect);
  void ShowProgress();
  void LookAfterWatchdog();
  void Announce();

  const GroupOptions& options_;
  Console& console_;
  SupervisionPolicy policy_;
  StopSignals signals_;
  ReportQueue reports_;
  ServiceManager service_manager_ = ServiceManager::FromEnvironment();
  bool coordinator_got_on_ = false;  // since the last look for the watchdog
  std::optional<PrivateDir> dir_;
  std::optional<ControlEnds> control_;  // nothing for ipc
  std::unique_ptr<FaultTable> faults_;  // null: no faults
  std::unique_ptr<Vault> vault_;
  std::map<ChildId, Member> members_;
  std::map<ChildId, uint64_t> started_;  // started so far
  std::map<ChildId, Deadline> starts_;   // to be started then
  GroupState state_;
  Deadline deadline_;
  Deadline directory_look_;
  bool directory_ok_ = true;
  int port_ = 0, admin_port_ = 0;
  uint64_t checkpoint_ = 0;
};

absl::Status Group::Start() {
  ASSIGN_OR_RETURN(
      PrivateDir dir,
      PrivateDir::Create(options_.state_dir.empty() ? PrivateDir::DefaultBase()
                                                    : options_.state_dir));
  dir_.emplace(std::move(dir));
  Config config = options_.config;
  if (config.control.transport == ControlTransport::kTcp) {
    ASSIGN_OR_RETURN(ControlEnds ends, ControlEnds::Make(config));
    control_.emplace(std::move(ends));
  }
  RETURN_IF_ERROR(dir_->WriteFile(kConfigName, ToYaml(config)));
  if (options_.config.faults.enabled) RETURN_IF_ERROR(ArmFaults());
  ASSIGN_OR_RETURN(vault_, Vault::Start(dir_->path(), [this](const auto& r) {
                     reports_.Push(r);
                   }));
  const ChildSet all = ChildSet::Group(options_.config.workers.count);
  state_ = GroupStarting{all, all, {}, {}};
  for (Rank rank = 0; rank < options_.config.workers.count; ++rank) {
    RETURN_IF_ERROR(StartMember(rank));
  }
  return StartMember(kCoordinatorChild);
}

// What a successor of a child needs to be there. Cleaners of old files and the
// end of a log-in take it away.
void Group::LookAfterDirectory() {
  directory_look_ = Deadline::After(kDirectoryPeriod);
  absl::StatusOr<std::vector<std::string>> restored = dir_->Restore();
  absl::StatusOr<bool> socket = false;
  if (restored.ok()) socket = vault_->Restore();
  if (socket.ok() && *socket) {
    restored->push_back(std::string(kVaultSocketName));
  }
  const absl::Status status =
      restored.ok() ? socket.status() : restored.status();
  const bool was_ok = std::exchange(directory_ok_, status.ok());
  if (!status.ok() && was_ok) {
    console_.EndProgress();
    console_.Err(Cat("moebius: a process that dies has no successor: ",
                     StdView(status.message())));
  } else if (status.ok() && !restored->empty()) {
    console_.EndProgress();
    console_.Err(Cat("moebius: made again what somebody has removed from ",
                     dir_->path(), ": ", absl::StrJoin(*restored, ", "),
                     "; --state-dir takes a place that nobody cleans"));
  }
}

absl::Status Group::ArmFaults() {
  ASSIGN_OR_RETURN(faults_, FaultTable::Create(dir_->path()));
  for (absl::string_view text :
       absl::StrSplit(options_.config.faults.arm, ' ', absl::SkipEmpty())) {
    ASSIGN_OR_RETURN(const FaultSpec fault, ParseFault(StdView(text)));
    RETURN_IF_ERROR(faults_->Arm(fault));
  }
  return absl::OkStatus();
}

absl::Status Group::StartMember(ChildId child) {
  const bool is_worker = child != kCoordinatorChild;
  ASSIGN_OR_RETURN(
      const std::string program,
      FindProgram(is_worker ? "moebius-worker" : options_.coordinator_program));
  LookAfterDirectory();
  const uint64_t incarnation = ++started_[child];
  std::vector<std::string> argv = {program, "--config",
                                   Cat(dir_->path(), "/", kConfigName), "--dir",
                                   dir_->path()};
  if (is_worker) {
    for (const std::string& arg :
         {std::string("--rank"), Cat(child), std::string("--incarnation"),
          Cat(incarnation)}) {
      argv.push_back(arg);
    }
    if (incarnation > 1) {
      if (vault_->NumKept(child) == kNumRegionKinds) {
        argv.push_back("--adopt");
      } else {
        console_.EndProgress();
        console_.Out(Cat("moebius: the memory of ", ChildName(child),
                         " is gone: it loads its weights anew"));
        vault_->Forget(child);
      }
    }
  } else {
    argv.insert(argv.end(), options_.coordinator_args.begin(),
                options_.coordinator_args.end());
    argv.push_back("--term");
    argv.push_back(Cat(incarnation));
    if (port_ != 0) {
      // Where clients know it, and with the checkpoint that workers have in
      // memory, whatever its files are by now.
      for (const std::string& arg :
           {std::string("--port"), Cat(port_), std::string("--admin-port"),
            Cat(admin_port_), std::string("--checkpoint"), Cat(checkpoint_)}) {
        argv.push_back(arg);
      }
    }
  }
  ControlEnds::End end;
  if (control_.has_value()) {
    ASSIGN_OR_RETURN(end, is_worker ? control_->ForWorker(child)
                                    : control_->ForCoordinator());
    argv.insert(argv.end(), end.arguments.begin(), end.arguments.end());
  }
  ASSIGN_OR_RETURN(ChildProcess process, StartChild(argv, end.inherited));
  vault_->Allow(process.pid, child, incarnation);
  members_.emplace(child, Member{.process = std::move(process),
                                 .incarnation = incarnation,
                                 .started = std::chrono::steady_clock::now()});
  return absl::OkStatus();
}

int Group::Run() {
  while (!std::holds_alternative<GroupEnded>(state_)) PollOnce();
  const GroupEnded& ended = std::get<GroupEnded>(state_);
  console_.EndProgress();
  if (!ended.message.empty()) {
    console_.Err(Cat("moebius: the group has ended: ", ended.message));
  }
  return ended.exit_code;
}

void Group::PollOnce() {
  std::vector<pollfd> entries = {{signals_.fd(), POLLIN, 0},
                                 {reports_.fd(), POLLIN, 0}};
  for (const auto& [child, member] : members_) {
    entries.push_back({member.process.pidfd.get(), POLLIN, 0});
    // poll() passes over an end of output that is closed (-1).
    entries.push_back({member.process.out.get(), POLLIN, 0});
    entries.push_back({member.process.err.get(), POLLIN, 0});
  }
  if (poll(entries.data(), entries.size(), TimeoutMs()) < 0) {
    CHECK(errno == EINTR);
    return;
  }
  std::vector<ChildId> exited;
  size_t i = 2;
  for (auto& [child, member] : members_) {
    if (entries[i].revents != 0) exited.push_back(child);
    ReadOutput(child, member);
    i += 3;
  }
  for (const VaultReport& report : reports_.TakeAll()) OnReport(report);
  // A worker's end before the coordinator's, which may have followed from it.
  for (ChildId child : exited) {
    if (child != kCoordinatorChild) OnExit(child);
  }
  if (!exited.empty() && exited.front() == kCoordinatorChild) {
    OnExit(kCoordinatorChild);
  }
  TakeSignals();
  if (directory_look_.expired()) LookAfterDirectory();
  if (service_manager_.next_look().expired()) LookAfterWatchdog();
  if (deadline_.expired()) {
    deadline_ = Deadline();
    Handle(DeadlinePassed{});
  }
  StartWhatIsDue();
}

void Group::TakeSignals() {
  while (const auto meaning = signals_.Take()) {
    const bool stopping = !std::holds_alternative<GroupStarting>(state_) &&
                          !std::holds_alternative<GroupServing>(state_);
    if (*meaning == StopSignals::Meaning::kStop ||
        (*meaning == StopSignals::Meaning::kHangUp && !stopping)) {
      Handle(StopRequested{});
    }
  }
}

// Until the next deadline, -1 when there is none.
int Group::TimeoutMs() const {
  int timeout_ms = directory_look_.left_ms();
  const auto until = [&timeout_ms](const Deadline& deadline) {
    const int left_ms = deadline.left_ms();
    if (left_ms >= 0 && (timeout_ms < 0 || left_ms < timeout_ms)) {
      timeout_ms = left_ms;
    }
  };
  until(deadline_);
  until(service_manager_.next_look());
  for (const auto& [child, deadline] : starts_) until(deadline);
  return timeout_ms;
}

void Group::StartWhatIsDue() {
  std::vector<ChildId> due;
  for (const auto& [child, deadline] : starts_) {
    if (deadline.expired()) due.push_back(child);
  }
  for (ChildId child : due) {
    starts_.erase(child);
    Handle(StartDue{child});
  }
}

void Group::ReadOutput(ChildId child, Member& member) {
  constexpr int kMaxReads = 16;  // of a child in one turn
  const std::string prefix = Cat("[", ChildName(child), "] ");
  // A child's JSON names it.
  const bool json = options_.config.log.format == LogFormat::kJson;
  for (bool is_err : {false, true}) {
    UniqueFd& fd = is_err ? member.process.err : member.process.out;
    LineSplitter& splitter = is_err ? member.err : member.out;
    char buffer[4096];
    for (int reads = 0; fd && reads < kMaxReads; ++reads) {
      const ssize_t n = read(fd.get(), buffer, sizeof buffer);
      if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
      std::vector<std::string> lines;
      if (n > 0) {
        lines = splitter.Add(std::string_view(buffer, static_cast<size_t>(n)));
      } else {
        const std::string rest = splitter.Flush();
        if (!rest.empty()) lines.push_back(rest);
        fd.reset();
      }
      for (const std::string& line : lines) {
        if (is_err) {
          const bool whole = json && line.starts_with('{');
          console_.Err(whole ? line : Cat(prefix, line));
        } else {
          console_.Out(Cat(prefix, line));
        }
      }
    }
  }
}

// The coordinator says that a worker makes no progress. It may have a successor
// by now, which is not meant.
void Group::ReplaceWorker(const VaultReport& report) {
  const auto it = members_.find(report.rank);
  if (it == members_.end() || it->second.incarnation != report.incarnation) {
    return;
  }
  console_.EndProgress();
  console_.Out(
      Cat("moebius: ", ChildName(report.rank), " makes no progress: ended"));
  it->second.stalled = true;
  const absl::Status status = SignalChild(it->second.process, SIGKILL);
  if (!status.ok()) console_.Err(StdView(status.message()));
}

void Group::OnReport(const VaultReport& report) {
  if (report.type == VaultMessageType::kReplace) return ReplaceWorker(report);
  const auto it = members_.find(report.rank);
  // A late word of a process that was reaped.
  if (it == members_.end() || it->second.process.pid != report.pid) return;
  switch (report.type) {
    case VaultMessageType::kProgress:
      it->second.done_bytes = report.done_bytes;
      it->second.total_bytes = report.total_bytes;
      ShowProgress();
      return;
    case VaultMessageType::kAlive:
      coordinator_got_on_ = true;
      return;
    case VaultMessageType::kReady:
      it->second.up = true;
      if (report.rank == kCoordinatorChild) {
        port_ = report.port;
        admin_port_ = report.admin_port;
        checkpoint_ = report.checkpoint;
      }
      Handle(ChildReady{report.rank});
      return;
    case VaultMessageType::kStrayStop:
      Handle(StrayStop{});
      return;
    default:
      return;  // kFailed comes with the exit
  }
}

void Group::OnExit(ChildId child) {
  Member& member = members_.at(child);
  // While it is not reaped its pid is nobody else's.
  LastWords words = vault_->Disallow(member.process.pid);
  const ExitStatus status = ReapChild(member.process);
  ReadOutput(child, member);
  for (LineSplitter* splitter : {&member.out, &member.err}) {
    const std::string rest = splitter->Flush();
    if (!rest.empty()) console_.Err(Cat("[", ChildName(child), "] ", rest));
  }
  if (faults_ != nullptr && child != kCoordinatorChild &&
      faults_->Reach(FaultId::kVaultKept, child).action ==
          FaultAction::kError) {
    vault_->Forget(child);
  }
  const int64_t lived_ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(
          std::chrono::steady_clock::now() - member.started)
          .count();
  const bool stalled = member.stalled;
  members_.erase(child);
  Handle(ChildExited{child, status.exit_code, status.signal,
                     std::move(words.text), lived_ms, words.lasting, stalled});
}

void Group::Handle(const GroupEvent& event) {
  absl::StatusOr<GroupTransition> transition =
      Supervise(policy_, state_, event);
  // Exits are only of members, starts of those that were to be started.
  CHECK(transition.ok());
  state_ = std::move(transition->next);
  if (std::holds_alternative<GroupDraining>(state_) ||
      std::holds_alternative<GroupEnding>(state_)) {
    service_manager_.Stopping(absl::Milliseconds(policy_.drain_timeout_ms +
                                                 policy_.drain_margin_ms +
                                                 policy_.end_timeout_ms));
  }
  for (const GroupEffect& effect : transition->effects) Apply(effect);
}

void Group::Apply(const GroupEffect& effect) {
  if (const auto* signal = std::get_if<SignalChildren>(&effect)) {
    for (ChildId child : signal->children.members()) {
      const auto it = members_.find(child);
      if (it == members_.end()) continue;
      const absl::Status status =
          SignalChild(it->second.process, signal->signal);
      if (!status.ok()) console_.Err(StdView(status.message()));
    }
  } else if (const auto* deadline = std::get_if<SetDeadline>(&effect)) {
    deadline_ = Deadline::After(absl::Milliseconds(deadline->after_ms));
  } else if (const auto* start = std::get_if<ScheduleStart>(&effect)) {
    starts_[start->child] =
        Deadline::After(absl::Milliseconds(start->after_ms));
  } else if (const auto* start = std::get_if<StartProcess>(&effect)) {
    // What cannot be started has ended at once.
    if (absl::Status status = StartMember(start->child); !status.ok()) {
      Handle(ChildExited{start->child, 1, 0, std::string(status.message()), 0});
    }
  } else if (const auto* trouble = std::get_if<TellTrouble>(&effect)) {
    vault_->SetTrouble(trouble->child, trouble->why);
  } else if (const auto* say = std::get_if<Say>(&effect)) {
    console_.EndProgress();
    console_.Out(Cat("moebius: ", say->text));
  } else {
    Announce();
  }
}

void Group::ShowProgress() {
  uint64_t done = 0, total = 0;
  for (const auto& [child, member] : members_) {
    // Until all have said how much there is, a share would jump.
    if (child != kCoordinatorChild && member.total_bytes == 0) return;
    done += member.done_bytes;
    total += member.total_bytes;
  }
  console_.Progress(kLoadingWeights, done, total);
}

// The watchdog is fed for what gets on: the coordinator's engine, or, while
// somebody is missing or the group ends, ourselves, who see to that.
void Group::LookAfterWatchdog() {
  bool all_up = std::holds_alternative<GroupServing>(state_) ||
                std::holds_alternative<GroupDraining>(state_);
  for (ChildId child :
       ChildSet::Group(options_.config.workers.count).members()) {
    const auto it = members_.find(child);
    all_up = all_up && it != members_.end() && it->second.up;
  }
  service_manager_.Look(std::exchange(coordinator_got_on_, false) || !all_up);
}

namespace {

std::string DescribeChoice(LayoutChoice choice) {
  if (choice.is_auto()) return "chosen by load (auto)";
  const std::string name = LayoutChoiceName(choice);
  return choice == LayoutChoice::kEp ? Cat("expert parallel (", name, ")")
         : choice == LayoutChoice::kTp
             ? Cat("tensor parallel (", name, ")")
             : Cat("groups of tensor parallel ranks (", name, ")");
}

}  // namespace

void Group::Announce() {
  console_.EndProgress();
  const Config& config = options_.config;
  service_manager_.Ready(Cat("serves ", ServedModelName(config), " at ",
                             UrlOf(config.http.host, port_)));
  if (options_.banner) {
    const std::string url = UrlOf(config.http.host, port_);
    const std::string name = ServedModelName(config);
    const std::string layout = DescribeChoice(config.layout.choice);
    console_.Out(Cat("Moebius serves ", name, " from ", config.workers.count,
                     config.workers.count == 1 ? " worker" : " workers",
                     ", layout ", layout, "."));
    console_.Out(Cat("  OpenAI API  ", url, "/v1"));
    console_.Out(Cat("  admin       ", UrlOf(config.admin.host, admin_port_)));
    console_.Out(Cat("Try it:"));
    const bool has_keys = !config.http.api_keys_file.empty();
    console_.Out(
        Cat("  curl ", url, "/v1/completions ",
            has_keys ? "-H \"Authorization: Bearer $MOEBIUS_API_KEY\" " : "",
            "-H 'Content-Type: application/json' -d "
            "'{\"model\": ",
            nlohmann::json(name).dump(),
            ", \"prompt\": \"And the LORD said unto Moses,\", "
            "\"max_tokens\": 40}'"));
    if (config.workers.count > 1) {
      console_.Out(
          Cat("  moebius layout ",
              config.layout.choice == LayoutChoice::kTp ? "ep" : "tp",
              " --admin ", UrlOf(config.admin.host, admin_port_),
              config.admin.api_key_file.empty()
                  ? std::string()
                  : Cat(" --api-key-file ", config.admin.api_key_file)));
    }
    console_.Out("Ctrl-C drains and stops; a second one stops at once.");
  }
  if (options_.ready_fd >= 0) {
    const nlohmann::json line = {{"pid", getpid()},
                                 {"directory", dir_->path()},
                                 {"host", config.http.host},
                                 {"port", port_},
                                 {"admin_host", config.admin.host},
                                 {"admin_port", admin_port_}};
    const std::string text = line.dump() + "\n";
    if (write(options_.ready_fd, text.data(), text.size()) !=
        static_cast<ssize_t>(text.size())) {
      console_.Err("moebius: nobody reads --ready-fd");
    }
    close(options_.ready_fd);
  }
}

absl::Status CheckKeyFile(const std::string& path, std::string_view key) {
  if (path.empty()) return absl::OkStatus();
  const absl::StatusOr<ApiKeys> keys = ApiKeys::Load(path);
  if (keys.ok()) return absl::OkStatus();
  return absl::Status(
      keys.status().code(),
      Cat("key '", key, "': ", StdView(keys.status().message())));
}

}  // namespace

absl::StatusOr<int> RunGroup(const GroupOptions& options, Console& console) {
  RETURN_IF_ERROR(CheckLength(options.config));
  RETURN_IF_ERROR(CheckLayoutsOfModel(options.config));
  if (const auto free = ReadFreeMemory("")) {
    RETURN_IF_ERROR(CheckKvMemory(options.config, *free));
  }
  RaiseDescriptorLimit(kDescriptors);
  if (!options.one_shot) {
    // Their readers will see for themselves; but before anything is started it
    // is easier to hear.
    RETURN_IF_ERROR(
        CheckKeyFile(options.config.http.api_keys_file, "http.api_keys_file"));
    RETURN_IF_ERROR(
        CheckKeyFile(options.config.admin.api_key_file, "admin.api_key_file"));
    RETURN_IF_ERROR(
        CheckPortIsFree(options.config.http.address(), "http.port", "--port"));
    RETURN_IF_ERROR(CheckPortIsFree(options.config.admin.address(),
                                    "admin.port", "--admin-port"));
  }
  Group group(options, console);
  RETURN_IF_ERROR(group.Start());
  return group.Run();
}

}  // namespace moebius
