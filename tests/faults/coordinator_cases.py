"""Deaths of the coordinator. Clients come back with their key and the id of the
last event that they have; no token may be missing, come twice, or differ from
the quiet run's.
"""

import os
import signal
import subprocess
import threading
import time

from bench import (BODIES, KeyedLoad, NUM_STREAMS, WAIT_S, check,
                   loaded_in, start_time)
from case import ALL, Case, IMPATIENT, NUM_LAYERS
from group import BINARY_DIR
from resumed_stream import ResumedStream


def crash(point, nth=1):
    return f"{point}@coordinator=crash" + (f"#{nth}" if nth > 1 else "")


def loaded(bench):
    """Streams that are under way."""
    load = KeyedLoad(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    return load


def nobody_twice(bench):
    """A request that was asked for again is the same one."""
    status = bench.status()
    check(status["running"] + status["waiting"] <= NUM_STREAMS,
          f"{status['running']} running and {status['waiting']} waiting of "
          f"{NUM_STREAMS} streams")


def killed_idle(trial):
    """What was said before is kept, and new requests are served."""
    bench = trial.bench
    before = bench.status()
    body = BODIES["short"](trial.seed % NUM_STREAMS)
    key = f"idle-{next(KeyedLoad.KEYS)}"
    said = ResumedStream(bench.group, body, key).run()
    with bench.coordinator() as old:
        old.signal(signal.SIGKILL)
    begin = time.monotonic()
    load = KeyedLoad(bench.group, repeat=False, streams=2).start()
    load.await_events(1)
    stall_ms = 1000 * (time.monotonic() - begin)
    load.end()
    after = bench.await_coordinator(before["term"] + 1)
    check(ResumedStream(bench.group, body, key).run() == said,
          "the result of an ended request has changed")
    check(after["requests"]["total"] <= 2, f"{after['requests']}")
    bench.verify(before, layout=before["layout"])
    return stall_ms


def killed_at(trial, point, most):
    """Under load, the nth time at a place, up to `most`."""
    bench = trial.bench
    before, since = bench.status(), bench.lines()
    fault = crash(point, 1 + trial.random.randrange(most))
    bench.arm(fault)
    load = KeyedLoad(bench.group).start()
    bench.await_line(f"fault {fault}", since)
    bench.await_coordinator(before["term"] + 1)
    nobody_twice(bench)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    check(load.breaks > 0, "no stream has broken off")
    bench.verify(before, layout=before["layout"])
    return stall_ms


def killed_in_stream(trial, layout, worker=False, lose_memory=False,
                     prompts=False, by=signal.SIGKILL):
    """From outside, anywhere; and a worker with it, if wanted, with its memory
    or without. `prompts`: in long ones. `by`: SIGTERM is not heeded, but has the
    launcher replace it."""
    bench, rank = trial.bench, trial.rank
    bench.bring_to(layout)
    before = bench.status()
    incarnation = before["workers"][rank]["incarnation"]
    if lose_memory:
        bench.arm(f"vault.kept@{rank}=error")
    if prompts:
        load = KeyedLoad(bench.group, "long", repeat=False).start()
        load.await_events(1)
    else:
        load = loaded(bench)
        load.await_events(trial.random.randrange(5 * NUM_STREAMS))
    if worker:
        os.kill(before["workers"][rank]["pid"], signal.SIGKILL)
    os.kill(before["pid"], by)
    bench.await_coordinator(before["term"] + 1)
    if worker:
        bench.await_incarnation(rank, incarnation + 1)
    nobody_twice(bench)
    if not prompts:
        load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.disarm()
    check(load.breaks > 0, "no stream has broken off")
    check(prompts or load.resumes > 0, "no stream went on in its midst")
    # With its last plans unknown, a sequence may have to be computed anew.
    bench.verify(before, layout=layout, may_recompute=worker or prompts)
    return stall_ms


def killed_in_switch(trial, to, point, decided, nth=1, worker=None):
    """Asks for a switch under load; whoever was to answer dies. What was
    decided is finished by its successor, what was not has never been.

    point   of the coordinator, which dies there; or of a worker, which is held
            up there while the coordinator is killed
    worker  "held": the worker at the point dies as well
    """
    bench, rank = trial.bench, trial.rank
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep",
                                    KeyedLoad)
    which = trial.nth(nth)
    behind = f"#{which}" if which > 1 else ""
    if point.startswith("coordinator."):
        fault = crash(point)
    elif worker == "held":
        fault = f"{point}@{rank}=crash{behind}"
    else:
        fault = f"{point}@{rank}=sleep:100{behind}"
    bench.arm(fault)
    asked = bench.ask(to)
    bench.await_line(f"fault {fault}", since)
    if not point.startswith("coordinator."):
        os.kill(before["pid"], signal.SIGKILL)
    bench.await_coordinator(before["term"] + 1)
    asked.over()
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    check(load.resumes > 0, "no stream went on in its midst")
    bench.verify(before, layout=to if decided else before["layout"])
    return stall_ms


