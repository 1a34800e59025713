"""API keys and exposure: who is served, by what the commands get in, where
keys must not show, and what a listener may be bound to."""

import os
import shutil
import tempfile
import unittest

from group import MODEL, Group, run_moebius

API_KEY = "sk-api-0123456789abcdef"
ADMIN_KEY = "sk-admin-0123456789abcdef"
OTHER_KEY = "sk-other-0123456789abcdef"


class KeyFiles(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mk", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.folder)
        self.api = self.write("api", f"# of clients\n{OTHER_KEY}\n{API_KEY}\n")
        self.admin = self.write("admin", ADMIN_KEY)

    def write(self, name, text, mode=0o600):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def group(self, **options):
        return Group(["--workers", "1", "--api-keys-file", self.api,
                      "--admin-api-key-file", self.admin],
                     api_key=API_KEY, admin_key=ADMIN_KEY, **options)

    def environment(self, **variables):
        env = {name: value for name, value in os.environ.items()
               if not name.startswith("MOEBIUS_A")}
        env.update(variables)
        return env


class KeysTest(KeyFiles):
    def refused(self, group, method, path, admin, headers, body=None):
        answer = group.request(method, path, body, admin=admin,
                               headers=headers)
        self.assertEqual(answer.status, 401, path)
        self.assertTrue(answer.headers["www-authenticate"].startswith(
            "Bearer"))
        error = answer.json()["error"]
        self.assertEqual(error["code"], "invalid_api_key")
        self.assertEqual(error["type"], "invalid_request_error")

    def test_only_those_with_a_key_are_served(self):
        with self.group() as group:
            for admin in (False, True):
                for path in ("/health", "/ready", "/version"):
                    answer = group.request("GET", path, admin=admin,
                                           headers={"Authorization": "x"})
                    self.assertEqual(answer.status, 200, path)
            # Each listener has keys of its own.
            api_wants = [("GET", "/v1/models", None),
                         ("POST", "/v1/completions", "{}"),
                         ("POST", "/v1/chat/completions", "{}"),
                         ("POST", "/tokenize", "{}"), ("GET", "/none", None)]
            admin_wants = [("GET", "/status", None), ("GET", "/metrics", None),
                           ("GET", "/progress", None),
                           ("POST", "/admin/layout", "{}"),
                           ("POST", "/admin/drain", "")]
            for admin, wants, wrong in ((False, api_wants, ADMIN_KEY),
                                        (True, admin_wants, API_KEY)):
                for method, path, body in wants:
                    for value in ("", f"Bearer {wrong}", "Basic eDp5",
                                  f"Bearer {API_KEY} {ADMIN_KEY}"):
                        self.refused(group, method, path, admin,
                                     {"Authorization": value}, body)
            answer = group.complete({"prompt": "And the LORD said unto",
                                     "max_tokens": 4})
            self.assertEqual(answer["usage"]["completion_tokens"], 4)
            stream = group.stream({"prompt": "In the beginning",
                                   "max_tokens": 4})
            self.assertEqual(stream.status, 200)
            self.assertEqual(list(stream)[-1][1], "[DONE]")
            stream.close()
            other = group.request(
                "GET", "/v1/models",
                headers={"Authorization": f"bearer {OTHER_KEY}"})
            self.assertEqual(other.status, 200)
            metrics = group.get("/metrics", admin=True).body.decode()
            self.assertIn('route="/v1/models",status="401"', metrics)

    def test_without_keys_a_foreign_page_is_not_served(self):
        page = {"Origin": "https://x.example", "Content-Type": "text/plain"}
        allowed = {"Host": "chat.example", "Origin": "https://chat.example",
                   "Content-Type": "application/json"}
        with Group(["--workers", "1", "--set",
                    "admin.allowed_hosts=chat.example"]) as group:
            for headers in ({**page, "Host": "x.example"}, page,
                            {"Host": "x.example"}):
                for method, path, admin in (
                        ("POST", "/admin/drain?wait=false", True),
                        ("GET", "/status", True), ("GET", "/v1/models", False),
                        ("POST", "/v1/completions", False)):
                    answer = group.request(method, path, "{}", admin, headers)
                    self.assertEqual(answer.status, 403, (path, headers))
            # Each listener has names of its own.
            answer = group.request("POST", "/admin/layout", {"layout": "ep"},
                                   True, allowed)
            self.assertEqual(answer.status, 200, answer.body)
            self.assertIs(answer.json()["changed"], False)
            answer = group.request("GET", "/v1/models", headers=allowed)
            self.assertEqual(answer.status, 403)
            # Whoever is no page need not say what it is.
            answer = group.request(
                "POST", "/v1/completions", '{"prompt": "x", "max_tokens": 1}',
                headers={"Content-Type": "text/plain"})
            self.assertEqual(answer.status, 200, answer.body)
            answer = group.request(
                "POST", "/v1/completions", '{"prompt": "x", "max_tokens": 1}',
                headers={"Content-Type": "text/plain",
                         "Origin": "http://localhost:3000"})
            self.assertEqual(answer.status, 415, answer.body)
            self.assertTrue(group.status()["ready"])

    def test_commands_show_keys_of_files_and_of_the_environment(self):
        with self.group() as group:
            admin = ["--admin", f"http://127.0.0.1:{group.admin_port}"]
            api = ["--url", f"http://127.0.0.1:{group.port}", "--requests",
                   "2", "--prompt-tokens", "8", "--output-tokens", "4"]
            of_admin = ("MOEBIUS_ADMIN_KEY", ADMIN_KEY, self.admin)
            # The first key of a file is the one that is shown.
            of_api = ("MOEBIUS_API_KEY", API_KEY, self.api)
            for command, (variable, key, own) in (
                    (["status", *admin], of_admin),
                    (["layout", "auto", *admin], of_admin),
                    (["bench", "serve", *api], of_api)):
                bare = run_moebius(*command, env=self.environment())
                self.assertEqual(bare.returncode, 2, bare.stderr)
                self.assertIn("wants an API key", bare.stderr)
                wrong = run_moebius(*command, env=self.environment(
                    **{variable: "sk-wrong-0123456789"}))
                self.assertEqual(wrong.returncode, 2, wrong.stderr)
                self.assertIn("none of this server's", wrong.stderr)
                for result in (
                        run_moebius(*command, "--api-key-file", own,
                                    env=self.environment()),
                        run_moebius(*command,
                                    env=self.environment(**{variable: key})),
                        # The flag wins.
                        run_moebius(*command, "--api-key-file", own,
                                    env=self.environment(
                                        **{variable: "sk-wrong"}))):
                    self.assertEqual(result.returncode, 0, result.stderr)

    def test_help_says_where_keys_come_from(self):
        for command, variable in ((["status"], "MOEBIUS_ADMIN_KEY"),
                                  (["layout"], "MOEBIUS_ADMIN_KEY"),
                                  (["bench", "serve"], "MOEBIUS_API_KEY"),
                                  (["bench", "switch"], "MOEBIUS_ADMIN_KEY")):
            shown = run_moebius(*command, "--help").stdout
            self.assertIn("--api-key-file", shown)
            self.assertIn(variable, shown)

    def test_keys_show_nowhere(self):
        with self.group() as group:
            group.complete({"prompt": "x", "max_tokens": 1})
            self.refused(group, "GET", "/v1/models", False,
                         {"Authorization": "Bearer sk-wrong-0123456789"})
            seen = {"status": group.get("/status", admin=True).body,
                    "metrics": group.get("/metrics", admin=True).body}
            group.note_processes()
            for pid in group.seen:
                for name in ("cmdline", "environ"):
                    with open(f"/proc/{pid}/{name}", "rb") as file:
                        seen[f"{name} of {pid}"] = file.read()
            for name in os.listdir(group.directory):
                path = os.path.join(group.directory, name)
                if os.path.isfile(path):
                    with open(path, "rb") as file:
                        seen[path] = file.read()
            config = seen[os.path.join(group.directory, "config.yaml")]
            self.assertIn(self.api.encode(), config)
            group.stop()
            seen["output"] = "\n".join(
                line for line in group.out + group.err if line).encode()
            for where, text in seen.items():
                for key in (API_KEY, ADMIN_KEY, OTHER_KEY, "sk-wrong"):
                    self.assertNotIn(key.encode(), text, where)

    def test_a_group_of_ones_own_needs_no_key(self):
        config = self.write(
            "config.yaml",
            f"model: {{path: {MODEL}}}\n"
            f"http: {{host: 0.0.0.0, api_keys_file: {self.api}}}\n"
            f"admin: {{host: 0.0.0.0, api_key_file: {self.admin}}}\n")
        result = run_moebius("bench", "switch", "-c", config, "--switches",
                             "2", "--streams", "1", "--output-tokens", "50",
                             env=self.environment())
        self.assertEqual(result.returncode, 0, result.stderr)


class RefusedTest(KeyFiles):
    """What `serve` does not start with; it says so before it starts anything."""

    def refused(self, *arguments):
        result = run_moebius("serve", "--model", MODEL, "--port", "0",
                             "--admin-port", "0", *arguments)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertNotIn("sk-", result.stderr)
        return result.stderr

    def test_key_files_that_others_may_read(self):
        for mode in (0o644, 0o640, 0o604):
            path = self.write("open", API_KEY, mode)
            said = self.refused("--api-keys-file", path)
            self.assertIn("key 'http.api_keys_file'", said)
            self.assertIn(f"chmod 600 {path}", said)
            said = self.refused("--admin-api-key-file", path)
            self.assertIn("key 'admin.api_key_file'", said)

    def test_key_files_that_are_none(self):
        self.assertIn("no such file", self.refused(
            "--api-keys-file", os.path.join(self.folder, "none")))
        self.assertIn("a regular file", self.refused(
            "--api-keys-file", self.folder))
        bad = self.write("bad", f"{API_KEY}\nsk-short\n")
        self.assertIn(f"{bad}:2: allowed is a key of 16 to 256",
                      self.refused("--api-keys-file", bad))
        self.assertIn("no key is in it", self.refused(
            "--api-keys-file", self.write("empty", "# none\n")))

    def test_addresses_beyond_loopback_without_keys(self):
        for host in ("0.0.0.0", "::", "192.0.2.1"):
            said = self.refused("--host", host)
            self.assertIn("'http.api_keys_file'", said)
            self.assertIn("'http.allow_unauthenticated: true'", said)
            # Keys of one listener are none of the other.
            said = self.refused("--admin-host", host, "--api-keys-file",
                                self.api)
            self.assertIn("'admin.api_key_file'", said)
            self.assertIn("'admin.allow_unauthenticated: true'", said)
        config = self.write("config.yaml", "http: {host: 0.0.0.0}\n")
        self.assertIn("'http.api_keys_file'", self.refused("-c", config))

    def test_what_lets_them_in_gets_as_far_as_the_address(self):
        # An address for documentation: nobody has it.
        for flags in (["--host", "192.0.2.1", "--allow-unauthenticated"],
                      ["--host", "192.0.2.1", "--api-keys-file", self.api],
                      ["--admin-host", "192.0.2.1",
                       "--admin-allow-unauthenticated"],
                      ["--admin-host", "192.0.2.1", "--admin-api-key-file",
                       self.admin]):
            self.assertIn("no address 192.0.2.1", self.refused(*flags))
        self.assertIn("'http.api_keys_file'", self.refused(
            "--host", "192.0.2.1", "--allow-unauthenticated",
            "--allow-unauthenticated=false"))


if __name__ == "__main__":
    unittest.main()
