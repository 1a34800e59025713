"""Workers that die, stand still, or find that the machine has no more."""

import contextlib
import os
import signal
import threading
import time

from bench import Load, NUM_STREAMS, Process, check, loaded_in
from case import ALL, Case, IMPATIENT, NUM_LAYERS

# ---- workers that die ------------------------------------------------------


def killed_idle(trial, lose_memory=False):
    bench, rank = trial.bench, trial.rank
    before = bench.status()
    if lose_memory:
        bench.arm(f"vault.kept@{rank}=error")
    incarnation = bench.worker(rank)["incarnation"]
    begin = time.monotonic()
    bench.kill(rank)
    # Accepted while the worker is away, and answered.
    load = Load(bench.group, repeat=False, streams=2).start()
    load.await_events(1)
    stall_ms = 1000 * (time.monotonic() - begin)
    load.end()
    bench.await_incarnation(rank, incarnation + 1)
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
    incarnation = before["workers"][rank]["incarnation"]
    load = Load(bench.group).start()
    load.await_events(5 * NUM_STREAMS)
    load.forget_gaps()
    since = bench.lines()
    fault = f"{point}@{rank}=crash#{1 + trial.random.randrange(20)}"
    fault = fault.removesuffix("#1") if fault.endswith("#1") else fault
    bench.arm(*([f"vault.kept@{rank}=error"] if lose_memory else []), fault)
    bench.await_fault(fault, since)
    bench.await_incarnation(rank, incarnation + 1)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=layout, may_recompute=lose_memory)
    return stall_ms


def trouble_in_switch(trial, to, faults, answer, nth=1, more=(),
                      recompute=False, start=None):
    """Asks for a switch under load, with faults on the way.

    start   the layout that is left; by default EP or TP, whichever `to` is not
    faults  texts with {rank}, {peer} and {nth} in them; the first ones are
            waited for, `more` only armed
    answer  200: must be done; 409: must be refused; None: either
    """
    bench = trial.bench
    before, since, load = loaded_in(bench,
                                    start or ("tp" if to == "ep" else "ep"))
    which = trial.nth(nth)
    names = {"rank": trial.rank, "peer": trial.peer,
             "nth": "" if which == 1 else f"#{which}"}
    faults = [fault.format(**names) for fault in faults]
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
    started = sum(worker["incarnation"] for worker in after["workers"])
    check(started > sum(worker["incarnation"] for worker in before["workers"]),
          "nobody has died")
    return stall_ms


def killed_together(trial, to, point, nth=1):
    """Two of four workers, at one point of a committed switch: each stops
    there, which the other does not notice, and once both have, both die."""
    bench, rank, peer = trial.bench, trial.rank, trial.peer
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep")
    which = trial.nth(nth)
    times = f"#{which}" if which > 1 else ""
    faults = [f"{point}@{one}=stop{times}" for one in (rank, peer)]
    bench.arm(*faults)
    asked = bench.ask(to)
    for fault in faults:
        bench.await_fault(fault, since)
    for one in (rank, peer):
        os.kill(before["workers"][one]["pid"], signal.SIGKILL)
    check(asked.wait() == 200, "a committed switch was refused")
    bench.disarm()
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    after = bench.verify(before, layout=to)
    for one in (rank, peer):
        check(after["workers"][one]["incarnation"]
              == before["workers"][one]["incarnation"] + 1,
              f"worker {one} has lived otherwise than once more")
    return stall_ms


def killed_in_barrier(trial, to):
    """In the nth barrier of a switch: the peer is kept from it for a while, so
    that this worker surely waits there."""
    bench, rank, peer = trial.bench, trial.rank, trial.peer
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep")
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
    incarnations = [worker["incarnation"] for worker in before["workers"]]
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    since = bench.lines()
    bench.arm(*([f"vault.kept@{rank}=error*2"] if lose_memory else []),
              f"{point}@{second}=crash")
    bench.kill(rank)
    bench.await_fault(f"{point}@{second}=crash", since)
    bench.await_incarnation(
        second, incarnations[second] + (2 if second == rank else 1))
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
        bench.await_incarnation(rank, state["incarnation"] + 1)
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
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep")
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