def killed_in_recovery(trial, points, switch=False):
    """One coordinator after another dies in its own recovery, at one point
    each; in the midst of a switch, if wanted."""
    bench = trial.bench
    before, since, load = loaded_in(bench, "ep", KeyedLoad)
    faults = [crash(f"coordinator.{point}") for point in points]
    if switch:
        faults.insert(0, crash("coordinator.committing"))
    bench.arm(*faults)
    if switch:
        asked = bench.ask("tp")
    else:
        os.kill(before["pid"], signal.SIGKILL)
    for fault in faults:
        bench.await_line(f"fault {fault}", since)
    terms = len(faults) + (0 if switch else 1)
    status = bench.await_coordinator(before["term"] + terms)
    check(status["term"] == before["term"] + terms,
          f"term {status['term']} after {before['term']}")
    if switch:
        asked.over()
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout="tp" if switch else "ep")
    return stall_ms


def killed_again_and_again(trial, seconds):
    """The coordinator or a worker, or both, every 2 to 5 s, with switches."""
    bench, wake = trial.bench, threading.Event()
    before, stalls = bench.status(), []
    load = KeyedLoad(bench.group).start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load.await_events(NUM_STREAMS)
        load.forget_gaps()
        status = bench.status()
        target = "tp" if status["layout"] == "ep" else "ep"
        asked = bench.ask(target) if trial.random.random() < 0.5 else None
        state = trial.random.choice(status["workers"])
        both = trial.random.random() < 0.3
        if both:
            os.kill(state["pid"], signal.SIGKILL)
        os.kill(status["pid"], signal.SIGKILL)
        bench.await_coordinator(status["term"] + 1)
        if both:
            bench.await_incarnation(state["rank"], state["incarnation"] + 1)
        if asked is not None:
            asked.over()
        wake.wait(trial.random.uniform(2, 5))  # that is what is tried
        load.await_events(NUM_STREAMS)
        stalls.append(1000 * load.longest_gap_s)
    stalls.append(load.end())
    bench.verify(before, may_recompute=True)
    return max(stalls)


# ---- two at a time -----------------------------------------------------------


def stopped_and_resumed(trial, seconds=2):
    """The launcher replaces only who is dead: a coordinator that stands still
    is waited for, whatever the deadlines that pass meanwhile. Then it goes on,
    in its term, with the same workers."""
    bench = trial.bench
    before = bench.status()
    load = loaded(bench)
    with bench.coordinator() as old:
        old.signal(signal.SIGSTOP)
        try:
            threading.Event().wait(seconds)  # that is what is tried
        finally:
            old.signal(signal.SIGCONT)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    check(load.breaks == 0, "a stream has broken off")
    after = bench.verify(before, layout=before["layout"])
    check(after["term"] == before["term"], "the coordinator was replaced")
    check([w["incarnation"] for w in after["workers"]]
          == [w["incarnation"] for w in before["workers"]],
          "a worker was replaced")
    return stall_ms


def stopped_and_replaced(trial, to):
    """The coordinator stands still with a decision in its journal and nobody
    told, and is ended there. Its successor starts only once it is reaped, so it
    cannot wake up beside it; and finishes what it has decided."""
    bench = trial.bench
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep",
                                    KeyedLoad)
    fault = "coordinator.decided@coordinator=stop"
    with bench.coordinator() as old:
        bench.arm(fault)
        asked = bench.ask(to)
        bench.await_line(f"fault {fault}", since)
        check(start_time(old.pid) is not None, "it has not stopped but ended")
        old.signal(signal.SIGKILL)
        bench.await_coordinator(before["term"] + 1)
        old.check_gone()
    asked.over()
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=to)
    return stall_ms


