"""The benchmark clients of the field, as strict as they are, as users run them:
all requests of all of them succeed, with the right text."""

import argparse
import json
import os
import subprocess
import sys
import unittest

from bench_client import CLIENTS, Result, prompt_of
from group import Group

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                      "bench_client.py")
PROMPTS = 16
TOKENS = 12


def run_client(group, *arguments):
    result = subprocess.run(
        [sys.executable, "-B", CLIENT, *arguments, "--base-url",
         f"http://{group.host}:{group.port}", "--num-prompts", str(PROMPTS),
         "--output-len", str(TOKENS)],
        text=True, capture_output=True, timeout=240, check=False)
    if not result.stdout:
        raise AssertionError(result.stderr)
    return json.loads(result.stdout)


def whole_texts(group, name, chat):
    """What the server says to the same requests without a stream."""
    args = argparse.Namespace(model="verse-moe", output_len=TOKENS)
    texts = []
    for i in range(PROMPTS):
        body = {**CLIENTS[name][1](args, prompt_of(i), chat), "stream": False}
        body.pop("stream_options", None)
        answer = group.post("/v1/chat/completions" if chat
                            else "/v1/completions", body)
        choice = answer.json()["choices"][0]
        texts.append(choice["message"]["content"] if chat else choice["text"])
    return texts


def event(text):
    return b'data: {"choices":[{"index":0,"text":"' + text + b'"}]}\n\n'


class ReadersTest(unittest.TestCase):
    """That they are strict: what they cannot read, they do not read."""

    def read(self, name, pieces):
        reader, result = CLIENTS[name][0](), Result()
        for piece in pieces:
            lines = piece.splitlines(True) if reader.LINES else [piece]
            for line in lines:
                reader.read(line, name == "llmperf", result)
        return result

    def test_events_of_one_line_are_read(self):
        for name in ("vllm", "sglang", "genai-perf"):
            with self.subTest(name):
                result = self.read(name, [event(b"a") + event(b"b"),
                                          event(b"c") + b"data: [DONE]\n\n"])
                self.assertEqual(result.text, "abc")
                self.assertEqual(len(result.between_tokens_s), 2)

    def test_an_id_breaks_each_of_them(self):
        for name in CLIENTS:
            with self.subTest(name), self.assertRaises(Exception):
                result = self.read(name, [b"id: 1\n" + event(b"a"),
                                          b"id: 2\n" + event(b"b")])
                if result.first_token_s is None:  # as the client does
                    raise RuntimeError("no event came")

    def test_vllm_reads_over_comments_that_do_not_end_with_a_piece(self):
        result = self.read("vllm", [b": waiting\n\n:", b" waiting\n\n:",
                                    b" on\n\n" + event(b"a"), event(b"b")])
        self.assertEqual(result.text, "ab")
        # The usual form costs it everything behind.
        lost = self.read("vllm", [b": waiting\n\n", event(b"a"), event(b"b")])
        self.assertEqual(lost.text, "")

    def test_vllm_puts_pieces_together(self):
        character = "ä".encode()
        text = event(b"a") + event(character) + b"data: [DONE]\n\n"
        cut = text.index(character) + 1
        self.assertEqual(self.read("vllm", [text[:cut], text[cut:]]).text,
                         "aä")


class BenchClientTest(unittest.TestCase):
    def check(self, result, texts):
        self.assertEqual((result["completed"], result["failed"]), (PROMPTS, 0),
                         result["errors"])
        self.assertEqual(result["texts"], texts)
        for events in result["events"]:
            self.assertTrue(1 <= events <= TOKENS, events)

    def test_all_of_them(self):
        with Group() as group:
            for name in CLIENTS:
                for chat in (False, True):
                    if name == "llmperf" and not chat:
                        continue  # it has chat alone
                    with self.subTest(client=name, chat=chat):
                        result = run_client(group, name,
                                            *(["--chat"] if chat else []))
                        self.check(result, whole_texts(group, name, chat))
                        self.assertGreater(result["mean_ttft_ms"], 0)
                        if name == "vllm":
                            self.assertEqual(result["output_tokens"],
                                             [TOKENS] * PROMPTS)

    def test_in_the_queue(self):
        """vLLM's client reads over the comments; the others know none."""
        queue = ["--set", "scheduler.max_running=1", "--set",
                 "http.waiting_comment_ms=8"]
        with Group(queue) as group:
            self.check(run_client(group, "vllm"),
                       whole_texts(group, "vllm", False))
            stream = group.stream({"prompt": "x", "max_tokens": 2000,
                                   "ignore_eos": True})
            next(iter(stream))
            waiting = group.stream({"prompt": "x", "max_tokens": 1})
            self.assertEqual(waiting.status, 200)
            self.assertEqual(waiting.response.readline(), b": waiting\n")
            stream.close()
            self.assertEqual([data for _, data in waiting][-1], "[DONE]")
            waiting.close()
        with Group(["--set", "scheduler.max_running=1", "--set",
                    "http.waiting_comment_ms=0"]) as group:
            self.check(run_client(group, "sglang"),
                       whole_texts(group, "sglang", False))


if __name__ == "__main__":
    unittest.main()
