"""The coordinator is killed: its requests go on, and clients that come back with
their key get what is missing, each token once, with the tokens of a quiet run.
"""

import http.client
import os
import shutil
import signal
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import MODEL, Group, run_moebius
from resumed_stream import ResumedStream

NUM_STREAMS = 12
TOKENS = 300


def body(i):
    return {"prompt": [(i * 37 + k * 11) % 4000 for k in range(8 + i)],
            "max_tokens": TOKENS, "seed": i, "ignore_eos": True,
            "temperature": 0 if i % 2 else 1.0, "top_k": 50,
            "return_token_ids": True}


class Client(ResumedStream):
    """One stream that is resumed as often as it breaks off."""

    def __init__(self, group, i, key):
        super().__init__(group, body(i), key)


def coordinator(group):
    return group.status()["pid"]


def await_term(group, term):
    group.wait_line("a successor takes over")
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            status = group.status()
            if status["term"] >= term and status["ready"]:
                return status
        except (OSError, http.client.HTTPException):
            pass
        threading.Event().wait(0.02)
    raise AssertionError(f"no coordinator of term {term} in 30 s")


def in_midstream(group):
    """The tokens of a quiet run, and a client of the same stream that runs in a
    thread and has some of them."""
    quiet = Client(group, 3, "quiet").run()
    client = Client(group, 3, "loud")
    running = threading.Thread(target=client.run)
    running.start()
    while len(client.tokens) < 20 and running.is_alive():
        threading.Event().wait(0.005)
    return quiet, client, running


