"""Clients that are slow, greedy or malicious. Each is answered with a definite
error or cut off; the server stays up, holds no more memory for it than it
should, and what another client's stream says does not change.

Nothing here sleeps: a client that sends slowly waits for an answer for a moment
before its next byte, and everything else waits for a socket.
"""

import json
import os
import re
import select
import socket
import threading
import time
import unittest

from group import Group

HEADER_TIMEOUT_S = 0.4
BODY_TIMEOUT_S = 0.6
MAX_CONNECTIONS = 60
MAX_BODY = 4 << 20
PATIENCE_S = 60

WITNESS = {"prompt": "And the LORD said unto Moses,", "max_tokens": 1000,
           "temperature": 0, "ignore_eos": True, "return_token_ids": True}


def tokens_of(stream):
    tokens = []
    for _, data in stream:
        if data != "[DONE]":
            tokens += data["choices"][0]["token_ids"]
    stream.close()
    return tokens


class Client:
    """A socket that sends what it is told, byte for byte."""

    def __init__(self, group, receive_bytes=0):
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF,
                                   receive_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect((group.host, group.port))
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """False if the server takes no more."""
        try:
            self.socket.sendall(data)
            return True
        except (ConnectionResetError, BrokenPipeError):
            return False

    def send_slowly(self, data, gap_s=0.02):
        """A byte, and another if nothing has come for a moment; True once
        something has, or the server has hung up."""
        for i in range(len(data)):
            if not self.send(data[i:i + 1]):
                return True
            if select.select([self.socket], [], [], gap_s)[0]:
                return True
        return False

    def read_to_end(self):
        """All that comes until the server hangs up."""
        try:
            while piece := self.socket.recv(1 << 16):
                self.received += piece
        except ConnectionResetError:
            pass
        return self.received

    def read_answer(self):
        """Status and body of one answer with a length; status 0 for none."""
        while b"\r\n\r\n" not in self.received:
            try:
                piece = self.socket.recv(1 << 16)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return 0, b""
            self.received += piece
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
        while len(self.received) < length:
            self.received += self.socket.recv(1 << 16)
        body, self.received = self.received[:length], self.received[length:]
        return int(head.split()[1]), body


