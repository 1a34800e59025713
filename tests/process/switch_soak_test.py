"""200 switches under 64 streams: no stream lost, no token missing or repeated,
and no process grows."""

import os
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import Group, children_of

NUM_STREAMS = 64
NUM_SWITCHES = 200
SETTLED_AFTER = 50
TOKENS = 400
# Growth of one process over the last 150 switches that is not a leak: allocator
# and page-granular noise. A leak of one request or plan a switch is far above.
ALLOWED_GROWTH_KB = 2048


def resident_kb(pid):
    """(private, shared): memory of the process's own, and pages of the regions
    that workers share, which a process counts from its first look at them."""
    fields = {}
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name.startswith("Rss"):
                fields[name] = int(value.split()[0])
    return fields["RssAnon"] + fields["RssFile"], fields["RssShmem"]


def mapped_regions_kb(pid):
    """Size of all shared regions that the process maps: no process can count
    more of them than that."""
    total = 0
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            if "memfd:" in line:
                begin, end = line.split()[0].split("-")
                total += (int(end, 16) - int(begin, 16)) // 1024
    return total


def fill_pool(group):
    """Holds enough long sequences at once to use every page of both pools, so
    that later growth is no first use of a page."""
    bodies = [{"prompt": [(i + k) % 4000 for k in range(3900)],
               "max_tokens": 100, "ignore_eos": True} for i in range(18)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(group.complete, bodies))


class Load:
    """64 streams, each followed by another like it until told to stop. Every
    stream must be equal to the first one of its kind."""

    def __init__(self, group):
        self.group = group
        self.stop = threading.Event()
        self.failures = []
        self.finished = 0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(i,))
                        for i in range(NUM_STREAMS)]

    def body(self, i):
        return {"prompt": [(i * 37 + k * 11) % 4000 for k in range(8 + i)],
                "max_tokens": TOKENS, "seed": i, "ignore_eos": True,
                "temperature": 0 if i % 2 else 1.0, "top_k": 50,
                "return_token_ids": True}

    def one(self, i):
        tokens, done = [], False
        stream = self.group.stream(self.body(i))
        for _, data in stream:
            if data == "[DONE]":
                done = True
            elif data["choices"]:
                tokens += data["choices"][0].get("token_ids") or []
        stream.close()
        if not done:
            raise AssertionError(f"stream {i} broke off")
        return tokens

    def run(self, i):
        try:
            while not self.stop.is_set():
                tokens = self.one(i)
                if tokens != self.quiet[i]:
                    raise AssertionError(
                        f"stream {i}: {len(tokens)} tokens, not the quiet run's")
                with self.lock:
                    self.finished += 1
        except Exception as failure:  # shown by the test's thread
            self.failures.append(failure)

    def __enter__(self):
        self.quiet = [self.one(i) for i in range(NUM_STREAMS)]
        for tokens in self.quiet:
            if len(tokens) != TOKENS:
                raise AssertionError("a quiet run of another length")
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


class SwitchSoakTest(unittest.TestCase):
    def test_two_hundred_switches_under_load(self):
        config = os.path.join(os.path.dirname(__file__), "soak.yaml")
        with Group(["-c", config]) as group:
            pids = [group.pid, *children_of(group.pid)]
            fill_pool(group)
            with Load(group) as load:
                settled = {}
                for i in range(NUM_SWITCHES):
                    report = group.switch("tp" if i % 2 == 0 else "ep")
                    self.assertTrue(report["done"], report)
                    self.assertEqual(load.failures, [])
                    if i + 1 == SETTLED_AFTER:
                        settled = {pid: resident_kb(pid) for pid in pids}
                ended = {pid: resident_kb(pid) for pid in pids}
            self.assertEqual(load.failures, [])
            self.assertGreaterEqual(load.finished, NUM_STREAMS)
            grown = {pid: ended[pid][0] - settled[pid][0] for pid in pids}
            for pid in pids:
                self.assertLess(grown[pid], ALLOWED_GROWTH_KB,
                                f"growth by process: {grown}")
                self.assertLessEqual(ended[pid][1], mapped_regions_kb(pid))
            self.assertEqual(group.status()["switches"]["total"], NUM_SWITCHES)
            print(f"{NUM_SWITCHES} switches, {load.finished} streams, "
                  f"private memory grew after the first {SETTLED_AFTER} by "
                  f"{list(grown.values())} KB")


if __name__ == "__main__":
    unittest.main()
