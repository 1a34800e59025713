#!/usr/bin/env python3
"""A benchmark client that reads streams exactly as strictly as those of the
field, of which each takes less than the format of event streams allows:

vllm        `vllm bench serve` (openai, openai-chat): drops white space at both
            ends of every piece that it reads, cuts what it has at empty lines,
            passes comments over, and takes anything else for one line that
            begins with "data: ". Asks for the usage, which comes in an event
            without choices.
sglang      `sglang.bench_serving` (sglang-oai, sglang-oai-chat): every line
            that is not empty is "data: " and JSON, or "data: [DONE]"; every
            event has a choice.
llmperf     llmperf's chat client: the first six bytes of every line that is not
            empty go, whatever they are; every event has a choice.
genai-perf  perf_analyzer and genai-perf: what a read gives is whole events,
            each of which begins with "data:".

    bench_client.py vllm --base-url http://127.0.0.1:8000 --num-prompts 100

prints a line of JSON: requests that succeeded and failed, tokens, times to the
first token and between tokens. The exit code is 1 if any failed. Standard
library only.
"""

import argparse
import codecs
import concurrent.futures
import http.client
import json
import sys
import time
import urllib.parse

PREFIX = "data: "
DONE = "[DONE]"


class Result:
    """What one request came to."""

    def __init__(self):
        self.success = False
        self.error = ""
        self.text = ""
        self.output_tokens = None
        self.begin = time.perf_counter()
        self.first_token_s = None
        self.between_tokens_s = []
        self.last = self.begin

    def token(self, text):
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now - self.begin
        else:
            self.between_tokens_s.append(now - self.last)
        self.last = now
        self.text += text


def text_of(event, chat):
    choice = event["choices"][0]
    return choice["delta"].get("content") if chat else choice["text"]


# ---- readers: each takes the pieces or the lines of a body ------------------


class VllmReader:
    """Of pieces as they come from the socket."""
    LINES = False

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.held = ""

    def messages(self, piece):
        piece = piece.strip()
        if not piece:
            return
        self.held += self.decoder.decode(piece)
        while "\n\n" in self.held:
            message, self.held = self.held.split("\n\n", 1)
            if message.strip():
                yield message.strip()
        # An end whose empty line went with the white space.
        if self.held.startswith(PREFIX):
            data = self.held.removeprefix(PREFIX).strip()
            if data != DONE:
                try:
                    json.loads(data)
                except json.JSONDecodeError:
                    return  # the rest is on its way
            yield self.held.strip()
            self.held = ""

    def read(self, piece, chat, result):
        for message in self.messages(piece):
            if message.startswith(":"):
                continue
            data = message.removeprefix(PREFIX)
            if data == DONE:
                continue
            event = json.loads(data)
            if event.get("choices"):
                result.token(text_of(event, chat) or "")
            elif event.get("usage"):
                result.output_tokens = event["usage"]["completion_tokens"]


class SglangReader:
    LINES = True

    def read(self, line, chat, result):
        line = line.strip()
        if not line:
            return
        data = line.decode().removeprefix(PREFIX)
        if data == DONE:
            return
        event = json.loads(data)
        text = text_of(event, chat)
        if text:
            result.token(text)


class LlmperfReader:
    LINES = True

    def read(self, line, chat, result):
        line = line.strip()
        if not line:
            return
        data = line[len(PREFIX):]
        if data == DONE.encode():
            return
        event = json.loads(data)
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        text = text_of(event, chat)
        if text:
            result.token(text)


class GenaiPerfReader:
    LINES = False

    def read(self, piece, chat, result):
        for message in piece.decode().strip().split("\n\n"):
            if not message.startswith("data:"):
                raise ValueError(f"no event: {message[:80]!r}")
            data = message.removeprefix("data:").strip()
            if data != DONE:
                result.token(text_of(json.loads(data), chat) or "")


# ---- bodies -----------------------------------------------------------------


