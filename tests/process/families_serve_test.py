"""A checkpoint of each family is served: greedy tokens are those of the
reference in every layout, also where the layout changes beneath them."""

import contextlib
import json
import os
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import MODEL, ROOT, Group
from switcher import Switcher, comparable

CHECKPOINTS = os.path.join(ROOT, "tests", "checkpoints")


class FamiliesTest(unittest.TestCase):
    def serve(self, name, arguments):
        """The checkpoint with the tokenizer of models/verse-moe, and its name,
        which requests have."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        model = os.path.join(folder.name, os.path.basename(MODEL))
        os.mkdir(model)
        for source in (os.path.join(CHECKPOINTS, name), MODEL):
            for file in os.listdir(source):
                link = os.path.join(model, file)
                if not os.path.lexists(link):
                    os.symlink(os.path.join(source, file), link)
        return Group(arguments, model=model)

    def check_row(self, group, row):
        answer = group.complete({
            "prompt": row["prompt_ids"], "max_tokens": len(row["greedy_ids"]),
            "temperature": 0, "ignore_eos": True, "return_token_ids": True})
        self.assertEqual(answer["choices"][0]["token_ids"], row["greedy_ids"])

    def check_family(self, name):
        with open(os.path.join(CHECKPOINTS, name, "reference.json"),
                  encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        with self.serve(name, ["--workers", "2", "--layout", "ep"]) as group:
            with ThreadPoolExecutor(len(rows)) as pool:
                for layout in ("tp", "ep", "tp"):
                    answers = [pool.submit(self.check_row, group, row)
                               for row in rows]
                    self.assertTrue(group.switch(layout)["done"])
                    for answer in answers:
                        answer.result()

    def test_mixtral(self):
        self.check_family("mixtral")

    def test_olmoe(self):
        self.check_family("olmoe")

    def test_qwen2_moe(self):
        self.check_family("qwen2_moe")

    def test_gpt_oss(self):
        self.check_family("gpt_oss")

    def test_contexts_of_many_windows_are_the_same_through_switches(self):
        # gpt_oss has a window of 64 tokens and a context of 1024; kernels cut
        # positions every 256.
        bodies = [{"prompt": [(7 * i + length) % 4000 for i in range(length)],
                   "max_tokens": 180, "temperature": length % 2, "seed": length,
                   "ignore_eos": True, "return_token_ids": True, "logprobs": 5}
                  for length in (1, 64, 65, 200, 255, 330, 480, 505, 760, 843)]

        def answers(arguments, switcher=None):
            with self.serve("gpt_oss", arguments) as group, \
                    ThreadPoolExecutor(len(bodies)) as pool, \
                    (switcher(group) if switcher
                     else contextlib.nullcontext()) as switches:
                got = [comparable(one)
                       for one in pool.map(group.complete, bodies)]
            if switches is not None:
                self.assertGreater(len(switches.boundaries), 5)
            return got

        quiet = answers(["--workers", "1"])
        self.assertEqual(answers(
            ["--workers", "4", "--layout", "ep", "--token-budget", "100",
             "--max-running", "32"],
            lambda group: Switcher(group, ("tp2", "tp", "ep"))), quiet)


if __name__ == "__main__":
    unittest.main()
