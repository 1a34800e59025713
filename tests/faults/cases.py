"""The cases of the fault matrix. Each is a function of a Trial that makes one
thing go wrong, checks what must hold, and returns how long streams stood still
in ms (None: nothing that could stand still).

To add one: write the function, and a row in CASES at the end.
"""

import json
import os
import signal
import socket
import threading
import time
from functools import partial

from bench import (BODIES, Bench, Load, NUM_STREAMS, Process, SHORT_LIFE_S, Wrong,
                   check)
from network_cases import network_cases

NUM_LAYERS = 4  # of the model


class Case:
    """A row of the table.

    name        as --case takes it
    invariants  letters that the case puts to the test
    run         function(trial, **arguments) -> ms or None
    workers, settings   of the group; equal ones share it
    own_group   a fresh group for every run; `settings` may be a function of
                the seed
    seeds       at most so many, for cases that are long
    bench       what makes the group, and may raise Skipped
    """

    def __init__(self, name, invariants, run, workers=2, settings=(),
                 own_group=False, seeds=None, bench=Bench, **arguments):
        self.name, self.invariants, self.run = name, invariants, run
        self.workers, self.settings = workers, settings
        self.own_group, self.seeds, self.bench = own_group, seeds, bench
        self.arguments = arguments

    def settings_of(self, seed):
        return (self.settings(seed) if callable(self.settings)
                else tuple(self.settings))

    def group_key(self):
        return (self.own_group, self.bench.__name__, self.workers,
                self.settings_of(0))

    def __call__(self, trial):
        return self.run(trial, **self.arguments)


# ---- workers that die ------------------------------------------------------


def killed_idle(trial, lose_memory=False):
    bench, rank = trial.bench, trial.rank
    before = bench.status()
    if lose_memory:
        bench.arm(f"vault.kept@{rank}=error")
    life = bench.worker(rank)["incarnation"]
    begin = time.monotonic()
    bench.kill(rank)
    # Accepted while the worker is away, and answered.
    load = Load(bench.group, repeat=False, streams=2).start()
    load.await_events(1)
    stall_ms = 1000 * (time.monotonic() - begin)
    load.end()
    bench.await_life(rank, life + 1)
    bench.verify(before, layout=before["layout"], may_recompute=lose_memory)
    return stall_ms


def killed_in_prefill(trial, layout="ep"):
    bench, rank = trial.bench, trial.rank
    bench.bring_to(layout)
    before, since = bench.status(), bench.lines()
    fault = f"worker.step.done@{rank}=crash"
    nth = trial.nth(4)
    if nth > 1:
        fault += f"#{nth}"
    bench.arm(fault)
    load = Load(bench.group, "long", repeat=False).start()
    bench.await_fault(fault, since)
    stall_ms = load.end()
    bench.verify(before, layout=layout)
    return stall_ms


def killed_in_decode(trial, layout, point="worker.step.done",
                     lose_memory=False):
    bench, rank = trial.bench, trial.rank
    bench.bring_to(layout)
    before = bench.status()
    life = before["workers"][rank]["incarnation"]
    load = Load(bench.group).start()
    load.await_events(5 * NUM_STREAMS)
    load.forget_gaps()
    since = bench.lines()
    fault = f"{point}@{rank}=crash#{1 + trial.random.randrange(20)}"
    fault = fault.removesuffix("#1") if fault.endswith("#1") else fault
    bench.arm(*([f"vault.kept@{rank}=error"] if lose_memory else []), fault)
    bench.await_fault(fault, since)
    bench.await_life(rank, life + 1)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=layout, may_recompute=lose_memory)
    return stall_ms


