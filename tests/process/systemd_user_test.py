"""Groups under systemd's user manager: a real one, in namespaces of the test's
own. Needs root for those."""

import http.client
import json
import os
import signal
import subprocess
import sys
import unittest

from group import children_of, start_time, wait_gone
from install_tree import Deployment

HERE = os.path.dirname(os.path.abspath(__file__))
UNIT = "moebius-chat.service"
WATCHDOG_S = 5


def systemctl(*words):
    return subprocess.run(["systemctl", "--user", *words], text=True,
                          check=True, capture_output=True).stdout.strip()


class UserManagerTest(unittest.TestCase):
    def setUp(self):
        folder = os.path.join(os.environ["XDG_CONFIG_HOME"], "systemd", "user",
                              UNIT + ".d")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "test.conf"), "w") as file:
            file.write(f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
        self.deployment = Deployment(supervisor="auto")
        self.addCleanup(self.deployment.close)
        self.well("up")

    def well(self, *words):
        done = self.deployment.run(*words)
        self.assertEqual(done.returncode, 0, done)
        return done.stdout

    def launcher(self):
        return int(systemctl("show", "-P", "MainPID", UNIT))

    def coordinator(self):
        for pid in children_of(self.launcher()):
            if os.readlink(f"/proc/{pid}/exe").endswith("-coordinator"):
                return pid
        raise AssertionError("no coordinator")

    def complete(self, tokens):
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.deployment.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(
            {"model": "verse-moe", "prompt": "And", "max_tokens": tokens,
             "ignore_eos": True}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        self.assertEqual(answer.status, 200)
        answer.read()
        connection.close()

    def test_it_is_up_once_it_serves_and_down_leaves_nothing(self):
        self.assertEqual(systemctl("is-active", UNIT), "active")
        self.assertIn("serves verse-moe at",
                      systemctl("show", "-P", "StatusText", UNIT))
        self.complete(1)
        row, = json.loads(self.well("status", "--json"))
        self.assertEqual(row["state"], "ready")
        self.deployment.second_tree()
        self.assertIn("tree2", self.well("upgrade"))
        self.complete(1)
        self.well("down")
        self.assertEqual(self.deployment.processes(), [])
        self.assertNotIn(UNIT, systemctl("list-unit-files"))
        self.assertFalse(os.path.exists(
            os.path.join(os.environ["XDG_RUNTIME_DIR"], "moebius", "chat")))

    def test_watchdog_leaves_what_gets_on_and_ends_what_does_not(self):
        launcher = self.launcher()
        since = start_time(launcher)
        # At rest, in a coordinator's successor, and under load.
        pidfd = os.pidfd_open(self.coordinator())
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        self.assertFalse(ended_within(launcher, 2 * WATCHDOG_S))
        for _ in range(20):
            self.complete(1000)
        self.assertEqual(start_time(launcher), since)
        # A coordinator that stands still, which nobody else notices.
        os.kill(self.coordinator(), signal.SIGSTOP)
        wait_gone(launcher, since, 4 * WATCHDOG_S)
        systemctl("start", UNIT)  # its next turn; comes back when it serves
        self.assertNotEqual(self.launcher(), launcher)
        self.complete(1)


class SystemUnitTest(unittest.TestCase):
    """What the system's unit forbids, a group does not need. A user's manager
    knows no DynamicUser; the rest holds for it too, since it is root's."""

    def test_a_group_serves_and_switches_within_it(self):
        deployment = Deployment()
        self.addCleanup(deployment.close)
        home = os.environ["XDG_CONFIG_HOME"]
        with open(os.path.join(deployment.prefix, "lib", "systemd", "system",
                               "moebius@.service")) as file:
            text = file.read()
        for before, after in (
                ("ExecStart=moebius", f"ExecStart={deployment.prefix}"
                                      "/bin/moebius"),
                ("WorkingDirectory=", f"WorkingDirectory={deployment.prefix}"
                                      "/share/moebius\n#"),
                # It lies in /tmp, here.
                ("PrivateTmp=yes\n", ""),
                ("DynamicUser=yes\n", ""),
                # They mount over /proc and /sys, which our namespace may not.
                ("ProtectKernelLogs=yes\n", ""),
                ("ProtectKernelTunables=yes\n", "")):
            self.assertIn(before, text)
            text = text.replace(before, after)
        for name, content in (("systemd/user/system@.service", text),
                              ("moebius/chat.yaml",
                               json.dumps(deployment.config))):
            path = os.path.join(home, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(content)
        systemctl("daemon-reload")
        systemctl("start", "system@chat")
        launcher = int(systemctl("show", "-P", "MainPID", "system@chat"))
        with open(f"/proc/{launcher}/status") as file:
            status = dict(line.split(":\t", 1) for line in file)
        self.assertEqual(status["Seccomp"].strip(), "2")
        self.assertEqual(int(status["CapBnd"], 16), 0)
        for layout in ("tp", "ep"):
            done = subprocess.run(
                [os.path.join(deployment.prefix, "bin", "moebius"), "layout",
                 layout, "--admin", f"http://127.0.0.1:{deployment.admin_port}"],
                text=True, check=False, capture_output=True)
            self.assertEqual(done.returncode, 0, done)
        systemctl("stop", "system@chat")
        self.assertEqual(systemctl("show", "-P", "Result", "system@chat"),
                         "success")
        self.assertEqual(deployment.processes(), [])


def ended_within(pid, timeout_s):
    try:
        wait_gone(pid, start_time(pid), timeout_s)
    except AssertionError:
        return False
    return True


if __name__ == "__main__":
    if "MOEBIUS_IN_NAMESPACES" not in os.environ:
        if os.getuid() != 0:
            sys.exit("this test needs root (label root)")
        os.environ["MOEBIUS_TEST_ID"] = str(os.getpid())
        os.execvp(os.path.join(HERE, "with_user_manager"),
                  ["with_user_manager", sys.executable, "-B", *sys.argv])
    unittest.main()
