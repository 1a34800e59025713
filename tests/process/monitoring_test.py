"""deploy/monitoring with the real Prometheus: it scrapes a running group, its
rules have values, alerts fire on what they should, and the dashboard asks for
nothing that is not there."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

from group import Group, ROOT, free_port

MONITORING = os.path.join(ROOT, "deploy", "monitoring")
NAME = re.compile(r"\b(?:vllm|moebius|moebius_group):[a-z0-9_:]+")


def promtool(*arguments):
    return subprocess.run(["promtool", *arguments], cwd=MONITORING, text=True,
                          capture_output=True, timeout=60, check=False)


class Prometheus:
    def __init__(self, target_port):
        self.dir = tempfile.mkdtemp(prefix="mp", dir="/tmp")
        for name in ("rules.yml", "alerts.yml"):
            shutil.copy(os.path.join(MONITORING, name), self.dir)
        with open(os.path.join(MONITORING, "prometheus.yml")) as template:
            text = template.read()
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{target_port}")
        text = text.replace("_interval: 5s", "_interval: 1s")
        path = os.path.join(self.dir, "prometheus.yml")
        with open(path, "w") as configuration:
            configuration.write(text)
        self.port = free_port()
        self.log = open(os.path.join(self.dir, "log"), "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={path}",
             f"--storage.tsdb.path={self.dir}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def query(self, expression):
        """The samples, or None while it does not answer."""
        url = (f"http://127.0.0.1:{self.port}/api/v1/query?"
               + urllib.parse.urlencode({"query": expression}))
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it starts
                return None
            raise AssertionError(f"{expression}: {error.read()}") from None
        except OSError:
            return None
        return body["data"]["result"]

    def wait(self, expression, holds, deadline_s=60):
        until = time.monotonic() + deadline_s
        while True:
            samples = self.query(expression)
            if samples is not None and holds(samples):
                return samples
            if time.monotonic() > until or self.process.poll() is not None:
                self.log.seek(0)
                raise AssertionError(f"{expression}: {samples}\n"
                                     + self.log.read()[-3000:])
            threading.Event().wait(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()
        shutil.rmtree(self.dir)


def dashboard():
    with open(os.path.join(MONITORING, "grafana_dashboard.json")) as page:
        return json.load(page)


def expressions(board):
    return [target["expr"].replace("$job", "moebius").replace("$instance", ".*")
            for panel in board["panels"] for target in panel.get("targets", [])]


class MonitoringTest(unittest.TestCase):
    def test_promtool_takes_the_configuration_and_the_alerts_fire(self):
        for arguments in (("check", "config", "prometheus.yml"),
                          ("test", "rules", "alerts_test.yml")):
            checked = promtool(*arguments)
            self.assertEqual(checked.returncode, 0,
                             checked.stdout + checked.stderr)

    def test_the_dashboard_is_whole(self):
        board = dashboard()
        ids = [panel["id"] for panel in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        for panel in board["panels"]:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
        self.assertGreater(len(expressions(board)), 20)

    def test_prometheus_has_what_the_group_did(self):
        with Group(["--workers", "2", "--layout", "ep"]) as group:
            prometheus = Prometheus(group.port)
            try:
                prometheus.wait('up{job="moebius"} == 1', bool)
                for layout in ("tp", "ep", "tp"):
                    self.assertTrue(group.switch(layout)["done"])
                    group.complete({"prompt": "And", "max_tokens": 40,
                                    "ignore_eos": True})
                done = 'sum(moebius:switches_total{outcome="done"})'
                prometheus.wait(done, lambda s: s and s[0]["value"][1] == "3")
                now = prometheus.query('moebius:layout == 1')
                self.assertEqual([s["metric"]["layout"] for s in now], ["tp"])
                prometheus.wait("moebius_group:inter_token_seconds:p99",
                                lambda s: s and float(s[0]["value"][1]) > 0)
                self.nothing_asked_for_is_missing(prometheus)
                self.assertEqual(prometheus.query(
                    'ALERTS{alertstate="firing"}'), [])
            finally:
                prometheus.stop()
            group.stop()

    def nothing_asked_for_is_missing(self, prometheus):
        asked = expressions(dashboard())
        for expression in asked:
            self.assertIsNotNone(prometheus.query(expression), expression)
        for name in ("rules.yml", "alerts.yml"):
            with open(os.path.join(MONITORING, name)) as page:
                asked.append(page.read())
        for name in sorted(set(NAME.findall("\n".join(asked)))):
            if not name.endswith(("p99", "p50")) and "ratio5m" not in name:
                prometheus.wait(f"{{__name__='{name}'}}", bool)


if __name__ == "__main__":
    unittest.main()
