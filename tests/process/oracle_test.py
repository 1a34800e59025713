"""What a group says is what the reference says: greedy tokens on every row, in
all layouts, for every number of workers; and the prompt's log-probabilities."""

import json
import os
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import MODEL, Group

PROMPT_LOGPROB_TOLERANCE = 1e-3

with open(os.path.join(MODEL, "reference.json"), encoding="utf-8") as file:
    ROWS = json.load(file)["rows"]


class OracleTest(unittest.TestCase):
    def check_row(self, group, row):
        answer = group.complete({
            "prompt": row["prompt_ids"], "max_tokens": len(row["greedy_ids"]),
            "temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True,
            "return_token_ids": True, "echo": True, "logprobs": 1})
        choice = answer["choices"][0]
        self.assertEqual(choice["prompt_token_ids"], row["prompt_ids"])
        self.assertEqual(choice["token_ids"][-len(row["greedy_ids"]):],
                         row["greedy_ids"], row["prompt"][:60])
        prompt = choice["logprobs"]["token_logprobs"][:len(row["prompt_ids"])]
        self.assertIsNone(prompt[0])
        for got, want in zip(prompt[1:], row["prompt_logprobs"]):
            self.assertLess(abs(got - want), PROMPT_LOGPROB_TOLERANCE)
        self.assertEqual(len(prompt) - 1, len(row["prompt_logprobs"]))

    def check_text(self, group, row):
        """The tokenizer and detokenizer on the way in and out."""
        answer = group.complete({
            "prompt": row["prompt"], "max_tokens": len(row["greedy_ids"]),
            "temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True,
            "return_token_ids": True})
        choice = answer["choices"][0]
        self.assertEqual(choice["prompt_token_ids"], row["prompt_ids"])
        self.assertEqual(choice["token_ids"], row["greedy_ids"])

    def check_all(self, group):
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(self.check_row, group, row)
                         for row in ROWS]:
                done.result()
            for done in [pool.submit(self.check_text, group, row)
                         for row in ROWS]:
                done.result()

    def check_workers(self, count, layouts=("tp",)):
        with Group(["--workers", str(count), "--layout", "ep"]) as group:
            self.check_all(group)
            for layout in layouts if count > 1 else ():
                self.assertTrue(group.switch(layout)["done"])
                self.check_all(group)

    def test_one_worker(self):
        self.check_workers(1)

    def test_two_workers(self):
        self.check_workers(2)

    def test_four_workers(self):
        self.check_workers(4, ("tp2", "tp"))

    def test_eight_workers(self):
        self.check_workers(8, ("tp2", "tp4", "tp"))

    def test_loaded_as_tensor_parallel(self):
        with Group(["--workers", "4", "--layout", "tp"]) as group:
            self.check_all(group)


if __name__ == "__main__":
    unittest.main()
