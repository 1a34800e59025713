"""Clients that drop, come back, read slowly or are hostile; and drains."""

import io
import json
import os
import signal
import socket
import threading
import unittest

from bench import BODIES, KeyedLoad, Load, NUM_STREAMS, WAIT_S, check
from case import ALL, Case
from resumed_stream import ResumedStream

# ---- clients ---------------------------------------------------------------


def clients_drop(trial, times=100):
    """In mid-stream, one after another, beside streams that go on."""
    bench = trial.bench
    before = bench.status()
    load = Load(bench.group).start()
    for i in range(times):
        stream = bench.group.stream(dict(BODIES["short"](i % NUM_STREAMS),
                                         max_tokens=1000))
        events = iter(stream)
        for _ in range(1 + trial.random.randrange(3)):
            next(events)
        stream.close()
    stall_ms = load.end()
    # An abort comes before any later request.
    for _ in range(100):
        if bench.status()["running"] == 0:
            break
        bench.group.complete(dict(BODIES["short"](0), max_tokens=1))
    after = bench.verify(before, layout=before["layout"])
    check(after["requests"]["aborted"]
          == before["requests"]["aborted"] + times, f"{after['requests']}")
    return stall_ms


def client_comes_back(trial, times=100):
    """One client drops its stream and resumes it by index, again and again."""
    bench = trial.bench
    body = dict(BODIES["short"](trial.seed % NUM_STREAMS), max_tokens=400)
    quiet = ResumedStream(bench.group, body,
                          f"quiet-{next(KeyedLoad.KEYS)}").run()
    before = bench.status()
    load = Load(bench.group).start()
    stream = ResumedStream(bench.group, body, f"back-{next(KeyedLoad.KEYS)}")
    for i in range(times):
        check(not stream.once(max_events=1 + trial.random.randrange(3)),
              f"it ends after {i} breaks")
    check(stream.run() == quiet, "not the tokens of the quiet run")
    check(stream.ids == [str(n + 1) for n in range(len(quiet))],
          f"the events are numbered {stream.ids}")
    stall_ms = load.end()
    after = bench.verify(before, layout=before["layout"])
    check(after["requests"]["aborted"] == before["requests"]["aborted"],
          "something was aborted")
    return stall_ms


def clients_share_a_key(trial, clients=8):
    """The same request with the same key, by all at once: one generation, of
    which each gets each token once. Every second one drops and comes back."""
    bench = trial.bench
    which = trial.seed % NUM_STREAMS
    quiet = ResumedStream(bench.group, BODIES["short"](which),
                          f"quiet-{next(KeyedLoad.KEYS)}").run()
    before = bench.status()
    key = f"shared-{next(KeyedLoad.KEYS)}"
    streams = [ResumedStream(bench.group, BODIES["short"](which), key)
               for _ in range(clients)]
    together, failures = threading.Barrier(clients), []

    def read(i):
        try:
            together.wait(WAIT_S)
            if i % 2:
                streams[i].once(max_events=5 + i)
            streams[i].run()
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=read, args=(i,))
               for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
        check(not thread.is_alive(), "a stream does not end")
    if failures:
        raise failures[0]
    for i, stream in enumerate(streams):
        check(stream.tokens == quiet, f"client {i} has other tokens")
        check(stream.ids == [str(n + 1) for n in range(len(quiet))],
              f"client {i}: the events are numbered {stream.ids}")
    total = bench.status()["requests"]["total"] - before["requests"]["total"]
    check(total == 1, f"{total} requests for one key")
    bench.verify(before, layout=before["layout"])
    return 1000 * max(stream.longest_gap_s for stream in streams)


def coordinator_memory(bench):
    """The most that it has had, in bytes."""
    with open(f"/proc/{bench.group.coordinator_pid()}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status
                    if line.startswith("VmHWM:"))


