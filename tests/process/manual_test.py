"""Man pages and completions as the tools that read them see them."""

import glob
import os
import subprocess
import tempfile
import unittest

from group import MOEBIUS, run_moebius


class ManualTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="mm")
        cls.folder = cls.temporary.name
        done = run_moebius("manual", cls.folder)
        assert done.returncode == 0, done

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_every_page_formats_without_a_warning(self):
        pages = glob.glob(os.path.join(self.folder, "man", "man1", "*.1"))
        self.assertGreater(len(pages), 15)
        for page in pages:
            done = subprocess.run(
                ["man", "--warnings", "-l", page], capture_output=True,
                text=True, check=False, env=dict(os.environ, MANWIDTH="78",
                                                 LC_ALL="C.UTF-8"))
            self.assertEqual((done.returncode, done.stderr), (0, ""), page)
            self.assertIn("SYNOPSIS", done.stdout)

    def test_page_has_each_flag_of_help(self):
        with open(os.path.join(self.folder, "man", "man1",
                               "moebius-serve.1")) as file:
            page = file.read().replace("\\-", "-")
        for word in run_moebius("serve", "--help").stdout.split():
            if word.startswith("--") and word[2:3].isalpha():
                self.assertIn(word.rstrip(",.;:)").partition("=")[0], page)

    def complete(self, line):
        """What bash offers at the end of a line."""
        script = (f'source <({MOEBIUS} completion bash)\n'
                  f'COMP_WORDS=({line}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))'
                  '\n_moebius\nprintf "%s\\n" "${COMPREPLY[@]}"\n')
        done = subprocess.run(["bash", "-c", script], capture_output=True,
                              text=True, check=True)
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def test_bash_completes_commands_flags_and_values(self):
        self.assertEqual(self.complete("moebius se"), ["serve"])
        self.assertEqual(self.complete("moebius bench st"), ["step"])
        self.assertIn("--admin-port", self.complete("moebius serve --admin-p"))
        self.assertEqual(self.complete("moebius serve --layout e"), ["ep"])
        self.assertEqual(self.complete("moebius layout t"), ["tp"])
        self.assertEqual(self.complete("moebius serve --config /etc/hostna"),
                         ["/etc/hostname"])

    def test_an_unknown_shell_is_named(self):
        done = run_moebius("completion", "tcsh")
        self.assertEqual(done.returncode, 2)
        self.assertIn("allowed is one of bash, zsh, fish", done.stderr)


if __name__ == "__main__":
    unittest.main()
