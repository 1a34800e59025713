"""Two groups behind the real HAProxy and nginx, configured by deploy/balancers:
one group is drained, one switches and one's coordinator is killed under load.
No request fails that was not sent to the killed one, those resume, and every
token is that of a quiet run."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from group import Group, ROOT, free_port
from resumed_stream import NOT_NOW, RETRY_S, ResumedStream

BALANCERS = os.path.join(ROOT, "deploy", "balancers")
BODIES = [{"prompt": prompt, "max_tokens": 60, "ignore_eos": True,
           "temperature": 0, "return_token_ids": True}
          for prompt in ("In the beginning", "And the LORD said", "Blessed")]
# Under way for long enough to be killed in the middle.
LONG = {**BODIES[0], "max_tokens": 1000}
SWITCHES = ("tp", "ep", "tp")


class Program:
    """A balancer, told to stay in the foreground, and what it says."""

    def __init__(self, command, port):
        self.host, self.port = "127.0.0.1", port
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        self.lines = []
        self.reader = threading.Thread(
            target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def wait_listening(self, deadline_s=30):
        for _ in range(int(deadline_s / RETRY_S)):
            try:
                connection = http.client.HTTPConnection(self.host, self.port,
                                                        timeout=10)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            finally:
                connection.close()
            if self.process.poll() is not None:
                break
            threading.Event().wait(RETRY_S)
        raise AssertionError("".join(self.lines[-20:]))

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.reader.join()
        self.process.stdout.close()


class Request(ResumedStream):
    """Remembers who answered: `answers` is [(status, group)], `broken` says of
    whom an answer was not complete."""

    def __init__(self, balancer, body, key):
        super().__init__(balancer, body, key)
        self.answers, self.broken = [], []

    def once(self, max_events=None):
        complete = super().once(max_events)
        if not complete:
            self.broken.append(self.answers[-1][1] if self.answers else None)
        return complete

    def answered(self, response):
        group = response.getheader("X-Group")
        # nginx names all that it tried.
        self.answers.append((response.status,
                             group and group.rpartition(", ")[2]))


class Load:
    """Threads that send one request after another until they are told not to."""

    def __init__(self, balancer, expected, threads=6):
        self.balancer, self.expected = balancer, expected
        self.over = threading.Event()
        self.condition = threading.Condition()
        self.done, self.errors = [], []
        self.threads = [threading.Thread(target=self.run, args=(i,))
                        for i in range(threads)]
        for thread in self.threads:
            thread.start()

    def run(self, index):
        count = 0
        try:
            while not self.over.is_set():
                which = (index + count) % len(BODIES)
                request = Request(self.balancer, BODIES[which],
                                  f"key-{index}-{count}")
                tokens = request.run()
                if tokens != self.expected[which]:
                    raise AssertionError(f"{request.key} has other tokens")
                with self.condition:
                    self.done.append(request)
                    self.condition.notify_all()
                count += 1
        except BaseException as error:  # pylint: disable=broad-except
            with self.condition:
                self.errors.append(f"{type(error).__name__}: {error}")
                self.condition.notify_all()

    def wait(self, condition, deadline_s=60):
        """Until `condition` holds of the requests that end from now on."""
        with self.condition:
            begin = len(self.done)
            ok = self.condition.wait_for(
                lambda: self.errors or condition(self.done[begin:]),
                deadline_s)
            if self.errors or not ok:
                raise AssertionError(self.errors or "nothing came of it")
            return self.done[begin:]

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
        if self.errors:
            raise AssertionError(self.errors)


def served_by(group):
    return lambda done: sum(r.answers[-1][1] == group for r in done) >= 3


class BalancerProgramsTest(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="mb", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.dir)

    def configure(self, name, replacements):
        with open(os.path.join(BALANCERS, name)) as template:
            text = template.read()
        for old, new in replacements:
            self.assertIn(old, text)
            text = text.replace(old, new)
        path = os.path.join(self.dir, name)
        with open(path, "w") as configuration:
            configuration.write(text)
        return path

    def under_load(self, start, names):
        """`start(groups)` gives the balancer; `names(groups)` what it calls
        the two groups."""
        agents = [free_port(), free_port()]
        arguments = ["--workers", "2", "--layout", "ep", "--agent-port"]
        with Group([*arguments, str(agents[0])]) as a, \
                Group([*arguments, str(agents[1])]) as b:
            expected = [a.complete(body)["choices"][0]["token_ids"]
                        for body in BODIES]
            balancer = start((a, b), agents)
            try:
                balancer.wait_listening()
                load = Load(balancer, expected)
                try:
                    self.scenes(load, a, b, *names((a, b)))
                finally:
                    load.stop()
                self.verdict(load, names((a, b))[0])
            finally:
                balancer.stop()
            self.assertEqual(a.status()["switches"]["total"], 0)
            self.assertEqual(b.status()["switches"]["total"], len(SWITCHES))
            self.assertEqual(len(b.status()["switches"]["recent"]),
                             len(SWITCHES))
            a.stop()
            b.stop()

    def scenes(self, load, a, b, name_a, name_b):
        load.wait(served_by(name_a))
        load.wait(served_by(name_b))
        drained = a.post("/admin/drain", {}, admin=True)
        self.assertEqual((drained.status, drained.json()["drained"]),
                         (200, True))
        begun = load.wait(lambda done: len(done) >= 12)
        self.assertEqual({r.answers[-1][1] for r in begun[-6:]}, {name_b})
        a.post("/admin/undrain", {}, admin=True)
        load.wait(served_by(name_a))
        for layout in SWITCHES:
            self.assertTrue(b.switch(layout)["done"])
            load.wait(served_by(name_b))
        self.assertEqual([r.answers for r in load.done if r.broken], [])
        self.kill_in_mid_stream(load, a, name_a)
        load.wait(served_by(name_a))

    def kill_in_mid_stream(self, load, a, name_a):
        expected = a.complete(LONG)["choices"][0]["token_ids"]
        at_a = threading.Event()
        requests = [Request(load.balancer, LONG, f"long-{i}") for i in range(8)]

        def run(request):
            request.on_event = lambda _: (
                at_a.set() if request.answers[-1][1] == name_a else None)
            request.run()

        threads = [threading.Thread(target=run, args=(request,))
                   for request in requests]
        for thread in threads:
            thread.start()
        try:
            self.assertTrue(at_a.wait(60))
            os.kill(a.coordinator_pid(), signal.SIGKILL)
        finally:
            for thread in threads:
                thread.join()
        self.assertGreater(sum(request.resumes for request in requests), 0)
        for request in requests:
            self.assertEqual(request.tokens, expected, request.key)
        with load.condition:
            load.done += requests

    def verdict(self, load, killed):
        broken = [r for r in load.done if r.broken]
        self.assertGreater(len(broken), 0)
        for request in broken:
            self.assertEqual(set(request.broken), {killed}, request.key)
        for request in load.done:
            for status, group in request.answers:
                if status != 200:
                    self.assertIn(status, NOT_NOW)
                    self.assertEqual(group, killed)

    def test_haproxy(self):
        port = free_port()

        def start(groups, agents):
            ports = [group.port for group in groups]
            path = self.configure("haproxy.cfg", [
                ("127.0.0.1:8080", f"127.0.0.1:{port}"),
                ("/run/haproxy", self.dir),
                ("agent-check agent-port 8002", "agent-check"),
                ("127.0.0.1:8000 weight 100",
                 f"127.0.0.1:{ports[0]} weight 100 agent-port {agents[0]}"),
                ("127.0.0.2:8000 weight 100",
                 f"127.0.0.1:{ports[1]} weight 100 agent-port {agents[1]}"),
                ("127.0.0.1:8000 track", f"127.0.0.1:{ports[0]} track"),
                ("127.0.0.2:8000 track", f"127.0.0.1:{ports[1]} track")])
            return Program(["haproxy", "-db", "-f", path], port)

        self.under_load(start, lambda groups: ("a", "b"))

    def test_nginx(self):
        port = free_port()

        def start(groups, _):
            path = self.configure("nginx.conf", [
                ("127.0.0.1:8080", f"127.0.0.1:{port}"),
                ("/run/", self.dir + "/"),
                ("worker_processes auto", "worker_processes 1"),
                ("127.0.0.1:8000", f"127.0.0.1:{groups[0].port}"),
                ("127.0.0.2:8000", f"127.0.0.1:{groups[1].port}")])
            return Program(["nginx", "-g", "daemon off;", "-p", self.dir, "-c",
                            path], port)

        self.under_load(start, lambda groups: [f"127.0.0.1:{group.port}"
                                               for group in groups])

    def test_events_pass_nginx_as_they_come(self):
        port = free_port()
        with Group(["--workers", "1"]) as group:
            path = self.configure("nginx.conf", [
                ("127.0.0.1:8080", f"127.0.0.1:{port}"),
                ("/run/", self.dir + "/"),
                ("127.0.0.1:8000", f"127.0.0.1:{group.port}"),
                ("127.0.0.2:8000", f"127.0.0.1:{group.port}")])
            nginx = Program(["nginx", "-g", "daemon off;", "-p", self.dir,
                             "-c", path], port)
            try:
                nginx.wait_listening()
                stream = Request(nginx, {**BODIES[0], "max_tokens": 3000}, "k")
                self.assertFalse(stream.once(max_events=3))
                self.assertLess(len(stream.tokens), 1500)
                self.assertFalse(group.status()["draining"])
            finally:
                nginx.stop()
            group.stop()

    def test_envoy_has_the_form_that_it_should(self):
        with open(os.path.join(BALANCERS, "envoy.yaml")) as page:
            import yaml  # pylint: disable=import-outside-toplevel
            envoy = yaml.safe_load(page)["static_resources"]
        clusters = {cluster["name"]: cluster for cluster in envoy["clusters"]}
        chain = envoy["listeners"][0]["filter_chains"][0]["filters"][0]
        config = chain["typed_config"]
        route = config["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
        self.assertEqual(route["timeout"], "0s")
        cluster = clusters[route["cluster"]]
        self.assertEqual(
            cluster["health_checks"][0]["http_health_check"]["path"], "/ready")
        self.assertEqual(cluster["load_assignment"]["cluster_name"],
                         route["cluster"])
        self.assertIn("type.googleapis.com/envoy.extensions.filters.http.router"
                      ".v3.Router", json.dumps(config))


if __name__ == "__main__":
    unittest.main()
