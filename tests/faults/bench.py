"""What fault cases are made of: a group with faults enabled, a load whose
streams are compared with a quiet run, and waiting for what happens.

Nothing here sleeps: waits are for events of streams, for lines that the group
prints, and for the end of requests. Bounds turn a hang into a failure.
"""

import http.client
import itertools
import os
import random
import select
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "process"))

from group import Group, start_time  # noqa: E402
from resumed_stream import ResumedStream, RETRY_S  # noqa: E402

NUM_STREAMS = 8
TOKENS = 96
LONG_TOKENS = 1500  # of a prompt that takes many steps
WAIT_S = 60
SERVING_AGAIN_MS = 10_000  # invariant G
CLOSED_S = 10  # after which whatever is not needed is closed
# The launcher starts a worker only after a pause, and at last no more, when one
# process after another ends within 2 s (deploy/launcher/supervision.h).
EARLY_DEATH_S = 2.1


class Wrong(AssertionError):
    """An invariant does not hold."""


def check(condition, what):
    if not condition:
        raise Wrong(what)


def short_body(i):
    return {"prompt": [(i * 37 + k * 11) % 4000 for k in range(8 + i)],
            "max_tokens": TOKENS, "seed": i, "ignore_eos": True,
            "temperature": 0 if i % 2 else 1.0, "top_k": 50,
            "return_token_ids": True}


def long_body(i):
    return dict(short_body(i), max_tokens=8,
                prompt=[(i * 41 + k * 13) % 4000
                        for k in range(LONG_TOKENS + i)])


BODIES = {"short": short_body, "long": long_body}
# The tokens of quiet runs, the same in every layout and group: {(kind, i)}.
QUIET = {}


class Load:
    """Streams, each followed by another like it until told to stop (or once).
    Every one must be equal to the quiet one of its kind."""

    def __init__(self, group, kind="short", repeat=True, streams=NUM_STREAMS):
        self.group, self.kind, self.repeat = group, kind, repeat
        self.ending = threading.Event()
        self.failures = []
        self.finished = self.events = 0
        self.longest_gap_s = 0
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self._run, args=(i,))
                        for i in range(streams)]

    def one(self, i):
        """The tokens of one stream, to its end."""
        tokens, done = [], False
        last = time.monotonic()
        stream = self.group.stream(BODIES[self.kind](i))
        check(stream.status == 200, f"stream {i} was answered {stream.status}")
        for _, data in stream:
            now = time.monotonic()
            with self.changed:
                self.events += 1
                self.longest_gap_s = max(self.longest_gap_s, now - last)
                self.changed.notify_all()
            last = now
            if data == "[DONE]":
                done = True
            elif "choices" not in data:
                raise Wrong(f"stream {i}: {data}")
            elif data["choices"]:
                tokens += data["choices"][0].get("token_ids") or []
        stream.close()
        check(done, f"stream {i} broke off after {len(tokens)} tokens")
        return tokens

    def _run(self, i):
        try:
            while True:
                tokens, quiet = self.one(i), QUIET[self.kind, i]
                same = next((k for k, pair in enumerate(zip(tokens, quiet))
                             if pair[0] != pair[1]), len(tokens))
                check(tokens == quiet,
                      f"stream {i} has {len(tokens)} tokens of {len(quiet)}; "
                      f"from number {same} on they are not the quiet run's")
                with self.changed:
                    self.finished += 1
                    self.changed.notify_all()
                if not self.repeat or self.ending.is_set():
                    return
        except Exception as failure:  # raised by the case's thread
            with self.changed:
                self.failures.append(failure)
                self.changed.notify_all()

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def await_events(self, count):
        """Waits for as many more events of the streams."""
        with self.changed:
            until = self.events + count
            done = self.changed.wait_for(
                lambda: self.events >= until or self.failures
                or self.finished == len(self.threads) and not self.repeat,
                WAIT_S)
            if self.failures:
                raise self.failures[0]
            check(done, f"the streams stand still for {WAIT_S} s")

    def forget_gaps(self):
        with self.changed:
            self.longest_gap_s = 0

    def end(self):
        """Lets each stream come to its end; the longest stall in ms."""
        self.ending.set()
        deadline = time.monotonic() + 2 * WAIT_S
        for thread in self.threads:
            thread.join(max(0, deadline - time.monotonic()))
            check(not thread.is_alive(), "a stream does not end")
        if self.failures:
            raise self.failures[0]
        check(self.finished >= len(self.threads), "streams are missing")
        return 1000 * self.longest_gap_s


