"""A network for a group whose workers live in network namespaces of their own,
and ways to break it.

The thread that makes one lives in a new namespace until close(), and so does
whatever it starts: the group, the clients. Each worker has another one, joined
to it by a pair of virtual Ethernet devices. All of them are anonymous: they and
the devices go with the processes that hold them, whatever those die of.

The kernel does the breaking, in both directions or in one:
  both   the coordinator's device of the pair is down
  one    the sender has a wrong, permanent hardware address of the receiver, so
         its packets reach the other device and are thrown away there
"""

import ctypes
import os
import shutil
import socket
import subprocess
import tempfile

from bench import Bench, check
from group import MOEBIUS

CLONE_NEWNET = 0x40000000
HUB = "10.0.0.1"  # the coordinator's address
NOBODY = "02:00:00:00:00:99"
PROBE_TIMEOUT_S = 10
LIBC = ctypes.CDLL(None, use_errno=True)


class Skipped(Exception):
    """The machine does not let us try this."""


def own_namespace():
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(namespace):
    if LIBC.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def run(*command):
    result = subprocess.run(command, text=True, capture_output=True,
                            stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        raise Skipped(f"`{' '.join(command)}`: {result.stderr.strip()}")


class Network:
    def __init__(self, workers):
        self.holders, self.dir = [], None
        self.outside, self.entered = own_namespace(), False
        try:
            self._build(workers)
        except BaseException:
            self.close()
            raise

    def _build(self, workers):
        for tool in ("ip", "nsenter", "unshare"):
            if shutil.which(tool) is None:
                raise Skipped(f"there is no `{tool}`")
        # To where we come back to in the end, and to a new one.
        if (LIBC.setns(self.outside, CLONE_NEWNET) != 0
                or LIBC.unshare(CLONE_NEWNET) != 0):
            raise Skipped("no network namespace can be made here "
                          f"({os.strerror(ctypes.get_errno())}): run as root, "
                          "or under `unshare -rn`")
        self.entered = True
        run("ip", "link", "set", "lo", "up")
        run("ip", "address", "add", f"{HUB}/32", "dev", "lo")
        for rank in range(workers):
            # Lives as long as its standard input.
            holder = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "echo; exec cat"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.holders.append(holder)
            check(holder.stdout.read(1) == b"\n", "no holder of a namespace")
            run("ip", "link", "add", f"hub{rank}", "type", "veth", "peer",
                "name", "worker", "netns", str(holder.pid))
            run("ip", "address", "add", f"10.0.{rank + 1}.1/24", "dev",
                f"hub{rank}")
            run("ip", "link", "set", f"hub{rank}", "up")
            self.at(rank, "ip", "address", "add", f"10.0.{rank + 1}.2/24",
                    "dev", "worker")
            self.at(rank, "ip", "link", "set", "worker", "up")
            self.at(rank, "ip", "route", "add", "default", "via",
                    f"10.0.{rank + 1}.1")
            self._prove(rank)
        self._write_programs()

    def at(self, rank, *command):
        """Runs a command where the worker is."""
        run("nsenter", f"--net=/proc/{self.holders[rank].pid}/ns/net",
            *command)

    def _write_programs(self):
        """The programs that the launcher finds in place of the real ones."""
        self.dir = tempfile.mkdtemp(prefix="mn", dir="/tmp")
        real = os.path.dirname(MOEBIUS)
        os.symlink(os.path.join(real, "moebius-coordinator"),
                   os.path.join(self.dir, "moebius-coordinator"))
        cases = "\n".join(
            f'  {rank}) net=/proc/{holder.pid}/ns/net ;;'
            for rank, holder in enumerate(self.holders))
        path = os.path.join(self.dir, "moebius-worker")
        with open(path, "w") as script:
            script.write(f"""#!/bin/sh
rank= last=
for word; do
  if [ "$last" = --rank ]; then rank=$word; fi
  last=$word
done
case $rank in
{cases}
esac
exec nsenter --net=$net {real}/moebius-worker "$@"
""")
        os.chmod(path, 0o755)

    # ---- breaking ----------------------------------------------------------

    def cut(self, rank, way="both"):
        """way: both, to (nothing reaches the worker), from (nothing comes)."""
        if way == "both":
            run("ip", "link", "set", f"hub{rank}", "down")
        elif way == "to":
            run("ip", "neigh", "replace", f"10.0.{rank + 1}.2", "lladdr",
                NOBODY, "nud", "permanent", "dev", f"hub{rank}")
        else:
            self.at(rank, "ip", "neigh", "replace", f"10.0.{rank + 1}.1",
                    "lladdr", NOBODY, "nud", "permanent", "dev", "worker")

    def heal(self, rank, way="both"):
        if way == "both":
            run("ip", "link", "set", f"hub{rank}", "up")
        elif way == "to":
            run("ip", "neigh", "del", f"10.0.{rank + 1}.2", "dev",
                f"hub{rank}")
        else:
            self.at(rank, "ip", "neigh", "del", f"10.0.{rank + 1}.1", "dev",
                    "worker")

    # ---- that it does break ------------------------------------------------

    def _sockets(self, rank):
        """A datagram socket here and one at the worker's."""
        here, there = own_namespace(), None
        hub = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        hub.bind((HUB, 0))
        try:
            there = os.open(f"/proc/{self.holders[rank].pid}/ns/net",
                            os.O_RDONLY | os.O_CLOEXEC)
            enter(there)
            worker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            worker.bind((f"10.0.{rank + 1}.2", 0))
        finally:
            enter(here)
            os.close(here)
            if there is not None:
                os.close(there)
        for one in (hub, worker):
            one.settimeout(PROBE_TIMEOUT_S)
        return hub, worker

    def _prove(self, rank):
        """Each way of cutting loses what it should, and nothing else."""
        hub, worker = self._sockets(rank)
        ends = {"to": (hub, worker), "from": (worker, hub)}
        with hub, worker:
            for cut in (None, "to", "from"):
                if cut is not None:
                    self.cut(rank, cut)
                for way, (sender, receiver) in ends.items():
                    sender.sendto(f"{cut} {way}".encode(),
                                  receiver.getsockname())
                if cut is not None:
                    self.heal(rank, cut)
                # What comes first says whether the one before was lost.
                for way, (sender, receiver) in ends.items():
                    sender.sendto(b"healed", receiver.getsockname())
                    heard = receiver.recv(100).decode()
                    if way == cut:
                        check(heard == "healed", f"cut {cut}, heard {heard}")
                    else:
                        check(heard == f"{cut} {way}",
                              f"cut {cut}, on the way {way} came {heard}")
                        check(receiver.recv(100) == b"healed", "lost")

    def close(self):
        if self.entered:
            enter(self.outside)
        os.close(self.outside)
        for holder in self.holders:
            holder.stdin.close()
            holder.wait()
            holder.stdout.close()
        if self.dir is not None:
            shutil.rmtree(self.dir)


class NetworkBench(Bench):
    """A bench whose workers are in namespaces."""

    def __init__(self, workers=2, settings=()):
        self.net = Network(workers)
        try:
            super().__init__(workers, (*settings, "control.transport=tcp",
                                       f"control.host={HUB}"),
                             env={"MOEBIUS_PROGRAM_DIR": self.net.dir})
        except BaseException:
            self.net.close()
            raise

    def close(self):
        try:
            super().close()
        finally:
            self.net.close()

    def kill_all(self):
        try:
            super().kill_all()
        finally:
            self.net.close()
