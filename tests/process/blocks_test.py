"""Experts in blocks, padded where they do not divide: tokens and
log-probabilities are the same to the last digit for any number of workers, in
both layouts, with any number of spare slots, and under a storm of switches."""

import json
import os
import random
import shutil
import struct
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

from group import MODEL, Group, GroupFailed, run_moebius

# 12 experts of 80 rows: only a group of one can do without padding.
PADDED = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
    "hidden_act": "silu", "hidden_size": 160, "head_dim": 16,
    "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 80,
    "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 1024, "tie_word_embeddings": True,
    "vocab_size": 4096, "eos_token_id": 4095, "torch_dtype": "bfloat16"}
# Heads for the largest group there may be, and so few experts that some of its
# ranks own nothing but padding.
SIXTEEN_HEADS = {
    **PADDED, "hidden_size": 64, "num_attention_heads": 16,
    "num_key_value_heads": 4, "num_hidden_layers": 2, "num_experts": 10,
    "moe_intermediate_size": 48}
# Groups whose sizes are no powers of 2.
TWELVE_HEADS = {
    **PADDED, "num_attention_heads": 12, "num_key_value_heads": 6,
    "num_hidden_layers": 2, "num_experts": 13}
# Rows that stay together: longer ones would cost some group more padding.
UNIT_ROWS = 16
TOKENIZER = ("tokenizer.json", "tokenizer_config.json",
             "generation_config.json")
FLAGS = ["--served-name", "verse-moe", "--max-running", "32"]
TOKEN_BUDGET = ["--token-budget", "96"]  # long prompts take several steps

NUM_STREAMS = 16
STREAM_TOKENS = 300
FEWEST_SWITCHES = 20
CHECK_TIMEOUT_S = 60


# ---- checkpoints -----------------------------------------------------------

def tensors_of(config):
    """(name, shape, exponent) of each tensor of a model with experts in every
    layer; its values are about 2^exponent."""
    hidden, head = config["hidden_size"], config["head_dim"]
    rows = config["moe_intermediate_size"]
    q = config["num_attention_heads"] * head
    kv = config["num_key_value_heads"] * head
    yield "model.embed_tokens", [config["vocab_size"], hidden], -1
    yield "model.norm", [hidden], 0
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        yield layer + "input_layernorm", [hidden], 0
        yield layer + "post_attention_layernorm", [hidden], 0
        yield layer + "self_attn.q_norm", [head], 0
        yield layer + "self_attn.k_norm", [head], 0
        yield layer + "self_attn.q_proj", [q, hidden], -3
        yield layer + "self_attn.k_proj", [kv, hidden], -3
        yield layer + "self_attn.v_proj", [kv, hidden], -3
        yield layer + "self_attn.o_proj", [hidden, q], -3
        yield layer + "mlp.gate", [config["num_experts"], hidden], -3
        for expert in range(config["num_experts"]):
            mlp = f"{layer}mlp.experts.{expert}."
            yield mlp + "gate_proj", [rows, hidden], -3
            yield mlp + "up_proj", [rows, hidden], -3
            yield mlp + "down_proj", [hidden, rows], -3


def bfloat16(draw, count, exponent):
    """`count` values from +-2^(exponent - 1) to +-2^(exponent + 1): the low
    byte has the last bit of the exponent and the mantissa, the high byte the
    sign and what remains of the exponent."""
    high = (exponent + 126) >> 1
    values = bytearray(2 * count)
    values[0::2] = draw.randbytes(count)
    values[1::2] = draw.randbytes(count).translate(
        bytes(high | (byte & 0x80) for byte in range(256)))
    return values