class KeyedLoad(Load):
    """The same by clients that come back: streams outlive their connections,
    and each event comes once."""

    # Of no two streams of one group, also where a case follows another.
    KEYS = itertools.count()

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.breaks = self.resumes = self.refusals = 0

    def _noted(self, gap_s):
        with self.changed:
            self.events += 1
            self.longest_gap_s = max(self.longest_gap_s, gap_s)
            self.changed.notify_all()

    def one(self, i):
        stream = ResumedStream(self.group, BODIES[self.kind](i),
                               f"load-{next(KeyedLoad.KEYS)}", self._noted)
        stream.last = time.monotonic()
        tokens = stream.run(WAIT_S)
        check(stream.ids == [str(n + 1) for n in range(len(tokens))],
              f"stream {i}: the events are numbered {stream.ids}")
        with self.changed:
            self.breaks += stream.breaks
            self.resumes += stream.resumes
            self.refusals += stream.refusals
        return tokens


def fill_quiet(group):
    """The quiet run of every kind of stream, once for all groups."""
    for kind in BODIES:
        for i in range(NUM_STREAMS):
            if (kind, i) not in QUIET:
                QUIET[kind, i] = Load(group, kind).one(i)


class Bench:
    """A group in which one case after another is tried."""

    def __init__(self, workers=2, settings=(), env=None):
        arguments = ["--workers", str(workers), "--layout", "ep",
                     "--set", "faults.enabled=true"]
        for setting in settings:
            arguments += ["--set", setting]
        self.workers = workers
        self.group = Group(arguments, env=env)
        self.started = [1] * (workers + 1)  # the coordinator's is the last
        self.born_at = 0  # the youngest of them, or later
        self.descriptors = None  # at first

    # ---- what happens ----------------------------------------------------

    def lines(self):
        with self.group.condition:
            return (len(self.group.out), len(self.group.err))

    def await_line(self, text, since, timeout_s=WAIT_S):
        """Waits for a line with `text` (or one of several) after `since`."""
        texts = [text] if isinstance(text, str) else text
        group = self.group
        deadline = time.monotonic() + timeout_s
        with group.condition:
            while True:
                for lines, begin in ((group.out, since[0]),
                                     (group.err, since[1])):
                    for line in lines[begin:]:
                        if line and any(one in line for one in texts):
                            return line
                left = deadline - time.monotonic()
                if left <= 0 or group.out and group.out[-1] is None:
                    raise Wrong(f"nobody said {text!r}" + group._said())
                group.condition.wait(left)

    def has_line(self, text, since):
        group = self.group
        with group.condition:
            return any(line and text in line
                       for lines, begin in ((group.out, since[0]),
                                            (group.err, since[1]))
                       for line in lines[begin:])

    def count_lines(self, text, since):
        """How many lines of the group's two outputs have `text`."""
        with self.group.condition:
            return [sum(text in (line or "") for line in lines[begin:])
                    for lines, begin in zip((self.group.out, self.group.err),
                                            since)]

    def status(self):
        return self.group.status()

    def worker(self, rank):
        return self.status()["workers"][rank]

    def settle(self):
        """Serves until no process is a young one any more, so that a case finds
        what it would find in a group that has run for long. At least once: what
        was lost of the first round is noticed by the first step."""
        while True:
            self.group.complete(dict(short_body(0), max_tokens=16))
            if time.monotonic() >= self.born_at + EARLY_DEATH_S:
                break
        if self.descriptors is None:
            self.descriptors = self.count_descriptors()

    def count_descriptors(self):
        """Of each process of the group, how many are open."""
        deadline = time.monotonic() + WAIT_S
        while True:
            status = self.status()
            pids = {"launcher": self.group.pid, "coordinator": status["pid"]}
            for worker in status["workers"]:
                pids[f"worker {worker['rank']}"] = worker["pid"]
            try:
                return {name: len(os.listdir(f"/proc/{pid}/fd"))
                        for name, pid in pids.items()}
            except FileNotFoundError:  # it dies in this moment
                check(time.monotonic() < deadline, f"no processes {pids}")

    def await_descriptors(self):
        """Waits until no process has more open than at first: connections of
        clients, and links that broke, are closed a little later."""
        deadline = time.monotonic() + CLOSED_S
        pause = threading.Event()
        while True:
            now = self.count_descriptors()
            more = {name: now[name] - count
                    for name, count in self.descriptors.items()
                    if now[name] > count}
            if not more:
                return
            check(time.monotonic() < deadline,
                  f"descriptors that nobody has closed: {more}")
            pause.wait(RETRY_S)

    def note_starts(self, status):
        started = [worker["incarnation"] for worker in status["workers"]]
        started.append(status["term"])
        if started != self.started:
            self.started, self.born_at = started, time.monotonic()

    def kill(self, rank, sig=signal.SIGKILL):
        os.kill(self.worker(rank)["pid"], sig)

    def coordinator(self):
        return Process(self.status()["pid"])

    def await_coordinator(self, term, ready=True):
        """Waits until that coordinator, or a later one, serves; its status.
        Nobody tells when it listens, so it is asked again and again."""
        deadline = time.monotonic() + WAIT_S
        pause = threading.Event()
        while time.monotonic() < deadline:
            try:
                status = self.status()
                if status["term"] >= term and (status["ready"] or not ready):
                    return status
            except (OSError, http.client.HTTPException):
                pass
            pause.wait(RETRY_S)
        raise Wrong(f"no coordinator of term {term} in {WAIT_S} s"
                    + self.group.said())

    def await_ready(self, why=None):
        """Waits until new requests are taken; or are not, for this reason."""
        deadline = time.monotonic() + WAIT_S
        pause = threading.Event()
        while time.monotonic() < deadline:
            answer = self.group.get("/ready")
            if why is None and answer.status == 200:
                return
            if (why is not None and answer.status == 503
                    and why in answer.json()["reason"]):
                return
            pause.wait(RETRY_S)
        raise Wrong(f"/ready: {answer.status} {answer.body!r}")

    def await_incarnation(self, rank, incarnation):
        """Waits until that incarnation has joined; a later one is as
        good."""
        self.await_line([f"worker {rank} has joined, incarnation {later},"
                         for later in range(incarnation, incarnation + 10)],
                        (0, 0))

    # ---- faults ----------------------------------------------------------

    def arm(self, *faults):
        answer = self.group.post("/admin/faults", {"arm": list(faults)},
                                 admin=True)
        check(answer.status == 200, f"arming {faults}: {answer.body!r}")

    def disarm(self):
        self.group.request("DELETE", "/admin/faults", admin=True)

    def fired(self):
        """{fault: how often} of all that are armed."""
        return {one["fault"]: one["fired"] for one in
                self.group.get("/admin/faults", admin=True).json()["armed"]}

    def await_fault(self, fault, since):
        """Waits until a fault has fired, which its process says first."""
        self.await_line(f"fault {fault}", since)
        check(self.fired().get(fault, 0) >= 1, f"{fault} has not fired")

    # ---- switches --------------------------------------------------------

    def ask(self, target):
        """Asks for a switch; wait() of what is returned gives the answer."""
        return Asked(self.group, target)

    def bring_to(self, layout):
        if self.status()["layout"] != layout:
            check(self.group.switch(layout)["done"], f"no switch to {layout}")

    # ---- the end of a case -----------------------------------------------

    def verify(self, before, layout=None, may_recompute=False):
        """What holds after every case: the status is consistent, no page is
        missing, nothing was preempted or thrown away, one more switch, which
        compares the weights and tables of all ranks, works, and no process has
        more descriptors than at first."""
        # The end of a stream is heard before the status tells it.
        for _ in range(100):
            status = self.status()
            if status["running"] == 0 and status["waiting"] == 0:
                break
        self.note_starts(status)
        check(status["ready"], f"not ready: {status['not_ready_reason']}")
        if layout is not None:
            check(status["layout"] == layout,
                  f"the layout is {status['layout']}, not {layout}")
        check(status["switch_state"] == "steady", status["switch_state"])
        check(status["running"] == 0 and status["waiting"] == 0,
              f"{status['running']} running, {status['waiting']} waiting")
        for worker in status["workers"]:
            rank = worker["rank"]
            check(worker["connected"], f"worker {rank} is not connected")
            check(worker["pages_free"] == worker["pages_total"],
                  f"pages of worker {rank} are missing: {worker}")
            check(start_time(worker["pid"]) is not None,
                  f"worker {rank} is not process {worker['pid']}")
        if not may_recompute:
            # A new coordinator counts anew.
            again = status["term"] == before["term"]
            for name in ("preemptions", "dropped_tokens"):
                check(status[name] == (before[name] if again else 0),
                      f"{name}: {status[name]}")
        other = "tp" if status["layout"] == "ep" else "ep"
        check(self.group.switch(other)["done"], f"no switch to {other}")
        self.await_descriptors()
        self.group.note_processes()
        return status

    def close(self):
        """Ends the group; nothing may be left."""
        self.group.__exit__(None, None, None)

    def kill_all(self):
        """After a failure."""
        self.group.kill()


