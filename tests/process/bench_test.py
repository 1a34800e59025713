"""The benchmarks of `moebius bench`: that they measure, what their figures say,
and how they end when something is wrong."""

import json
import os
import subprocess
import tempfile
import unittest

from group import MODEL, MOEBIUS


def bench(*arguments, timeout=240):
    """Runs it; its exit code, what it wrote, and its figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = os.path.join(folder, "figures.json")
        result = subprocess.run(
            [MOEBIUS, "bench", *arguments, "--json", figures], text=True,
            capture_output=True, timeout=timeout, check=False)
        read = None
        if os.path.exists(figures):
            with open(figures, encoding="utf-8") as file:
                read = json.load(file)
        return result, read


class BenchStepTest(unittest.TestCase):
    """Steps of ranks in one process."""

    def test_both_layouts(self):
        result, figures = bench(
            "step", "--model", MODEL, "--workers", "2", "--streams", "1,4",
            "--kv-tokens", "40", "--prefill", "24", "--prefill-streams", "2",
            "--steps", "3")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(
            [(case["layout"], case["kind"], case["sequences"])
             for case in figures["cases"]],
            [(layout, *case) for layout in ("ep", "tp")
             for case in (("decode", 1), ("decode", 4), ("prefill", 2))])
        for case in figures["cases"]:
            for key in ("ms_median", "bytes", "operations", "times_floor",
                        "experts_per_layer"):
                self.assertGreater(case[key], 0, key)
            self.assertLessEqual(case["experts_per_layer"], 16)
            self.assertGreater(case["part_ms"]["experts"], 0)
        self.assertGreater(figures["copy_bytes_per_s"], 0)
        self.assertIn("tp decode 4", result.stdout)

    def test_layouts_between(self):
        result, figures = bench(
            "step", "--model", MODEL, "--workers", "4", "--layouts",
            "ep,tp2,tp4", "--streams", "4", "--kv-tokens", "40", "--prefill",
            "0", "--steps", "3")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([case["layout"] for case in figures["cases"]],
                         ["ep", "tp2", "tp"])
        for case in figures["cases"]:
            self.assertLessEqual(case["experts_per_layer"], 16)
            self.assertGreater(case["ms_median"], 0)
        result, _ = bench("step", "--model", MODEL, "--workers", "4",
                          "--layouts", "tp3")
        self.assertEqual(result.returncode, 2)
        self.assertIn('no layout "tp3" of 4 ranks; there are ep, tp2 and tp',
                      result.stderr)

    def test_says_what_does_not_fit_and_measures_the_rest(self):
        result, figures = bench(
            "step", "--model", MODEL, "--streams", "1", "--kv-tokens", "200",
            "--prefill", "16", "--max-model-len", "128", "--steps", "2")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("ep decode of 1 was not measured: sequences of ",
                      result.stdout)
        self.assertIn("refused", figures["cases"][0])
        self.assertGreater(figures["cases"][1]["ms_median"], 0)

    def test_errors(self):
        result, _ = bench("step", "--model", MODEL, "--device", "cuda",
                          "--workers", "2", "--workers-per-gpu", "2")
        self.assertEqual(result.returncode, 1)
        self.assertIn("steps of one worker are measured", result.stderr)
        result, _ = bench("step", "--model", MODEL, "--timeout", "1",
                          "--streams", "512", "--kv-tokens", "16", "--steps",
                          "4000", "--prefill", "0")
        self.assertEqual(result.returncode, 1)
        self.assertIn("nothing was measured within 1 s (--timeout)",
                      result.stderr)
        result, _ = bench("step", "--model", MODEL, "--streams", "1",
                          "--kv-tokens", "5000", "--prefill", "0")
        self.assertEqual(result.returncode, 2)
        self.assertIn("no step fits", result.stderr)


class BenchRolloutTest(unittest.TestCase):
    """The same sequences in each layout."""

    def test_all_policies(self):
        result, figures = bench(
            "rollout", "--model", MODEL, "--requests", "12", "--output-median",
            "12", "--output-most", "60", "--find-crossover")
        self.assertEqual(result.returncode, 0, result.stderr)
        runs = {run["policy"]: run for run in figures["rollout"]}
        self.assertEqual(list(runs), ["ep", "tp", "auto"])
        for run in runs.values():
            self.assertEqual(run["tokens"],
                             round(12 * figures["output_tokens"]["mean"]))
            self.assertGreater(run["tokens_per_s"], 0)
        self.assertEqual(runs["ep"]["switches"], 0)
        self.assertEqual(runs["tp"]["switches"], 0)
        self.assertEqual(len(figures["crossovers"]), 1)
        self.assertIn("auto_behind_better", figures)
        self.assertEqual(figures["candidates"], ["tp", "ep"])
        self.assertEqual(figures["thresholds"], [4])
        self.assertIn("best fixed layout", result.stdout)

    def test_errors(self):
        result, _ = bench("rollout", "--model", MODEL, "--workers", "1")
        self.assertIn("nothing to compare", result.stderr)
        self.assertNotEqual(result.returncode, 0)
        result, _ = bench("rollout", "--model", MODEL, "--output-least", "9",
                          "--output-most", "8")
        self.assertIn("--output-least", result.stderr)
        self.assertNotEqual(result.returncode, 0)


class BenchThroughputTest(unittest.TestCase):
    """Cases in both layouts, side by side."""

    def test_crossover(self):
        result, figures = bench(
            "throughput", "--model", MODEL, "--streams", "1,2,4",
            "--output-tokens", "8", "--repeat", "1", "--prefill", "0")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(len(figures["cases"]), 6)
        self.assertIn("ep / tp", result.stdout)
        crossover, = figures["crossovers"]
        self.assertEqual((crossover["wide"], crossover["narrow"]),
                         ("tp", "ep"))
        self.assertIn(crossover["narrow_from"], (0, 1, 2, 4))
        self.assertIn(crossover["wide_up_to"], (0, 1, 2, 4))

    def test_crossovers_of_neighbours(self):
        result, figures = bench(
            "throughput", "--model", MODEL, "--workers", "4", "--layouts",
            "ep,tp2,tp", "--streams", "1,4", "--output-tokens", "8",
            "--repeat", "1", "--prefill", "0")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("Decode in all layouts", result.stdout)
        self.assertEqual([(crossover["wide"], crossover["narrow"])
                          for crossover in figures["crossovers"]],
                         [("tp", "tp2"), ("tp2", "ep")])


if __name__ == "__main__":
    unittest.main()