def trouble_in_switch(trial, to, faults, answer, nth=1, more=(),
                      recompute=False):
    """Asks for a switch under load, with faults on the way.

    faults  texts with {rank}, {peer} and {nth} in them; the first ones are
            waited for, `more` only armed
    answer  200: must be done; 409: must be refused; None: either
    """
    bench = trial.bench
    bench.bring_to("tp" if to == "ep" else "ep")
    before, since = bench.status(), bench.lines()
    which = trial.nth(nth)
    names = {"rank": trial.rank, "peer": trial.peer,
             "nth": "" if which == 1 else f"#{which}"}
    faults = [fault.format(**names) for fault in faults]
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    bench.arm(*[fault.format(**names) for fault in more], *faults)
    asked = bench.ask(to)
    for fault in faults:
        bench.await_fault(fault, since)
    status = asked.wait()
    bench.disarm()
    check(answer in (None, status),
          f"the switch was answered {status}: {asked.answer.body!r}")
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    after = bench.verify(before, may_recompute=recompute,
                         layout=to if status == 200 else before["layout"])
    lives = sum(worker["incarnation"] for worker in after["workers"])
    check(lives > sum(worker["incarnation"] for worker in before["workers"]),
          "nobody has died")
    return stall_ms


def killed_in_barrier(trial, to):
    """In the nth barrier of a switch: the peer is kept from it for a while, so
    that this worker surely waits there."""
    bench, rank, peer = trial.bench, trial.rank, trial.peer
    bench.bring_to("tp" if to == "ep" else "ep")
    before, since = bench.status(), bench.lines()
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    # The last barriers of steps are behind us when a worker is at COMMIT.
    wait = f"worker.commit@{rank}=sleep:200"
    slow = f"worker.pulled@{peer}=sleep:60*{NUM_LAYERS}"
    bench.arm(wait, slow)
    asked = bench.ask(to)
    bench.await_fault(wait, since)
    nth = trial.nth(NUM_LAYERS)
    fault = f"worker.barrier@{rank}=crash" + (f"#{nth}" if nth > 1 else "")
    bench.arm(fault)
    bench.await_fault(fault, since)
    check(asked.wait() == 200, "a committed switch was refused")
    bench.disarm()
    stall_ms = load.end()
    bench.verify(before, layout=to)
    return stall_ms


def killed_in_recovery(trial, point, who="rank", lose_memory=False):
    """A worker dies, and then, in the recovery, its successor or its peer."""
    bench, rank = trial.bench, trial.rank
    second = trial.peer if who == "peer" else rank
    # In TP all streams lose what a rank loses, and nothing is restored.
    if lose_memory:
        bench.bring_to("ep")
    before = bench.status()
    lives = [worker["incarnation"] for worker in before["workers"]]
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    since = bench.lines()
    bench.arm(*([f"vault.kept@{rank}=error*2"] if lose_memory else []),
              f"{point}@{second}=crash")
    bench.kill(rank)
    bench.await_fault(f"{point}@{second}=crash", since)
    bench.await_life(second, lives[second] + (2 if second == rank else 1))
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=before["layout"], may_recompute=lose_memory)
    return stall_ms


def killed_again_and_again(trial, seconds):
    """Some worker every 2 to 5 s."""
    bench = trial.bench
    before = bench.status()
    stalls, wake = [], threading.Event()
    load = Load(bench.group).start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load.await_events(NUM_STREAMS)
        load.forget_gaps()
        rank = trial.random.randrange(bench.workers)
        state = bench.worker(rank)
        os.kill(state["pid"], signal.SIGKILL)
        bench.await_life(rank, state["incarnation"] + 1)
        wake.wait(trial.random.uniform(2, 5))  # that is what is tried
        load.await_events(NUM_STREAMS)
        stalls.append(1000 * load.longest_gap_s)
    stalls.append(load.end())
    bench.verify(before, layout=before["layout"])
    return max(stalls)


# ---- workers that stand still ----------------------------------------------