def statuses_in(text):
    return [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", text)]


def post(path, body, headers=b""):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return (b"POST %s HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n%s\r\n" %
            (path.encode(), len(body), headers)) + body


class HostileFront(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.group = Group([
            "--layout", "ep",
            "--set", f"http.header_timeout_ms={int(HEADER_TIMEOUT_S * 1000)}",
            "--set", f"http.body_timeout_ms={int(BODY_TIMEOUT_S * 1000)}",
            "--set", "http.write_timeout_ms=1000",
            "--set", "http.stream_buffer_bytes=64KiB",
            "--set", f"http.max_connections={MAX_CONNECTIONS}"])
        cls.quiet = tokens_of(cls.group.stream(WITNESS))
        assert len(cls.quiet) == WITNESS["max_tokens"]

    @classmethod
    def tearDownClass(cls):
        with cls.group:
            cls.group.stop()

    def setUp(self):
        """Another client, whose streams are under way meanwhile."""
        self.over = False
        self.turned_away_allowed = False
        self.witnessed = []
        stream = self.group.stream(WITNESS)
        self.assertEqual(stream.status, 200)

        def read(stream):
            while True:
                if stream.status == 503 and self.turned_away_allowed:
                    stream.close()
                else:
                    self.witnessed.append(tokens_of(stream))
                if self.over:
                    return
                stream = self.group.stream(WITNESS)

        self.witness = threading.Thread(target=read, args=(stream,))
        self.witness.start()

    def tearDown(self):
        self.over = True
        self.witness.join(PATIENCE_S)
        self.assertFalse(self.witness.is_alive())
        self.assertGreaterEqual(len(self.witnessed), 1)
        for tokens in self.witnessed:
            self.assertEqual(tokens, self.quiet)
        self.assertEqual(self.group.get("/health").status, 200)
        answer = self.group.complete({"prompt": "In the", "max_tokens": 2})
        self.assertEqual(answer["usage"]["completion_tokens"], 2)
        self.group.note_processes()  # the same ones: nobody has died
        self.assertEqual(len(self.group.seen), 4)

    def memory(self, field="VmRSS"):
        """Of the coordinator, in bytes."""
        with open(f"/proc/{self.group.coordinator_pid()}/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) << 10
        raise AssertionError(field)

    def wait_connections(self, accept):
        """Waits until the number of the front's connections is acceptable."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            count = self.group.status()["http_connections"]
            if accept(count):
                return count
        raise AssertionError(f"{count} connections")


class SlowTest(HostileFront):
    def check_408(self, first, slow, at_least_s):
        with Client(self.group) as client:
            begin = time.monotonic()
            client.send(first)
            self.assertTrue(client.send_slowly(slow))
            status, body = client.read_answer()
            took = time.monotonic() - begin
            self.assertEqual(status, 408)
            self.assertIn(b"request_timeout", body)
            self.assertGreaterEqual(took, at_least_s * 0.9)
            self.assertLess(took, at_least_s + 20)
            self.assertEqual(client.read_to_end(), b"")

    def test_headers_byte_by_byte(self):
        self.check_408(b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
                            b"X: " + b"a" * 10000,
                       HEADER_TIMEOUT_S)

    def test_headers_that_do_not_end(self):
        self.check_408(b"GET /health HTTP/1.1\r\n"
                       b"Host: localhost\r\n", b"X-A: b\r\n" * 1000,
                       HEADER_TIMEOUT_S)

    def test_a_body_byte_by_byte(self):
        self.check_408(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                       b"Content-Length: "
                       b"100000\r\n\r\n", b"x" * 10000, BODY_TIMEOUT_S)

    def test_chunks_byte_by_byte(self):
        self.check_408(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                       b"Transfer-Encoding: "
                       b"chunked\r\n\r\n", b"1\r\nx\r\n" * 2000,
                       BODY_TIMEOUT_S)

    def test_many_of_them_hold_nobody_up(self):
        clients = [Client(self.group) for _ in range(MAX_CONNECTIONS // 2)]
        for i, client in enumerate(clients):
            client.send(b"GET /hea" if i % 2 else
                        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                        b"Content-Length: 9\r\n\r\n"
                        b"{")
        self.assertEqual(self.group.get("/ready").status, 200)
        for client in clients:
            self.assertEqual(client.read_answer()[0], 408)
            self.assertEqual(client.read_to_end(), b"")
            client.socket.close()

    def test_silence_is_not_kept_waiting_for(self):
        with Client(self.group) as client:
            self.assertEqual(client.read_to_end(), b"")


class GreedyTest(HostileFront):
    def test_readers_of_a_byte_at_a_time(self):
        """They ask for far more than sockets hold, and are cut off; what was
        for them is not kept."""
        # The first of them makes buffers that stay.
        self.slow_readers(4)
        before = self.memory()
        self.slow_readers(12)
        self.assertLess(self.memory("VmHWM") - before, 24 << 20)

    def slow_readers(self, count):
        clients = []
        for _ in range(count):
            client = Client(self.group, receive_bytes=2048)
            client.send(post("/v1/completions", {
                "model": "verse-moe", "prompt": "In the beginning",
                "max_tokens": 3000, "ignore_eos": True, "stream": True,
                "logprobs": 20, "return_token_ids": True}))
            clients.append(client)
        # A byte of each for each answer to somebody else, until the server has
        # had enough of all of them. (What the kernel holds for them takes long
        # to come through so small a window; to see the end one would have to
        # read it.)
        sockets = [client.socket for client in clients]
        deadline = time.monotonic() + PATIENCE_S
        while self.group.status()["http_connections"] > 2:
            self.assertLess(time.monotonic(), deadline)
            for one in select.select(sockets, [], [], 0)[0]:
                try:
                    one.recv(1)
                except ConnectionResetError:
                    sockets.remove(one)
        for client in clients:
            client.socket.close()

    def test_more_connections_than_there_may_be(self):
        self.turned_away_allowed = True
        # In the midst of a request: idle ones would make room.
        clients = []
        for _ in range(MAX_CONNECTIONS + 20):
            clients.append(Client(self.group))
            clients[-1].send(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                             b"Content-Length: 9\r\n\r\n")
        answered = [client.read_answer() for client in clients]
        statuses = [status for status, _ in answered]
        # All but those that somebody else has.
        self.assertLessEqual(statuses.count(408), MAX_CONNECTIONS)
        self.assertGreaterEqual(statuses.count(408), MAX_CONNECTIONS - 3)
        self.assertEqual(set(statuses) - {0}, {408, 503})
        for status, body in answered:
            if status == 503:
                self.assertIn(b"too_many_connections", body)
        for client in clients:
            client.socket.close()
        self.wait_connections(lambda count: count <= 2)

    def test_a_flood_of_pipelined_requests(self):
        # Nobody reads the answers: soon nobody reads the requests either.
        before = self.memory()
        request = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        sent = 0
        with Client(self.group, receive_bytes=4096) as client:
            client.socket.settimeout(0)
            while select.select([], [client.socket], [], 0.3)[1]:
                try:
                    sent += client.socket.send(request)
                except BlockingIOError:
                    continue
                except OSError:
                    break  # cut off
                self.assertLess(sent, 256 << 20, "somebody takes it all")
        self.assertLess(self.memory("VmHWM") - before, 24 << 20)

    def test_pipelined_requests_are_answered_in_order(self):
        with Client(self.group) as client:
            count = 500
            client.send(b"".join(
                post("/tokenize", {"model": "verse-moe", "prompt": "a" * i})
                for i in range(count)))
            last = -1
            for _ in range(count):
                status, body = client.read_answer()
                self.assertEqual(status, 200)
                tokens = json.loads(body)["count"]
                self.assertGreaterEqual(tokens, last)
                last = tokens

    def test_bodies_without_end(self):
        head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Transfer-Encoding: "
                b"chunked\r\n\r\n")
        for begin, piece, status in (
                (b"", b"10000\r\n" + b"x" * 0x10000 + b"\r\n", 413),
                (b"1;", b"x" * 0x10000, 431),
                (b"0\r\nX: ", b"x" * 0x10000, 431),
                (b"", b"1;" + b"x" * 0x8000 + b"\r\nx\r\n", 431)):
            with Client(self.group) as client:
                client.send(head + begin)
                for _ in range(200):  # 12 MiB
                    if not client.send(piece):
                        break
                self.assertEqual(client.read_answer()[0], status, begin)


class BombTest(HostileFront):
    def answer(self, path, body):
        with Client(self.group) as client:
            client.send(post(path, body))
            return client.read_answer()

    def test_bodies(self):
        completions, chat = "/v1/completions", "/v1/chat/completions"
        begin = '{"model":"verse-moe","prompt":"a","max_tokens":2,'

        def fields(text):
            return (begin + text + "}").encode()

        def fill(text):
            """As large as a body may be."""
            return text * ((MAX_BODY - 1000) // len(text))

        stops = [chr(97 + i) * 256 for i in range(16)]
        bias = {str(i): 1 for i in range(300)}
        cases = {
            "nested arrays": (completions, b"[" * 100000, {400}),
            "nested objects": (completions, b'{"a":' * 100000, {400}),
            "nested in a field": (
                completions, fields('"x":' + "[" * 100000 + "]" * 100000),
                {400}),
            "as many arrays as fit": (
                completions, fields('"x":[' + fill("[],") + "[]]"), {200}),
            "a million keys": (
                completions, ("{" + ",".join(f'"k{i}":0' for i in range(
                    300000)) + "}").encode(), {400}),
            "an infinite number": (completions, fields('"temperature":1e999'),
                                   {400}),
            "a long number": (completions, fields('"top_k":' + "9" * 100000),
                              {400}),
            "a long fraction": (
                completions, fields('"temperature":0.' + "1" * 1000000),
                {200, 400}),
            "a huge exponent": (
                completions, fields('"temperature":1e-' + "9" * 100000),
                {200, 400}),
            "a seed of 65 bits": (
                completions, fields('"seed":36893488147419103232'), {400}),
            "a long prompt": (completions, fields(
                '"echo":false').replace(b'"a"', b'"' + b"word " * 800000 +
                                        b'"'), {400}),
            "a prompt of one letter": (
                completions, fields('"echo":false').replace(
                    b'"a"', b'"' + b"a" * 4000000 + b'"'), {400}),
            "a long message": (chat, {"messages": [
                {"role": "user", "content": "x" * 4000000}]}, {400}),
            "a body beyond the bound": (completions, b" " * (MAX_BODY + 1),
                                        {413}),
            "eight choices, sixteen stops": (completions, fields(
                f'"n":8,"stop":{json.dumps(stops)}'), {200}),
            "129 choices": (completions, fields('"n":129'), {400}),
            "seventeen stops": (completions, fields(
                f'"stop":{json.dumps(stops + ["x"])}'), {400}),
            "a long stop": (completions, fields(f'"stop":"{"x" * 257}"'),
                            {400}),
            "no stop": (completions, fields('"stop":""'), {400}),
            "biases": (completions, fields(f'"logit_bias":{json.dumps(bias)}'),
                       {200}),
            "too many biases": (completions, fields(
                f'"logit_bias":{json.dumps({str(i): 1 for i in range(4000)})}'),
                {400}),
            "a bias of two names": (completions, fields(
                '"logit_bias":{"7":1,"07":2}'), {400}),
            "a bias that is none": (completions, fields(
                '"logit_bias":{"../7":1}'), {400}),
            "a key twice": (completions, fields('"n":1,"n":2'), {400}),
            "no UTF-8": (completions, b'{"prompt":"\xff\xfe"}', {400}),
            "half a surrogate": (completions, b'{"prompt":"\\ud800"}', {400}),
            "a NUL": (completions, b'{"model":"verse-moe","prompt":"a\\u0000b",'
                      b'"max_tokens":1}', {200}),
            "more prompts than may wait": (completions, fields('"n":8').replace(
                b'"a"', json.dumps(["a"] * 256).encode()), {400}),
            "another model": (completions, {"model": "../../../etc/passwd",
                                            "prompt": "a"}, {404}),
            "a long model": (completions, {"model": "m" * 1000000,
                                           "prompt": "a"}, {404}),
            "a long user": (completions, fields(f'"user":"{"u" * 2000}"'),
                            {400}),
            "many messages": (chat, {"messages": [
                {"role": "user", "content": "a"}] * 5000}, {400}),
            "many tools": (chat, {"messages": [
                {"role": "user", "content": "a"}], "tools": [{}] * 513},
                {400}),
            "deep template arguments": (
                chat, b'{"messages":[{"role":"user","content":"a"}],'
                b'"max_tokens":1,"chat_template_kwargs":' +
                b'{"a":' * 60 + b"1" + b"}" * 60 + b"}", {200}),
            "template arguments with names of the template's": (
                chat, {"messages": [{"role": "user", "content": "a"}],
                       "max_tokens": 1, "chat_template_kwargs": {
                           "messages": "x", "self": 1, "__class__": 2,
                           "namespace": 3, "range": 4}}, {200, 400}),
            "all tokens there are": ("/detokenize", {
                "tokens": [4000] * 600000}, {400}),
            "an empty body": (completions, b"", {400}),
            "no JSON": (completions, b"\x00\x01\x02" * 1000, {400}),
        }
        for name, (path, body, allowed) in cases.items():
            with self.subTest(name):
                status, text = self.answer(path, body)
                self.assertIn(status, allowed, text[:300])
                if status != 200:
                    self.assertEqual(set(json.loads(text)["error"]),
                                     {"message", "type", "param", "code"})
                self.assertLess(len(text), 1 << 20)

    def test_bombs_beside_one_another(self):
        bodies = [b"[" * 100000, b'{"prompt":"' + b"word " * 500000 + b'"}',
                  b'{"prompt":[' + b"1," * 1500000 + b"1]}"]
        clients = [Client(self.group) for _ in range(12)]
        for i, client in enumerate(clients):
            client.send(post("/v1/completions", bodies[i % len(bodies)]))
        for client in clients:
            self.assertIn(client.read_answer()[0], (400, 429))
            client.socket.close()


class SmugglingTest(HostileFront):
    HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def test_shapes(self):
        """One answer, an error, and no more: what is hidden is not served."""
        chunked = b"Transfer-Encoding: chunked\r\n"
        heads = {
            "a length and a coding": b"Content-Length: 4\r\n" + chunked,
            "a coding and a length": chunked + b"Content-Length: 4\r\n",
            "two lengths": b"Content-Length: 4\r\nContent-Length: 40\r\n",
            "a list of lengths": b"Content-Length: 4, 40\r\n",
            "a signed length": b"Content-Length: +4\r\n",
            "a length in hex": b"Content-Length: 0x4\r\n",
            "a length with a tail": b"Content-Length: 4x\r\n",
            "a negative length": b"Content-Length: -1\r\n",
            "a length beyond 64 bits":
                b"Content-Length: 18446744073709551620\r\n",
            "a space before the colon": b"Content-Length : 4\r\n",
            "another coding": b"Transfer-Encoding: gzip\r\n",
            "a coding like chunked": b"Transfer-Encoding: xchunked\r\n",
            "chunked and more": b"Transfer-Encoding: chunked, identity\r\n",
            "chunked twice": chunked + chunked,
            "a coding in quotes": b'Transfer-Encoding: "chunked"\r\n',
            "a coding behind a tab": b"Transfer-Encoding:\x0bchunked\r\n",
            "a coding on a folded line":
                b"Transfer-Encoding:\r\n gzip\r\n",
            "a NUL in a value": b"X: a\0b\r\n",
            "a NUL in a name": b"X\0: ab\r\n",
            "a carriage return in a value": b"X: a\rb\r\n",
            "a line feed alone": b"X: a\nContent-Length: 40\r\n",
            "two hosts": b"Host: localhost\r\n",
            "no name": b": x\r\n",
            "no colon": b"nonsense\r\n",
            "a space in a name": b"X Y: z\r\n",
        }
        for name, head in heads.items():
            with self.subTest(name):
                self.check(b"POST /v1/completions HTTP/1.1\r\n"
                           b"Host: localhost\r\n" +
                           head + b"\r\n" + self.HIDDEN)

    def test_chunks(self):
        head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n")
        for chunk in (b"zz\r\n", b"-1\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n",
                      b" 1\r\nx\r\n", b"1\nx\n", b"1\r\nxx\r\n",
                      b"1\rx\r\n", b"fffffffffffffffff\r\n",
                      b"1\r\nx0\r\n\r\n", b"\r\n", b";x\r\n",
                      b"1 ;\0\r\nx\r\n"):
            with self.subTest(chunk):
                self.check(head + chunk + self.HIDDEN)
        self.check(b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: "
                   b"chunked\r\n\r\n0\r\n\r\n" + self.HIDDEN)

    def test_lines(self):
        for line in (b"GET /v1/models", b"GET  /v1/models HTTP/1.1",
                     b"GET /v1/\0models HTTP/1.1", b"GET /v1/models HTTP/1.2",
                     b"GET /v1/models HTTP/2.0", b"GET /v1/models FTP/1.1",
                     b"G\rET /v1/models HTTP/1.1", b" GET / HTTP/1.1",
                     b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                     b"\xff\xfe\xfd" * 100):
            with self.subTest(line):
                self.check(line + b"\r\n\r\n" + self.HIDDEN)

    def check(self, text):
        with Client(self.group) as client:
            client.send(text)
            statuses = statuses_in(client.read_to_end())
            self.assertEqual(len(statuses), 1, client.received)
            self.assertIn(statuses[0], (400, 431, 505), client.received)


class WordsTest(HostileFront):
    """A client's words are no paths, labels or lines of ours."""

    MARK = "X7forged7X"

    def test_unknown_paths_and_methods_are_no_labels(self):
        for path in (f"/{self.MARK}", f"/v1/models/{self.MARK}",
                     f"/v1/models/..%2f..%2f{self.MARK}",
                     f"/v1/completions/{self.MARK}", f"/health?{self.MARK}",
                     f"//{self.MARK}", f"http://{self.MARK}/{self.MARK}",
                     "/%2e%2e/%2e%2e/etc/passwd", "/../../etc/passwd"):
            for method in ("GET", "POST", "DELETE", self.MARK):
                answer = self.group.request(method, path, "{}" if method ==
                                            "POST" else None)
                self.assertIn(answer.status, (200, 403, 404, 405), path)
                self.assertNotIn(b"root:", answer.body)
        for body in ({"model": self.MARK, "prompt": "a"},
                     {"model": "verse-moe", "prompt": "a", "max_tokens": 1,
                      "user": self.MARK, "stop": [self.MARK]}):
            named = {"X-Request-Id": self.MARK, "User-Agent": self.MARK}
            foreign = {**named, "Host": self.MARK, "Origin": self.MARK}
            for headers in (named, foreign):
                self.group.request("POST", "/v1/completions", body,
                                   headers=headers)
        metrics = self.group.get("/metrics", admin=True).body.decode()
        self.assertNotIn(self.MARK, metrics)
        self.assertEqual(
            set(re.findall(r'route="([^"]*)"', metrics)) -
            {"other", "/health", "/ready", "/version", "/status", "/metrics",
             "/v1/models", "/v1/completions", "/v1/chat/completions",
             "/tokenize", "/detokenize"}, set())
        self.assertNotIn(self.MARK, json.dumps(self.group.status()))

    def test_answers_quote_them_as_json_and_in_no_header(self):
        odd = 'a"\\\x1b[2J\r\nSet-Cookie: b\u2028\x00'
        for path, body in (("/v1/completions", {"model": odd, "prompt": "a"}),
                           ("/v1/completions", {"model": "verse-moe",
                                                "prompt": "a", odd: 1,
                                                "stop": {odd: 1}})):
            answer = self.group.post(path, body)
            self.assertNotIn("set-cookie", answer.headers)
            self.assertEqual(answer.headers["content-type"],
                             "application/json")
            self.assertNotRegex(answer.body, rb"[\x00-\x1f\x7f]")
            answer.json()
        with Client(self.group) as client:
            client.send(b"GET /%0d%0aSet-Cookie:%20b%1b[2J%00 HTTP/1.1\r\n"
                        b"Host: localhost\r\n"
                        b"Connection: close\r\n\r\n")
            text = client.read_to_end()
            head, _, body = text.partition(b"\r\n\r\n")
            self.assertEqual(statuses_in(text), [404])
            self.assertNotIn(b"Set-Cookie", head)
            self.assertNotRegex(body, rb"[\x00-\x1f\x7f]")

    def test_lines_that_we_log_hold_no_control_characters(self):
        for path in ("/%0a[coordinator]%20E%20forged", "/%1b]0;forged%07"):
            self.group.get(path)
        self.group.post("/v1/completions", {"model": "\n[worker 0] E forged",
                                            "prompt": "\x1b[2J"})
        with self.group.condition:
            lines = [line for line in self.group.out + self.group.err if line]
        for line in lines:
            self.assertNotRegex(line, r"[\x00-\x1f\x7f]")
            self.assertFalse(line.startswith("[coordinator] E forged"), line)
            self.assertFalse(line.startswith("[worker 0] E forged"), line)


if __name__ == "__main__":
    unittest.main()
