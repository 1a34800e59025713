"""A group of the real programs: its start, its drain, and its end."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import unittest

from group import (MODEL, MOEBIUS, Group, GroupFailed, children_of, free_port,
                   make_runtime_dir, remove_runtime_dir, run_moebius,
                   start_time, wait_gone)


class ServeTest(unittest.TestCase):
    def test_serves_and_stops(self):
        with Group() as group:
            self.assertEqual(group.get("/health").status, 200)
            self.assertEqual(group.get("/ready").status, 200)
            answer = group.complete({"prompt": "And the LORD said unto",
                                     "max_tokens": 8, "temperature": 0})
            self.assertEqual(answer["usage"]["completion_tokens"], 8)
            status = group.status()
            self.assertTrue(status["ready"])
            self.assertEqual(status["layout"], "ep")
            self.assertEqual(
                sorted(worker["pid"] for worker in status["workers"]),
                sorted([group.worker_pid(0), group.worker_pid(1)]))

    def test_drain_finishes_the_streams_in_flight(self):
        with Group() as group:
            stream = group.stream({"prompt": "In the beginning",
                                   "max_tokens": 600, "ignore_eos": True,
                                   "return_token_ids": True})
            self.assertEqual(stream.status, 200)
            tokens = 0
            reason = None
            done = False
            for _, data in stream:
                if data == "[DONE]":
                    done = True
                    break
                for choice in data["choices"]:
                    if tokens == 0:
                        group.terminate()  # in mid-stream
                    tokens += len(choice["token_ids"])
                    reason = choice["finish_reason"] or reason
            stream.close()
            self.assertTrue(done)
            self.assertEqual((tokens, reason), (600, "length"))
            self.assertEqual(group.wait_end(), 0)

    def test_new_requests_are_refused_while_draining(self):
        with Group() as group:
            stream = group.stream({"prompt": "In the beginning",
                                   "max_tokens": 2000, "ignore_eos": True})
            next(iter(stream))
            group.terminate()
            group.wait_line("draining")
            # Until the coordinator has heard of it, it may still take one.
            while True:
                try:
                    answer = group.post("/v1/completions",
                                        {"model": "verse-moe", "prompt": "x",
                                         "max_tokens": 1})
                except OSError:  # it has stopped listening
                    break
                if answer.status == 503:
                    break
                self.assertEqual(answer.status, 200)
            stream.close()
            self.assertEqual(group.wait_end(), 0)

    def read_out(self, stream, ends):
        """Adds (tokens, last finish reason, whether it came to its end)."""
        tokens, reason, done = 0, None, False
        for _, data in stream:
            done = data == "[DONE]"
            for choice in [] if done else data["choices"]:
                tokens += len(choice["token_ids"])
                reason = choice["finish_reason"] or reason
        stream.close()
        ends.append((tokens, reason, done))

    def test_sigterm_to_every_process_at_once_drains(self):
        # As a service manager sends it, in whatever order.
        for launcher_first in (True, False):
            with self.subTest(launcher_first), Group() as group:
                ends = []
                readers = []
                for i in range(4):
                    stream = group.stream({"prompt": "In the beginning",
                                           "max_tokens": 600, "seed": i,
                                           "ignore_eos": True,
                                           "return_token_ids": True})
                    next(iter(stream))
                    readers.append(threading.Thread(target=self.read_out,
                                                    args=(stream, ends)))
                group.note_processes()
                everybody = sorted(group.seen)
                if launcher_first:
                    everybody.remove(group.pid)
                    everybody.insert(0, group.pid)
                else:
                    everybody.remove(group.pid)
                    everybody.append(group.pid)
                for pid in everybody:
                    os.kill(pid, signal.SIGTERM)
                for reader in readers:
                    reader.start()
                for reader in readers:
                    reader.join()
                self.assertEqual(group.wait_end(), 0)
                # The first event was read before.
                self.assertEqual(ends, [(599, "length", True)] * 4)

    def test_signals_of_log_rotation_and_of_terminals_do_no_harm(self):
        with Group() as group:
            stream = group.stream({"prompt": "In the beginning",
                                   "max_tokens": 600, "ignore_eos": True,
                                   "return_token_ids": True})
            next(iter(stream))
            before = group.status()
            for pid in sorted(group.seen):
                for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    os.kill(pid, number)
            for pid in (group.worker_pid(0), group.worker_pid(1)):
                os.kill(pid, signal.SIGTERM)  # the launcher's to send
                os.kill(pid, signal.SIGINT)
            ends = []
            self.read_out(stream, ends)
            self.assertEqual(ends, [(599, "length", True)])
            after = group.status()
            self.assertTrue(after["ready"])
            self.assertEqual(after["recoveries"]["total"], 0)
            for key in ("pid", "term"):
                self.assertEqual(after[key], before[key])
            self.assertEqual([w["pid"] for w in after["workers"]],
                             [w["pid"] for w in before["workers"]])

    def test_a_drain_that_takes_too_long_says_how_many_it_cut(self):
        with Group(["--drain-timeout-ms", "100"]) as group:
            ends, readers = [], []
            for i in range(2):
                stream = group.stream({"prompt": "In the beginning",
                                       "max_tokens": 3000, "seed": i,
                                       "ignore_eos": True,
                                       "return_token_ids": True})
                next(iter(stream))
                readers.append(threading.Thread(target=self.read_out,
                                                args=(stream, ends)))
                readers[-1].start()
            group.terminate()
            for reader in readers:
                reader.join()
            self.assertEqual(group.wait_end(), 3)
            group.wait_line("the drain did not end within 100 ms: 2 requests "
                            "in flight had to be cut", group.err)
            for tokens, reason, done in ends:
                self.assertLess(tokens, 2999)
                self.assertEqual((reason, done), ("length", True))

    def test_drain_and_undrain(self):
        with Group() as group:
            drained = group.post("/admin/drain", {}, admin=True)
            self.assertEqual(drained.json(),
                             {"draining": True, "drained": True})
            status = group.status()
            self.assertFalse(status["ready"])
            self.assertEqual(status["not_ready_reason"], "draining")
            self.assertEqual(group.get("/ready").status, 503)
            body = {"model": "verse-moe", "prompt": "x", "max_tokens": 1}
            self.assertEqual(group.post("/v1/completions", body).status, 503)
            again = group.post("/admin/undrain", {}, admin=True)
            self.assertEqual((again.status, again.json()),
                             (200, {"draining": False}))
            self.assertTrue(group.status()["ready"])
            self.assertEqual(group.post("/v1/completions", body).status, 200)

    def test_second_signal_ends_at_once(self):
        with Group() as group:
            stream = group.stream({"prompt": "In the beginning",
                                   "max_tokens": 3000, "ignore_eos": True})
            next(iter(stream))
            group.terminate()
            group.wait_line("draining")
            group.terminate()
            self.assertEqual(group.wait_end(timeout_s=20), 1)
            group.wait_line("stopped at once")
            stream.close()

    def test_model_that_cannot_be_divided_is_refused_with_the_reason(self):
        with Group(["--workers", "3"], wait=False) as group:
            self.assertEqual(group.wait_end(), 1)
            line = group.wait_line("the group has ended")
            self.assertRegex(line, "worker [0-2]: .*")

    def test_folder_without_a_model_is_refused(self):
        folder = os.path.join(os.path.dirname(MODEL), "..", "configs")
        with Group(["--workers", "1"], model=folder, wait=False) as group:
            self.assertEqual(group.wait_end(), 1)
            self.assertIn("configs/", group.wait_line("group has ended"))


def cut_off(folder):
    path = os.path.join(folder, "model.safetensors")
    with open(os.path.join(MODEL, "model.safetensors"), "rb") as whole:
        start = whole.read(1 << 20)
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(start)


def lfs_pointer(folder):
    path = os.path.join(folder, "model.safetensors")
    os.unlink(path)
    with open(path, "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\n"
                   "oid sha256:" + "0" * 64 + "\nsize 16317296\n")


def no_lm_head(folder):
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    config["tie_word_embeddings"] = False
    os.unlink(path)
    with open(path, "w") as file:
        json.dump(config, file)


def missing_shard(folder):
    with open(os.path.join(folder, "model.safetensors.index.json"),
              "w") as file:
        json.dump({"weight_map": {
            "model.norm.weight": "model-00002-of-00002.safetensors"}}, file)


class CheckpointTest(unittest.TestCase):
    """One that cannot be loaded is said at once, and nothing is served."""

    def refuse(self, change, reason):
        with tempfile.TemporaryDirectory() as folder:
            for name in os.listdir(MODEL):
                os.symlink(os.path.join(MODEL, name),
                           os.path.join(folder, name))
            change(folder)
            with Group(model=folder, wait=False) as group:
                with self.assertRaises(GroupFailed) as failed:
                    group.wait_ready()
                self.assertIn("ended instead of serving",
                              str(failed.exception))
                self.assertEqual(group.wait_end(), 1)
                said = [line for line in group.out + group.err if line]
                self.assertFalse([line for line in said
                                  if "Moebius serves" in line
                                  or "a successor takes over" in line], said)
                line = group.wait_line("the group has ended")
                self.assertRegex(line, "the group has ended: worker [01]: ")
                self.assertIn(reason, line)

    def test_file_that_was_cut_off(self):
        self.refuse(cut_off, "model.safetensors: cut off: tensor ")

    def test_pointer_instead_of_weights(self):
        self.refuse(lfs_pointer, "model.safetensors: a Git LFS pointer")

    def test_tensor_that_is_missing(self):
        self.refuse(no_lm_head, "model.safetensors: no tensor "
                    "'lm_head.weight'")

    def test_shard_that_is_missing(self):
        self.refuse(missing_shard, "model-00002-of-00002.safetensors: cannot "
                    "be opened: No such file or directory")


class OthersCheckpointTest(unittest.TestCase):
    """The small checkpoint as other programs would have written it."""

    def setUp(self):
        self.dir = make_runtime_dir()
        self.addCleanup(remove_runtime_dir, self.dir)
        for name in os.listdir(MODEL):
            os.symlink(os.path.join(MODEL, name), os.path.join(self.dir, name))

    def change(self, name, change):
        with open(os.path.join(MODEL, name)) as file:
            content = json.load(file)
        change(content)
        self.write(name, json.dumps(content))

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        os.remove(path)
        with open(path, "w") as file:
            file.write(text)

    def test_it_is_served_with_warnings_and_ends_where_its_tokenizer_says(self):
        def config(content):
            content["num_local_experts"] = content.pop("num_experts")
            content.pop("eos_token_id", None)

        def tokenizer(content):
            content["added_tokens"].append({
                **content["added_tokens"][0], "id": 4096,
                "content": "<tool_call>"})

        self.change("config.json", config)
        self.change("tokenizer.json", tokenizer)
        self.change("tokenizer_config.json",
                    lambda content: content.update(eos_token=","))
        self.write("generation_config.json",
                   '{"top_p": 0.0, "eos_token_id": -1, "top_k": 5, '
                   '"top_k": 20}')
        os.rename(os.path.join(self.dir, "model.safetensors"),
                  os.path.join(self.dir, "model-00001-of-00001.safetensors"))
        with Group(["--set", "model.served_name=verse-moe"],
                   model=self.dir) as group:
            choice = group.complete({"prompt": "And it came to pass",
                                     "max_tokens": 64,
                                     "temperature": 0})["choices"][0]
            self.assertEqual(choice["finish_reason"], "stop")
            self.assertNotIn(",", choice["text"])
            messages = [{"role": "user", "content": "Say it."},
                        {"role": "assistant", "content": "And it came"}]
            continued = {"messages": messages, "continue_final_message": True}
            asked = group.post("/tokenize", continued).json()["tokens"]
            text = group.post("/detokenize",
                              {"tokens": asked}).json()["prompt"]
            self.assertTrue(text.endswith("assistant\nAnd it came"), text)
            answer = group.post("/v1/chat/completions",
                                {**continued, "add_generation_prompt": True})
            self.assertEqual(answer.status, 400)
            self.assertEqual(answer.json()["error"]["param"],
                             "add_generation_prompt")
            said = group.said()
            for warning in ['4096 "<tool_call>"', '`top_p` must be',
                            '`eos_token_id` must be',
                            'the key "top_k" is given twice']:
                self.assertEqual(said.count(warning), 1, warning + said)


class CommandsTest(unittest.TestCase):
    def test_status_and_layout(self):
        with Group() as group:
            admin = f"http://127.0.0.1:{group.admin_port}"
            shown = run_moebius("status", "--admin", admin)
            self.assertEqual(shown.returncode, 0, shown.stderr)
            self.assertIn("state       ready", shown.stdout)
            self.assertIn("verse-moe", shown.stdout)
            switched = run_moebius("layout", "tp", "--admin", admin)
            self.assertEqual(switched.returncode, 0, switched.stderr)
            self.assertIn("Switched from ep to tp.", switched.stdout)
            self.assertEqual(group.status()["layout"], "tp")
            again = run_moebius("layout", "tp", "--admin", admin)
            self.assertEqual(again.returncode, 0, again.stderr)
            self.assertIn("is tp already", again.stdout)
            auto = run_moebius("layout", "auto", "--admin", admin)
            self.assertEqual(auto.returncode, 0, auto.stderr)
            shown = run_moebius("status", "--json", "--admin", admin)
            self.assertIn('"layout_choice": "auto"', shown.stdout)

    def test_watch_goes_on_until_interrupted(self):
        with Group(["--workers", "1"]) as group:
            process = subprocess.Popen(
                [MOEBIUS, "status", "--watch", "--json", "--interval", "0.1",
                 "--admin", f"http://127.0.0.1:{group.admin_port}"],
                stdout=subprocess.PIPE, text=True)
            for _ in range(3):
                self.assertIn('"ready":true', process.stdout.readline())
            process.send_signal(signal.SIGINT)
            process.stdout.close()
            self.assertEqual(process.wait(30), 0)

    def test_nobody_listens(self):
        result = run_moebius("status", "--admin", "http://127.0.0.1:9")
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot connect", result.stderr)

    def test_nonsense_for_an_address(self):
        result = run_moebius("layout", "tp", "--admin", "127.0.0.1:8001")
        self.assertEqual(result.returncode, 2)
        self.assertIn("allowed is http://ADDRESS:PORT", result.stderr)

    def test_layout_that_is_none_is_a_usage_error(self):
        with Group(["--workers", "1"]) as group:
            result = run_moebius(
                "layout", "sideways", "--admin",
                f"http://127.0.0.1:{group.admin_port}")
            self.assertEqual(result.returncode, 2)

    def test_bench_serve_against_a_group(self):
        with Group() as group:
            url = f"http://127.0.0.1:{group.port}"
            for extra in (["--concurrency", "4"], ["--rate", "50"]):
                result = run_moebius(
                    "bench", "serve", "--url", url, "--requests", "12",
                    "--prompt-tokens", "20", "--output-tokens", "15", *extra)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn("12 requests completed, 0 failed",
                              result.stdout)

    def test_bench_serve_counts_failures(self):
        with Group(["--workers", "1"]) as group:
            result = run_moebius(
                "bench", "serve", "--url", f"http://127.0.0.1:{group.port}",
                "--requests", "3", "--model", "verse-moe", "--prompt-tokens",
                "4000", "--output-tokens", "4000")
            self.assertEqual(result.returncode, 1)
            self.assertIn("3 requests failed, the first with: the server "
                          "answered 400", result.stderr)


    def test_benchmarks_that_are_cut_short_show_what_they_have(self):
        with Group() as group:
            at = ["--url", f"http://127.0.0.1:{group.port}"]
            admin = ["--admin", f"http://127.0.0.1:{group.admin_port}"]
            result = run_moebius(
                "bench", "serve", *at, "--requests", "1000", "--timeout", "6",
                "--prompt-tokens", "8", "--output-tokens", "400")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertRegex(
                result.stdout, r"Cut short after 6 s \(--timeout\): [1-9]\d* of "
                r"1000 requests\.")
            for streams in ("2", "0"):
                result = run_moebius(
                    "bench", "switch", *at, *admin, "--switches", "10000",
                    "--timeout", "8", "--streams", streams)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertRegex(
                    result.stdout, r"[1-9]\d* switches of 2 workers under "
                    + streams)
                self.assertRegex(
                    result.stdout, r"Cut short after 8 s \(--timeout\): "
                    r"[1-9]\d* of 10000 switches\.")

    def test_benchmarks_that_are_interrupted_show_what_they_have(self):
        with Group() as group:
            for sign in (signal.SIGINT, signal.SIGTERM):
                before = group.status()["switches"]["total"]
                process = subprocess.Popen(
                    [MOEBIUS, "bench", "switch", "--switches", "10000",
                     "--url", f"http://127.0.0.1:{group.port}",
                     "--admin", f"http://127.0.0.1:{group.admin_port}"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                while group.status()["switches"]["total"] < before + 6:
                    self.assertIsNone(process.poll())
                process.send_signal(sign)
                out, err = process.communicate(timeout=2)
                self.assertEqual(process.returncode, 1)
                self.assertRegex(
                    out, r"Interrupted: [1-9]\d* of 10000 switches\.")
                self.assertIn("moebius: interrupted", err)

    def test_watch_goes_on_over_a_restart(self):
        port, admin_port = free_port(), free_port()
        ports = ["--workers", "1", "--port", str(port), "--admin-port",
                 str(admin_port)]
        with Group(ports) as group:
            process = subprocess.Popen(
                [MOEBIUS, "status", "--watch", "--json", "--interval", "0.1",
                 "--admin", f"http://127.0.0.1:{admin_port}"],
                stdout=subprocess.PIPE, text=True)
            self.addCleanup(process.stdout.close)
            self.assertIn('"ready":true', process.stdout.readline())
            group.stop()
        for line in process.stdout:
            if '"away":' in line:
                break
        self.assertIn("cannot connect", line)
        with Group(ports):
            # Each once: it is away, and then how it is doing again.
            self.assertIn('"model":"verse-moe"', process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(2), 0)


class OwnGroupTest(unittest.TestCase):
    """Commands that start a group of their own."""

    def run_command(self, *arguments):
        result = run_moebius(*arguments, timeout_s=280)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        return result.stdout

    def test_bench_throughput(self):
        out = self.run_command(
            "bench", "throughput", "--model", MODEL, "--streams", "1,4",
            "--prompt-tokens", "16", "--output-tokens", "8", "--prefill",
            "64", "--repeat", "1")
        cases, layouts = out.split("\n\n")
        self.assertEqual(len(cases.splitlines()), 7, out)
        self.assertRegex(layouts, r"^Decode in both layouts:\n")
        self.assertEqual(len(layouts.splitlines()), 5, out)

    def test_bench_throughput_that_is_cut_short(self):
        out = self.run_command(
            "bench", "throughput", "--model", MODEL, "--streams", "1,4",
            "--prompt-tokens", "16", "--output-tokens", "8", "--repeat",
            "1000", "--timeout", "3")
        self.assertRegex(out, r"Cut short after 3 s \(--timeout\): [1-6] of 6 "
                         r"cases\.")

    def test_bench_throughput_of_a_spec_that_cannot_be(self):
        result = run_moebius("bench", "throughput", "--model", MODEL,
                             "--prompt-tokens", "100000")
        self.assertEqual(result.returncode, 1)

    def test_bench_switch(self):
        out = self.run_command("bench", "switch", "--model", MODEL,
                               "--switches", "4", "--streams", "4",
                               "--output-tokens", "200")
        self.assertIn("4 switches of 2 workers under 4 streams", out)
        self.assertIn("of a memcpy of as many bytes", out)

    def test_bench_switch_goes_round_layouts(self):
        out = self.run_command("bench", "switch", "--model", MODEL,
                               "--workers", "4", "--layouts", "ep,tp2,tp",
                               "--switches", "4", "--streams", "0")
        for pair, count in (("ep to tp2", 2), ("tp2 to tp", 1),
                            ("tp to ep", 1)):
            self.assertRegex(out, rf"{pair} +{count} ")
        result = run_moebius("bench", "switch", "--model", MODEL, "--layouts",
                             "ep,tp,tp2")
        self.assertEqual(result.returncode, 2)
        self.assertIn("tp of 2 workers is named twice", result.stderr)

    def test_demo(self):
        out = self.run_command("demo", "--model", MODEL, "--output-tokens",
                               "150")
        self.assertEqual(out.count("ep to tp "), 2, out)
        self.assertEqual(out.count("all 8 equal, token for token"), 2, out)
        self.assertIn("No process, socket or shared memory is left.", out)

    def test_demo_goes_round_layouts(self):
        out = self.run_command("demo", "--model", MODEL, "--output-tokens",
                               "150", "--workers", "4", "--layouts",
                               "ep,tp2,tp")
        self.assertIn("the group goes from ep to tp2 to tp to ep to tp2:", out)
        self.assertEqual(out.count("all 8 equal, token for token"), 3, out)

    def test_interrupted_demo_leaves_nothing(self):
        runtime_dir = make_runtime_dir()
        self.addCleanup(remove_runtime_dir, runtime_dir)
        process = subprocess.Popen(
            [MOEBIUS, "demo", "--model", MODEL, "--output-tokens", "3000"],
            env=dict(os.environ, XDG_RUNTIME_DIR=runtime_dir),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in process.stdout:
            if "back, and again" in line:
                break
        launchers = children_of(process.pid)
        group = [child for pid in launchers for child in children_of(pid)]
        self.assertEqual(len(launchers + group), 4)
        since = {pid: start_time(pid) for pid in launchers + group}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, out + err)
        self.assertIn("interrupted", err)
        for pid, start in since.items():
            wait_gone(pid, start)
        self.assertEqual(os.listdir(runtime_dir), [])


if __name__ == "__main__":
    unittest.main()
