#include "deploy/launcher/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

// glibc 2.36 forgets to say that it is C.
extern "C" {
#include <sys/pidfd.h>
}

namespace moebius {
namespace {

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("pipe2");
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// What the child does between fork and exec: only calls that are safe there.
// Writes errno to `failed` if the exec fails.
[[noreturn]] void BecomeProgram(char* const* argv, pid_t parent, int null_fd,
                                int out, int err, int failed,
                                const int* inherited, size_t num_inherited) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The parent may have died before that took hold.
  if (getppid() != parent) _exit(127);
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  for (int signal : {SIGTERM, SIGINT, SIGCHLD, SIGPIPE}) {
    sigaction(signal, &action, nullptr);
  }
  // Of these the parent hears where they mean something at all: a terminal that
  // hangs up, and whoever rotates the logs, signal everybody.
  action.sa_handler = SIG_IGN;
  for (int signal : {SIGHUP, SIGUSR1, SIGUSR2}) {
    sigaction(signal, &action, nullptr);
  }
  bool ok = dup2(null_fd, 0) == 0 && dup2(out, 1) == 1 && dup2(err, 2) == 2;
  for (size_t i = 0; i < num_inherited; ++i) {
    ok = ok && fcntl(inherited[i], F_SETFD, 0) == 0;
  }
  if (ok) execv(argv[0], argv);
  const int error = errno;
  const ssize_t written = write(failed, &error, sizeof error);
  _exit(written == sizeof error ? 127 : 126);
}

bool IsProgram(const std::string& path) {
  return access(path.c_str(), X_OK) == 0;
}

absl::Status SetNonBlocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return ErrnoStatus("fcntl");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChildProcess> StartChild(const std::vector<std::string>& argv,
                                        const std::vector<int>& inherited) {
  CHECK(!argv.empty());
  CHECK(getpid() == static_cast<pid_t>(syscall(SYS_gettid)));
  std::vector<char*> pointers;
  for (const std::string& arg : argv) {
    pointers.push_back(const_cast<char*>(arg.c_str()));
  }
  pointers.push_back(nullptr);
  UniqueFd null_fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null_fd) return ErrnoStatus("/dev/null");
  ASSIGN_OR_RETURN(Pipe out, MakePipe());
  ASSIGN_OR_RETURN(Pipe err, MakePipe());
  ASSIGN_OR_RETURN(Pipe failed, MakePipe());
  RETURN_IF_ERROR(SetNonBlocking(out.read.get()));
  RETURN_IF_ERROR(SetNonBlocking(err.read.get()));

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return ErrnoStatus("fork");
  if (pid == 0) {
    BecomeProgram(pointers.data(), parent, null_fd.get(), out.write.get(),
                  err.write.get(), failed.write.get(), inherited.data(),
                  inherited.size());
  }
  ChildProcess child{pid, UniqueFd(pidfd_open(pid, 0)), std::move(out.read),
                     std::move(err.read)};
  if (!child.pidfd) {
    const absl::Status status = ErrnoStatus("pidfd_open");
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return status;
  }
  failed.write.reset();
  // Ends at once: exec closes the pipe, or the child writes why it could not.
  int error = 0;
  ssize_t n;
  do {
    n = read(failed.read.get(), &error, sizeof error);
  } while (n < 0 && errno == EINTR);
  if (n == sizeof error) {
    ReapChild(child);
    return absl::ErrnoToStatus(error, Cat("cannot run ", argv[0]));
  }
  return child;
}

absl::Status SignalChild(const ChildProcess& child, int signal) {
  if (kill(child.pid, signal) != 0) return ErrnoStatus("kill");
  return absl::OkStatus();
}

ExitStatus ReapChild(const ChildProcess& child) {
  siginfo_t info = {};
  int rc;
  do {
    rc = waitid(P_PIDFD, static_cast<id_t>(child.pidfd.get()), &info, WEXITED);
  } while (rc != 0 && errno == EINTR);
  CHECK(rc == 0);  // it is ours and was not reaped before
  if (info.si_code == CLD_EXITED) return ExitStatus{info.si_status, 0};
  return ExitStatus{0, info.si_status};
}

absl::StatusOr<std::string> OwnProgram() {
  char path[PATH_MAX];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0 || n == sizeof path) {
    return ErrnoStatus("/proc/self/exe");
  }
  return std::string(path, static_cast<size_t>(n));
}

absl::StatusOr<std::string> FindProgram(const std::string& name) {
  if (const char* dir = std::getenv("MOEBIUS_PROGRAM_DIR")) {
    const std::string path = Cat(dir, "/", name);
    if (IsProgram(path)) return path;
    return absl::NotFoundError(
        Cat("no program ", path, " (MOEBIUS_PROGRAM_DIR names that folder)"));
  }
  ASSIGN_OR_RETURN(const std::string own, OwnProgram());
  const std::string folder = own.substr(0, own.rfind('/') + 1);
  const std::string beside = folder + name;
  if (IsProgram(beside)) return beside;
  // As they are installed.
  const std::string installed = Cat(folder, "../libexec/moebius/", name);
  if (IsProgram(installed)) return installed;
  const char* path_list = std::getenv("PATH");
  std::string_view left = path_list == nullptr ? "" : path_list;
  while (!left.empty()) {
    const size_t colon = left.find(':');
    const std::string_view dir = left.substr(0, colon);
    left = colon == std::string_view::npos ? "" : left.substr(colon + 1);
    const std::string path = Cat(dir, "/", name);
    if (!dir.empty() && IsProgram(path)) return path;
  }
  return absl::NotFoundError(
      Cat("no program ", beside, ", and no ", name, " on the PATH"));
}

}  // namespace moebius