def vllm_body(args, prompt, chat):
    body = {"model": args.model, "stream": True,
            "stream_options": {"include_usage": True}}
    if chat:
        content = [{"type": "text", "text": prompt}]
        body["messages"] = [{"role": "user", "content": content}]
        body["max_completion_tokens"] = args.output_len
    else:
        body.update(prompt=prompt, repetition_penalty=1.0, logprobs=None,
                    max_tokens=args.output_len)
    return {**body, "ignore_eos": True, "temperature": 0.0}


def sglang_body(args, prompt, chat):
    body = {"model": args.model, "temperature": 0.0, "stream": True,
            "max_tokens": args.output_len}
    if chat:
        return {**body, "messages": [{"role": "user", "content": prompt}],
                "ignore_eos": True}
    return {**body, "prompt": prompt, "best_of": 1, "ignore_eos": True}


def llmperf_body(args, prompt, chat):
    del chat  # there is nothing else
    return {"model": args.model, "stream": True, "max_tokens": args.output_len,
            "messages": [{"role": "system", "content": ""},
                         {"role": "user", "content": prompt}],
            "temperature": 0.0, "ignore_eos": True}


def genai_perf_body(args, prompt, chat):
    body = {"model": args.model, "stream": True, "ignore_eos": True,
            "max_tokens": args.output_len, "temperature": 0.0}
    if chat:
        return {**body, "messages": [{"role": "user", "content": prompt}]}
    return {**body, "prompt": [prompt]}


CLIENTS = {"vllm": (VllmReader, vllm_body),
           "sglang": (SglangReader, sglang_body),
           "llmperf": (LlmperfReader, llmperf_body),
           "genai-perf": (GenaiPerfReader, genai_perf_body)}


def pieces_of(response, lines):
    if lines:
        yield from response
        return
    while piece := response.read1(1 << 16):
        yield piece


def one_request(args, address, index, prompt):
    reader_type, body_of = CLIENTS[args.client]
    chat = args.chat or args.client == "llmperf"
    path = "/v1/chat/completions" if chat else "/v1/completions"
    connection = http.client.HTTPConnection(address, timeout=args.timeout_s)
    result = Result()
    try:
        connection.request(
            "POST", path, json.dumps(body_of(args, prompt, chat)),
            {"Content-Type": "application/json", "Accept": "*/*",
             "X-Request-Id": f"bench-{index}"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read()!r}")
        reader = reader_type()
        for piece in pieces_of(response, reader.LINES):
            reader.read(piece, chat, result)
        if result.first_token_s is None:
            raise RuntimeError("no event that counts for a token came")
        result.success = True
    except Exception as error:  # a benchmark counts, and goes on
        result.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return result


def get(address, path):
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"GET {path}: {response.status}")
        return json.loads(body)
    finally:
        connection.close()


def prompt_of(index):
    return f"In the year {index} the king said unto the people,"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=sorted(CLIENTS))
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--model", default="")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=16)
    parser.add_argument("--max-concurrency", type=int, default=16)
    parser.add_argument("--timeout-s", type=float, default=120)
    args = parser.parse_args()
    address = urllib.parse.urlsplit(args.base_url).netloc
    get(address, "/health")
    model = get(address, "/v1/models")["data"][0]
    args.model = args.model or model["id"]
    assert model["root"], "where the tokenizer is"
    with concurrent.futures.ThreadPoolExecutor(args.max_concurrency) as pool:
        results = list(pool.map(
            lambda i: one_request(args, address, i, prompt_of(i)),
            range(args.num_prompts)))
    failed = [r for r in results if not r.success]
    print(json.dumps({
        "completed": len(results) - len(failed), "failed": len(failed),
        "errors": sorted({r.error for r in failed}),
        "output_tokens": [r.output_tokens for r in results],
        "texts": [r.text for r in results],
        "events": [1 + len(r.between_tokens_s) for r in results],
        "mean_ttft_ms": 1e3 * sum(r.first_token_s or 0 for r in results)
                        / len(results)}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
