"""The launcher by itself, over stand-ins for the programs it starts."""

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import unittest

from group import (FAKE_PROGRAMS, MODEL, MOEBIUS, Group, GroupFailed,
                   children_of, free_port, is_listening, make_runtime_dir,
                   remove_runtime_dir, run_moebius, start_time, wait_gone)

READY = ["ready"]
WAIT = ["wait"]


def fake_env(runtime_dir):
    return dict(os.environ, XDG_RUNTIME_DIR=runtime_dir,
                MOEBIUS_PROGRAM_DIR=FAKE_PROGRAMS)


class RefusesTest(unittest.TestCase):
    """What keeps a group from starting is said at once, with its place."""

    def setUp(self):
        self.runtime_dir = make_runtime_dir()
        self.addCleanup(remove_runtime_dir, self.runtime_dir)

    def serve(self, *arguments):
        result = run_moebius("serve", *arguments,
                             env=fake_env(self.runtime_dir))
        self.assertEqual(os.listdir(self.runtime_dir), [])
        return result

    def write_config(self, text):
        path = os.path.join(self.runtime_dir, "c.yaml")
        with open(path, "w") as config:
            config.write(text)
        self.addCleanup(lambda: os.path.exists(path) and os.remove(path))
        return path

    def serve_config(self, text):
        path = self.write_config(text)
        result = run_moebius("serve", "--model", MODEL, "-c", path,
                             env=fake_env(self.runtime_dir))
        os.remove(path)
        return path, result

    def test_bad_value_in_file_names_file_line_key_and_what_is_allowed(self):
        path, result = self.serve_config("workers:\n  count: many\n")
        self.assertEqual(result.returncode, 2)
        self.assertIn(f"{path}:2: key 'workers.count': allowed is a whole "
                      "number from 1 to 16, not 'many'", result.stderr)

    def test_unknown_key_in_file(self):
        path, result = self.serve_config("workers:\n  cuont: 2\n")
        self.assertEqual(result.returncode, 2)
        self.assertIn(f"{path}:2: key 'workers.cuont' is unknown (did you "
                      "mean 'workers.count'?)", result.stderr)

    def test_missing_file(self):
        result = self.serve("-c", "/nowhere/x.yaml")
        self.assertEqual(result.returncode, 2)
        self.assertIn("/nowhere/x.yaml: there is no such configuration file",
                      result.stderr)

    def test_missing_model_in_file_names_its_line(self):
        path = self.write_config("model:\n  path: no/such/model\n")
        result = run_moebius("serve", "-c", path,
                             env=fake_env(self.runtime_dir))
        self.assertEqual(result.returncode, 2)
        self.assertIn(f"{path}:2: key 'model.path'", result.stderr)
        self.assertIn("no/such/model", result.stderr)

    def test_missing_model_in_flag(self):
        result = self.serve("--model", "/nowhere/model")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--model: ", result.stderr)
        self.assertIn("/nowhere/model", result.stderr)

    def test_bad_flag_value(self):
        result = self.serve("--model", MODEL, "--workers", "17")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--workers: key 'workers.count': allowed is a whole "
                      "number from 1 to 16, not '17'", result.stderr)

    def test_unknown_words_are_named_with_the_nearest_known_one(self):
        for words, said in (
                (["serve", "--nonsense"], "knows no flag '--nonsense'"),
                (["serve", "--prot", "80"],
                 "`moebius serve` knows no flag '--prot' (did you mean "
                 "'--port'?)"),
                (["sreve"], "`moebius` knows no command 'sreve' (did you mean "
                            "'serve'?)"),
                (["bench", "swich"],
                 "`moebius bench` knows no command 'swich' (did you mean "
                 "'switch'?)"),
                (["layout", "pe"], "allowed is ep, tp, or tpN with N workers in a "
                                   "group (tp2), or auto, not 'pe' (did you "
                                   "mean 'ep'?)")):
            result = run_moebius(*words)
            self.assertEqual(result.returncode, 2, words)
            self.assertIn(said, result.stderr)

    def test_more_than_the_machine_or_the_model_has(self):
        result = self.serve("--model", MODEL, "--kv-bytes", "16384GiB")
        self.assertEqual(result.returncode, 2)
        self.assertRegex(result.stderr,
                         r"--kv-bytes\): 2 workers with 17.6 TB of KV memory "
                         r"each want 35.2 TB; there are [0-9.]+ [kMG]B \(")
        result = self.serve("--model", MODEL, "--max-model-len", "4097")
        self.assertEqual(result.returncode, 2)
        self.assertIn("4097 tokens are more than the model's 4096",
                      result.stderr)

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            for flag, other in (("--port", "--admin-port"),
                                ("--admin-port", "--port")):
                result = self.serve("--model", MODEL, flag, str(port), other,
                                    "0")
                self.assertEqual(result.returncode, 1)
                self.assertIn(f"port {port} of 127.0.0.1 is in use by another "
                              f"process; choose another one ({flag}",
                              result.stderr)

    def test_control_port_that_cannot_be_had(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            for host, what in (("127.0.0.1", "choose another port, or 0"),
                               ("192.0.2.1", "an address of this machine"),
                               ("0.0.0.0", "allowed is one address")):
                result = self.serve(
                    "--model", MODEL, "--port", "0", "--admin-port", "0",
                    "--set", "control.transport=tcp",
                    "--set", f"control.host={host}",
                    "--set", f"control.port={port}")
                self.assertNotEqual(result.returncode, 0)
                self.assertIn("control.host", result.stderr)
                self.assertIn(what, result.stderr)

    def test_one_port_for_both(self):
        result = self.serve("--model", MODEL, "--port", "9999",
                            "--admin-port", "9999")
        self.assertEqual(result.returncode, 2)
        self.assertIn("two different ports", result.stderr)

    def test_address_of_another_machine(self):
        result = self.serve("--model", MODEL, "--host", "203.0.113.1",
                            "--allow-unauthenticated",
                            "--port", "0", "--admin-port", "0")
        self.assertEqual(result.returncode, 2)
        self.assertIn("no address 203.0.113.1", result.stderr)

    def test_missing_program(self):
        env = dict(fake_env(self.runtime_dir), MOEBIUS_PROGRAM_DIR="/nowhere")
        result = run_moebius("serve", "--model", MODEL, "--port", "0",
                             "--admin-port", "0", env=env)
        self.assertEqual(result.returncode, 2)
        self.assertIn("no program /nowhere/moebius-worker", result.stderr)
        self.assertEqual(os.listdir(self.runtime_dir), [])


class OwnGroupTest(unittest.TestCase):
    """Commands that start a group, while its weights load."""

    COMMANDS = (["demo"], ["bench", "switch"], ["bench", "throughput"],
                ["bench", "rollout"])

    def start(self, command, fake):
        runtime_dir = make_runtime_dir()
        self.addCleanup(remove_runtime_dir, runtime_dir)
        env = dict(fake_env(runtime_dir), MOEBIUS_FAKE=json.dumps(fake))
        process = subprocess.Popen(
            [MOEBIUS, *command, "--model", MODEL], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(process.stdout.close)
        return process, runtime_dir

    def test_progress_is_shown_and_a_signal_ends_it_at_once(self):
        slow = [["ignore"], ["progress", 100, 1000], ["pause", 1.2],
                ["progress", 500, 1000], WAIT, WAIT]
        fake = {"worker 0": slow, "worker 1": slow}
        for command in self.COMMANDS:
            for sign in (signal.SIGINT, signal.SIGTERM):
                process, runtime_dir = self.start(command, fake)
                for line in process.stdout:
                    if "loading weights: 50 % (1.00 kB of 2.00 kB)" in line:
                        break
                else:
                    self.fail(f"{command} showed no progress")
                launchers = children_of(process.pid)
                group = [*launchers, *(child for pid in launchers
                                       for child in children_of(pid))]
                since = {pid: start_time(pid) for pid in group}
                process.send_signal(sign)
                # Far below the time-outs of launchers and drains.
                self.assertEqual(process.wait(timeout=2), 1, command)
                for pid, start in since.items():
                    self.assertNotEqual(start_time(pid), start, command)
                self.assertEqual(os.listdir(runtime_dir), [], command)

    def test_the_time_limit_holds_while_weights_load(self):
        fake = {"worker 0": [["ignore"], WAIT, WAIT]}
        process, runtime_dir = self.start(
            ["bench", "switch", "--timeout", "1"], fake)
        out, _ = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 1)
        self.assertIn("nothing was measured within 1 s (--timeout)", out)
        self.assertEqual(os.listdir(runtime_dir), [])


class HelpTest(unittest.TestCase):
    def test_each_command_explains_itself(self):
        for command in (["serve"], ["status"], ["layout"], ["demo"], ["bench"],
                        ["bench", "throughput"], ["bench", "step"],
                        ["bench", "rollout"], ["bench", "serve"],
                        ["bench", "switch"]):
            result = run_moebius(*command, "--help")
            self.assertEqual(result.returncode, 0, command)
            self.assertIn("Usage:", result.stdout)
            self.assertEqual(result.stderr, "")

    def test_each_flag_of_serve_says_its_default(self):
        text = " ".join(run_moebius("serve", "--help").stdout.split())
        for flag, default in (("--workers", "2"), ("--port", "8000"),
                              ("--admin-port", "8001"), ("--layout", "ep"),
                              ("--load-format", "auto"),
                              ("--host", "127.0.0.1")):
            after = text[text.index(flag + " "):]
            self.assertRegex(after, rf"\[[a-z]+\.[a-z_]+; default {default}\]")

    def test_keys_of_the_configuration_are_listed(self):
        result = run_moebius("serve", "--help-config")
        self.assertEqual(result.returncode, 0)
        self.assertIn("min_dwell_ms: 2000", result.stdout)
        self.assertIn("Allowed: ep, tp, or tpN with N workers in", result.stdout)

    def test_no_command_is_a_usage_error(self):
        self.assertEqual(run_moebius().returncode, 2)


class LifeTest(unittest.TestCase):
    def test_serves_and_drains(self):
        with Group(["--workers", "3"], fake={}) as group:
            self.assertEqual(len(children_of(group.pid)), 4)
            group.wait_line(f"http://127.0.0.1:{group.port}/v1")
            group.wait_line("Moebius serves verse-moe from 3 workers")
            group.wait_line("curl http://127.0.0.1")
            mode = os.stat(group.directory).st_mode & 0o7777
            self.assertEqual(mode, 0o700)
            with open(os.path.join(group.directory, "config.yaml")) as config:
                text = config.read()
            self.assertIn("  count: 3\n", text)
            self.assertIn(f'  path: "{MODEL}"\n', text)
            group.stop()
            group.wait_line("draining")

    def test_flags_win_over_the_file(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            config.write("workers:\n  count: 3\n  threads: 5\n")
            config.flush()
            with Group(["-c", config.name, "--workers", "1", "--set",
                        "layout.min_dwell_ms=77"], fake={}) as group:
                self.assertEqual(len(children_of(group.pid)), 2)
                with open(os.path.join(group.directory,
                                       "config.yaml")) as effective:
                    text = effective.read()
                self.assertIn("  count: 1\n", text)
                self.assertIn("  threads: 5\n", text)
                self.assertIn("  min_dwell_ms: 77\n", text)

    def test_interrupt_drains_too(self):
        with Group(fake={}) as group:
            group.note_processes()
            group.process.send_signal(signal.SIGINT)
            self.assertEqual(group.wait_end(), 0)

    def test_output_of_children_comes_with_their_names(self):
        fake = {"worker 1": [["print", "hello"], ["warn", "careful"], READY,
                             WAIT]}
        with Group(fake=fake) as group:
            self.assertEqual(group.wait_line("hello", group.out),
                             "[worker 1] hello")
            self.assertEqual(group.wait_line("careful", group.err),
                             "[worker 1] careful")

    def test_progress_is_lines_when_there_is_no_terminal(self):
        with tempfile.TemporaryDirectory() as marks:
            seen = os.path.join(marks, "seen")
            fake = {"worker 0": [["progress", 500, 1000], ["wait_file", seen],
                                 ["progress", 1000, 1000], READY, WAIT],
                    "worker 1": [["progress", 1000, 1000], READY, WAIT]}
            with Group(fake=fake, wait=False) as group:
                group.wait_line("loading weights: 70 % (1.50 kB of 2.00 kB)")
                open(seen, "w").close()
                group.wait_line("loading weights: 100 %")
                group.wait_ready()

    def test_serves_only_when_all_are_ready(self):
        with tempfile.TemporaryDirectory() as marks:
            go = os.path.join(marks, "go")
            fake = {"worker 1": [["print", "loading"], ["wait_file", go],
                                 READY, WAIT]}
            with Group(fake=fake, wait=False) as group:
                group.wait_line("loading")
                with self.assertRaises(GroupFailed):
                    group.wait_ready(timeout_s=0.3)
                open(go, "w").close()
                group.wait_ready()

    def test_second_signal_ends_at_once(self):
        fake = {"coordinator": [READY, WAIT, ["print", "still busy"],
                                ["ignore"], WAIT]}
        with Group(fake=fake) as group:
            group.terminate()
            group.wait_line("still busy")
            group.terminate()
            self.assertEqual(group.wait_end(timeout_s=20), 1)
            group.wait_line("stopped at once")

    def test_stop_before_it_was_ready(self):
        # Who loads weights hears no SIGTERM, and need not.
        fake = {"worker 0": [["ignore"], ["print", "loading"], WAIT, WAIT]}
        with Group(fake=fake, wait=False) as group:
            group.wait_line("loading")
            group.terminate()
            self.assertEqual(group.wait_end(timeout_s=2), 0)
            group.wait_line("stopped before it was ready")

    def test_drain_that_takes_too_long_is_ended(self):
        fake = {"coordinator": [["ignore"], READY, WAIT]}
        with Group(["--drain-timeout-ms", "100"], fake=fake) as group:
            group.terminate()
            self.assertEqual(group.wait_end(timeout_s=30), 3)
            group.wait_line("the drain did not end within 5100 ms")

    def test_worker_that_fails_while_loading(self):
        fake = {"worker 1": [["fail", "model.safetensors: truncated"],
                             ["exit", 1]]}
        with Group(fake=fake, wait=False) as group:
            self.assertEqual(group.wait_end(), 1)
            line = group.wait_line("the group has ended")
            self.assertEqual(line, "moebius: the group has ended: worker 1: "
                             "model.safetensors: truncated")

    def test_worker_that_is_killed_for_what_it_said(self):
        """The coordinator may have it ended before it ends by itself."""
        fake = {"worker 1": [["fail", "no tensor"], ["kill", 9]]}
        with Group(fake=fake, wait=False) as group:
            self.assertEqual(group.wait_end(), 1)
            self.assertEqual(group.wait_line("the group has ended"),
                             "moebius: the group has ended: worker 1: "
                             "no tensor")

    def test_coordinator_that_fails_before_it_serves(self):
        """It was never ready, so nobody is told that the group serves."""
        fake = {"coordinator": [["fail", "no tokenizer"], ["exit", 1]]}
        with Group(fake=fake, wait=False) as group:
            with self.assertRaises(GroupFailed):
                group.wait_ready()
            self.assertEqual(group.wait_end(), 1)
            self.assertNotIn("Moebius serves", "\n".join(
                line for line in group.out if line))
            group.wait_line("the group has ended: coordinator: no tokenizer")

    def test_worker_that_is_killed_while_it_loads_has_a_successor(self):
        with tempfile.TemporaryDirectory() as marks:
            go = os.path.join(marks, "go")
            fake = {"worker 1": [["print", "loading"], ["wait_file", go],
                                 READY, WAIT]}
            with Group(fake=fake, wait=False) as group:
                group.wait_line("loading")
                os.kill(group.worker_pid(1), signal.SIGKILL)
                group.wait_line("worker 1 was killed by signal 9 (Killed); a "
                                "successor takes over")
                open(go, "w").close()
                group.wait_ready()

    def test_failure_that_will_last_is_not_tried_again_at_once(self):
        with tempfile.TemporaryDirectory() as marks:
            mark = os.path.join(marks, "mark")
            fake = {"worker 1": [READY, ["wait_file", mark],
                                 ["fail_for_good", "its shard is gone"],
                                 ["exit", 1]]}
            with Group(fake=fake) as group:
                open(mark, "w").close()
                group.wait_line("worker 1: its shard is gone; a successor "
                                "takes over in 30000 ms")
                group.terminate()
                self.assertEqual(group.wait_end(), 0)

    def test_worker_that_is_killed(self):
        with Group(fake={}) as group:
            os.kill(group.worker_pid(1), signal.SIGKILL)
            group.wait_line("worker 1 was killed by signal 9 (Killed); a "
                            "successor takes over")

    def test_worker_that_dies_again_and_again(self):
        with tempfile.TemporaryDirectory() as marks:
            mark = os.path.join(marks, "mark")
            fake = {"worker 1": [READY, ["wait_file", mark], ["exit", 3]]}
            with Group(fake=fake) as group:
                open(mark, "w").close()
                group.wait_line("a successor takes over in 100 ms")
                # Now and then from here on; the group can still be stopped.
                group.wait_line("a successor takes over in 30000 ms")
                group.terminate()
                self.assertEqual(group.wait_end(), 0)

    def test_coordinator_that_dies_again_and_again(self):
        with tempfile.TemporaryDirectory() as marks:
            mark = os.path.join(marks, "mark")
            fake = {"coordinator": [READY, ["wait_file", mark], ["exit", 3]]}
            with Group(fake=fake) as group:
                open(mark, "w").close()
                group.wait_line("a successor takes over in 100 ms")
                self.assertEqual(group.wait_end(), 1)
                group.wait_line("processes in a row lasted less than")

    def test_coordinator_that_ends_unasked(self):
        with Group(fake={"coordinator": [READY, WAIT, ["exit", 0]]}) as group:
            os.kill(group.coordinator_pid(), signal.SIGTERM)
            self.assertEqual(group.wait_end(), 1)
            group.wait_line("coordinator ended with exit code 0 without being "
                            "told to")

    def test_coordinator_that_is_killed(self):
        with tempfile.TemporaryDirectory() as marks:
            mark = os.path.join(marks, "mark")
            fake = {"coordinator": [["touch", mark], READY, WAIT]}
            with Group(fake=fake) as group:
                os.unlink(mark)
                os.kill(group.coordinator_pid(), signal.SIGKILL)
                group.wait_line("coordinator was killed by signal 9 (Killed); "
                                "a successor takes over")
                while not os.path.exists(mark):
                    select.select([], [], [], 0.01)

    def test_worker_that_does_not_end_is_killed(self):
        fake = {"worker 0": [["ignore"], READY, WAIT]}
        with Group(fake=fake) as group:
            group.terminate()
            self.assertEqual(group.wait_end(timeout_s=30), 0)

    def test_nobody_reads_its_output(self):
        """A full pipe stops neither the children nor the end."""
        with tempfile.TemporaryDirectory() as marks:
            done = os.path.join(marks, "done")
            runtime_dir = make_runtime_dir()
            self.addCleanup(remove_runtime_dir, runtime_dir)
            env = fake_env(runtime_dir)
            env["MOEBIUS_FAKE"] = (
                '{"worker 0": [["flood", 5000], ["touch", "%s"], ["ready"],'
                ' ["wait"]]}' % done)
            read_end, write_end = os.pipe()
            ready_read, ready_write = os.pipe()
            process = subprocess.Popen(
                [MOEBIUS, "serve", "--model", MODEL, "--port", "0",
                 "--admin-port", "0", "--ready-fd", str(ready_write)],
                env=env, stdout=write_end, stderr=write_end,
                pass_fds=[ready_write])
            os.close(write_end)
            os.close(ready_write)
            with os.fdopen(ready_read) as ready:
                self.assertTrue(ready.readline())
            self.assertTrue(os.path.exists(done))
            process.terminate()
            self.assertEqual(process.wait(60), 0)
            os.close(read_end)

    def test_launcher_that_is_killed_takes_its_children_along(self):
        runtime_dir = make_runtime_dir()
        self.addCleanup(remove_runtime_dir, runtime_dir)
        group = Group(fake={}, runtime_dir=runtime_dir)
        seen = dict(group.seen)
        self.assertEqual(len(seen), 4)
        group.kill()
        for pid, since in seen.items():
            self.assertNotEqual(start_time(pid), since)
        self.assertFalse(is_listening("127.0.0.1", group.port))
        self.assertTrue(os.path.exists(group.directory))
        # The next one cleans up after it, and leaves alone what is in use.
        with Group(fake={}, runtime_dir=runtime_dir) as second:
            self.assertFalse(os.path.exists(group.directory))
            third = Group(fake={}, runtime_dir=runtime_dir)
            self.assertTrue(os.path.exists(second.directory))
            third.stop()
            third._close()
            self.assertTrue(os.path.exists(second.directory))

    def test_reads_the_port_from_the_file(self):
        port, admin_port = free_port(), free_port()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            config.write(f"http:\n  port: {port}\nadmin:\n"
                         f"  port: {admin_port}\n")
            config.flush()
            with socket.create_server(("127.0.0.1", port)):
                runtime_dir = make_runtime_dir()
                self.addCleanup(remove_runtime_dir, runtime_dir)
                result = run_moebius("serve", "-c", config.name, "--model",
                                     MODEL, env=fake_env(runtime_dir))
                self.assertIn(f"port {port} of 127.0.0.1 is in use",
                              result.stderr)


if __name__ == "__main__":
    unittest.main()
