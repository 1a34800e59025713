"""Workers are killed, stopped and killed again, in steps and in switches: every
stream goes on, with the tokens of a quiet run, and nothing is computed again.
"""

import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import Group, MODEL

NUM_STREAMS = 16
TOKENS = 300


def body(i):
    return {"prompt": [(i * 37 + k * 11) % 4000 for k in range(8 + i)],
            "max_tokens": TOKENS, "seed": i, "ignore_eos": True,
            "temperature": 0 if i % 2 else 1.0, "top_k": 50,
            "return_token_ids": True}


class Load:
    """Streams, each followed by another like it until told to stop. Every one
    must be equal to the quiet one of its kind."""

    def __init__(self, group):
        self.group = group
        self.stop = threading.Event()
        self.failures = []
        self.finished = 0
        self.longest_gap_s = 0
        self.events = 0
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self.run, args=(i,))
                        for i in range(NUM_STREAMS)]

    def one(self, i):
        tokens, done, last = [], False, None
        stream = self.group.stream(body(i))
        for _, data in stream:
            now = time.monotonic()
            with self.changed:
                self.events += 1
                if last is not None:
                    self.longest_gap_s = max(self.longest_gap_s, now - last)
                self.changed.notify_all()
            last = now
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
                with self.changed:
                    self.finished += 1
        except Exception as failure:  # shown by the test's thread
            with self.changed:
                self.failures.append(failure)
                self.changed.notify_all()

    def await_events(self, count):
        """Waits for as many more events of the streams."""
        with self.changed:
            until = self.events + count
            if not self.changed.wait_for(
                    lambda: self.events >= until or self.failures, 60):
                raise AssertionError("the streams stand still")
            if self.failures:
                raise self.failures[0]

    def take_gap_ms(self):
        """Longest gap between two events of a stream since the last call."""
        with self.changed:
            gap, self.longest_gap_s = self.longest_gap_s, 0
        return 1000 * gap

    def __enter__(self):
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            self.quiet = list(pool.map(self.one, range(NUM_STREAMS)))
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def worker(group, rank):
    return group.status()["workers"][rank]


def await_incarnation(group, rank, incarnation):
    """Waits until that incarnation has joined; its pid. (The status may
    still tell of the one before it.)"""
    line = group.wait_line(
        f"worker {rank} has joined, incarnation {incarnation}, pid ")
    return int(line.rsplit(" ", 1)[1])


