"""What load balancers ask a running group: HAProxy's agent-check and httpchk,
probes of ranks, the load in a header, and how the log says what they did."""

import json
import re
import signal
import os
import socket
import unittest

from group import Group, Stream, free_port


def agent_says(port, sends=b""):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as agent:
        if sends:
            agent.sendall(sends)
        text = b""
        while piece := agent.recv(256):
            text += piece
        return text.decode()


def raw(port, text):
    """The status line and the rest of what an HTTP/1.0 check is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(text.encode())
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split(" ")[1]), head, body


class BalancersTest(unittest.TestCase):
    def test_the_agent_says_weight_and_drain(self):
        port = free_port()
        with Group(["--workers", "1", "--agent-port", str(port),
                    "--max-running", "4"]) as group:
            self.assertEqual(agent_says(port), "up ready 100%\n")
            self.assertEqual(agent_says(port, b"backend1\n"),
                             "up ready 100%\n")
            streams = [group.stream({"prompt": "a", "max_tokens": 4000,
                                     "ignore_eos": True}) for _ in range(2)]
            for stream in streams:
                next(iter(stream))
            weight = int(re.fullmatch(r"up ready (\d+)%\n",
                                      agent_says(port)).group(1))
            self.assertLessEqual(weight, 50)
            self.assertGreater(weight, 0)
            group.post("/admin/drain", {"wait": False}, admin=True)
            self.assertEqual(agent_says(port), "drain\n")
            for stream in streams:
                stream.close()
            # Many at once, some of which say nothing and stay.
            open_ones = [socket.create_connection(("127.0.0.1", port))
                         for _ in range(80)]
            for one in open_ones:
                one.close()
            self.assertEqual(agent_says(port), "drain\n")
            group.stop()

    def test_checks_are_answered_as_balancers_send_them(self):
        with Group(["--workers", "2", "--set",
                    "http.not_ready_status=404"]) as group:
            for port in (group.port, group.admin_port):
                for check in ("OPTIONS / HTTP/1.0\r\n\r\n",
                              "OPTIONS /ready HTTP/1.0\r\n\r\n",
                              "HEAD /ready HTTP/1.0\r\n\r\n",
                              "HEAD /ranks/1/health HTTP/1.0\r\n\r\n",
                              "OPTIONS /health HTTP/1.0\r\n\r\n"):
                    status, head, body = raw(port, check)
                    self.assertEqual((status, body), (200, ""), check)
                status, head, _ = raw(port, "OPTIONS / HTTP/1.0\r\n\r\n")
                self.assertIn("Allow: GET, HEAD, OPTIONS", head)
            self.assertEqual(
                raw(group.port, "GET / HTTP/1.0\r\n\r\n")[0], 404)
            for rank in (0, 1):
                answer = group.get(f"/ranks/{rank}/health")
                self.assertEqual((answer.status, answer.json()["alive"]),
                                 (200, True))
            for path in ("/ranks/2/health", "/ranks/x/health",
                         "/ranks//health", "/ranks/0/health/x"):
                self.assertEqual(group.get(path).status, 404, path)
            group.post("/admin/drain", {}, admin=True)
            self.assertEqual(
                raw(group.port, "OPTIONS / HTTP/1.0\r\n\r\n")[0], 404)
            self.assertEqual(group.get("/ready", admin=True).status, 404)
            self.assertEqual(group.get("/health").status, 200)
            group.stop()

    def test_the_load_comes_with_an_answer_that_asks_for_it(self):
        with Group(["--workers", "1"]) as group:
            body = {"model": "verse-moe", "prompt": "a", "max_tokens": 2}
            asked = "endpoint-load-metrics-format"
            text = group.request("POST", "/v1/completions", body,
                                 headers={asked: "TEXT"})
            self.assertTrue(text.headers["endpoint-load-metrics"].startswith(
                "TEXT named_metrics.kv_cache_usage_perc=0."))
            parsed = group.request("POST", "/v1/completions", body,
                                   headers={asked: "JSON"})
            value = parsed.headers["endpoint-load-metrics"]
            self.assertIn("num_requests_waiting", json.loads(
                value.removeprefix("JSON "))["named_metrics"])
            for headers in ({}, {asked: "BIN"}):
                plain = group.request("POST", "/v1/completions", body,
                                      headers=headers)
                self.assertEqual(plain.status, 200)
                self.assertNotIn("endpoint-load-metrics", plain.headers)
            group.stop()

    def test_the_log_is_json_where_that_is_asked_for(self):
        with Group(["--workers", "1", "--log-format", "json", "--log-level",
                    "debug", "--set", "log.requests=true"]) as group:
            named = {"X-Request-Id": "req-7"}
            group.request("POST", "/v1/completions",
                          {"model": "verse-moe", "prompt": "a",
                           "max_tokens": 2, "ignore_eos": True},
                          headers=named)
            group.request("POST", "/v1/completions",
                          {"model": "verse-moe", "prompt": 'SECRET"\n',
                           "max_tokens": -1}, headers={"X-Request-Id": "bad"})
            stream = Stream(group.host, group.port, "/v1/completions",
                            {"model": "verse-moe", "prompt": "a",
                             "max_tokens": 4000, "ignore_eos": True,
                             "stream": True}, 60, {"X-Request-Id": "left"})
            next(iter(stream))
            stream.close()
            group.wait_line(", cut off,", group.err)
            os.kill(group.pid, signal.SIGTERM)
            group.process.wait(60)
            for reader in group.readers:
                reader.join()
            lines = [json.loads(line) for line in group.err if line]
        for line in lines:
            self.assertRegex(line["time"],
                             r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertNotIn("SECRET", line["message"])
        self.assertLessEqual({"coordinator", "worker 0"},
                             {line["process"] for line in lines})
        done = [line for line in lines if line.get("request") == "req-7"
                and line["level"] == "info"]
        self.assertEqual(len(done), 1)
        self.assertRegex(done[0]["message"],
                         r"^http: POST /v1/completions 200 in [\d.]+ ms, "
                         r"\d+ bytes, 1 \+ 2 tokens, accepted in ep, first "
                         r"token after [\d.]+ ms, request req-7$")
        left = [line["message"] for line in lines
                if line.get("request") == "left" and line["level"] == "info"]
        self.assertRegex(left[0], r"^http: POST /v1/completions 200, cut off,")
        why = [line for line in lines if line.get("request") == "bad"
               and line["level"] == "debug"]
        self.assertIn("max_tokens", why[0]["message"])


if __name__ == "__main__":
    unittest.main()
