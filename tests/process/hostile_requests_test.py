"""Requests that are malicious: bombs, smuggled ones, and words that want to be
something else. Each is answered with a definite error; the server stays up,
holds no more memory for it than it should, and what another client's stream
says does not change."""

import json
import re
import socket
import unittest

from hostile_front import Client, HostileFront, MAX_BODY, post, statuses_in


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
