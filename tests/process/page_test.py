"""The operators' page: what is served, to whom, and how it does in a browser."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
import unittest

from group import Group, ROOT

E2E = os.path.join(ROOT, "tests", "e2e", "page.test.mjs")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KEY = "sk-0123456789abcdef"


def stream_until(group, over):
    while not over.is_set():
        stream = group.stream({"prompt": "And", "max_tokens": 400,
                               "ignore_eos": True})
        for _ in stream:
            if over.is_set():
                break
        stream.close()


class PageTest(unittest.TestCase):
    def browse(self, group, **env):
        self.assertIsNotNone(CHROMIUM, "no chromium: run scripts/setup")
        result = subprocess.run(
            ["node", "--test", E2E],
            env=dict(os.environ, MOEBIUS_CHROMIUM=CHROMIUM,
                     MOEBIUS_ADMIN_URL=f"http://{group.host}:"
                                       f"{group.admin_port}", **env),
            text=True, capture_output=True, timeout=240, check=False)
        print(result.stdout[-6000:])
        self.assertEqual(result.returncode, 0, result.stderr[-4000:])

    def test_in_a_browser_under_load(self):
        with Group(["--workers", "2", "--layout", "ep"]) as group:
            over = threading.Event()
            threads = [threading.Thread(target=stream_until,
                                        args=(group, over)) for _ in range(4)]
            for thread in threads:
                thread.start()
            try:
                self.browse(group)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            group.stop()

    def test_in_a_browser_with_a_key(self):
        with tempfile.TemporaryDirectory() as folder:
            keys = os.path.join(folder, "key")
            with open(os.open(keys, os.O_WRONLY | os.O_CREAT, 0o600),
                      "w") as file:
                file.write(KEY)
            with Group(["--workers", "2", "--layout", "ep",
                        "--admin-api-key-file", keys],
                       admin_key=KEY) as group:
                for path in ("/", "/page.js", "/page.css"):
                    plain = group.request("GET", path, admin=True,
                                          headers={"Authorization": ""})
                    self.assertEqual(plain.status, 200, path)
                    self.assertNotIn(KEY.encode(), plain.body)
                self.assertEqual(group.request(
                    "GET", "/status", admin=True,
                    headers={"Authorization": ""}).status, 401)
                self.browse(group, MOEBIUS_ADMIN_KEY=KEY)
                group.stop()

    def test_it_is_on_the_admin_listener_alone_and_loads_nothing_foreign(self):
        with Group(["--workers", "1"]) as group:
            self.assertEqual(group.get("/").status, 404)
            page = group.get("/", admin=True)
            self.assertEqual(page.headers["content-type"],
                             "text/html; charset=utf-8")
            policy = page.headers["content-security-policy"]
            self.assertIn("default-src 'none'", policy)
            self.assertIn("frame-ancestors 'none'", policy)
            for path in ("/", "/page.js", "/page.css"):
                body = group.get(path, admin=True).body.decode()
                self.assertEqual(re.findall(r"https?://|//[a-z]+\.[a-z]", body),
                                 [], path)
            foreign = group.request("GET", "/", admin=True,
                                    headers={"Host": "evil.example"})
            self.assertEqual(foreign.status, 403)
            group.stop()


if __name__ == "__main__":
    unittest.main()
