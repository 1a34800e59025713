"""deploy/bin/check, which is moebius check-deploy: what lies there is well, and
what is not is found."""

import copy
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from group import MOEBIUS, ROOT
from install_tree import install

CHECK = os.path.join(ROOT, "deploy", "bin", "check")
# What scripts/setup installs.
TOOLS = ["shellcheck", "yamllint", "systemd-analyze"]


def check(program, *words):
    return subprocess.run([program, *words], text=True, check=False,
                          capture_output=True)


def load_check():
    loader = importlib.machinery.SourceFileLoader("check", CHECK)
    spec = importlib.util.spec_from_loader("check", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class CheckTest(unittest.TestCase):
    def test_what_is_there_is_well_and_what_was_not_checked_is_named(self):
        done = check(CHECK, "--require", *TOOLS)
        self.assertEqual(done.returncode, 0, done.stdout)
        for tool in ("kubectl", "helm"):
            if shutil.which(tool) is None:
                self.assertIn(f"not checked: what {tool} checks", done.stdout)

    def test_a_tool_that_is_required_must_be_there(self):
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run(
                ["/usr/bin/python3", CHECK, "--require", "shellcheck"],
                text=True, check=False, capture_output=True,
                env={"PATH": empty})
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("FAILED: shellcheck", done.stdout)

    def test_faults_are_found(self):
        for path, before, after, said in (
                ("systemd/moebius@.service", "WatchdogSec=", "WatchdogSecs=",
                 "FAILED: systemd-analyze verify moebius@group.service"),
                ("systemd/moebius@.service", "CapabilityBoundingSet=\n", "",
                 "FAILED: exposure of moebius@group.service"),
                ("fleet/moebius-host", '"$dir/log"', "$dir/log",
                 "FAILED: shellcheck"),
                ("kubernetes/base/group.yaml", "kind: StatefulSet",
                 "kind: StatefulSet\nkind: Job", "FAILED: yamllint"),
                ("helm/moebius/values.schema.json", '"type": "object",', "{",
                 "FAILED: helm/moebius/values.schema.json")):
            with self.subTest(said), tempfile.TemporaryDirectory() as folder:
                tree = os.path.join(folder, "deploy")
                shutil.copytree(os.path.join(ROOT, "deploy"), tree,
                                symlinks=True)
                with open(os.path.join(tree, path)) as file:
                    text = file.read()
                self.assertIn(before, text)
                with open(os.path.join(tree, path), "w") as file:
                    file.write(text.replace(before, after, 1))
                done = check(os.path.join(tree, "bin", "check"))
                self.assertIn(said, done.stdout)
                self.assertEqual(done.returncode, 1)


class CommandTest(unittest.TestCase):
    """moebius check-deploy."""

    def test_help_names_every_tool(self):
        said = check(MOEBIUS, "check-deploy", "--help").stdout
        for tool in (*TOOLS, "kubectl", "helm", "compose", "docker"):
            self.assertRegex(said, rf"\n  {tool} ")

    def test_words_that_are_no_tools_are_refused(self):
        done = check(MOEBIUS, "check-deploy", "--require", "shelcheck")
        self.assertEqual(done.returncode, 2)
        self.assertIn("shellcheck", done.stderr)

    def test_without_tools_it_says_what_was_not_checked_or_fails(self):
        with tempfile.TemporaryDirectory() as empty:
            os.symlink("/usr/bin/python3", os.path.join(empty, "python3"))

            def run(*words):
                return subprocess.run(
                    [MOEBIUS, "check-deploy", *words], text=True, check=False,
                    capture_output=True, env=dict(os.environ, PATH=empty))

            done = run()
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertTrue(done.stdout.endswith(
                "all well; not checked, for want of tools: systemd-analyze, "
                "shellcheck, yamllint, kubectl, helm, compose, docker\n"),
                done.stdout)
            done = run("--require", "yamllint,helm")
            self.assertEqual(done.returncode, 1)
            self.assertIn("2 failures; not checked", done.stdout)

    def test_an_install_tree_checks_what_it_brought_along(self):
        with tempfile.TemporaryDirectory() as prefix:
            install(prefix)
            done = check(os.path.join(prefix, "bin", "moebius"),
                         "check-deploy", "--require", ",".join(TOOLS))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            for unit in ("moebius@group", "moebius-user@group"):
                self.assertIn(f"well: systemd-analyze verify {unit}.service",
                              done.stdout)
            self.assertIn("well: helm/moebius/values.schema.json", done.stdout)
            page = os.path.join(prefix, "share", "man", "man1",
                                "moebius-check-deploy.1")
            self.assertTrue(os.path.exists(page))


class VersionTest(unittest.TestCase):
    def test_what_is_deployed_is_of_the_build_s_version(self):
        def text(*path):
            with open(os.path.join(ROOT, *path)) as file:
                return file.read()

        version = re.search(r"project\(moebius VERSION ([0-9.]+)",
                            text("CMakeLists.txt")).group(1)
        chart = text("deploy", "helm", "moebius", "Chart.yaml")
        self.assertIn(f"\nversion: {version}\n", chart)
        self.assertIn(f'\nappVersion: "{version}"\n', chart)
        self.assertIn(f'newTag: "{version}"\n',
                      text("deploy", "kubernetes", "base",
                           "kustomization.yaml"))


class PodTest(unittest.TestCase):
    """What a set of pods must have, of the one in kubernetes/base."""

    @classmethod
    def setUpClass(cls):
        cls.module = load_check()
        with open(os.path.join(ROOT, "deploy", "kubernetes", "base",
                               "group.yaml")) as file:
            (_, cls.pod), = cls.module.pods(file.read())

    def test_ours_lacks_nothing(self):
        self.assertEqual(self.module.fault_of(self.pod), "")

    def test_each_lack_is_named(self):
        def probe(pod):
            pod["containers"][0]["readinessProbe"]["httpGet"]["path"] = "/"

        def health(pod):
            pod["containers"][0]["livenessProbe"]["httpGet"]["path"] = "/ready"

        def drain(pod):
            pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] = [
                "sleep", "1", "", "0"]

        def grace(pod):
            pod["terminationGracePeriodSeconds"] = 30

        def volume(pod):
            del pod["volumes"][0]

        def root(pod):
            pod["securityContext"]["runAsNonRoot"] = False

        for spoil, said in ((probe, "a readiness probe of /ready"),
                            (health, "a liveness probe of /health"),
                            (drain, "a drain before it stops"),
                            (grace, "more time to end than its drain takes"),
                            (volume, "a volume for each mount"),
                            (root, "a user that is not root")):
            pod = copy.deepcopy(self.pod)
            spoil(pod)
            self.assertEqual(self.module.fault_of(pod), said)


if __name__ == "__main__":
    unittest.main()
