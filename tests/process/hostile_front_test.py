"""Clients that are slow or greedy. Each is answered with a definite error or cut
off; the server stays up, holds no more memory for it than it should, and what
another client's stream says does not change.

Nothing here sleeps: a client that sends slowly waits for an answer for a moment
before its next byte, and everything else waits for a socket.
"""

import json
import select
import socket
import time
import unittest

from hostile_front import (BODY_TIMEOUT_S, Client, HEADER_TIMEOUT_S,
                           HostileFront, MAX_CONNECTIONS, PATIENCE_S, post)


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


if __name__ == "__main__":
    unittest.main()