def stopped_and_resumed(trial, to, point="worker.pull"):
    """Past the deadline of its peers, but before anybody replaces it."""
    bench, rank = trial.bench, trial.rank
    bench.bring_to("tp" if to == "ep" else "ep")
    before, since = bench.status(), bench.lines()
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    fault = f"{point}@{rank}=stop"
    bench.arm(fault)
    asked = bench.ask(to)
    bench.await_fault(fault, since)
    bench.await_line(f"worker {trial.peer} halted before step", since)
    os.kill(before["workers"][rank]["pid"], signal.SIGCONT)
    check(asked.wait() == 200, "a committed switch was refused")
    stall_ms = load.end()
    after = bench.verify(before, layout=to)
    check([w["incarnation"] for w in after["workers"]]
          == [w["incarnation"] for w in before["workers"]],
          "a worker was replaced")
    return stall_ms


def stopped_and_replaced(trial, to, point):
    """The group waits no longer: the launcher ends the worker, and only then
    does the successor live."""
    bench, rank = trial.bench, trial.rank
    bench.bring_to("tp" if to == "ep" else "ep")
    before, since = bench.status(), bench.lines()
    life = before["workers"][rank]["incarnation"]
    old = Process(before["workers"][rank]["pid"])
    try:
        load = Load(bench.group).start()
        load.await_events(2 * NUM_STREAMS)
        load.forget_gaps()
        fault = f"{point}@{rank}=stop"
        bench.arm(fault)
        asked = bench.ask(to) if point != "worker.barrier" else None
        bench.await_fault(fault, since)
        bench.await_line(f"worker {rank} makes no progress: ended", since)
        bench.await_life(rank, life + 1)
        check(old.gone(), "the predecessor lives")
        try:
            old.signal(signal.SIGCONT)
            raise Wrong("the predecessor could be woken")
        except ProcessLookupError:
            pass
        if asked is not None:
            check(asked.wait() == 200, "a committed switch was refused")
        stall_ms = load.end()
    finally:
        old.close()
    bench.verify(before, layout=to if asked else before["layout"])
    return stall_ms


def slow(trial):
    """Late in every step, but not too late."""
    bench, rank = trial.bench, trial.rank
    before = bench.status()
    load = Load(bench.group).start()
    load.await_events(NUM_STREAMS)
    load.forget_gaps()
    since = bench.lines()
    bench.arm(f"worker.step@{rank}=sleep:100*40")
    bench.await_line(f"fault worker.step@{rank}=sleep", since)
    load.await_events(30 * NUM_STREAMS)
    stall_ms = load.end()
    bench.disarm()
    after = bench.verify(before, layout=before["layout"])
    check([w["incarnation"] for w in after["workers"]]
          == [w["incarnation"] for w in before["workers"]],
          "a worker was replaced")
    check(after["recoveries"]["total"] == before["recoveries"]["total"],
          "the group halted")
    return stall_ms


# ---- machines that have no more --------------------------------------------


def no_memory(trial, error):
    """The successor's memory is gone, and twice it cannot have new one."""
    bench, rank = trial.bench, trial.rank
    before = bench.status()
    life = before["workers"][rank]["incarnation"]
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    which = trial.nth(5)
    bench.arm(f"vault.kept@{rank}=error",
              f"worker.memory@{rank}=error:{error}"
              + (f"#{which}" if which > 1 else "") + "*2")
    bench.kill(rank)
    bench.await_life(rank, life + 2)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.disarm()
    after = bench.verify(before, layout=before["layout"], may_recompute=True)
    check(after["workers"][rank]["incarnation"] >= life + 2,
          "no life has failed")
    return stall_ms


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


def client_reads_slowly(trial):
    """A byte a second: nobody else waits for it."""
    bench = trial.bench
    before = bench.status()
    body = dict(BODIES["short"](0), model="verse-moe", stream=True,
                max_tokens=2000, logprobs=5)
    text = json.dumps(body)
    slow_one = socket.socket()
    slow_one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow_one.connect((bench.group.host, bench.group.port))
    stop = threading.Event()

    def read():
        slow_one.sendall(
            (f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
             f"Content-Type: application/json\r\n"
             f"Content-Length: {len(text)}\r\n\r\n{text}").encode())
        while not stop.wait(1) and slow_one.recv(1):
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        load = Load(bench.group).start()
        load.await_events(NUM_STREAMS)
        load.forget_gaps()
        for _ in range(3):
            load.await_events(30 * NUM_STREAMS)
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