def stopped_and_replaced(trial, to, point, both=False):
    """The group waits no longer: the launcher ends the worker, or two of them,
    and only then do the successors live."""
    bench = trial.bench
    ranks = (trial.rank, trial.peer) if both else (trial.rank,)
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep")
    faults = [f"{point}@{rank}=stop" for rank in ranks]
    with contextlib.ExitStack() as stack:
        old = [stack.enter_context(Process(before["workers"][rank]["pid"]))
               for rank in ranks]
        bench.arm(*faults)
        asked = bench.ask(to) if point != "worker.barrier" else None
        for fault in faults:
            bench.await_fault(fault, since)
        for rank, process in zip(ranks, old):
            bench.await_line(f"worker {rank} makes no progress: ended", since)
            bench.await_incarnation(
                rank, before["workers"][rank]["incarnation"] + 1)
            process.check_gone()
        if asked is not None:
            check(asked.wait() == 200, "a committed switch was refused")
        stall_ms = load.end()
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
    incarnation = before["workers"][rank]["incarnation"]
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    which = trial.nth(5)
    bench.arm(f"vault.kept@{rank}=error",
              f"worker.memory@{rank}=error:{error}"
              + (f"#{which}" if which > 1 else "") + "*2")
    bench.kill(rank)
    bench.await_incarnation(rank, incarnation + 2)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.disarm()
    after = bench.verify(before, layout=before["layout"], may_recompute=True)
    check(after["workers"][rank]["incarnation"] >= incarnation + 2,
          "no process has failed")
    return stall_ms


# ---- files that are gone ----------------------------------------------------


def cleaned(trial):
    """What is in the private directory goes, as an age cleaner takes it; then a
    worker dies."""
    bench, rank = trial.bench, trial.rank
    before, since = bench.status(), bench.lines()
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    for name in os.listdir(bench.group.directory):
        # The table of faults is there for tests alone, and not made again.
        if name not in ("journal", "faults"):
            os.unlink(os.path.join(bench.group.directory, name))
    bench.await_line("made again what somebody has removed", since)
    bench.await_line("the control socket was removed by somebody", since)
    # The socket that has lost its file is only closed with its process.
    bench.descriptors["coordinator"] += 1
    load.forget_gaps()
    bench.kill(rank)
    bench.await_incarnation(rank, before["workers"][rank]["incarnation"] + 1)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=before["layout"])
    return stall_ms


# ---- the rows ---------------------------------------------------------------


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
        yield Case(f"two at once in a pull {way}", ALL + "F",
                   killed_together, workers=4, to=to, point="worker.pull",
                   nth=NUM_LAYERS)
        yield Case(f"two at once at COMMIT {way}", ALL + "F",
                   killed_together, workers=4, to=to, point="worker.commit")
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


def between():
    """In layouts between EP and TP, and in switches among them: of the four
    KV heads of the model each is on as many ranks as there are groups."""
    for lose_memory in (False, True):
        name = "memory lost" if lose_memory else "killed"
        yield Case(f"{name} in decode tp2", ALL, killed_in_decode, workers=4,
                   layout="tp2", lose_memory=lose_memory)
    yield Case("killed in prefill tp2", ALL, killed_in_prefill, workers=4,
               settings=("scheduler.token_budget=256",), layout="tp2")
    for start, to in (("tp2", "tp4"), ("tp4", "tp2"), ("tp2", "tp")):
        for name, point, more in (
                ("at COMMIT", "commit", {}),
                ("in a pull", "pull", {"nth": NUM_LAYERS}),
                ("before the barrier", "pulled", {"nth": NUM_LAYERS}),
                ("in a page move", "pages", {}),
                ("before SWITCHED", "switched", {}),
                ("memory lost in a pull", "pull",
                 {"nth": NUM_LAYERS, "more": ("vault.kept@{rank}=error",),
                  "recompute": True})):
            yield Case(f"{name} {start}->{to}", ALL + "F", trouble_in_switch,
                       workers=8, start=start, to=to, answer=200,
                       faults=(f"worker.{point}@{{rank}}=crash{{nth}}",),
                       **more)


def still_stands():
    for to in ("tp", "ep"):
        way = "ep->tp" if to == "tp" else "tp->ep"
        yield Case(f"stopped and resumed {way}", ALL + "F",
                   stopped_and_resumed, settings=IMPATIENT, to=to)
        yield Case(f"stopped and replaced {way}", ALL + "EF",
                   stopped_and_replaced, settings=IMPATIENT, to=to,
                   point="worker.pull")
        yield Case(f"two stopped and replaced {way}", ALL + "EF",
                   stopped_and_replaced, workers=4, settings=IMPATIENT, to=to,
                   point="worker.pull", both=True)
    yield Case("stopped in a barrier", ALL + "E", stopped_and_replaced,
               settings=IMPATIENT, to="tp", point="worker.barrier")
    yield Case("slow", ALL, slow)


def no_more():
    yield Case("no memory", ALL, no_memory, error="ENOMEM")
    yield Case("no descriptors", ALL, no_memory, error="EMFILE")
    yield Case("private directory cleaned", ALL, cleaned, own_group=True)


def lasting(seconds):
    yield Case("killed every 2 to 5 s", ALL, killed_again_and_again,
               seeds=1, seconds=seconds)
