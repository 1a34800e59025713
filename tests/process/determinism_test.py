"""Response bodies do not depend on layout, number of workers, or switches:
tokens, text and log-probabilities are the same to the last digit."""

import random
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import Group
from switcher import Switcher, comparable

NUM_REQUESTS = 32


def make_requests():
    """32 different ones: greedy and sampled, penalties, truncation, biases,
    tokens and words that may not come, several choices, stops, long and short
    prompts."""
    draw = random.Random(5)
    requests = []
    for i in range(NUM_REQUESTS):
        body = {
            "prompt": [draw.randrange(4000)
                       for _ in range(draw.choice([1, 3, 17, 64, 300, 900]))],
            "max_tokens": draw.choice([20, 60, 120]),
            "seed": 1000 + i, "ignore_eos": True, "return_token_ids": True,
            "logprobs": draw.choice([None, 0, 1, 5, 20]),
            "temperature": draw.choice([0, 0.7, 1.0, 1.5]),
            "top_p": draw.choice([1.0, 0.9, 0.5]),
            "top_k": draw.choice([0, 1, 20, 100]),
            "min_p": draw.choice([0.0, 0.05]),
            "repetition_penalty": draw.choice([1.0, 1.2]),
            "presence_penalty": draw.choice([0.0, 0.5]),
            "frequency_penalty": draw.choice([0.0, 0.3]),
            "n": draw.choice([1, 1, 1, 3]),
        }
        if i % 5 == 0:
            body["logit_bias"] = {str(draw.randrange(4000)): 3.5, "12": -100}
        if i % 7 == 0:
            body["stop"] = [" the ", "and"]
        if i % 6 == 0:
            body["echo"] = True
        if i % 8 == 1:
            body["allowed_token_ids"] = draw.sample(range(4000), 200)
        if i % 8 == 3:
            body["bad_words"] = ["the", "of the", "unto", "LORD"]
            body["prompt_logprobs"] = draw.choice([0, 3])
        if i % 8 == 5:
            body["truncate_prompt_tokens"] = 12
            body["skip_special_tokens"] = False
        requests.append(body)
    return requests


def run_all(group):
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        return [comparable(a) for a in pool.map(group.complete,
                                                make_requests())]


class DeterminismTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Group(["--workers", "1"]) as group:
            cls.quiet = [comparable(group.complete(body))
                         for body in make_requests()]

    def assert_quiet(self, answers):
        self.maxDiff = 2000
        for body, got, want in zip(make_requests(), answers, self.quiet):
            self.assertEqual(got, want, body)

    def check(self, workers, layout, *more):
        with Group(["--workers", str(workers), "--layout", layout,
                    *more]) as group:
            self.assert_quiet(run_all(group))

    def test_one_worker_all_at_once(self):
        self.check(1, "ep")

    def test_two_workers_ep(self):
        self.check(2, "ep")

    def test_two_workers_tp(self):
        self.check(2, "tp")

    def test_four_workers_ep(self):
        self.check(4, "ep")

    def test_four_workers_tp(self):
        self.check(4, "tp")

    def test_eight_workers_ep(self):
        self.check(8, "ep")

    def test_eight_workers_tp(self):
        self.check(8, "tp")

    def test_four_workers_in_pairs(self):
        self.check(4, "tp2")

    def test_eight_workers_in_pairs(self):
        self.check(8, "tp2")

    def test_eight_workers_in_fours(self):
        self.check(8, "tp4")

    def test_small_steps_and_several_threads(self):
        self.check(2, "ep", "--token-budget", "64",
                   "--max-running", "64", "--threads", "3")

    def test_equal_prompts_without_a_seed_differ_and_repeat_under_a_key(self):
        # So long that no two are the same by chance: of 16 tokens some are.
        body = {"model": "verse-moe", "prompt": ["And it came to pass"] * 16,
                "max_tokens": 96, "temperature": 1, "ignore_eos": True}

        def texts(group, key, **more):
            answer = group.request("POST", "/v1/completions",
                                   dict(body, **more),
                                   headers={"Idempotency-Key": key})
            self.assertEqual(answer.status, 200, answer.body)
            return [choice["text"] for choice in answer.json()["choices"]]

        with Group(["--workers", "1"]) as group:
            first = texts(group, "a")
            self.assertEqual(len(set(first)), 16)
            self.assertEqual(texts(group, "a"), first)
            self.assertEqual(len(set(first + texts(group, "b"))), 32)
            self.assertEqual(len(set(texts(group, "c", n=4))), 64)
            # With a seed, choice j of every prompt is the same.
            seeded = texts(group, "d", n=2, seed=7)
            self.assertEqual(seeded, seeded[:2] * 16)
            self.assertNotEqual(seeded[0], seeded[1])

    def test_switch_every_ten_steps(self):
        for workers in (2, 4, 8):
            with self.subTest(workers), Group(["--workers", str(workers),
                                               "--layout", "ep"]) as group:
                with Switcher(group) as switcher:
                    answers = run_all(group)
                self.assert_quiet(answers)
                self.assertGreater(len(switcher.boundaries), 5)

    def test_a_storm_of_switches_among_all_layouts(self):
        # Every layout is left for every other one.
        order = ("tp2", "tp", "ep", "tp4", "tp2", "ep", "tp", "tp4", "ep",
                 "tp2", "tp4", "tp", "tp2", "ep", "tp4", "ep")
        # Eight workers on two cores may take long to answer.
        with Group(["--workers", "8", "--layout", "ep", "--set",
                    "layout.prepare_timeout_ms=20000"]) as group:
            with Switcher(group, order, steps=3) as switcher:
                answers = run_all(group)
            self.assert_quiet(answers)
            # At least once in each layout, and back.
            self.assertGreater(len(switcher.boundaries), 5)


if __name__ == "__main__":
    unittest.main()