def second_one(trial, stopped):
    """Somebody starts a second coordinator by hand, of a much higher term, in
    the group's own directory, with its journal or another, while the first one
    serves or stands still. It ends before it has touched anything: who dies
    then is replaced as ever."""
    bench, rank = trial.bench, trial.rank
    before = bench.status()
    load = loaded(bench)
    directory = bench.group.directory
    with open(os.path.join(directory, "config.yaml")) as file:
        config = file.read()
    if trial.seed % 2:
        another = os.path.join(directory, "second")
        check('  dir: ""' in config, "no journal.dir to replace")
        config = config.replace('  dir: ""', f'  dir: "{another}"', 1)
    second_config = os.path.join(directory, "second.yaml")
    with open(second_config, "w") as file:
        file.write(config)
    with bench.coordinator() as first:
        if stopped:
            first.signal(signal.SIGSTOP)
        try:
            second = subprocess.run(
                [os.path.join(BINARY_DIR, "bin", "moebius-coordinator"),
                 "--config", second_config,
                 "--dir", directory, "--term", "1000",
                 "--port", "0", "--admin-port", "0"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=WAIT_S, check=False)
        finally:
            first.signal(signal.SIGCONT)
    check(second.returncode == 1 and "another coordinator serves this group"
          in second.stdout + second.stderr,
          f"{second.returncode}: {second.stdout}{second.stderr}")
    load.await_events(5 * NUM_STREAMS)
    stall_ms = load.end()
    check(load.breaks == 0, "a stream has broken off")
    after = bench.verify(before, layout=before["layout"])
    check(after["term"] == before["term"] and after["pid"] == before["pid"],
          "another coordinator serves")
    check(after["recoveries"]["total"] == before["recoveries"]["total"],
          "the group halted")
    # A successor of each still finds the way.
    bench.kill(rank)
    bench.await_incarnation(rank, after["workers"][rank]["incarnation"] + 1)
    bench.group.complete({"prompt": "x", "max_tokens": 2})
    os.kill(after["pid"], signal.SIGKILL)
    bench.await_coordinator(after["term"] + 1)
    return stall_ms


# ---- the rows ---------------------------------------------------------------


def coordinators(kill_seconds):
    yield Case("coordinator killed idle", ALL, killed_idle)
    yield Case("coordinator killed before a 200", ALL, killed_at,
               point="coordinator.accepted", most=5)
    yield Case("coordinator killed before tokens are sent", ALL, killed_at,
               point="coordinator.tokens", most=60)
    for layout in ("ep", "tp"):
        yield Case(f"coordinator killed in mid-stream {layout}", ALL,
                   killed_in_stream, layout=layout)
        yield Case(f"coordinator told to end by somebody else {layout}", ALL,
                   killed_in_stream, layout=layout, by=signal.SIGTERM)
        yield Case(f"coordinator and worker killed {layout}", ALL,
                   killed_in_stream, layout=layout, worker=True)
    yield Case("coordinator killed in prefill", ALL, killed_in_stream,
               settings=("scheduler.token_budget=256",), layout="ep",
               prompts=True)
    yield Case("coordinator, worker and memory lost", ALL, killed_in_stream,
               layout="ep", worker=True, lose_memory=True)
    for to in ("tp", "ep"):
        way = "ep->tp" if to == "tp" else "tp->ep"

        def switch(name, point, decided=True, **more):
            return Case(f"coordinator killed, {name} {way}", ALL + "FJ",
                        killed_in_switch, to=to, point=point, decided=decided,
                        **more)

        yield switch("PREPARE sent", "coordinator.prepared", decided=False)
        yield switch("decided, not sent", "coordinator.decided")
        yield switch("COMMIT sent to half", "coordinator.committing")
        yield switch("in the copies", "worker.pull", nth=NUM_LAYERS)
        yield switch("in the page moves", "worker.pages")
        yield switch("before SWITCHED", "worker.switched")
        yield switch("and a worker, in the copies", "worker.pull",
                     nth=NUM_LAYERS, worker="held")
        yield Case(f"coordinator stopped and replaced {way}", ALL + "EF",
                   stopped_and_replaced, to=to)
    points = ("recovering", "halted", "resumed")
    yield Case("coordinator killed in three recoveries", ALL,
               killed_in_recovery, points=points)
    yield Case("coordinator killed in three recoveries of a switch", ALL + "F",
               killed_in_recovery, points=points, switch=True)
    yield Case("coordinator stopped and resumed", ALL, stopped_and_resumed)
    yield Case("coordinator stopped and resumed, impatient", ALL,
               stopped_and_resumed, settings=IMPATIENT, seconds=4)
    yield Case("second coordinator", ALL + "E", second_one, stopped=False)
    yield Case("second coordinator, the first stopped", ALL + "E", second_one,
               stopped=True)
    yield Case("coordinator killed every 2 to 5 s", ALL + "F",
               killed_again_and_again, seeds=1, seconds=kill_seconds)