class CoordinatorDeathTest(unittest.TestCase):
    def quiet(self, group):
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            return list(pool.map(
                lambda i: Client(group, i, f"quiet-{i}").run(),
                range(NUM_STREAMS)))

    def run_with_kills(self, group, kills, between=None):
        quiet = self.quiet(group)
        clients = [Client(group, i, f"loud-{i}") for i in range(NUM_STREAMS)]
        failures = []

        def run(client):
            try:
                client.run()
            except AssertionError as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(c,)) for c in clients]
        for thread in threads:
            thread.start()
        for kill in range(kills):
            while min(len(c.tokens) for c in clients) < 20 * (kill + 1):
                threading.Event().wait(0.005)
            if between is not None:
                between(kill)
            os.kill(coordinator(group), signal.SIGKILL)
            await_term(group, kill + 2)
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        for i, client in enumerate(clients):
            self.assertEqual(client.tokens, quiet[i], f"stream {i}")
            self.assertEqual(client.ids, [str(n + 1) for n in range(TOKENS)])
            self.assertGreaterEqual(client.breaks, 1)
        print(f"{kills} kills, longest outage of a stream "
              f"{1000 * max(c.longest_gap_s for c in clients):.0f} ms")
        return clients

    def test_streams_resume_in_both_layouts(self):
        for layout in ("ep", "tp"):
            with self.subTest(layout), Group(["--layout", layout]) as group:
                self.run_with_kills(group, 4)
                self.assertEqual(group.status()["dropped_tokens"], 0)

    def test_killed_while_switching(self):
        with Group(["--layout", "ep"]) as group:
            def switch(kill):
                target = "tp" if kill % 2 == 0 else "ep"
                asked = threading.Thread(
                    target=lambda: self.ask(group, target))
                asked.start()
                asked.join(0.003)

            self.run_with_kills(group, 4, switch)

    @staticmethod
    def ask(group, target):
        try:
            group.post("/admin/layout", {"layout": target}, admin=True)
        except (OSError, http.client.HTTPException):
            pass  # it was killed meanwhile

    def test_killed_while_idle(self):
        with Group(["--layout", "ep"]) as group:
            before = Client(group, 3, "before").run()
            os.kill(coordinator(group), signal.SIGKILL)
            await_term(group, 2)
            # The result is kept, and a new request gets the same.
            self.assertEqual(Client(group, 3, "before").run(), before)
            self.assertEqual(Client(group, 3, "after").run(), before)

    def test_told_to_end_by_somebody_else_it_has_a_successor(self):
        with Group(["--layout", "ep"]) as group:
            quiet, client, running = in_midstream(group)
            os.kill(coordinator(group), signal.SIGTERM)
            await_term(group, 2)
            running.join()
            self.assertEqual(client.tokens, quiet)
            self.assertEqual(client.ids, [str(n + 1) for n in range(TOKENS)])

    def test_killed_in_a_drain_its_successor_drains(self):
        with Group(["--layout", "ep"]) as group:
            quiet, client, running = in_midstream(group)
            pid = coordinator(group)
            group.terminate()
            group.wait_line("draining: requests in flight go on")
            os.kill(pid, signal.SIGKILL)
            running.join()
            self.assertEqual(client.tokens, quiet)
            self.assertEqual(client.ids, [str(n + 1) for n in range(TOKENS)])
            self.assertEqual(group.wait_end(), 0)

    def test_the_whole_group_dies_and_its_journal_goes_on(self):
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, "config.yaml")
            with open(config, "w") as file:
                file.write(f"journal: {{dir: {folder}/journal, fsync: step}}\n")
            group = Group(["-c", config, "--layout", "ep"])
            quiet = Client(group, 3, "quiet").run()
            client = Client(group, 3, "loud")
            running = threading.Thread(target=client.once)
            running.start()
            while len(client.tokens) < 50:
                threading.Event().wait(0.005)
            group.kill()
            running.join()
            self.assertLess(len(client.tokens), TOKENS)
            with Group(["-c", config, "--layout", "tp"]) as group:
                client.group = group
                self.assertEqual(client.run(), quiet)
                self.assertEqual(client.ids,
                                 [str(n + 1) for n in range(TOKENS)])

    def test_another_checkpoint_does_not_continue_what_the_first_began(self):
        with tempfile.TemporaryDirectory() as folder:
            journal = ["--set", f"journal.dir={folder}/journal",
                       "--set", "journal.keep_results_ms=600000"]
            group = Group(journal)
            finished = Client(group, 2, "finished")
            quiet = finished.run()
            client = Client(group, 3, "loud")
            running = threading.Thread(target=client.once)
            running.start()
            while len(client.tokens) < 50:
                threading.Event().wait(0.005)
            group.kill()
            running.join()
            self.assertLess(len(client.tokens), TOKENS)
            # The same but for the sign of one weight.
            other = os.path.join(folder, "verse-moe")
            shutil.copytree(MODEL, other)
            weights = os.path.join(other, "model.safetensors")
            with open(weights, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                byte = file.read(1)[0]
                file.seek(-1, os.SEEK_END)
                file.write(bytes([byte ^ 0x80]))
            with Group(journal, model=other) as group:
                group.wait_line("0 unfinished answers are taken up, 1 are not; "
                                "1 finished ones are kept")
                group.wait_line("written with another checkpoint")
                for one, status in ((finished, 200), (client, 409)):
                    one.group = group
                    answer = group.request(
                        "POST", "/v1/completions", one.body,
                        headers={"Content-Type": "application/json",
                                 "Idempotency-Key": one.key})
                    self.assertEqual(answer.status, status, answer.body)
                error = answer.json()["error"]
                self.assertEqual(error["code"], "checkpoint_changed")
                self.assertIn("another checkpoint", error["message"])
                again = Client(group, 2, "finished")
                self.assertEqual(again.run(), quiet)

    def test_a_damaged_journal_is_repaired_by_hand(self):
        with tempfile.TemporaryDirectory() as folder:
            place = os.path.join(folder, "journal")
            journal = ["--set", f"journal.dir={place}",
                       "--set", "journal.keep_results_ms=600000"]
            with Group(journal) as group:
                first = Client(group, 2, "first").run()
                refused = run_moebius("journal", "repair", place)
                self.assertNotEqual(refused.returncode, 0)
                self.assertIn("another process has this journal open",
                              refused.stderr)
                Client(group, 3, "second").run()
            [name] = [n for n in os.listdir(place) if n.endswith(".log")]
            sound = run_moebius("journal", "check", place)
            self.assertEqual(sound.returncode, 0, sound.stderr)
            self.assertIn("2 requests, 0 of them unfinished, 600 tokens",
                          sound.stdout)
            with open(os.path.join(place, name), "r+b") as file:
                file.seek(-10_000, os.SEEK_END)
                file.write(b"damage")
            damaged = run_moebius("journal", "check", place)
            self.assertEqual(damaged.returncode, 1)
            self.assertIn("DAMAGED", damaged.stdout)
            with Group(journal, wait=False) as group:
                self.assertEqual(group.wait_end(), 1)
                group.wait_line(f"`moebius journal repair {place}` keeps what "
                                "is whole", group.err)
            repaired = run_moebius("journal", "repair", place)
            self.assertEqual(repaired.returncode, 0, repaired.stderr)
            self.assertIn(name + ".damaged", os.listdir(place))
            with Group(journal) as group:
                self.assertEqual(Client(group, 2, "first").run(), first)

    def test_a_group_that_begins_anew_does_not_go_on_with_another_answer(self):
        body = {"prompt": "And it came to pass", "max_tokens": 8,
                "temperature": 1, "ignore_eos": True, "return_token_ids": True}
        with Group(["--workers", "1"]) as group:
            first = ResumedStream(group, body, "k")
            first.once(max_events=2)
            self.assertIsNotNone(first.last_id)
        with Group(["--workers", "1"]) as group:
            def resume():
                answer = group.request(
                    "POST", "/v1/completions", first.body,
                    headers={"Content-Type": "application/json",
                             "Idempotency-Key": "k",
                             "Last-Event-ID": first.last_id})
                self.assertEqual(answer.status, 404, answer.body)
                self.assertEqual(answer.json()["error"]["code"],
                                 "answer_not_resumable")

            resume()  # nobody knows the key
            anew = ResumedStream(group, body, "k")
            self.assertEqual(len(anew.run()), 8)
            resume()  # it is of another answer

    def test_a_full_disk_stops_acceptance_and_nothing_else(self):
        with tempfile.TemporaryDirectory() as folder:
            config = os.path.join(folder, "config.yaml")
            with open(config, "w") as file:
                file.write("faults: {enabled: true}\n")
            with Group(["-c", config, "--layout", "ep"]) as group:
                quiet, client, running = in_midstream(group)
                group.post("/admin/faults", {"arm": [
                    "journal.write@coordinator=error:ENOSPC*1000000"]},
                    admin=True)
                while group.get("/ready").status != 503:
                    threading.Event().wait(0.01)
                self.assertIn("No space left", group.get("/ready").json()[
                    "reason"])
                refused = group.post("/v1/completions",
                                     {"prompt": "x", "max_tokens": 2})
                self.assertEqual(refused.status, 503)
                running.join()
                self.assertEqual(client.tokens, quiet)
                # There is room again.
                group.request("DELETE", "/admin/faults", admin=True)
                while group.get("/ready").status != 200:
                    threading.Event().wait(0.02)
                self.assertEqual(Client(group, 3, "after").run(), quiet)

    def test_coordinator_and_worker_at_once(self):
        with Group(["--layout", "ep"]) as group:
            def kill_worker(kill):
                pid = group.status()["workers"][kill % 2]["pid"]
                os.kill(pid, signal.SIGKILL)

            self.run_with_kills(group, 2, kill_worker)


if __name__ == "__main__":
    unittest.main()
