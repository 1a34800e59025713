"""A client that comes back: one streamed completion with an Idempotency-Key,
asked for again from behind the last event that came, as often as it breaks
off."""

import http.client
import json
import threading
import time

# Nobody tells when the next coordinator listens.
RETRY_S = 0.02
# Not ready; and what proxies say when nobody listens.
NOT_NOW = (502, 503, 504)


class ResumedStream:
    """Of POST /v1/completions with `return_token_ids`.

    on_event    called with the seconds since the last event (or the begin)
    """

    def __init__(self, group, body, key, on_event=None):
        self.group, self.key, self.on_event = group, key, on_event
        self.body = json.dumps({"model": "verse-moe", "stream": True, **body})
        self.last_id = None
        self.tokens = []
        self.ids = []  # of the events, without the answer's part
        self.breaks = self.refusals = 0
        self.resumes = 0  # breaks behind some event
        self.longest_gap_s = 0
        self.last = None

    def once(self, max_events=None):
        """True when it came to its end. Hangs up after `max_events`."""
        connection = http.client.HTTPConnection(
            self.group.host, self.group.port, timeout=60)
        try:
            headers = {"Content-Type": "application/json",
                       "Idempotency-Key": self.key}
            if self.last_id is not None:
                headers["Last-Event-ID"] = self.last_id
            connection.request("POST", "/v1/completions", self.body, headers)
            response = connection.getresponse()
            self.answered(response)
            if response.status in NOT_NOW:
                self.refusals += 1
                return False
            if response.status != 200:
                raise AssertionError(f"{response.status}: {response.read()}")
            return self._read(response, max_events)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def answered(self, response):
        """The head of an answer has come."""

    def _read(self, response, max_events):
        event_id, data = None, None
        for raw in response:
            line = raw.decode().rstrip("\r\n")
            if line.startswith("id:"):
                event_id = line[3:].strip()
            elif line.startswith("data:"):
                data = line[5:].strip()
            elif not line and data is not None:
                if data == "[DONE]":
                    return True
                self._take(event_id, json.loads(data))
                event_id, data = None, None
                if max_events is not None:
                    max_events -= 1
                    if max_events <= 0:
                        return False
        return False

    def _take(self, event_id, event):
        if "choices" not in event:
            raise AssertionError(f"{self.key}: {event}")
        now = time.monotonic()
        gap_s = 0 if self.last is None else now - self.last
        self.last = now
        self.longest_gap_s = max(self.longest_gap_s, gap_s)
        if event["choices"]:
            self.tokens += event["choices"][0].get("token_ids") or []
        if event_id is not None:
            answer, _, counts = event_id.partition(".")
            if self.last_id and self.last_id.partition(".")[0] != answer:
                raise AssertionError(
                    f"{self.key}: {event_id} behind {self.last_id} is of "
                    f"another answer")
            self.last_id = event_id
            self.ids.append(counts)
        if self.on_event is not None:
            self.on_event(gap_s)

    def run(self, deadline_s=60):
        """The tokens, once all are there."""
        until = time.monotonic() + deadline_s
        while not self.once():
            self.breaks += 1
            self.resumes += self.last_id is not None
            if time.monotonic() > until:
                raise AssertionError(
                    f"stream {self.key} does not come to an end: "
                    f"{len(self.tokens)} tokens")
            threading.Event().wait(RETRY_S)
        return self.tokens
