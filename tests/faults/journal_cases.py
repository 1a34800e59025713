"""The journal: files that are not whole, disks that are full or fail."""

import contextlib
import glob
import os
import signal
import struct
import subprocess
import tempfile

from bench import (BODIES, Bench, KeyedLoad, NUM_STREAMS, Wrong, check,
                   fill_quiet, loaded_in)
from case import ALL, Case
from group import Group, GroupFailed
from network import Skipped

SLOWLY = "worker.step@0=sleep:5*100000"  # so that streams last
WRITE_FAILS = "journal.write@coordinator=error:{error}*1000000"


def segment_of(bench):
    """The file that the next coordinator will read."""
    return sorted(glob.glob(os.path.join(bench.group.directory, "journal",
                                         "journal-*.log")))[-1]


@contextlib.contextmanager
def between_coordinators(bench):
    """Kills the coordinator, and lets the launcher see it only behind this."""
    os.kill(bench.group.pid, signal.SIGSTOP)
    try:
        with bench.coordinator() as old:
            old.signal(signal.SIGKILL)
            old.await_end()
        yield
    finally:
        os.kill(bench.group.pid, signal.SIGCONT)


def loaded(bench, **more):
    load = KeyedLoad(bench.group, **more).start()
    load.await_events(2 * NUM_STREAMS)
    load.forget_gaps()
    return load


def torn_tail(trial, lost):
    """A write that was cut short: the beginning of one that nobody was told
    of, or (`lost`) the end of what was told, as if the disk had lied. What is
    missing is drawn again, with the same values."""
    bench = trial.bench
    before, since = bench.status(), bench.lines()
    load = loaded(bench)
    with between_coordinators(bench):
        path = segment_of(bench)
        size = os.path.getsize(path)
        count = 1 + trial.random.randrange(24)
        if lost:
            os.truncate(path, size - count)
        else:
            # A frame of 200 bytes, of which so many were written.
            frame = struct.pack("<IIQ", 200, trial.random.getrandbits(32),
                                trial.random.getrandbits(64))
            with open(path, "ab") as file:
                file.write((frame + bytes(200))[:count])
    bench.await_line("bytes that were not written whole are cut off "
                     + path, since)
    bench.await_coordinator(before["term"] + 1)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    check(load.breaks > 0, "no stream has broken off")
    bench.verify(before, layout=before["layout"], may_recompute=lost)
    return stall_ms


def flip(path, random):
    """Flips a bit of a frame that others follow; returns the frame's place.
    journal_frame.h has the format."""
    with open(path, "r+b") as file:
        data = file.read()
        frames, at = [], struct.unpack_from("<Q", data, 32)[0]
        while at + 16 <= len(data):
            frames.append(at)
            at += 16 + struct.unpack_from("<I", data, at)[0]
        check(len(frames) >= 10, f"only {len(frames)} frames")
        frame = random.choice(frames[1:len(frames) // 2])
        place = frame + 16 + random.randrange(8)
        file.seek(place)
        file.write(bytes([data[place] ^ 1 << random.randrange(8)]))
    return frame, data


def flipped(trial, mended):
    """A byte in the middle: no coordinator takes such a journal, and each says
    where. It changes nothing in the file, so that, once that is as it was
    (`mended`), the next one goes on; otherwise the group ends at last, with an
    error that says why."""
    bench = trial.bench
    before, since = bench.status(), bench.lines()
    load = loaded(bench) if mended else None
    if not mended:
        KeyedLoad(bench.group, repeat=False).start().end()
    with between_coordinators(bench):
        path = segment_of(bench)
        frame, whole = flip(path, trial.random)
        with open(path, "rb") as file:
            broken = file.read()
    line = bench.await_line(f"{path}: ", since)
    check(f"at offset {frame}" in line, line)
    with open(path, "rb") as file:
        check(file.read() == broken, "the journal that is refused was changed")
    if not mended:
        bench.group.note_processes()
        bench.await_line("processes in a row lasted less than", since)
        code = bench.group.wait_end()
        check(code == 1, f"exit code {code}")
        return None
    with open(path, "r+b") as file:
        file.write(whole)
    bench.await_coordinator(before["term"] + 1)
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    bench.verify(before, layout=before["layout"])
    return stall_ms


def refuses(bench, why):
    """New requests are answered with 503, for this reason."""
    bench.await_ready(why)
    answer = bench.group.post("/v1/completions", {"prompt": "x",
                                                  "max_tokens": 2})
    check(answer.status == 503, f"answered {answer.status} {answer.body!r}")


def accepts(bench):
    bench.await_ready()
    bench.group.complete({"prompt": "x", "max_tokens": 2})


def cannot_be_written(trial, error, why, kill=False):
    """Streams go on, also (`kill`) with the next coordinator, which cannot
    write either; nothing new is accepted; and then it can be written again."""
    bench = trial.bench
    before, since = bench.status(), bench.lines()
    bench.arm(SLOWLY)
    load = loaded(bench, repeat=False)
    bench.arm(WRITE_FAILS.format(error=error))
    refuses(bench, why)
    check(bench.status()["running"] > 0, "no stream is under way any more")
    if kill:
        os.kill(before["pid"], signal.SIGKILL)
        bench.await_coordinator(before["term"] + 1, ready=False)
        refuses(bench, why)
    stall_ms = load.end()
    refuses(bench, why)
    bench.disarm()
    bench.await_line("the journal can be written again", since)
    accepts(bench)
    bench.verify(before, layout=before["layout"], may_recompute=kill)
    return stall_ms


def cannot_be_synced(trial):
    """Once, somewhere: the sync is not asked for again. What this commit was
    to accept is refused; everything is in a new segment a moment later."""
    bench = trial.bench
    before, since = bench.status(), bench.lines()
    segment = segment_of(bench)
    load = loaded(bench)
    fault = "journal.sync@coordinator=error:EIO"
    nth = trial.nth(20)
    bench.arm(fault + (f"#{nth}" if nth > 1 else ""))
    bench.await_line(f"fault {fault}", since)
    bench.await_line("the journal can be written again", since)
    stall_ms = load.end()
    check(segment_of(bench) > segment, "the segment was continued")
    # What it holds is whole: the next coordinator goes on with it.
    with bench.coordinator() as old:
        old.signal(signal.SIGKILL)
    bench.await_coordinator(before["term"] + 1)
    bench.verify(before, layout=before["layout"])
    return stall_ms


def decision_cannot_be_written(trial, to):
    """Whether it is on disk nobody knows, so the coordinator ends; its
    successor reads what is there. The switch is then done or was never."""
    bench = trial.bench
    before, since, load = loaded_in(bench, "tp" if to == "ep" else "ep",
                                    KeyedLoad)
    wait = "coordinator.prepared@coordinator=sleep:300"
    bench.arm(wait)
    asked = bench.ask(to)
    bench.await_fault(wait, since)
    bench.arm("journal.write@coordinator=error:EIO")
    bench.await_line("fault journal.write@coordinator=error:EIO", since)
    after = bench.await_coordinator(before["term"] + 1)
    asked.over()
    load.await_events(2 * NUM_STREAMS)
    stall_ms = load.end()
    # The write has failed before it began.
    bench.verify(before, layout=before["layout"])
    check(after["term"] == before["term"] + 1, f"term {after['term']}")
    return stall_ms


def disk_is_full(trial):
    """A real one, of 2 MB, that somebody else fills."""
    if os.geteuid() != 0:
        raise Skipped("only root may mount a disk")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700",
                        "none", folder], check=True)
        try:
            bench = Bench(settings=(f"journal.dir={folder}/journal",))
            try:
                stall_ms = fill_disk(bench, os.path.join(folder, "filler"))
            except BaseException:
                print("\n".join(bench.group.said().splitlines()[-60:]))
                bench.kill_all()
                raise
            bench.close()
        finally:
            subprocess.run(["umount", folder], check=True)
    return stall_ms


