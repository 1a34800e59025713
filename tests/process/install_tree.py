"""An install tree of the build, and groups that moebius-group runs out of it,
for tests of deploying. Standard library only."""

import json
import os
import shutil
import subprocess
import tempfile

from group import BINARY_DIR, free_port

DEPLOY_TIMEOUT_S = 180


def install(prefix):
    """What packages hold, but for other people's libraries."""
    subprocess.run(["cmake", "--install", BINARY_DIR, "--prefix", prefix,
                    "--component", "Unspecified"], check=True,
                   stdout=subprocess.DEVNULL)


class Deployment:
    """A folder with an install tree and a file of one group, "chat"."""

    def __init__(self, supervisor="launcher", host=None, config=None):
        self.root = tempfile.mkdtemp(prefix="md", dir="/tmp")
        self.prefix = os.path.join(self.root, "tree")
        install(self.prefix)
        # Where ResumedStream asks.
        self.host, self.port = "127.0.0.1", free_port()
        self.admin_port = free_port()
        self.config = {
            "model": {"path": "models/verse-moe"}, "workers": {"count": 2},
            "http": {"port": self.port}, "admin": {"port": self.admin_port},
            **(config or {})}
        self.inventory = {
            "hosts": {"here": {"address": "local", "prefix": self.prefix,
                               "state_dir": os.path.join(self.root, "s"),
                               **(host or {})}},
            "groups": {"chat": {"host": "here", "config": "chat.yaml",
                                "supervisor": supervisor}}}
        self.file = os.path.join(self.root, "groups.yaml")
        self.write()

    def write(self):
        for path, value in (
                (self.file, self.inventory),
                (os.path.join(self.root, "chat.yaml"), self.config)):
            with open(path, "w") as file:
                json.dump(value, file)  # is YAML as well

    def second_tree(self):
        """The host's prefix from now on."""
        second = os.path.join(self.root, "tree2")
        shutil.copytree(self.prefix, second, symlinks=True)
        self.inventory["hosts"]["here"]["prefix"] = second
        self.write()
        return second

    def run(self, command, *words):
        """A command of moebius-group, to its end."""
        return subprocess.run(
            [os.path.join(self.prefix, "bin", "moebius-group"), command,
             self.file, *words], text=True, check=False,
            stdin=subprocess.DEVNULL, capture_output=True,
            timeout=DEPLOY_TIMEOUT_S)

    def processes(self):
        """Command lines of processes that run out of its trees."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                program = os.readlink(f"/proc/{entry}/exe")
            except OSError:
                continue
            if program.startswith(self.root + "/"):
                found.append(f"{entry} {program}")
        return found

    def close(self):
        self.run("down", "--now")
        shutil.rmtree(self.root, ignore_errors=True)