def client_reads_slowly(trial, num_bytes=5):
    """A byte a second: nobody else waits for it, and what is for it is not
    kept without bound."""
    bench = trial.bench
    before = bench.status()
    body = dict(BODIES["short"](0), model="verse-moe", stream=True,
                max_tokens=2000, logprobs=5)
    text = json.dumps(body)
    slow_one = socket.socket()
    slow_one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow_one.connect((bench.group.host, bench.group.port))
    stop, taken = threading.Event(), []

    def read():
        slow_one.sendall(
            (f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
             f"Content-Type: application/json\r\n"
             f"Content-Length: {len(text)}\r\n\r\n{text}").encode())
        while not stop.wait(1) and slow_one.recv(1):
            taken.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        load = Load(bench.group).start()
        load.await_events(NUM_STREAMS)
        load.forget_gaps()
        memory = coordinator_memory(bench)
        while len(taken) < num_bytes and reader.is_alive():
            load.await_events(10 * NUM_STREAMS)
        grown = coordinator_memory(bench) - memory
        check(grown < 32 << 20, f"{grown >> 20} MiB more for one client")
        stall_ms = load.end()
        check(stall_ms < 1000, f"others waited {stall_ms:.0f} ms")
    finally:
        stop.set()
        reader.join()
        slow_one.close()
    for _ in range(3000):
        if bench.status()["running"] == 0:
            break
        bench.group.complete(dict(BODIES["short"](0), max_tokens=1))
    bench.verify(before, layout=before["layout"])
    return stall_ms


def drained_under_load(trial, kill=False, everybody=False):
    """SIGTERM, to the launcher or to everybody in whatever order: every stream
    finishes, also where a worker dies meanwhile."""
    bench = trial.bench
    load = Load(bench.group, repeat=False).start()
    load.await_events((1 + trial.seed % 5) * NUM_STREAMS)
    load.forget_gaps()
    pid = bench.worker(trial.rank)["pid"]
    since = bench.lines()
    if everybody:
        bench.group.note_processes()
        pids = sorted(bench.group.seen)
        trial.random.shuffle(pids)
        for each in pids:
            os.kill(each, signal.SIGTERM)
    else:
        bench.group.terminate()
    bench.await_line("draining", since)
    if kill:
        os.kill(pid, signal.SIGKILL)
    stall_ms = load.end()
    code = bench.group.wait_end()
    check(code == 0, f"exit code {code}" + bench.group.said())
    return stall_ms


# ---- the rows ---------------------------------------------------------------


def fronts():
    yield Case("clients drop", ALL, clients_drop)
    yield Case("a client comes back 100 times", ALL, client_comes_back)
    yield Case("eight clients with one key", ALL, clients_share_a_key)
    yield Case("a client reads slowly", ALL, client_reads_slowly)
    yield Case("drained under load", ALL, drained_under_load, own_group=True)
    yield Case("killed in a drain", ALL, drained_under_load, own_group=True,
               kill=True)
    yield Case("everybody told to end", ALL, drained_under_load,
               own_group=True, everybody=True)


def passes(_, module, test):
    """A process test, with a group of its own and another client's streams
    beside it, which must not change."""
    tests = unittest.defaultTestLoader.loadTestsFromName(f"{module}.{test}")
    said = io.StringIO()
    result = unittest.TextTestRunner(stream=said).run(tests)
    check(result.wasSuccessful() and result.testsRun > 0, said.getvalue())


def process_tests():
    """What tests/process tries thoroughly; each a run of its own."""
    for name, module, test in (
            ("slow headers and bodies", "hostile_front_test", "SlowTest"),
            ("greedy readers and floods", "hostile_front_test", "GreedyTest"),
            ("bombs in parameters", "hostile_requests_test", "BombTest"),
            ("smuggled requests", "hostile_requests_test", "SmugglingTest"),
            ("words of clients", "hostile_requests_test", "WordsTest"),
            ("strangers and bombs at the sockets", "hostile_peer_test",
             "HostilePeerTest")):
        yield Case(f"hostile: {name}", "BHJO", passes, no_group=True,
                   module=module, test=test)