def drained_under_load(trial, kill=False):
    """SIGTERM: every stream finishes, also where a worker dies meanwhile."""
    bench = trial.bench
    load = Load(bench.group, repeat=False).start()
    load.await_events((1 + trial.seed % 5) * NUM_STREAMS)
    load.forget_gaps()
    pid = bench.worker(trial.rank)["pid"]
    since = bench.lines()
    bench.group.terminate()
    bench.await_line("draining", since)
    if kill:
        os.kill(pid, signal.SIGKILL)
    stall_ms = load.end()
    code = bench.group.wait_end()
    check(code == 0, f"exit code {code}" + bench.group.said())
    return stall_ms


# ---- messages --------------------------------------------------------------


def messages_in_switches(trial, answers, switches=2):
    """Switches under load while messages are lost, late or repeated. `answers`
    is what the first switch may answer; the next ones must be done."""
    bench = trial.bench
    before = bench.status()
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    for i in range(switches):
        target = "tp" if bench.status()["layout"] == "ep" else "ep"
        layout = bench.status()["layout"]
        status = bench.ask(target).wait()
        check(status in (answers if i == 0 else (200,)), f"answered {status}")
        if status == 200:
            layout = target
        load.await_events(2 * NUM_STREAMS)
        check(bench.status()["layout"] == layout, "another layout")
    stall_ms = load.end()
    bench.verify(before)
    return stall_ms


def messages_for_a_while(trial, seconds, deaths=False):
    """All sorts of messages are struck, for a while, with switches (which may
    be refused) and, if wanted, deaths."""
    bench = trial.bench
    before = bench.status()
    load = Load(bench.group).start()
    load.await_events(NUM_STREAMS)
    load.forget_gaps()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        bench.ask("tp" if bench.status()["layout"] == "ep" else "ep").wait()
        if deaths and time.monotonic() > bench.born_at + SHORT_LIFE_S:
            rank = trial.random.randrange(bench.workers)
            state = bench.worker(rank)
            os.kill(state["pid"], signal.SIGKILL)
            bench.await_life(rank, state["incarnation"] + 1)
            bench.note_lives(bench.status())
        load.await_events(5 * NUM_STREAMS)
    stall_ms = load.end()
    after = bench.status()
    check(after["running"] == 0 and after["waiting"] == 0, f"{after}")
    check(after["preemptions"] == before["preemptions"], "preempted")
    return stall_ms


# ---- the table -------------------------------------------------------------

# What every case shows: no request lost, tokens once and in order, ranks agree
# on weights, tables and pages, service goes on in time, nothing left behind,
# and the tokens of a quiet run.
ALL = "ABCDGHO"
IMPATIENT = ("workers.step_timeout_ms=500", "workers.stall_timeout_ms=3000",
             "layout.prepare_timeout_ms=1000", "layout.switch_timeout_ms=2000")


