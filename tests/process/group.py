"""Starts, talks to, stops and inspects a group, for process tests.

Standard library only. A test says

    with Group(["--layout", "ep"]) as group:
        answer = group.complete({"prompt": "x", "max_tokens": 4})
        group.stop()          # drains; the group must end with exit code 0
    # leaving the block checks that nothing is left behind

The programs are those of $MOEBIUS_BINARY_DIR/bin (or build/release/bin), the
model is models/verse-moe. $MOEBIUS_SERVE_ARGUMENTS are further arguments of every
`moebius serve`: "--device cuda" tests the same on GPUs; with $MOEBIUS_GPUS the
workers of a group are spread over so many. Everything waits for events: the launcher writes to
--ready-fd when it serves, and ends when it ends. Bounds on waits are there to
turn a hang into a failure.
"""

import atexit
import http.client
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))))
BINARY_DIR = os.environ.get("MOEBIUS_BINARY_DIR",
                            os.path.join(ROOT, "build", "release"))
MOEBIUS = os.path.join(BINARY_DIR, "bin", "moebius")
MODEL = os.path.join(ROOT, "models", "verse-moe")
SERVE_ARGUMENTS = shlex.split(os.environ.get("MOEBIUS_SERVE_ARGUMENTS", ""))
GPUS = int(os.environ.get("MOEBIUS_GPUS", "0"))
FAKE_PROGRAMS = os.path.join(ROOT, "tests", "process", "fake_programs")

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60


