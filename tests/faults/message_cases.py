"""Messages between coordinator and workers that are lost, repeated, late or out
of order, and links that are cut."""

import os
import signal
import threading
import time
from functools import partial

from bench import Load, NUM_STREAMS, EARLY_DEATH_S, check, loaded_in
from case import ALL, Case, IMPATIENT
from worker_cases import killed_in_decode

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
        if deaths and time.monotonic() > bench.born_at + EARLY_DEATH_S:
            rank = trial.random.randrange(bench.workers)
            state = bench.worker(rank)
            os.kill(state["pid"], signal.SIGKILL)
            bench.await_incarnation(rank, state["incarnation"] + 1)
            bench.note_starts(bench.status())
        load.await_events(5 * NUM_STREAMS)
    stall_ms = load.end()
    after = bench.status()
    check(after["running"] == 0 and after["waiting"] == 0, f"{after}")
    check(after["preemptions"] == before["preemptions"], "preempted")
    return stall_ms


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
    yield struck("SWITCHED of a dead incarnation", "EF",
                 "swap_report=switched@1:1000", run=switched_of_the_dead)
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
    yield Case("high-water mark reached", ALL, queue_full)
    for to in ("tp", "ep"):
        yield Case("high-water mark reached in a switch "
                   + ("ep->tp" if to == "tp" else "tp->ep"), ALL + "FJ",
                   queue_full, to=to)
    yield struck("one in fifty lost", "F", "lose=0.02 seed={seed}",
                 run=messages_for_a_while, seconds=seconds)
    yield struck("lost, repeated, late, swapped", "EF",
                 "lose=0.01 repeat=0.2 reorder=0.02 delay_ms=3 seed={seed}",
                 run=messages_for_a_while, seconds=seconds, deaths=True)


def switched_of_the_dead(trial):
    """The SWITCHED of worker 1 is on its way while it dies, and comes behind the
    first word of its successor."""
    bench = trial.bench
    before, since, load = loaded_in(bench, "ep")
    state = before["workers"][1]
    asked = bench.ask("tp")
    bench.await_line("switched of worker 1: out of order", since)
    os.kill(state["pid"], signal.SIGKILL)
    bench.await_line("dropped a message of worker 1 incarnation "
                     f"{state['incarnation']}", since)
    check(asked.wait() == 200, "a committed switch was refused")
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout="tp")
    return stall_ms


def queue_full(trial, to=None):
    """The high-water mark of the queue to a worker is reached: whoever takes
    nothing any more counts as dead."""
    bench, rank = trial.bench, trial.rank
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep")
    incarnation = before["workers"][rank]["incarnation"]
    # With a switch: a step, PREPARE or COMMIT.
    nth = trial.nth(6) if to else 1 + trial.random.randrange(40)
    fault = f"link.command@{rank}=error:EAGAIN"
    bench.arm(fault + (f"#{nth}" if nth > 1 else ""))
    asked = bench.ask(to) if to else None
    bench.await_line(f"worker {rank} incarnation {incarnation} is lost: "
                     f"UNAVAILABLE: the queue to worker {rank} is full", since)
    bench.await_incarnation(rank, incarnation + 1)
    done = asked is not None and asked.wait() == 200
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=to if done else before["layout"])
    return stall_ms


# ---- links that are cut -------------------------------------------------------

WAYS = {"both ways": ("command", "report"), "to the worker": ("command",),
        "from the worker": ("report",)}


class Cut:
    """Nothing passes the link of a worker until it is mended."""

    def __init__(self, bench, rank, ways):
        self.bench, self.since = bench, bench.lines()
        self.lines = [f"{word} worker {rank}: lost" for way, word in
                      (("command", "to"), ("report", "of")) if way in ways]
        bench.arm(*[f"link.{way}@{rank}=error*1000000000" for way in ways])

    def await_loss(self):
        """Waits until a message was lost."""
        self.bench.await_line(self.lines, self.since)

    def mend(self):
        self.bench.disarm()
        return time.monotonic()


def again_after(load, mended_at):
    """How long after that all streams went on, in ms: by more than what may
    have been on its way."""
    load.await_events(5 * NUM_STREAMS)
    return 1000 * (time.monotonic() - mended_at)


def talker(rank, ways, switch=None):
    """Of steps only rank 0 reports."""
    return 0 if ways == ("report",) and switch is None else rank


def cut_off(trial, ways, seconds, switch=None):
    """A worker's link is cut for a while: under load, or in a switch with its
    COMMIT there. Meanwhile it may be replaced. Counted is the time from the
    mending on."""
    bench, rank = trial.bench, talker(trial.rank, ways, switch)
    if switch is not None:
        bench.bring_to("tp" if switch == "ep" else "ep")
    before = bench.status()
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    asked = None
    if switch is not None:
        wait = f"worker.commit@{rank}=sleep:150"
        since = bench.lines()
        bench.arm(wait)
        asked = bench.ask(switch)
        bench.await_fault(wait, since)
    cut = Cut(bench, rank, ways)
    cut.await_loss()
    threading.Event().wait(seconds)  # that is what is tried
    stall_ms = again_after(load, cut.mend())
    if asked is not None:
        check(asked.wait() == 200, "a committed switch was refused")
    load.end()
    after = bench.verify(before, layout=switch or before["layout"])
    check(after["recoveries"]["total"] > before["recoveries"]["total"],
          "the cut was not felt")
    return stall_ms


def link_flaps(trial, ways, times):
    """Cut and mended again and again, as soon as something was lost and as
    soon as the streams go on."""
    bench = trial.bench
    before, stalls = bench.status(), []
    load = Load(bench.group).start()
    load.await_events(2 * NUM_STREAMS)
    for i in range(times):
        rank = talker((trial.rank + i) % bench.workers, ways)
        cut = Cut(bench, rank, ways)
        cut.await_loss()
        stalls.append(again_after(load, cut.mend()))
    load.end()
    after = bench.verify(before, layout=before["layout"])
    felt = after["recoveries"]["total"] - before["recoveries"]["total"]
    check(felt >= times, f"{felt} recoveries of {times} cuts")
    return max(stalls)


def links(seconds):
    for name, ways in WAYS.items():
        yield Case(f"cut {name}", ALL + "E", cut_off, settings=IMPATIENT,
                   ways=ways, seconds=seconds)
        yield Case(f"cut {name} in a switch", ALL + "EF", cut_off,
                   settings=IMPATIENT, ways=ways, seconds=seconds,
                   switch="tp")
        yield Case(f"flapping {name}", ALL + "E", link_flaps,
                   settings=IMPATIENT, ways=ways,
                   times=20 if seconds >= 30 else 4)