class WorkerDeathTest(unittest.TestCase):
    def check_after(self, group, load):
        self.assertEqual(load.failures, [])
        self.assertGreaterEqual(load.finished, NUM_STREAMS)
        self.assertEqual(group.status()["preemptions"], 0)

    def test_killed_in_steps_of_both_layouts(self):
        for layout in ("ep", "tp"):
            with self.subTest(layout), Group(["--layout", layout]) as group:
                gaps = []
                with Load(group) as load:
                    load.await_events(100)
                    load.take_gap_ms()
                    for i in range(10):
                        rank = i % 2
                        state = worker(group, rank)
                        os.kill(state["pid"], signal.SIGKILL)
                        await_incarnation(group, rank, state["incarnation"] + 1)
                        load.await_events(200)
                        gaps.append(load.take_gap_ms())
                self.check_after(group, load)
                print(f"{layout}: 10 kills, {load.finished} streams, longest "
                      f"stall median {statistics.median(gaps):.0f} ms, most "
                      f"{max(gaps):.0f} ms")

    def test_killed_while_idle(self):
        with Group(["--layout", "ep"]) as group:
            state = worker(group, 1)
            before = group.complete(body(3))["choices"][0]["token_ids"]
            os.kill(state["pid"], signal.SIGKILL)
            await_incarnation(group, 1, state["incarnation"] + 1)
            after = group.complete(body(3))["choices"][0]["token_ids"]
            self.assertEqual(before, after)

    def test_one_that_does_not_stay_up(self):
        """The group says that it is not ready, and why; it goes on when the
        worker stays up at last, and has lost nothing."""
        crash = "worker.adopt@1=crash*100"
        with Group(["--layout", "ep", "--set", "faults.enabled=true"]) as group:
            quiet = group.complete(body(3))["choices"][0]["token_ids"]
            state = worker(group, 1)
            group.post("/admin/faults", {"arm": [crash]}, admin=True)
            os.kill(state["pid"], signal.SIGKILL)
            # Taken before anybody knows how it will end.
            answers = []
            asked = threading.Thread(
                target=lambda: answers.append(group.complete(body(3))))
            asked.start()
            group.wait_line("a successor takes over in 30000 ms")
            why, deadline = "", time.monotonic() + 10
            while "processes in a row" not in why:
                self.assertLess(time.monotonic(), deadline, why)
                ready = group.get("/ready")
                why = ready.json().get("reason", "")
            self.assertEqual(ready.status, 503)
            self.assertIn("worker 1 was killed by signal", why)
            self.assertIn("tried again every 30 s", why)
            refused = group.post("/v1/completions", body(4))
            self.assertEqual(refused.status, 503)
            self.assertIn("processes in a row",
                          refused.json()["error"]["message"])
            self.assertEqual(group.status()["not_ready_reason"], why)
            group.request("DELETE", "/admin/faults", admin=True)
            asked.join(60)
            self.assertEqual(answers[0]["choices"][0]["token_ids"], quiet)
            self.assertEqual(group.get("/ready").status, 200)

    def test_an_idle_one_that_does_not_come_back_is_noticed(self):
        """Without a request that would have to wait for it."""
        with Group(["--layout", "ep", "--set", "faults.enabled=true"]) as group:
            state = worker(group, 1)
            group.post("/admin/faults", {"arm": ["worker.adopt@1=crash*100"]},
                       admin=True)
            os.kill(state["pid"], signal.SIGKILL)
            group.wait_line("a successor takes over in 30000 ms")
            why, deadline = "", time.monotonic() + 10
            while "processes in a row" not in why:
                self.assertLess(time.monotonic(), deadline, why)
                ready = group.get("/ready")
                why = ready.json().get("reason", "")
            self.assertEqual(ready.status, 503)
            group.request("DELETE", "/admin/faults", admin=True)

    def test_one_that_cannot_load_any_more_says_why(self):
        """Its memory went with it, and the checkpoint is gone meanwhile: its
        own words are heard, and the rest of the group goes on."""
        with tempfile.TemporaryDirectory() as folder:
            model = os.path.join(folder, "verse-moe")
            shutil.copytree(MODEL, model)
            with Group(["--model", model, "--layout", "ep", "--set",
                        "faults.enabled=true"]) as group:
                state = worker(group, 1)
                group.post("/admin/faults", {"arm": ["vault.kept@1=error"]},
                           admin=True)
                os.unlink(os.path.join(model, "model.safetensors"))
                os.kill(state["pid"], signal.SIGKILL)
                why, deadline = "", time.monotonic() + 20
                while "model.safetensors" not in why:
                    self.assertLess(time.monotonic(), deadline, why)
                    ready = group.get("/ready")
                    why = ready.json().get("reason", "")
                self.assertEqual(ready.status, 503)
                self.assertIn("cannot be opened", why)
                self.assertNotIn("signal", why)
                self.assertEqual(group.get("/health").status, 200)

    def test_recovery_does_not_need_what_cleaners_take(self):
        """Everything in the private directory goes, as with a log-out; then a
        worker dies, and the coordinator."""
        for whole in (False, True):
            with self.subTest(whole), Group(["--layout", "ep"]) as group:
                quiet = group.complete(body(3))["choices"][0]["token_ids"]
                if whole:
                    shutil.rmtree(group.directory)
                else:
                    for name in os.listdir(group.directory):
                        if name != "journal":
                            os.unlink(os.path.join(group.directory, name))
                group.wait_line("made again what somebody has removed")
                group.wait_line("the control socket was removed by somebody: "
                                "it is made anew")
                state = worker(group, 1)
                os.kill(state["pid"], signal.SIGKILL)
                await_incarnation(group, 1, state["incarnation"] + 1)
                after = group.complete(body(3))["choices"][0]["token_ids"]
                self.assertEqual(after, quiet)
                if whole:
                    group.wait_line("the journal can be written again")
                os.kill(group.coordinator_pid(), signal.SIGKILL)
                group.wait_line("coordinator was killed by signal 9")
                while True:
                    try:
                        if group.get("/ready").status == 200:
                            break
                    except OSError:
                        pass
                    threading.Event().wait(0.05)
                after = group.complete(body(3))["choices"][0]["token_ids"]
                self.assertEqual(after, quiet)

    def test_killed_around_switches(self):
        with Group(["--layout", "ep", "--workers", "4"]) as group:
            done = refused = 0
            with Load(group) as load:
                load.await_events(100)
                for i in range(24):
                    target = "tp" if i % 2 == 0 else "ep"
                    answers = []

                    def switch(target=target, answers=answers):
                        answers.append(group.post(
                            "/admin/layout", {"layout": target}, admin=True))

                    asked = threading.Thread(target=switch)
                    rank = i % 4
                    state = worker(group, rank)
                    if i % 3 == 0:
                        os.kill(state["pid"], signal.SIGKILL)
                        asked.start()
                    else:
                        asked.start()
                        os.kill(state["pid"], signal.SIGKILL)
                    asked.join()
                    # Done, or refused since the group halted: nothing else.
                    status = answers[0].status
                    self.assertIn(status, (200, 409), answers[0].body)
                    done += status == 200
                    refused += status == 409
                    await_incarnation(group, rank, state["incarnation"] + 1)
                    load.await_events(50)
                    if status == 409:
                        self.assertTrue(group.switch(target)["done"])
            self.check_after(group, load)
            print(f"24 switches with a kill: {done} done, {refused} refused, "
                  f"{load.finished} streams")

    def test_two_at_once_and_the_successor_again(self):
        with Group(["--layout", "ep", "--workers", "4"]) as group:
            with Load(group) as load:
                load.await_events(100)
                before = [worker(group, rank) for rank in range(4)]
                for rank in (1, 2):
                    os.kill(before[rank]["pid"], signal.SIGKILL)
                for rank in (1, 2):
                    pid = await_incarnation(group, rank, 2)
                    os.kill(pid, signal.SIGKILL)  # in or after its recovery
                for rank in (1, 2):
                    await_incarnation(group, rank, 3)
                load.await_events(500)
            self.check_after(group, load)

    def test_a_stopped_worker_is_replaced(self):
        config = os.path.join(os.path.dirname(__file__), "impatient.yaml")
        with Group(["-c", config]) as group:
            with Load(group) as load:
                load.await_events(100)
                state = worker(group, 1)
                os.kill(state["pid"], signal.SIGSTOP)
                await_incarnation(group, 1, state["incarnation"] + 1)
                load.await_events(500)
            self.check_after(group, load)


if __name__ == "__main__":
    unittest.main()
