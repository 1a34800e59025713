"""The npm client `openai` against a real group."""

import os
import subprocess
import tempfile
import unittest

from group import ROOT, Group

E2E = os.path.join(ROOT, "tests", "e2e", "openai_client.test.mjs")
KEYS = os.path.join(ROOT, "tests", "e2e", "openai_keys.test.mjs")
CLIENT = os.path.join(ROOT, "tests", "node_modules", "openai")


class OpenAiClientTest(unittest.TestCase):
    def test_client(self):
        self.assertTrue(os.path.isdir(CLIENT),
                        "the npm client is not installed: run scripts/setup")
        with Group(["--layout", "ep"]) as group:
            result = subprocess.run(
                ["node", "--test", E2E],
                env=dict(os.environ,
                         MOEBIUS_URL=f"http://{group.host}:{group.port}",
                         MOEBIUS_ADMIN_URL=(f"http://{group.host}:"
                                            f"{group.admin_port}")),
                text=True, capture_output=True, timeout=240, check=False)
            print(result.stdout[-6000:])
            self.assertEqual(result.returncode, 0, result.stderr[-4000:])

    def test_client_with_keys(self):
        key = "sk-0123456789abcdef"
        with tempfile.TemporaryDirectory() as folder:
            keys = os.path.join(folder, "keys")
            with open(os.open(keys, os.O_WRONLY | os.O_CREAT, 0o600),
                      "w") as file:
                file.write(key)
            with Group(["--workers", "1", "--api-keys-file", keys]) as group:
                result = subprocess.run(
                    ["node", "--test", KEYS],
                    env=dict(os.environ, MOEBIUS_API_KEY=key,
                             MOEBIUS_URL=f"http://{group.host}:{group.port}"),
                    text=True, capture_output=True, timeout=240, check=False)
                self.assertEqual(result.returncode, 0,
                                 result.stdout[-4000:] + result.stderr[-4000:])


if __name__ == "__main__":
    unittest.main()
