"""systemd's own checks of the units in deploy/systemd."""

import os
import shutil
import subprocess
import tempfile
import unittest

from group import MOEBIUS, ROOT

UNITS = os.path.join(ROOT, "deploy", "systemd")
# Of 100, as systemd-analyze counts (it shows tenths). 19 is what is there now.
MAX_EXPOSURE = 19


class UnitsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mu", dir="/tmp")
        self.addCleanup(shutil.rmtree, self.folder)

    def unit(self, template, edit=lambda text: text):
        """An instance of a template with the build's program."""
        with open(os.path.join(UNITS, template)) as file:
            text = edit(file.read().replace("ExecStart=moebius",
                                            "ExecStart=" + MOEBIUS))
        path = os.path.join(self.folder, template.replace("@.", "@chat."))
        with open(path, "w") as file:
            file.write(text)
        return path

    def analyze(self, *words):
        return subprocess.run(["systemd-analyze", *words], text=True,
                              check=False, capture_output=True,
                              env=dict(os.environ, XDG_RUNTIME_DIR=self.folder))

    def verify(self, *words):
        done = self.analyze("verify", "--man=no", *words)
        return done.returncode, done.stdout + done.stderr

    def test_system_unit_is_well_formed(self):
        code, said = self.verify(self.unit("moebius@.service"))
        self.assertEqual((code, said), (0, ""))

    def test_user_unit_is_well_formed(self):
        code, said = self.verify("--user", self.unit("moebius-user@.service"))
        self.assertEqual((code, said), (0, ""))

    def test_what_is_not_is_found(self):
        code, said = self.verify(self.unit(
            "moebius@.service",
            lambda text: text.replace("WatchdogSec=60", "WatchdogSecs=60")))
        self.assertIn("WatchdogSecs", said)

    def exposure(self, unit):
        return self.analyze("security", "--offline=true",
                            f"--threshold={MAX_EXPOSURE}", unit)

    def test_exposure_does_not_grow(self):
        done = self.exposure(self.unit("moebius@.service"))
        self.assertEqual(done.returncode, 0, done.stdout[-300:])
        more = self.exposure(self.unit(
            "moebius@.service",
            lambda text: text.replace("CapabilityBoundingSet=\n", "")))
        self.assertNotEqual(more.returncode, 0)


if __name__ == "__main__":
    unittest.main()
