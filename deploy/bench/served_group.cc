#include "deploy/bench/served_group.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "common/base/deadline.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "deploy/client/admin_client.h"
#include "deploy/launcher/group.h"
#include "deploy/launcher/listen_check.h"
#include "nlohmann/json.hpp"

namespace moebius {
namespace {

namespace fs = std::filesystem;

constexpr size_t kKeptOutputBytes = 16 << 10;
// How long loading may take without a word.
constexpr absl::Duration kSilence = absl::Seconds(1);

// Fields of /proc/PID/stat behind the name, which may hold anything: [0] is the
// state, [1] the parent, [19] the start time (proc(5), fields 3, 4 and 22).
std::vector<std::string> StatFields(pid_t pid) {
  std::ifstream file(Cat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return {};
  std::istringstream fields(line.substr(name_end + 1));
  std::vector<std::string> words;
  for (std::string word; fields >> word;) words.push_back(word);
  return words;
}

// Shared memory objects with our name.
std::vector<std::string> SharedMemory() {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/dev/shm", error)) {
    const std::string name = entry.path().filename().string();
    if (name.find("moebius") != std::string::npos) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool IsListening(const Url& url) {
  ListenAddress address{url.host, url.port};
  return absl::IsAlreadyExists(CheckPortIsFree(address, "", ""));
}

}  // namespace

std::string ServedGroup::StartTimeOf(pid_t pid) {
  const std::vector<std::string> fields = StatFields(pid);
  return fields.size() > 19 && fields[0] != "Z" ? fields[19] : std::string();
}

std::vector<ServedGroup::Process> ServedGroup::ChildrenOf(pid_t pid) {
  std::vector<Process> children;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    pid_t other = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &other)) continue;
    const std::vector<std::string> fields = StatFields(other);
    if (fields.size() > 19 && fields[1] == Cat(pid)) {
      children.push_back({other, fields[19]});
    }
  }
  return children;
}

absl::Status ServedGroup::Launch(
    const std::vector<std::string>& serve_args,
    std::function<void(std::string_view)> on_progress) {
  ASSIGN_OR_RETURN(const std::string program, OwnProgram());
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("pipe2");
  UniqueFd ready_read(ends[0]), ready_write(ends[1]);
  std::vector<std::string> argv = {program, "serve"};
  argv.insert(argv.end(), serve_args.begin(), serve_args.end());
  // Ours alone, whatever a configuration file says of listeners.
  for (const char* pair : {"http.host=127.0.0.1", "admin.host=127.0.0.1",
                           "http.api_keys_file=", "admin.api_key_file="}) {
    argv.push_back("--set");
    argv.push_back(pair);
  }
  for (const std::string& word :
       {std::string("--port"), std::string("0"), std::string("--admin-port"),
        std::string("0"), std::string("--ready-fd"), Cat(ready_write.get())}) {
    argv.push_back(word);
  }
  ASSIGN_OR_RETURN(child_, StartChild(argv, {ready_write.get()}));
  running_ = true;
  output_->open = 3;
  const auto keep = [output = output_](std::string_view bytes) {
    if (bytes.empty()) --output->open;
    output->text.append(bytes);
    if (output->text.size() > 2 * kKeptOutputBytes) {
      output->text.erase(0, output->text.size() - kKeptOutputBytes);
    }
  };
  loop_.ReadAll(std::move(child_.out), keep);
  loop_.ReadAll(
      std::move(child_.err),
      [keep, output = output_, on_progress = std::move(on_progress),
       silence = Deadline::After(kSilence)](std::string_view bytes) {
        keep(bytes);
        for (const std::string& line : output->err_lines.Add(bytes)) {
          if (line.starts_with(kLoadingWeights) && silence.expired()) {
            on_progress(line);
          }
        }
      });
  loop_.ReadAll(std::move(ready_read),
                [output = output_](std::string_view bytes) {
                  output->ready.append(bytes);
                  if (bytes.empty()) {
                    --output->open;
                    output->ready_closed = true;
                  }
                });
  return absl::OkStatus();
}

