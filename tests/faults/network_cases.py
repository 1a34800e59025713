"""Cases of the fault matrix in which the network between the coordinator and
its workers breaks: they talk over TCP, from one network namespace to another.

How long streams stand still is counted from when the network heals.
"""

import threading
import time

from bench import Load, NUM_STREAMS, check
from case import ALL, Case, IMPATIENT
from network import NetworkBench

# A link is given up after this (kLinkTimeoutMs in common/channel/channel.h).
LINK_TIMEOUT_S = 3


def pass_time(seconds):
    """That is what is tried."""
    threading.Event().wait(seconds)


def heal(bench, load, ranks, way):
    """Heals the links; how long it takes until every stream has gone on."""
    for rank in ranks:
        bench.net.heal(rank, way)
    begin = time.monotonic()
    load.forget_gaps()
    load.await_events(2 * NUM_STREAMS)
    return 1000 * (time.monotonic() - begin)


def incarnations_of(status):
    return [worker["incarnation"] for worker in status["workers"]]


def partitioned(trial, way, seconds, everyone=False, to=None):
    """For a while nothing gets through, in both directions or in one. Beyond
    the link's timeout a worker counts as dead and is replaced; its successor
    waits for the network. to: in a switch to that layout."""
    bench = trial.bench
    if to is not None:
        bench.bring_to("tp" if to == "ep" else "ep")
    ranks = range(bench.workers) if everyone else (trial.rank,)
    before, since = bench.status(), bench.lines()
    load = Load(bench.group).start()
    load.await_events(3 * NUM_STREAMS)
    asked = None
    if to is not None:
        # Between two layers, when it is decided and not done.
        fault = f"worker.pull@{trial.rank}=sleep:500"
        bench.arm(fault)
        asked = bench.ask(to)
        bench.await_fault(fault, since)
    for rank in ranks:
        bench.net.cut(rank, way)
    pass_time(seconds)
    restarts = sum(bench.count_lines("a successor takes over", since))
    stall_ms = heal(bench, load, ranks, way)
    if asked is not None:
        check(asked.wait() == 200, "a committed switch was refused")
        bench.disarm()
    load.end()
    after = bench.verify(before, layout=to or before["layout"])
    if seconds > 2 * LINK_TIMEOUT_S:
        for rank in ranks:
            check(incarnations_of(after)[rank] > incarnations_of(before)[rank],
                  f"worker {rank} was not replaced")
    # A successor that reaches nobody waits; it does not die.
    check(restarts <= 2 * len(ranks), f"{restarts} restarts")
    return stall_ms


def flapping(trial, times=20):
    """Down and up again, again and again."""
    bench, rank = trial.bench, trial.rank
    before = bench.status()
    load = Load(bench.group).start()
    load.await_events(NUM_STREAMS)
    for time_left in reversed(range(times)):
        bench.net.cut(rank)
        pass_time(trial.random.uniform(0.02, 0.4))
        if time_left > 0:
            bench.net.heal(rank)
            pass_time(trial.random.uniform(0.02, 0.4))
    stall_ms = heal(bench, load, (rank,), "both")
    load.end()
    bench.verify(before, layout=before["layout"])
    return stall_ms


def healed_after_replacement(trial):
    """The worker's successor is there already when the network heals, and what
    its predecessor sent before it was ended may still arrive."""
    bench, rank = trial.bench, trial.rank
    before, since = bench.status(), bench.lines()
    load = Load(bench.group).start()
    load.await_events(3 * NUM_STREAMS)
    # Its reports pile up in the kernel, which goes on trying when it is dead.
    bench.net.cut(rank, "from")
    bench.await_line(f"worker {rank} was killed by signal 9", since)
    stall_ms = heal(bench, load, (rank,), "from")
    bench.await_incarnation(rank, before["workers"][rank]["incarnation"] + 1)
    # Once more, for the successor.
    since = bench.lines()
    bench.net.cut(rank, "to")
    bench.await_line(f"worker {rank} was killed by signal 9", since)
    stall_ms = max(stall_ms, heal(bench, load, (rank,), "to"))
    load.end()
    bench.verify(before, layout=before["layout"])
    return stall_ms


def networks(seconds):
    def row(name, letters, run, **arguments):
        return Case(f"network: {name}", ALL + letters, run,
                    settings=IMPATIENT, bench=NetworkBench, **arguments)

    for to in ("tp", "ep"):
        name = "ep->tp" if to == "tp" else "tp->ep"
        yield row(f"cut off, all, in a switch {name}", "EF", partitioned,
                  way="both", seconds=seconds, everyone=True, to=to)
        yield row(f"cut off, one, in a switch {name}", "EF", partitioned,
                  way="both", seconds=seconds, to=to)
    yield row("cut off for 1 s", "E", partitioned, way="both", seconds=1)
    for way, name in (("to", "nothing reaches a worker"),
                      ("from", "nothing comes from a worker")):
        yield row(name, "E", partitioned, way=way, seconds=seconds)
        yield row(f"{name}, in a switch", "EF", partitioned, way=way,
                  seconds=min(seconds, 10), to="tp")
    yield row("a link flaps", "E", flapping)
    yield row("healed after replacement", "E", healed_after_replacement)
