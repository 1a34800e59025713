#!/usr/bin/env python3
"""The fault matrix: everything that is known to go wrong is made to, with real
processes, several times each, and what must hold is checked (see cases.py).

    fault_matrix.py --list
    fault_matrix.py --case 'in a pull ep->tp' --seeds 20
    fault_matrix.py --seeds 5 --write tests/faults/RESULTS.md

A failure names the case and the seed, which repeat it. Cases called `network:`
make network namespaces: as root, or under `unshare -rn`. Where they may not,
they are skipped and say so; if all are, the exit code is 77.
"""

import argparse
import os
import queue
import statistics
import sys
import threading
import time
import traceback
import zlib

from bench import SERVING_AGAIN_MS, Trial, check, fill_quiet
from cases import table
from network import Skipped

INVARIANTS = """\
A no accepted request lost · B each token once, in order · C one layout a step
on all ranks · D pages and weights are those of the layout · E nothing of a
dead incarnation is taken · F a decision for a switch stands · G serving again
within 10 s · H nothing left behind · J errors are definite and touch only what
they must · O the tokens of a quiet run"""


# CTest's word for a test that could not be tried.
SKIPPED_CODE = 77


class Runner:
    """Runs trials, and keeps a group from one to the next where that does."""

    def __init__(self):
        self.bench, self.kind = None, None

    def bench_for(self, case, seed):
        settings = case.settings_of(seed)
        kind = (case.bench, case.workers, settings)
        if case.no_group:
            self.close()
            return None
        if case.own_group or kind != self.kind:
            self.close()
        if self.bench is None:
            self.bench = case.bench(case.workers, settings)
            self.kind = kind
            fill_quiet(self.bench.group)
        return self.bench

    def run(self, case, seed):
        """Stall in ms, or None. Raises what went wrong."""
        try:
            bench = self.bench_for(case, seed)
            if bench is not None:
                bench.settle()
            # Settings that name a rank go by the seed alone.
            shift = 0 if case.own_group else zlib.crc32(case.name.encode())
            stall_ms = case(Trial(bench, seed, shift))
            if stall_ms is not None:
                check(stall_ms <= SERVING_AGAIN_MS,
                      f"stood still for {stall_ms:.0f} ms")
            if case.own_group:
                self.close()
            elif bench is not None:
                bench.disarm()
            return stall_ms
        except BaseException:
            self.break_off()
            raise

    def close(self):
        bench, self.bench, self.kind = self.bench, None, None
        if bench is not None:
            bench.close()

    def break_off(self):
        bench, self.bench, self.kind = self.bench, None, None
        if bench is None:
            return
        print("\n".join(bench.group.said().splitlines()[-60:]), flush=True)
        if bench.group.process.poll() is None:
            bench.kill_all()


def run_case(runner, case, seeds):
    """(stalls, failures) of one case; no stalls at all: it was skipped."""
    stalls, failures = [], []
    for seed in seeds:
        begin = time.monotonic()
        try:
            stall_ms = runner.run(case, seed)
        except Skipped as why:
            print(f"SKIPPED {case.name}: {why}", flush=True)
            return None, failures
        except Exception as failure:
            failures.append(f"{case.name}, seed {seed}: {failure}")
            print(f"FAILED {case.name}, seed {seed}: {failure}")
            traceback.print_exc()
            continue
        if stall_ms is not None:
            stalls.append(stall_ms)
        print(f"ok {case.name}, seed {seed}: "
              f"{'' if stall_ms is None else f'{stall_ms:.0f} ms, '}"
              f"{time.monotonic() - begin:.1f} s", flush=True)
    return stalls, failures


def run_cases(cases, arguments):
    """(rows, failures). Those that share a group run one after another."""
    left = queue.SimpleQueue()
    for case in sorted(cases, key=lambda case: case.group_key()):
        left.put(case)
    rows, failures = [], []

    def work():
        runner = Runner()
        while True:
            try:
                case = left.get_nowait()
            except queue.Empty:
                break
            count = min(arguments.seeds, case.seeds or arguments.seeds)
            seeds = range(arguments.first_seed, arguments.first_seed + count)
            stalls, failed = run_case(runner, case, seeds)
            if stalls is None:
                count, stalls = 0, []
            rows.append((case, count, len(failed), stalls))
            failures.extend(failed)
        try:
            runner.close()
        except Exception as failure:
            failures.append(f"the last group: {failure}")

    threads = [threading.Thread(target=work) for _ in range(arguments.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows, failures


def write_results(path, rows, seconds, jobs):
    with open(path, "w") as file:
        file.write(
            "# The fault matrix\n\n"
            "Written by `tests/faults/fault_matrix.py --write`: every case "
            "with that many seeds,\nand the longest time that a stream stood "
            "still, in ms. 2 workers unless the case\nneeds 4, 8 streams of "
            "96 tokens, models/verse-moe, 2 cores of an AMD EPYC that\nothers "
            f"used too, {jobs} at a time, {seconds / 60:.0f} minutes.\n\n{INVARIANTS}\n\n"
            "| case | invariants | runs | failed | median ms | most ms |\n"
            "|---|---|---|---|---|---|\n")
        for case, runs, failed, stalls in rows:
            median = f"{statistics.median(stalls):.0f}" if stalls else ""
            most = f"{max(stalls):.0f}" if stalls else ""
            file.write(f"| {case.name} | {case.invariants} | {runs} | "
                       f"{failed} | {median} | {most} |\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5,
                        help="runs of each case (default 5)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--case", action="append", metavar="TEXT",
                        help="only cases with this in their name")
    parser.add_argument("--leave-out", action="append", metavar="TEXT",
                        default=[], help="no cases with this in their name")
    parser.add_argument("--kill-seconds", type=int, default=60,
                        help="how long somebody is killed again and again")
    parser.add_argument("--message-seconds", type=int, default=30,
                        help="how long messages are struck at random")
    parser.add_argument("--cut-seconds", type=int, default=30,
                        help="how long links and networks are cut")
    parser.add_argument("--jobs", type=int, default=1,
                        help="cases at a time; several disturb each other's "
                        "figures (default 1)")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", metavar="FILE")
    arguments = parser.parse_args()
    cases = [case for case in table(arguments.kill_seconds,
                                    arguments.message_seconds,
                                    arguments.cut_seconds)
             if (not arguments.case
                 or any(text in case.name for text in arguments.case))
             and not any(text in case.name for text in arguments.leave_out)]
    if arguments.list:
        for case in cases:
            print(f"{case.name:48} {case.invariants}")
        return 0
    if not cases:
        parser.error("no such case")
    begin = time.monotonic()
    rows, failures = run_cases(cases, arguments)
    skipped = sum(row[1] == 0 for row in rows)
    seconds = time.monotonic() - begin
    rows.sort(key=lambda row: cases.index(row[0]))
    if arguments.write:
        write_results(arguments.write, rows, seconds, arguments.jobs)
    for failure in failures:
        print(f"FAILED {failure.splitlines()[0][:200]}")
    print(f"{sum(row[1] for row in rows)} runs of {len(rows)} cases in "
          f"{seconds:.0f} s, {len(failures)} failed"
          + (f", {skipped} cases SKIPPED" if skipped else ""))
    if skipped == len(cases):
        return SKIPPED_CODE
    return 1 if failures else 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
