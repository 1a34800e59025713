"""Processes that are none of the group's, at its sockets: nothing that they do
is felt by a stream."""

import os
import socket
import stat
import subprocess
import threading
import unittest

from group import BINARY_DIR, Group, tokens_of

HOSTILE_PEER = os.path.join(BINARY_DIR, "tests", "hostile_peer")
PATIENCE_S = 120

WITNESSES = [
    {"prompt": "And the LORD said unto Moses,", "temperature": 0},
    {"prompt": "Tell me about Kenya: Background", "temperature": 1, "seed": 7},
    {"prompt": "In the beginning", "temperature": 0.7, "seed": 11,
     "top_p": 0.9}]


class HostilePeerTest(unittest.TestCase):
    def setUp(self):
        self.group = Group()
        self.addCleanup(lambda: self.group.process.poll() is None and
                        self.group.kill())

    def streams(self):
        return [self.group.stream({**body, "max_tokens": 600,
                                   "ignore_eos": True,
                                   "return_token_ids": True})
                for body in WITNESSES]

    def undisturbed(self, attack):
        """Runs `attack` while streams run and the group switches; then all
        must be as without it."""
        quiet = [tokens_of(stream) for stream in self.streams()]
        before = self.group.status()
        over = threading.Event()
        seen = [[] for _ in WITNESSES]

        def witness(index):
            while True:
                body = {**WITNESSES[index], "max_tokens": 600,
                        "ignore_eos": True, "return_token_ids": True}
                seen[index].append(tokens_of(self.group.stream(body)))
                if over.is_set():
                    return

        witnesses = [threading.Thread(target=witness, args=(i,))
                     for i in range(len(WITNESSES))]
        for thread in witnesses:
            thread.start()
        try:
            attack()
        finally:
            over.set()
            for thread in witnesses:
                thread.join(PATIENCE_S)
        for index, tokens in enumerate(seen):
            self.assertGreater(len(tokens), 0)
            for one in tokens:
                self.assertEqual(one, quiet[index])
        after = self.group.status()
        for key in ("recoveries", "workers_lost"):
            self.assertEqual(before.get(key), after.get(key))
        self.assertEqual([w["pid"] for w in before["workers"]],
                         [w["pid"] for w in after["workers"]])
        with self.group.condition:
            lines = [line for line in self.group.err + self.group.out if line]
        for line in lines:
            self.assertNotIn("halted", line)
            self.assertNotIn("is lost", line)
            self.assertNotIn("forged", line)
        self.group.switch("tp")
        self.group.switch("ep")
        self.assertEqual([tokens_of(stream) for stream in self.streams()],
                         quiet)
        self.group.stop()
        self.assertEqual(self.group.leftovers(), [])
        self.group._close()

    def test_the_directory_is_ours_alone(self):
        for name, kind, mode in (("", stat.S_ISDIR, 0o700),
                                 ("control.sock", stat.S_ISSOCK, 0o600),
                                 ("vault.sock", stat.S_ISSOCK, 0o600),
                                 ("config.yaml", stat.S_ISREG, 0o600)):
            info = os.lstat(os.path.join(self.group.directory, name))
            self.assertTrue(kind(info.st_mode), name)
            self.assertEqual(stat.S_IMODE(info.st_mode), mode, name)
            self.assertEqual(info.st_uid, os.geteuid(), name)
        self.group.stop()

    @unittest.skipIf(os.geteuid() != 0, "needs root to be somebody else")
    def test_other_users_do_not_get_as_far_as_the_sockets(self):
        for name, kind in (("control.sock", "SOCK_STREAM"),
                           ("vault.sock", "SOCK_SEQPACKET")):
            path = os.path.join(self.group.directory, name)
            # Python itself may be where others may not look: no new program.
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.setgroups([])
                    os.setresgid(65534, 65534, 65534)
                    os.setresuid(65534, 65534, 65534)
                    with socket.socket(socket.AF_UNIX,
                                       getattr(socket, kind)) as stranger:
                        stranger.connect(path)
                except PermissionError:
                    code = 77
                finally:
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
            self.assertEqual(os.waitstatus_to_exitcode(status), 77, name)
        self.group.stop()

    def test_at_the_control_socket(self):
        self.attack_at(os.path.join(self.group.directory, "control.sock"))
        refusals = [line for line in self.group.err
                    if line and "control channel: refused" in line]
        self.assertGreater(len(refusals), 0)
        self.assertLess(len(refusals), 20)  # not one each

    def test_at_the_control_port(self):
        self.group.stop()
        self.group.__exit__(None, None, None)
        self.group = Group(["--set", "control.transport=tcp"])
        # No key is in a file or on a command line.
        self.assertEqual(sorted(os.listdir(self.group.directory)),
                         ["config.yaml", "journal", "lock", "vault.sock"])
        with open(os.path.join(self.group.directory, "config.yaml")) as file:
            section = file.read().split("\ncontrol:\n")[1]
        port = section.split("\n  port: ")[1].split("\n")[0]
        self.attack_at(f"127.0.0.1:{port}")

    def attack_at(self, where):
        def attack():
            for _ in range(2):
                result = subprocess.run(
                    [HOSTILE_PEER, where, "2"], text=True,
                    capture_output=True, timeout=PATIENCE_S, check=False)
                self.assertEqual(result.returncode, 0,
                                 result.stdout + result.stderr)

        self.undisturbed(attack)

    def test_at_the_vault(self):
        path = os.path.join(self.group.directory, "vault.sock")

        def connect():
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.settimeout(PATIENCE_S)
            client.connect(path)
            return client

        def attack():
            # More than may wait; each says what would end the group.
            clients = [connect() for _ in range(40)]
            for client in clients:
                for kind in (0, 1, 2, 3, 5, 6, 7, 8, 9, 255):
                    for rank in (0, 1, -1):
                        message = bytes([kind, 0, 0, 0]) + rank.to_bytes(
                            4, "little", signed=True)
                        try:
                            client.send(message.ljust(512, b"\0"),
                                        socket.MSG_DONTWAIT)
                        except OSError:
                            break  # hung up on, or it waits unread
            for client in clients:
                # Nothing is answered; after a while it is hung up on.
                try:
                    self.assertEqual(client.recv(4096), b"")
                except ConnectionResetError:
                    pass
                client.close()

        self.undisturbed(attack)


if __name__ == "__main__":
    unittest.main()