def write_weights(folder, config):
    draw = random.Random(12)
    header, data = {}, bytearray()
    for name, shape, exponent in tensors_of(config):
        count = 1
        for size in shape:
            count *= size
        begin = len(data)
        data += bfloat16(draw, count, exponent)
        header[name + ".weight"] = {"dtype": "BF16", "shape": shape,
                                    "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def make_checkpoint(config, add_cleanup):
    """A folder with a configuration and a tokenizer, and no weights yet."""
    folder = tempfile.mkdtemp()
    add_cleanup(shutil.rmtree, folder)
    for name in TOKENIZER:
        os.symlink(os.path.join(MODEL, name), os.path.join(folder, name))
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    return folder


def padding_bytes(config, workers, spare_slots):
    """As common/layout/blocks.h defines it."""
    experts = config["num_experts"]
    rows = config["moe_intermediate_size"]
    experts_per_block = -(-experts // workers)
    rows_per_block = -(-rows // (workers * UNIT_ROWS)) * UNIT_ROWS
    slots = config["num_hidden_layers"] + spare_slots
    row_bytes = 2 * config["hidden_size"]
    block = experts_per_block * 3 * rows_per_block * row_bytes
    region = workers * block * slots
    return workers * region - experts * 3 * rows * row_bytes * slots


# ---- requests --------------------------------------------------------------

def parse(body):
    """Numbers that are not whole stay text: they are the shortest that give
    the same bits, so equal text is equal bits."""
    return json.loads(body, parse_float=str)


def make_requests():
    draw = random.Random(80)
    return [{"model": "verse-moe",
             "prompt": [draw.randrange(4000) for _ in range(length)],
             "max_tokens": 24, "ignore_eos": True, "return_token_ids": True,
             "logprobs": 8, "prompt_logprobs": 4, "seed": i,
             "temperature": 0 if i % 2 == 0 else 1.0}
            for i, length in enumerate([1, 2, 15, 16, 17, 64, 150, 333])]


def ask_all(group):
    """The answers to make_requests(), all asked at once."""
    def ask(body):
        answer = group.post("/v1/completions", body)
        if answer.status != 200:
            raise GroupFailed(f"{answer.status}: {answer.body!r}")
        return parse(answer.body)["choices"]

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, make_requests()))


def read_stream(group, i):
    """Tokens and log-probabilities of one stream, whole."""
    draw = random.Random(i)
    stream = group.stream({
        "prompt": [draw.randrange(4000) for _ in range(1 + 23 * i)],
        "max_tokens": STREAM_TOKENS, "seed": i, "ignore_eos": True,
        "temperature": 0 if i % 2 else 0.8, "return_token_ids": True,
        "logprobs": 5})
    whole = {"token_ids": [], "tokens": [], "token_logprobs": [],
             "top_logprobs": []}
    done = False
    for line in stream.response:
        text = line.decode().removeprefix("data:").strip()
        if text == "[DONE]":
            done = True
        elif text.startswith("{"):
            for choice in parse(text)["choices"]:
                whole["token_ids"] += choice.get("token_ids") or []
                for key, values in (choice["logprobs"] or {}).items():
                    if key in whole:
                        whole[key] += values
    stream.close()
    lengths = {key: len(values) for key, values in whole.items()}
    if not done or set(lengths.values()) != {STREAM_TOKENS}:
        raise GroupFailed(f"stream {i} ended early: {lengths}")
    return whole


def wait_checked(group, count):
    """Waits until the weights have been checked after `count` switches."""
    deadline = time.monotonic() + CHECK_TIMEOUT_S
    while True:
        switches = group.status()["switches"]
        if switches["checked"] >= count:
            return switches
        if time.monotonic() > deadline:
            raise GroupFailed(f"{count} checks are awaited, there are "
                              f"{switches}" + group.said())


class SameBitsTest(unittest.TestCase):
    def check_groups(self, model, config, sizes=(1, 2, 4, 8), flags=()):
        """Groups of these sizes, each loaded in either layout."""
        want = None
        for workers in sizes:
            for layout in ("ep", "tp"):
                with self.subTest(workers=workers, layout=layout), Group(
                        [*FLAGS, *flags, "--workers", str(workers),
                         "--layout", layout], model=model) as group:
                    answers = ask_all(group)
                    want = want or answers
                    for i, answer in enumerate(answers):
                        self.assertEqual(answer, want[i])
                    status = group.status()
                    self.assertEqual(status["layout"],
                                     layout if workers > 1 else "ep")
                    self.assertEqual(status["nonfinite_logits"]["rows"], 0)
                    self.assertEqual(status["padding_bytes"],
                                     padding_bytes(config, workers, 1))
        self.assert_say_something(want)

    def assert_say_something(self, answers):
        """A model of which every token is as likely would prove nothing."""
        for choices in answers:
            logprobs = choices[0]["logprobs"]
            self.assertGreater(len(set(logprobs["token_logprobs"])), 12)
            for top in logprobs["top_logprobs"]:
                self.assertGreater(len(set(top.values())), 4)

    def test_experts_and_rows_that_no_group_divides(self):
        model = make_checkpoint(PADDED, self.addCleanup)
        write_weights(model, PADDED)
        self.assertEqual(padding_bytes(PADDED, 1, 1), 0)
        for workers in (2, 4, 8):
            self.assertGreater(padding_bytes(PADDED, workers, 1), 0)
        self.check_groups(model, PADDED)

    def test_group_sizes_that_are_no_powers_of_two(self):
        self.check_groups(make_checkpoint(TWELVE_HEADS, self.addCleanup),
                          TWELVE_HEADS, (1, 3, 6, 12),
                          ["--load-format", "dummy"])

    def test_verse_moe(self):
        with open(os.path.join(MODEL, "config.json")) as file:
            config = json.load(file)
        self.assertEqual(padding_bytes(config, 8, 1), 0)
        self.check_groups(MODEL, config)

    def test_sixteen_workers(self):
        model = make_checkpoint(SIXTEEN_HEADS, self.addCleanup)
        flags = [*FLAGS, "--load-format", "dummy"]
        with Group([*flags, "--workers", "1"], model=model) as group:
            want = ask_all(group)
        with Group([*flags, "--workers", "16", "--layout", "ep"],
                   model=model) as group:
            self.assertEqual(ask_all(group), want)
            with ThreadPoolExecutor(1) as pool:
                meanwhile = pool.submit(ask_all, group)
                report = group.switch("tp")
            self.assertTrue(report["done"], report)
            self.assertEqual(meanwhile.result(), want)
            self.assertEqual(ask_all(group), want)
            wait_checked(group, 1)
            status = group.status()
            self.assertEqual(len(status["workers"]), 16)
            self.assertEqual(status["switches"]["total"], 1)
            self.assertEqual(status["padding_bytes"],
                             padding_bytes(SIXTEEN_HEADS, 16, 1))


class StormTest(unittest.TestCase):
    """Switches one after the other while streams run."""

    @classmethod
    def setUpClass(cls):
        cls.model = make_checkpoint(PADDED, cls.addClassCleanup)
        write_weights(cls.model, PADDED)
        with Group([*FLAGS, "--workers", "1"], model=cls.model) as group:
            cls.quiet = [read_stream(group, i) for i in range(NUM_STREAMS)]

    def switch(self, group):
        """To the other layout; counts."""
        report = group.switch("ep" if self.num_switches % 2 else "tp")
        self.assertTrue(report["done"], report)
        self.num_switches += 1

    def switch_and_await_check(self, group):
        before = group.status()["switches"]["checked"]
        self.switch(group)
        return wait_checked(group, before + 1)

    def check(self, workers, spare_slots):
        self.num_switches = 0
        with Group([*FLAGS, *TOKEN_BUDGET, "--workers", str(workers),
                    "--layout", "ep", "--set",
                    f"layout.spare_slots={spare_slots}"],
                   model=self.model) as group:
            self.assertEqual(group.status()["padding_bytes"],
                             padding_bytes(PADDED, workers, spare_slots))
            # None is overtaken, so each is checked: the number is exact.
            for count in (1, 2, 3):
                self.assertEqual(
                    self.switch_and_await_check(group)["checked"], count)
            with ThreadPoolExecutor(NUM_STREAMS) as pool:
                streams = [pool.submit(read_stream, group, i)
                           for i in range(NUM_STREAMS)]
                while not all(stream.done() for stream in streams):
                    self.switch(group)
            for stream, quiet in zip(streams, self.quiet):
                self.assertEqual(stream.result(), quiet)
            self.assertGreaterEqual(self.num_switches, FEWEST_SWITCHES)
            # A switch that nothing overtakes is checked, though nothing comes
            # after it. The first number may still be that of the storm's last.
            for _ in range(3):
                switches = self.switch_and_await_check(group)
                self.assertEqual(switches["total"], self.num_switches)
                self.assertLessEqual(switches["checked"], switches["total"])
            self.assertEqual(switches["refused"], 0)
            self.assertEqual(group.status()["recoveries"]["total"], 0)
            print(f"{workers} workers, {spare_slots} spare slots: "
                  f"{switches['total']} switches, {switches['checked']} of "
                  "them checked")

    def test_one_spare_slot(self):
        self.check(4, 1)

    def test_two_spare_slots(self):
        self.check(2, 2)

    def test_three_spare_slots(self):
        self.check(4, 3)


class SpareSlotsTest(unittest.TestCase):
    def test_too_few_and_too_many_are_refused_by_name(self):
        for number in ("-1", "9"):
            result = run_moebius(
                "serve", "--model", MODEL, "--port", "0", "--admin-port", "0",
                "--set", f"layout.spare_slots={number}")
            self.assertEqual(result.returncode, 2, result.stderr)
            self.assertIn("layout.spare_slots", result.stderr)
            self.assertIn("a whole number from 0 to 8", result.stderr)
            self.assertIn(f"'{number}'", result.stderr)


if __name__ == "__main__":
    unittest.main()
