"""moebius-group over an install tree: groups come up, are replaced without
losing a request, and leave nothing."""

import http.client
import json
import os
import shutil
import subprocess
import tempfile
import threading
import unittest

from group import ROOT, Stream, free_port, is_listening
from install_tree import Deployment
from resumed_stream import ResumedStream

NUM_STREAMS = 16
# So many that an upgrade begins in the midst of them.
TOKENS = 2500


def bodies():
    """Half greedy, half sampled with a seed."""
    return [{"model": "verse-moe", "prompt": f"And verse {i} said unto Moses,",
             "max_tokens": TOKENS, "return_token_ids": True, "stream": True,
             "ignore_eos": True, **({"temperature": 0} if i % 2 else
                                    {"temperature": 0.8, "seed": i})}
            for i in range(NUM_STREAMS)]


class Streams:
    """All of them at once."""

    def __init__(self, deployment):
        self.results = [None] * NUM_STREAMS
        self.begun = threading.Semaphore(0)
        self.threads = [
            threading.Thread(target=self._read, args=(deployment, i, body))
            for i, body in enumerate(bodies())]
        for thread in self.threads:
            thread.start()

    def _read(self, deployment, i, body):
        stream = Stream(deployment.host, deployment.port, "/v1/completions",
                        body, 120)
        tokens = []
        for _, data in stream:
            if data == "[DONE]":
                self.results[i] = tokens
                break
            if not tokens:
                self.begun.release()
            for choice in data["choices"]:
                tokens += choice.get("token_ids") or []
        stream.close()

    def wait_begun(self):
        for _ in self.threads:
            if not self.begun.acquire(timeout=60):
                raise AssertionError("a stream did not begin")

    def finish(self):
        for thread in self.threads:
            thread.join(120)
        return self.results