def placement(arguments):
    """Options of a group with such arguments that spread it over $MOEBIUS_GPUS."""
    if GPUS == 0:
        return []
    workers = 2
    for name, value in zip(arguments, arguments[1:]):
        if name == "--workers":
            workers = int(value)
    return ["--workers-per-gpu", str(-(-workers // GPUS))]


def tokens_of(stream):
    """All tokens of a stream that asked for return_token_ids; closes it."""
    tokens = []
    for _, data in stream:
        if data != "[DONE]":
            tokens += data["choices"][0]["token_ids"]
    stream.close()
    return tokens


class GroupFailed(AssertionError):
    """The group did not start, or did not end as it should."""


def start_time(pid):
    """What tells a process from a later one with its pid; None if it is gone
    (a zombie counts as gone)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def children_of(pid):
    """Pids of the living children of a process."""
    children = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            children.append(int(entry))
    return children


def wait_gone(pid, since, timeout_s=STOP_TIMEOUT_S):
    """Waits for the end of a process (not necessarily a child)."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_time(pid) != since:
            return
        if not select.select([pidfd], [], [], timeout_s)[0]:
            raise GroupFailed(f"process {pid} did not end in {timeout_s} s")
    finally:
        os.close(pidfd)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def run_moebius(*arguments, env=None, timeout_s=120, cwd=None):
    """Runs a command of `moebius` to its end."""
    return subprocess.run([MOEBIUS, *arguments], env=env, cwd=cwd, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=timeout_s, check=False)


class Answer:
    """A whole HTTP answer."""

    def __init__(self, response):
        self.status = response.status
        self.headers = dict((k.lower(), v) for k, v in response.getheaders())
        self.body = response.read()

    def json(self):
        return json.loads(self.body)


class Stream:
    """A streamed answer: iterate over it for (id, data) of each event; data is
    parsed JSON, or the string "[DONE]"."""

    def __init__(self, host, port, path, body, timeout_s, headers=None):
        self.connection = http.client.HTTPConnection(host, port,
                                                     timeout=timeout_s)
        self.connection.request(
            "POST", path, json.dumps(body),
            {"Content-Type": "application/json", **(headers or {})})
        self.response = self.connection.getresponse()
        self.status = self.response.status

    def __iter__(self):
        event_id, data = None, []
        for raw in self.response:
            line = raw.decode().rstrip("\r\n")
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif line.startswith("id:"):
                event_id = line[3:].strip()
            elif not line and data:
                text = "\n".join(data)
                yield event_id, text if text == "[DONE]" else json.loads(text)
                event_id, data = None, []

    def close(self):
        """Hangs up, whether or not the stream has ended."""
        self.response.close()
        self.connection.close()


class Group:
    """`moebius serve` with its own ports and runtime directory.

    arguments   further arguments of `serve`
    fake        behaviours of stand-in programs (fake_child.py), or None for
                the real ones
    wait        waits until it serves; otherwise call wait_ready() yourself
    api_key, admin_key   keys to show to the two listeners
    """

    def __init__(self, arguments=(), fake=None, env=None, wait=True,
                 model=MODEL, runtime_dir=None, api_key=None, admin_key=None):
        self.keys = {False: api_key, True: admin_key}
        self.own_runtime_dir = runtime_dir is None
        self.runtime_dir = runtime_dir or make_runtime_dir()
        if self.own_runtime_dir:  # also where a test fails
            atexit.register(shutil.rmtree, self.runtime_dir,
                            ignore_errors=True)
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.runtime_dir)
        if fake is not None:
            self.env["MOEBIUS_PROGRAM_DIR"] = FAKE_PROGRAMS
            self.env["MOEBIUS_FAKE"] = json.dumps(fake)
        self.env.update(env or {})
        self.shm_before = set(os.listdir("/dev/shm"))
        read_end, write_end = os.pipe()
        command = [MOEBIUS, "serve", "--model", model, "--port", "0",
                   "--admin-port", "0", *SERVE_ARGUMENTS,
                   *placement(arguments), *arguments,
                   "--ready-fd", str(write_end)]
        self.process = subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=[write_end])
        os.close(write_end)
        self.ready_pipe = read_end
        self.out, self.err = [], []  # lines
        self.condition = threading.Condition()
        self.readers = [
            threading.Thread(target=self._read, args=(pipe, lines))
            for pipe, lines in ((self.process.stdout, self.out),
                                (self.process.stderr, self.err))]
        for reader in self.readers:
            reader.start()
        self.pid = self.process.pid
        self.host = "127.0.0.1"
        self.port = self.admin_port = self.directory = None
        self.seen = {}  # pid -> start time of every process of the group
        self.allowed_exit_codes = {0}
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise

    # ---- start and end ---------------------------------------------------

    def _read(self, pipe, lines):
        for line in pipe:
            with self.condition:
                lines.append(line.rstrip("\n"))
                self.condition.notify_all()
        with self.condition:
            lines.append(None)  # the end
            self.condition.notify_all()

    def wait_ready(self, timeout_s=START_TIMEOUT_S):
        """Waits until the group serves."""
        text = b""
        deadline = time.monotonic() + timeout_s
        while not text.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.ready_pipe], [], [],
                                              left)[0]:
                raise GroupFailed(f"not ready in {timeout_s} s" + self.said())
            piece = os.read(self.ready_pipe, 4096)
            if not piece:
                raise GroupFailed("ended instead of serving" + self.said())
            text += piece
        ready = json.loads(text)
        self.host, self.port = ready["host"], ready["port"]
        self.admin_port = ready["admin_port"]
        self.directory = ready["directory"]
        self.note_processes()

    def wait_line(self, text, stream=None, timeout_s=START_TIMEOUT_S):
        """Waits for an output line that contains `text`; returns it."""
        streams = [stream] if stream is not None else [self.out, self.err]
        deadline = time.monotonic() + timeout_s
        with self.condition:
            while True:
                for lines in streams:
                    for line in lines:
                        if line is not None and text in line:
                            return line
                if all(lines and lines[-1] is None for lines in streams):
                    raise GroupFailed(f"ended without saying {text!r}"
                                      + self._said())
                if not self.condition.wait(deadline - time.monotonic()):
                    raise GroupFailed(f"did not say {text!r}" + self._said())

    def said(self):
        with self.condition:
            return self._said()

    def _said(self):
        lines = [line for line in self.out + self.err if line is not None]
        return "; it said:\n" + "\n".join(lines[-50:])

    def note_processes(self):
        """Remembers the processes of the group, to look for them later."""
        for pid in [self.pid, *children_of(self.pid)]:
            since = start_time(pid)
            if since is not None:
                self.seen[pid] = since

    def worker_pid(self, rank):
        """Pid of a worker, by its command line."""
        for pid in children_of(self.pid):
            with open(f"/proc/{pid}/cmdline") as cmdline:
                words = cmdline.read().split("\0")
            if "--rank" in words and words[words.index("--rank") + 1] == str(
                    rank):
                return pid
        raise GroupFailed(f"no worker {rank}")

    def coordinator_pid(self):
        for pid in children_of(self.pid):
            with open(f"/proc/{pid}/cmdline") as cmdline:
                if "--rank" not in cmdline.read().split("\0"):
                    return pid
        raise GroupFailed("no coordinator")

    def terminate(self):
        """SIGTERM to the launcher; does not wait."""
        self.note_processes()
        self.process.send_signal(signal.SIGTERM)

    def wait_end(self, timeout_s=STOP_TIMEOUT_S):
        """Waits for the end and returns the exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise GroupFailed(f"did not end in {timeout_s} s"
                              + self.said()) from None
        for reader in self.readers:
            reader.join()
        return code

    def stop(self, timeout_s=STOP_TIMEOUT_S):
        """Drains, and checks that the exit code is 0."""
        self.terminate()
        code = self.wait_end(timeout_s)
        if code != 0:
            raise GroupFailed(f"exit code {code}" + self.said())

    def kill(self):
        """SIGKILL to the launcher, whose children die with it."""
        self.note_processes()
        self.process.kill()
        self.process.wait()
        for pid, since in self.seen.items():
            wait_gone(pid, since)
        for reader in self.readers:
            reader.join()
        self._close()

    def leftovers(self):
        """What an ended group left behind; empty: nothing."""
        left = [f"process {pid}" for pid, since in self.seen.items()
                if start_time(pid) == since]
        left += [os.path.join(self.runtime_dir, name)
                 for name in os.listdir(self.runtime_dir)
                 if name.startswith("moebius-")]
        left += [f"/dev/shm/{name}"
                 for name in set(os.listdir("/dev/shm")) - self.shm_before
                 if "moebius" in name]
        for port in (self.port, self.admin_port):
            if port and is_listening(self.host, port):
                left.append(f"port {port}")
        return left

    def _close(self):
        if self.ready_pipe is not None:
            os.close(self.ready_pipe)
            self.ready_pipe = None
        self.process.stdout.close()
        self.process.stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if self.process.poll() is None:
            if kind is not None:
                self.kill()
                return
            self.stop()
        if kind is None:
            self.wait_end()
            left = self.leftovers()
            if left:
                raise GroupFailed("left behind: " + ", ".join(left))
        self._close()
        if self.own_runtime_dir:
            remove_runtime_dir(self.runtime_dir)

    # ---- talk ------------------------------------------------------------

    def request(self, method, path, body=None, admin=False, headers=None,
                timeout_s=120):
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection(
            self.host, self.admin_port if admin else self.port,
            timeout=timeout_s)
        try:
            headers = {**self.key_header(admin), **(headers or {})}
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
                headers.setdefault("Content-Type", "application/json")
            connection.request(method, path, body, headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def key_header(self, admin=False):
        key = self.keys[admin]
        return {"Authorization": f"Bearer {key}"} if key else {}

    def get(self, path, admin=False):
        return self.request("GET", path, admin=admin)

    def post(self, path, body, admin=False):
        return self.request("POST", path, body, admin=admin)

    def complete(self, body):
        """POST /v1/completions; the parsed answer, which must be a 200."""
        answer = self.post("/v1/completions",
                           {"model": "verse-moe", **body})
        if answer.status != 200:
            raise GroupFailed(f"{answer.status}: {answer.body!r}")
        return answer.json()

    def stream(self, body, path="/v1/completions", timeout_s=120):
        """The same, streamed."""
        return Stream(self.host, self.port, path,
                      {"model": "verse-moe", "stream": True, **body},
                      timeout_s, self.key_header())

    def status(self):
        return self.get("/status", admin=True).json()

    def switch(self, layout):
        """POST /admin/layout; the report, once the switch has ended."""
        answer = self.post("/admin/layout", {"layout": layout}, admin=True)
        if answer.status != 200:
            raise GroupFailed(f"{answer.status}: {answer.body!r}")
        return answer.json()


def is_listening(host, port):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def make_runtime_dir():
    """A runtime directory of a test's own: short, for socket names."""
    return tempfile.mkdtemp(prefix="mt", dir="/tmp")


def remove_runtime_dir(path):
    shutil.rmtree(path)