def deaths():
    yield Case("killed idle", ALL, killed_idle)
    for layout in ("ep", "tp"):
        yield Case(f"killed in prefill {layout}", ALL, killed_in_prefill,
                   settings=("scheduler.token_budget=256",), layout=layout)
    for layout in ("ep", "tp"):
        yield Case(f"killed in decode {layout}", ALL, killed_in_decode,
                   layout=layout)
        yield Case(f"killed before a step {layout}", ALL, killed_in_decode,
                   layout=layout, point="worker.step")
    for to in ("tp", "ep"):
        way = "ep->tp" if to == "tp" else "tp->ep"

        def switch(name, letters, faults, answer, way=way, to=to, **more):
            return Case(f"{name} {way}", ALL + letters, trouble_in_switch,
                        to=to, faults=faults, answer=answer, **more)

        def crash(point):
            return (f"worker.{point}@{{rank}}=crash{{nth}}",)

        yield switch("before PREPARED", "J", crash("prepare"), 409)
        yield switch("after PREPARED", "FJ", crash("prepared"), None)
        yield switch("at COMMIT", "F", crash("commit"), 200)
        yield switch("in a pull", "F", crash("pull"), 200, nth=NUM_LAYERS)
        yield switch("before the barrier", "F", crash("pulled"), 200,
                     nth=NUM_LAYERS)
        yield Case(f"in the barrier {way}", ALL + "F", killed_in_barrier,
                   to=to)
        yield switch("behind the barrier", "F", crash("passed"), 200,
                     nth=NUM_LAYERS)
        yield switch("in a page move", "F", crash("pages"), 200)
        yield switch("behind the page barrier", "F", crash("pages.passed"),
                     200)
        yield switch("before SWITCHED", "F", crash("switched"), 200)
        yield switch("in the rest of a switch", "F", crash("pull"), 200,
                     nth=NUM_LAYERS, more=("worker.pulled@{rank}=crash",
                                           "worker.passed@{peer}=crash#3"))
        yield switch("two at once in a pull", "F",
                     ("worker.pull@{rank}=crash{nth}",
                      "worker.pull@{peer}=crash{nth}"), 200, nth=NUM_LAYERS,
                     workers=4)
        yield switch("two at once at COMMIT", "F",
                     ("worker.commit@{rank}=crash",
                      "worker.commit@{peer}=crash"), 200, workers=4)
        yield switch("memory lost in a pull", "F", crash("pull"), 200,
                     nth=NUM_LAYERS, more=("vault.kept@{rank}=error",),
                     recompute=True)
        yield switch("memory lost in a page move", "F", crash("pages"), 200,
                     more=("vault.kept@{rank}=error",), recompute=True)
    for point in ("adopt", "halted", "restored", "resumed"):
        yield Case(f"successor killed, {point}", ALL, killed_in_recovery,
                   point=f"worker.{point}")
    for point in ("halted", "restored", "resumed"):
        yield Case(f"peer killed, {point}", ALL, killed_in_recovery,
                   point=f"worker.{point}", who="peer")
    for point in ("halted", "restored", "resumed"):
        yield Case(f"memory lost twice, {point}", ALL, killed_in_recovery,
                   point=f"worker.{point}", lose_memory=True)
    yield Case("memory lost idle", ALL, killed_idle, lose_memory=True)
    for layout in ("ep", "tp"):
        yield Case(f"memory lost in decode {layout}", ALL, killed_in_decode,
                   layout=layout, lose_memory=True)


def still_stands():
    for to in ("tp", "ep"):
        way = "ep->tp" if to == "tp" else "tp->ep"
        yield Case(f"stopped and resumed {way}", ALL + "F",
                   stopped_and_resumed, settings=IMPATIENT, to=to)
        yield Case(f"stopped and replaced {way}", ALL + "EF",
                   stopped_and_replaced, settings=IMPATIENT, to=to,
                   point="worker.pull")
    yield Case("stopped in a barrier", ALL + "E", stopped_and_replaced,
               settings=IMPATIENT, to="tp", point="worker.barrier")
    yield Case("slow", ALL, slow)


def no_more():
    yield Case("no memory", ALL, no_memory, error="ENOMEM")
    yield Case("no descriptors", ALL, no_memory, error="EMFILE")


def fronts():
    yield Case("clients drop", ALL, clients_drop)
    yield Case("a client reads slowly", ALL, client_reads_slowly, seeds=2)
    yield Case("drained under load", ALL, drained_under_load, own_group=True)
    yield Case("killed in a drain", ALL, drained_under_load, own_group=True,
               kill=True)