absl::Status ServedGroup::ParseReady() {
  const nlohmann::json ready =
      nlohmann::json::parse(output_->ready, nullptr, false);
  directory_ = TextAt(ready, "directory");
  api_ = Url{TextAt(ready, "host"), static_cast<int>(CountAt(ready, "port"))};
  admin_ = Url{TextAt(ready, "admin_host"),
               static_cast<int>(CountAt(ready, "admin_port"))};
  if (directory_.empty() || api_.port == 0 || admin_.port == 0) {
    return absl::InternalError(
        Cat("moebius serve said of itself: ", output_->ready));
  }
  return absl::OkStatus();
}

std::string ServedGroup::LastOutput() const {
  const std::string& text = output_->text;
  return text.substr(text.size() - std::min(text.size(), kKeptOutputBytes));
}

absl::StatusOr<std::unique_ptr<ServedGroup>> ServedGroup::Start(
    EventLoop& loop, const std::vector<std::string>& serve_args,
    absl::Duration timeout, std::function<void(std::string_view)> on_progress) {
  std::unique_ptr<ServedGroup> group(new ServedGroup(loop));
  group->shared_memory_before_ = SharedMemory();
  RETURN_IF_ERROR(group->Launch(serve_args, std::move(on_progress)));
  Output& output = *group->output_;
  RETURN_IF_ERROR(loop.RunUntil([&] { return output.ready_closed; }, timeout));
  if (output.ready.empty()) {
    // It ended: its last words are still on the way.
    loop.FinishUntil([&] { return output.open == 0; }, absl::Seconds(10))
        .IgnoreError();
    return absl::UnavailableError(
        Cat("moebius serve did not start:\n", group->LastOutput()));
  }
  RETURN_IF_ERROR(group->ParseReady());
  return group;
}

ServedGroup::~ServedGroup() {
  if (!running_) return;
  // Its children die with it; then its directory is nobody's, and the next
  // launcher removes it. Give it the chance to do so itself. Two signals, since
  // one only drains; two different ones, since equal ones may be taken as one.
  SignalChild(child_, SIGTERM).IgnoreError();
  SignalChild(child_, SIGINT).IgnoreError();
  loop_.FinishUntil([&] { return output_->open == 0; }, absl::Seconds(10))
      .IgnoreError();
  SignalChild(child_, SIGKILL).IgnoreError();
  ReapChild(child_);
}

absl::Status ServedGroup::Stop(absl::Duration timeout) {
  processes_ = ChildrenOf(child_.pid);
  processes_.push_back({child_.pid, StartTimeOf(child_.pid)});
  RETURN_IF_ERROR(SignalChild(child_, SIGTERM));
  RETURN_IF_ERROR(
      loop_.FinishUntil([&] { return output_->open == 0; }, timeout));
  const ExitStatus status = ReapChild(child_);
  running_ = false;
  if (status.signal != 0 || status.exit_code != 0) {
    return absl::InternalError(Cat("moebius serve ended with exit code ",
                                   status.exit_code, ", signal ", status.signal,
                                   ":\n", LastOutput()));
  }
  return absl::OkStatus();
}

std::vector<std::string> ServedGroup::Leftovers() const {
  std::vector<std::string> left;
  for (const Process& process : processes_) {
    if (StartTimeOf(process.pid) == process.start_time) {
      left.push_back(Cat("process ", process.pid));
    }
  }
  struct stat info;
  if (lstat(directory_.c_str(), &info) == 0) {
    left.push_back(Cat("directory ", directory_));
  }
  for (const Url& url : {api_, admin_}) {
    if (IsListening(url)) left.push_back(Cat("listener ", url.authority()));
  }
  for (const std::string& name : SharedMemory()) {
    if (!std::binary_search(shared_memory_before_.begin(),
                            shared_memory_before_.end(), name)) {
      left.push_back(Cat("shared memory /dev/shm/", name));
    }
  }
  return left;
}

}  // namespace moebius
