"""Stands in for moebius-worker and moebius-coordinator in tests of the launcher.

Speaks vault_protocol.h for as much as the launcher acts upon, and does what the
environment tells it:

  MOEBIUS_FAKE   JSON, {"worker 1": BEHAVIOUR, "coordinator": ...}
                 BEHAVIOUR is a list of [ACTION, ARGUMENT...]; without one the
                 child gets ready and ends well on SIGTERM.

Actions, in order:
  progress D T   reports D of T bytes
  ready          reports ready (the coordinator: two free ports, held open)
  print TEXT     a line on stdout;  warn TEXT: on stderr
  flood N        N lines on stdout
  fail TEXT      reports the failure;  fail_for_good TEXT: that it will last
  exit N         ends with exit code N
  kill N         dies of signal N
  ignore         takes no notice of SIGTERM from now on
  wait           waits for SIGTERM
  wait_file P    waits until the file P exists
  touch P        makes the file P
  pause S        takes S seconds: what loads slowly
"""

import json
import os
import select
import signal
import socket
import struct
import sys

MESSAGE = struct.Struct("<BBBBiQQiiQiiQBB454s")
PROGRESS, READY, FAILED = 5, 6, 7


class Child:
    def __init__(self, arguments):
        self.options = dict(zip(arguments[::2], arguments[1::2]))
        is_worker = "--rank" in self.options
        self.rank = int(self.options["--rank"]) if is_worker else -1
        self.name = f"worker {self.rank}" if is_worker else "coordinator"
        self.vault = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.vault.connect(os.path.join(self.options["--dir"], "vault.sock"))
        self.listeners = []
        # SIGTERM is waited for, so it must not interrupt.
        self.wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGTERM, lambda *_: None)

    def send(self, kind, done=0, total=0, port=0, admin_port=0, text="",
             lasting=0):
        self.vault.send(MESSAGE.pack(kind, 0, 0, 0, self.rank, total, done,
                                     port, admin_port, 0, 0, -1, 0, lasting, 0,
                                     text.encode()))

    def listen(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.listeners.append(listener)
        return listener.getsockname()[1]

    def do(self, action, *arguments):
        if action == "progress":
            self.send(PROGRESS, done=arguments[0], total=arguments[1])
        elif action == "ready":
            if self.rank >= 0:
                self.send(READY)
            else:
                self.send(READY, port=self.listen(), admin_port=self.listen())
        elif action == "print":
            print(arguments[0], flush=True)
        elif action == "warn":
            print(arguments[0], file=sys.stderr, flush=True)
        elif action == "flood":
            for i in range(arguments[0]):
                print("flood", i, "x" * 100)
            sys.stdout.flush()
        elif action == "fail":
            self.send(FAILED, text=arguments[0])
        elif action == "fail_for_good":
            self.send(FAILED, text=arguments[0], lasting=1)
        elif action == "exit":
            sys.stdout.flush()
            os._exit(arguments[0])
        elif action == "kill":
            signal.signal(arguments[0], signal.SIG_DFL) if (
                arguments[0] != signal.SIGKILL) else None
            os.kill(os.getpid(), arguments[0])
        elif action == "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif action == "wait":
            os.read(self.wake_read, 1)
        elif action == "touch":
            open(arguments[0], "w").close()
        elif action == "pause":
            select.select([], [], [], arguments[0])
        elif action == "wait_file":
            while not os.path.exists(arguments[0]):
                select.select([], [], [], 0.01)
        else:
            raise ValueError(action)

    def main(self):
        behaviours = json.loads(os.environ.get("MOEBIUS_FAKE", "{}"))
        for step in behaviours.get(self.name, [["ready"], ["wait"]]):
            self.do(*step)


if __name__ == "__main__":
    Child(sys.argv[1:]).main()