def fill_disk(bench, filler):
    fill_quiet(bench.group)
    bench.settle()
    before, since = bench.status(), bench.lines()
    bench.arm(SLOWLY)
    load = loaded(bench, repeat=False)
    with open(filler, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    refuses(bench, "No space left")
    stall_ms = load.end()
    refuses(bench, "No space left")
    os.unlink(filler)
    bench.await_line("the journal can be written again", since)
    bench.disarm()
    accepts(bench)
    with bench.coordinator() as old:
        old.signal(signal.SIGKILL)
    bench.await_coordinator(before["term"] + 1)
    bench.verify(before, layout=before["layout"])
    return stall_ms


def journal_of_another(trial):
    """Two groups are given one journal: the second is refused, the first
    serves on."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (f"journal.dir={folder}/journal",)
        bench = Bench(settings=settings)
        try:
            fill_quiet(bench.group)
            bench.settle()
            before = bench.status()
            load = loaded(bench)
            try:
                Group(["--set", *settings])
                raise Wrong("a second group serves from the same journal")
            except GroupFailed as failure:
                check("another process has this journal open" in str(failure),
                      str(failure))
            load.await_events(2 * NUM_STREAMS)
            stall_ms = load.end()
            check(load.breaks == 0, "a stream has broken off")
            bench.verify(before, layout=before["layout"])
        except BaseException:
            print("\n".join(bench.group.said().splitlines()[-60:]))
            bench.kill_all()
            raise
        bench.close()
    return stall_ms


# ---- the rows ---------------------------------------------------------------


def journals():
    yield Case("journal: a tail that was not told of", ALL, torn_tail,
               lost=False)
    yield Case("journal: a tail that was told of is lost", "BCDGHO", torn_tail,
               lost=True)
    yield Case("journal: a flipped bit, mended", ALL + "J", flipped,
               mended=True)
    yield Case("journal: a flipped bit", "HJ", flipped, own_group=True,
               mended=False)
    yield Case("journal: ENOSPC", ALL + "J", cannot_be_written,
               error="ENOSPC", why="No space left")
    yield Case("journal: EIO", ALL + "J", cannot_be_written, error="EIO",
               why="Input/output error")
    yield Case("journal: ENOSPC, and the coordinator killed", ALL + "J",
               cannot_be_written, error="ENOSPC", why="No space left",
               kill=True)
    yield Case("journal: EIO of a sync", ALL + "J", cannot_be_synced,
               settings=("journal.fsync=step",))
    for to in ("tp", "ep"):
        yield Case("journal: a decision that cannot be written "
                   + ("ep->tp" if to == "tp" else "tp->ep"), ALL + "FJ",
                   decision_cannot_be_written, to=to)
    yield Case("journal: a full disk", ALL + "J", disk_is_full,
               no_group=True)
    yield Case("journal: another group's", ALL + "J", journal_of_another,
               no_group=True)