class FilesTest(unittest.TestCase):
    """What is wrong with a file is said with its place, before anything runs."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="md", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.folder)
        with open(os.path.join(self.folder, "c.yaml"), "w") as file:
            file.write("http: {port: 8000}\n")

    def refused(self, text):
        path = os.path.join(self.folder, "groups.yaml")
        with open(path, "w") as file:
            file.write(text)
        done = subprocess.run([os.path.join(ROOT, "deploy", "bin", "up"), path],
                              text=True, capture_output=True, check=False)
        self.assertEqual(done.returncode, 2, done)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr.replace(path, "FILE")

    def test_place_key_and_what_is_allowed(self):
        hosts = "hosts:\n  a: {address: local, prefix: /opt/m}\n"
        group = "groups:\n  g: {host: a, config: c.yaml}\n"
        for text, said in (
                ("", "FILE:1: key 'groups': there is no group"),
                ("- a\n", "FILE:1: allowed is a mapping of keys"),
                ("hosts: [", "FILE:1: "),
                ("? [a, b]\n: c\n", "FILE:1: "),
                ("hosts: &a\n  b: *a\n" + group, "FILE: "),
                (hosts + "groups:\n  g:\n",
                 "FILE:4: key 'groups.g': allowed is a mapping of keys"),
                ("a: &a [*a]\n", "FILE:1: key 'a': is unknown"),
                ("hots: {}\n", "FILE:1: key 'hots': is unknown (did you mean "
                               "'hosts'?)"),
                (hosts + hosts + group, "FILE:3: key 'hosts': it is there twice"),
                ("hosts:\n  a:\n    port: ssh\n" + group,
                 "FILE:3: key 'hosts.a.port': allowed is a port of ssh, not "
                 "'ssh'"),
                ("hosts:\n  a: {prefix: here}\n" + group,
                 "FILE:2: key 'hosts.a.prefix': allowed is the absolute path"),
                ("hosts:\n  a: {address: -oProxyCommand=x}\n" + group,
                 "FILE:2: key 'hosts.a.address': allowed is a name"),
                ("hosts:\n  A/b: {}\n" + group,
                 "FILE:2: key 'hosts.A/b': allowed is a name of up to 32"),
                (hosts + "groups:\n  g:\n    config: c.yaml\n",
                 "FILE:4: key 'groups.g': lacks the key 'host'"),
                (hosts + "groups:\n  g: {host: b, config: c.yaml}\n",
                 "FILE:4: key 'groups.g.host': there is no host 'b'; there are "
                 "a"),
                (hosts + "groups:\n  g: {host: a, config: no.yaml}\n",
                 "no.yaml: "),
                (hosts + "groups:\n  g:\n    host: a\n    config: c.yaml\n"
                 "    set:\n      http.port: 0\n",
                 "FILE:4: key 'groups.g': http.port must be a port from 1"),
                (hosts + group + "  h: {host: a, config: c.yaml}\n",
                 "FILE:5: key 'groups.h': http.port 8000 is that of group 'g'"),
                (hosts + group.replace("}", ", supervisor: upstart}"),
                 "FILE:4: key 'groups.g.supervisor': allowed is one of auto, "
                 "systemd, launcher, not 'upstart'")):
            with self.subTest(text):
                self.assertIn(said, self.refused(text))


class GroupTest(unittest.TestCase):
    """Under the launcher alone."""

    def setUp(self):
        self.deployment = Deployment()
        self.addCleanup(self.deployment.close)

    def well(self, *words):
        done = self.deployment.run(*words)
        self.assertEqual(done.returncode, 0, done)
        return done.stdout

    def refusal(self):
        """The status of a request that comes now."""
        connection = http.client.HTTPConnection("127.0.0.1",
                                                self.deployment.port, timeout=60)
        try:
            connection.request("POST", "/v1/completions",
                               json.dumps({"model": "verse-moe", "prompt": "x",
                                           "max_tokens": 1}),
                               {"Content-Type": "application/json"})
            return connection.getresponse().status
        finally:
            connection.close()

    def test_up_status_logs_drain_and_down_leave_nothing(self):
        self.assertIn("chat: is up\n", self.well("up"))
        self.assertIn("is up already", self.well("up"))
        row, = json.loads(self.well("status", "--json"))
        self.assertEqual((row["state"], row["layout"]), ("ready", "ep"))
        self.assertIn("Moebius serves verse-moe", self.well("logs", "chat"))
        self.well("drain")
        self.assertEqual(self.refusal(), 503)
        self.assertIn("draining", self.deployment.run("status").stdout)
        self.well("undrain")
        self.assertEqual(self.refusal(), 200)
        self.well("down")
        self.assertEqual(self.deployment.processes(), [])
        self.assertFalse(is_listening("127.0.0.1", self.deployment.port))
        self.assertFalse(os.path.exists(os.path.join(self.deployment.root,
                                                     "s")))
        self.assertEqual(self.deployment.run("status").returncode, 1)
        self.assertIn("down", self.deployment.run("status").stdout)

    def test_upgrade_under_streams_finishes_them(self):
        self.well("up")
        second = self.deployment.second_tree()
        quiet = Streams(self.deployment).finish()
        streams = Streams(self.deployment)
        streams.wait_begun()
        self.assertIn(None, streams.results)
        # Somebody goes on asking all the while.
        late = ResumedStream(self.deployment, {**bodies()[1], "max_tokens": 50},
                             "late")
        statuses = []
        upgraded = threading.Event()

        def ask():
            while not upgraded.is_set():
                try:
                    statuses.append(self.refusal())
                except OSError:
                    statuses.append(0)  # nobody listens just now

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            self.assertIn(second, self.well("upgrade"))
        finally:
            upgraded.set()
            asking.join()
        self.assertEqual(streams.finish(), quiet)
        self.assertLessEqual(set(statuses), {200, 503, 0})
        self.assertIn(503, statuses)
        self.assertEqual(late.run(), quiet[1][:50])
        self.assertNotIn(None, quiet)
        self.assertEqual(self.refusal(), 200)
        self.assertTrue(all(second in line
                            for line in self.deployment.processes()))

    def test_upgrade_now_goes_on_with_what_was_accepted(self):
        self.well("up")
        quiet = Streams(self.deployment).finish()
        self.deployment.second_tree()
        streams = [ResumedStream(self.deployment, body, f"key-{i}")
                   for i, body in enumerate(bodies())]
        begun = threading.Semaphore(0)
        threads = []
        for stream in streams:
            stream.on_event = lambda _: begun.release()
            threads.append(threading.Thread(target=stream.run))
            threads[-1].start()
        for _ in range(NUM_STREAMS):
            self.assertTrue(begun.acquire(timeout=60))
        self.well("upgrade", "--now")
        for thread in threads:
            thread.join(120)
        self.assertEqual([stream.tokens for stream in streams], quiet)
        self.assertGreater(sum(stream.breaks for stream in streams), 0)

    def test_upgrade_that_does_not_come_up_goes_back(self):
        self.well("up")
        self.deployment.config["workers"]["count"] = 3
        self.deployment.second_tree()
        done = self.deployment.run("upgrade")
        self.assertEqual(done.returncode, 1)
        self.assertIn("goes on as it was, out of " + self.deployment.prefix,
                      done.stderr)
        self.assertEqual(self.refusal(), 200)

    def test_upgrade_that_takes_too_long_leaves_the_group_as_it_was(self):
        self.well("up")
        self.deployment.second_tree()
        streams = Streams(self.deployment)
        streams.wait_begun()
        done = self.deployment.run("upgrade", "--timeout", "0.1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("requests are still in flight", done.stderr)
        self.assertEqual(self.refusal(), 200)
        self.assertNotIn(None, streams.finish())

    def test_what_does_not_come_up_says_why(self):
        self.deployment.config["workers"]["count"] = 3
        self.deployment.write()
        done = self.deployment.run("up")
        self.assertEqual(done.returncode, 1)
        self.assertIn("3", done.stderr)
        self.assertIn("did not come up", done.stderr)
        self.assertEqual(self.deployment.processes(), [])


class SshTest(unittest.TestCase):
    """The same over ssh: a server of the test's own on loopback."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="md", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.folder)
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
                            self.path(name)], check=True)
        self.port = free_port()
        with open(self.path("sshd_config"), "w") as file:
            file.write(f"Port {self.port}\nListenAddress 127.0.0.1\n"
                       f"HostKey {self.path('host')}\nUsePAM no\n"
                       f"AuthorizedKeysFile {self.path('user.pub')}\n"
                       "StrictModes no\nPermitRootLogin prohibit-password\n"
                       "PidFile none\n")
        if os.getuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self.server = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", self.path("sshd_config")],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.server.stderr.close)
        self.addCleanup(self.server.wait)
        self.addCleanup(self.server.terminate)
        for line in self.server.stderr:
            if "Server listening" in line:
                break
        self.deployment = Deployment(host={
            "address": "127.0.0.1", "port": self.port,
            "ssh_options": ["-i", self.path("user"), "-o",
                            "StrictHostKeyChecking=no", "-o",
                            f"UserKnownHostsFile={self.path('known')}"]})
        self.addCleanup(self.deployment.close)

    def path(self, name):
        return os.path.join(self.folder, name)

    def test_group_outlives_the_log_in_that_started_it(self):
        for words, said in ((["up"], "is up"), (["status"], "ready"),
                            (["logs", "chat", "-n", "5"], "[worker"),
                            (["drain"], "is drained"),
                            (["down"], "nothing of it is left")):
            done = self.deployment.run(*words)
            if words != ["logs", "chat", "-n", "5"]:
                self.assertIn(said, done.stdout, done)
            self.assertEqual(done.returncode, 0, done)
        self.assertEqual(self.deployment.processes(), [])

    def test_host_that_is_not_there_is_named(self):
        self.deployment.inventory["hosts"]["here"]["port"] = free_port()
        self.deployment.write()
        done = self.deployment.run("up")
        self.assertEqual(done.returncode, 1)
        self.assertIn("chat: here: ", done.stderr)
        self.deployment.inventory["hosts"]["here"]["port"] = self.port
        self.deployment.write()


if __name__ == "__main__":
    unittest.main()
