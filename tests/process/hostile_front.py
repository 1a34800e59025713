"""What the tests of hostile clients share: sockets that send what they are told,
and a group beside which another client's streams must say what they always
say."""

import json
import re
import select
import socket
import threading
import time
import unittest

from group import Group, tokens_of

HEADER_TIMEOUT_S = 0.4
BODY_TIMEOUT_S = 0.6
MAX_CONNECTIONS = 60
MAX_BODY = 4 << 20
PATIENCE_S = 60

WITNESS = {"prompt": "And the LORD said unto Moses,", "max_tokens": 1000,
           "temperature": 0, "ignore_eos": True, "return_token_ids": True}


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
