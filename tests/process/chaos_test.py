"""The plans of configs/chaos, shorter: whatever is killed, no stream is lost, no
token changed, and nothing is computed again.

$MOEBIUS_CHAOS_MS says how long each takes, $MOEBIUS_CHAOS_STALL_MS how long a
stream may stand still at most; without the latter there is no such limit, since
machines of tests are shared.
"""

import os
import re
import tempfile
import unittest

from group import Group, ROOT, run_moebius

DURATION_MS = int(os.environ.get("MOEBIUS_CHAOS_MS", "10000"))
STALL_MS = os.environ.get("MOEBIUS_CHAOS_STALL_MS")


def shortened(name):
    """The text of a plan with our duration and limits."""
    with open(os.path.join(ROOT, "configs", "chaos", name)) as file:
        text = re.sub(r"(?m)^duration_ms: \d+$",
                      f"duration_ms: {DURATION_MS}", file.read())
    text = re.sub(r"(?ms)^limits:.*", "", text)
    limits = ["limits:", "  dropped_tokens: 0"]
    if STALL_MS is not None:
        limits.append(f"  longest_stall_ms: {STALL_MS}")
    return text + "\n".join(limits) + "\n"


class ChaosTest(unittest.TestCase):
    def run_plan(self, name, workers, kill):
        with tempfile.TemporaryDirectory() as folder, Group(
                ["--workers", str(workers), "--layout", "ep"]) as group:
            plan = os.path.join(folder, name)
            with open(plan, "w") as file:
                file.write(shortened(name))
            done = run_moebius(
                "chaos", "-c", plan,
                "--url", f"http://{group.host}:{group.port}",
                "--admin", f"http://{group.host}:{group.admin_port}",
                timeout_s=DURATION_MS / 1000 + 120)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn(kill, done.stdout)
            print(done.stdout)

    def test_workers_are_killed(self):
        self.run_plan("kill_workers.yaml", 2, "kill_worker")

    def test_four_workers_are_killed(self):
        self.run_plan("kill_workers.yaml", 4, "kill_worker")

    def test_the_coordinator_is_killed(self):
        self.run_plan("kill_coordinator.yaml", 2, "kill_coordinator")


if __name__ == "__main__":
    unittest.main()