def messages(seconds):
    def struck(name, letters, text, answers=(200,), **more):
        def settings(seed):
            words = text.format(rank=seed % 2, peer=1 - seed % 2, seed=seed)
            return IMPATIENT + (f"faults.messages={words}",)

        def struck_too(trial, run, **arguments):
            stall_ms = run(trial, **arguments)
            # Each rule has found its message.
            for word in settings(trial.seed)[-1].split("=", 1)[1].split():
                kind, _, what = word.partition("=")
                if "_" in kind and kind != "delay_ms":
                    name, _, rank = what.split("#")[0].partition("@")
                    way = "to" if kind.endswith("command") else "of"
                    line = f"{name} {way} worker {rank.split(':')[0]}: "
                    check(trial.bench.has_line(line, (0, 0)),
                          f"{word} has struck nothing")
            return stall_ms

        inner = more.pop("run", None)
        arguments = dict(run=partial(struck_too,
                                     run=inner or messages_in_switches))
        if inner is None:
            arguments["answers"] = answers
        return Case(name, ALL + letters, settings=settings, own_group=True,
                    **arguments, **more)

    yield struck("COMMIT lost", "F", "lose_command=commit@{rank}")
    yield struck("PREPARE lost", "J", "lose_command=prepare@{rank}", (409,))
    yield struck("PREPARED lost", "J", "lose_report=prepared@{rank}", (409,))
    yield struck("SWITCHED lost", "F", "lose_report=switched@{rank}")
    yield struck("RESULT lost", "", "lose_report=result@0#50")
    yield struck("a step lost", "", "lose_command=step@{rank}#50")
    yield struck("all repeated", "EF", "repeat=1")
    yield struck("ABORT late", "J", "lose_report=prepared@{rank} "
                 "swap_command=abort@{peer}:400 "
                 "echo_command=abort@{rank}:400", (409,))
    yield struck("PREPARE behind COMMIT", "F",
                 "echo_command=prepare@{rank}:30")
    yield struck("PREPARE held", "FJ", "swap_command=prepare@{rank}",
                 (200, 409))
    yield struck("COMMIT behind a step", "F", "swap_command=commit@{rank}")
    yield struck("HELLO and GREET lost", "",
                 "lose_command=greet@{rank} lose_report=hello@{peer}")
    yield struck("HALT lost", "", "lose_command=halt@{peer}#2",
                 run=killed_in_decode, layout="ep")
    yield struck("HALTED lost", "", "lose_report=halted@{peer}#2",
                 run=killed_in_decode, layout="ep")
    yield struck("HALT again, late", "", "echo_command=halt@{peer}#2",
                 run=killed_in_decode, layout="ep")
    yield struck("RESTORE lost", "", "lose_command=restore@{rank}",
                 run=killed_in_decode, layout="ep")
    yield struck("RESUME lost", "", "lose_command=resume@{rank}#2",
                 run=killed_in_decode, layout="ep")
    yield struck("LOAD lost", "", "lose_command=load@{rank}#2",
                 run=killed_in_decode, layout="ep", lose_memory=True)
    yield struck("LOADED lost", "", "lose_report=loaded@{rank}#2",
                 run=killed_in_decode, layout="ep", lose_memory=True)
    yield struck("one in fifty lost", "F", "lose=0.02 seed={seed}",
                 run=messages_for_a_while, seconds=seconds)
    yield struck("lost, repeated, late, swapped", "EF",
                 "lose=0.01 repeat=0.2 reorder=0.02 delay_ms=3 seed={seed}",
                 run=messages_for_a_while, seconds=seconds, deaths=True)


def coordinators():
    """Deaths of the coordinator, and its journal: to come with its restart."""
    return ()


def lasting(seconds):
    yield Case("killed every 2 to 5 s", ALL, killed_again_and_again,
               seeds=1, seconds=seconds)


def table(kill_seconds=60, message_seconds=30, cut_seconds=30):
    """All cases."""
    cases = [*deaths(), *no_more(), *still_stands(), *fronts(),
             *messages(message_seconds), *coordinators(),
             *network_cases(Case, ALL, cut_seconds), *lasting(kill_seconds)]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    return cases