def loaded_in(bench, layout, streams=Load):
    """(status, lines, load): in that layout, with streams under way."""
    bench.bring_to(layout)
    before, since = bench.status(), bench.lines()
    load = streams(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    return before, since, load


class Asked:
    """A switch that was asked for."""

    def __init__(self, group, target):
        self.target, self.answer, self.failure = target, None, None

        def ask():
            try:
                self.answer = group.post("/admin/layout", {"layout": target},
                                         admin=True)
            except Exception as failure:
                self.failure = failure

        self.thread = threading.Thread(target=ask)
        self.thread.start()

    def over(self):
        """Waits for an answer, or for the end of whoever was to give it."""
        self.thread.join(2 * WAIT_S)
        check(not self.thread.is_alive(), "the switch has no answer")

    def wait(self):
        """200: the switch is done; 409: it was refused."""
        self.over()
        if self.failure is not None:
            raise self.failure
        check(self.answer.status in (200, 409),
              f"switch: {self.answer.status} {self.answer.body!r}")
        return self.answer.status


class Trial:
    """One run of a case: a bench, and what the seed decides. `shift` makes
    cases begin with different ranks."""

    def __init__(self, bench, seed, shift=0):
        self.bench, self.seed = bench, seed
        self.random = random.Random(seed + shift)
        if bench is None:
            return
        self.rank = (seed + shift) % bench.workers
        self.peer = (self.rank + 1) % bench.workers

    def nth(self, most):
        """A number from 1 to `most`, another one for another seed."""
        return 1 + (self.seed // self.bench.workers) % most


class Process:
    """A process that cannot be mistaken for a later one of its number."""

    def __init__(self, pid):
        self.pid, self.fd = pid, os.pidfd_open(pid)

    def gone(self):
        return bool(select.select([self.fd], [], [], 0)[0])

    def signal(self, sig):
        signal.pidfd_send_signal(self.fd, sig)

    def check_gone(self):
        """It is dead and cannot be woken beside its successor."""
        check(self.gone(), "the predecessor still runs")
        try:
            self.signal(signal.SIGCONT)
            raise Wrong("the predecessor could be woken")
        except ProcessLookupError:
            pass

    def await_end(self):
        """Waits until it is dead, reaped or not."""
        check(select.select([self.fd], [], [], WAIT_S)[0],
              f"process {self.pid} does not end")

    def close(self):
        os.close(self.fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
