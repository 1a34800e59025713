"""What operators and their programs find on a running group: the names that
docs/operators.md promises, in the formats that scrapers ask for."""

import gzip
import json
import os
import re
import shutil
import subprocess
import time
import unittest

from group import Group, MODEL, ROOT

SAMPLE = re.compile(r'^([a-z:_0-9A-Z]+)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)",?')
OPEN_METRICS = "application/openmetrics-text;version=1.0.0"


def documented(pattern):
    """Rows of the tables in docs/operators.md whose first cell matches."""
    with open(os.path.join(ROOT, "docs", "operators.md")) as page:
        rows = [[cell.strip() for cell in line.strip("|\n ").split("|")]
                for line in page if line.startswith("| `")]
    return [row for row in rows if re.search(pattern, row[0])]


def parse(text):
    """{name: type}, and {(name, frozenset of labels): value}."""
    types, samples = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, f"{name} is there twice"
            types[name] = kind
        elif not line.startswith("#"):
            name, labels, value = SAMPLE.match(line).groups()
            key = (name, frozenset(LABEL.findall(labels or "")))
            assert key not in samples, f"{line} is there twice"
            samples[key] = float(value)
    return types, samples


def total(samples, name, **labels):
    wanted = set(labels.items())
    return sum(value for (other, has), value in samples.items()
               if other == name and wanted <= has)


def schema_errors(value, schema, root, path="status"):
    """What of `value` breaks a schema of the words that ours uses."""
    if "$ref" in schema:
        return schema_errors(value, root["definitions"][
            schema["$ref"].removeprefix("#/definitions/")], root, path)
    if "anyOf" in schema:
        found = [schema_errors(value, one, root, path)
                 for one in schema["anyOf"]]
        return [] if [] in found else found[-1]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{path} is {value!r}"]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool,
             "integer": int, "number": (int, float), "null": type(None)}
    if not isinstance(value, kinds[schema["type"]]) or (
            isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{path} is no {schema['type']}: {value!r}"]
    errors = []
    if "pattern" in schema and not re.search(schema["pattern"], value):
        errors.append(f"{path} is {value!r}")
    if isinstance(value, (int, float)) and not (
            schema.get("minimum", value) <= value
            <= schema.get("maximum", value)):
        errors.append(f"{path} is {value!r}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            errors += schema_errors(item, schema["items"], root, f"{path}[{i}]")
    if isinstance(value, dict):
        errors += [f"{path}.{key} is missing" for key in schema["required"]
                   if key not in value]
        for key, inner in value.items():
            if key not in schema["properties"]:
                errors.append(f"{path}.{key} is not in the schema")
            else:
                errors += schema_errors(inner, schema["properties"][key], root,
                                        f"{path}.{key}")
    return errors


class ReportsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.group = Group(["--workers", "2", "--layout", "ep"])
        cls.group.complete({"prompt": "In the beginning", "max_tokens": 8,
                            "ignore_eos": True})
        answer = cls.group.post("/admin/layout", {"layout": "tp"}, admin=True)
        assert answer.status == 200, answer.body
        cls.group.complete({"prompt": "In the beginning", "max_tokens": 8,
                            "ignore_eos": True, "n": 2, "temperature": 1})

    @classmethod
    def tearDownClass(cls):
        cls.group.stop()

    def metrics(self, admin=False, headers=None):
        answer = self.group.request("GET", "/metrics", admin=admin,
                                    headers=headers)
        self.assertEqual(answer.status, 200)
        return answer

    def test_every_name_of_the_table_is_there_with_its_type(self):
        rows = documented("^`vllm:")
        self.assertGreater(len(rows), 20)
        for admin in (False, True):
            types, samples = parse(self.metrics(admin).body.decode())
            named = {name for name, _ in samples}
            for cell, kind, _ in rows:
                name = cell.strip("`")
                self.assertEqual(types.get(name), kind, name)
                sample = name + ("_bucket" if kind == "histogram" else "")
                self.assertIn(sample, named)
            self.assertEqual({name for name in types if "vllm:" in name},
                             {row[0].strip("`") for row in rows})

    def test_each_router_finds_what_it_reads(self):
        types, samples = parse(self.metrics().body.decode())
        with open(os.path.join(ROOT, "docs", "operators.md")) as page:
            section = page.read().partition("## What routers ask")[2]
        rows = [line for line in section.partition("\n## ")[0].splitlines()
                if "`vllm:" in line]
        self.assertEqual(len(rows), 3)
        for row in rows:
            for name in re.findall(r"vllm:[a-z_]+", row):
                self.assertIn(name, types, row)
                found = [(labels, value) for (has, labels), value
                         in samples.items() if has == name]
                self.assertEqual(len(found), 1, f"{name} is to be one series")
                labels, value = dict(found[0][0]), found[0][1]
                self.assertTrue(value >= 0, name)
                if name == "vllm:cache_config_info":
                    self.assertEqual((labels["block_size"], value), ("16", 1))
                    self.assertGreater(int(labels["num_gpu_blocks"]), 0)
                elif name == "vllm:lora_requests_info":
                    self.assertLessEqual({"max_lora", "running_lora_adapters",
                                          "waiting_lora_adapters"}, set(labels))
                else:
                    self.assertEqual(labels["model_name"], "verse-moe")
        for path in ("/v1/models", "/health"):
            self.assertEqual(self.group.get(path).status, 200)
        models = self.group.get("/v1/models").json()["data"]
        self.assertEqual([model["id"] for model in models], ["verse-moe"])

    def test_our_own_names_are_those_of_the_table(self):
        types, _ = parse(self.metrics().body.decode())
        listed = set()
        for row in documented("^`moebius:"):
            listed |= set(re.findall(r"moebius:[a-z_]+", row[0]))
        self.assertEqual({n for n in types if n.startswith("moebius:")}, listed)

    def test_values_are_those_of_what_was_done(self):
        _, samples = parse(self.metrics().body.decode())
        self.assertEqual(total(samples, "vllm:generation_tokens_total"), 24)
        self.assertEqual(total(samples, "vllm:request_success_total",
                               finished_reason="length"), 3)
        for name, count in (("time_to_first_token_seconds", 3),
                            ("inter_token_latency_seconds", 21),
                            ("request_queue_time_seconds", 3),
                            ("request_generation_tokens", 3),
                            ("e2e_request_latency_seconds", 2)):
            self.assertEqual(total(samples, f"vllm:{name}_count"), count, name)
        self.assertEqual(total(samples, "vllm:request_generation_tokens_sum"),
                         24)
        self.assertEqual(total(samples, "moebius:switches_total", to="tp",
                               outcome="done"), 1)
        self.assertEqual(total(samples, "moebius:layout", layout="tp"), 1)
        self.assertEqual(total(samples, "vllm:kv_cache_usage_perc"), 0)
        self.assertGreater(total(samples, "moebius:kv_tokens_free"), 0)
        for layout in ("ep", "tp"):
            self.assertGreater(total(samples, "moebius:step_seconds_count",
                                     layout=layout), 0)

    def test_formats_are_negotiated(self):
        plain = self.metrics()
        self.assertEqual(plain.headers["content-type"],
                         "text/plain; version=0.0.4; charset=utf-8")
        opened = self.metrics(headers={"Accept": OPEN_METRICS})
        self.assertEqual(
            opened.headers["content-type"],
            "application/openmetrics-text; version=1.0.0; charset=utf-8")
        self.assertTrue(opened.body.endswith(b"\n# EOF\n"))
        types, samples = parse(opened.body.decode().removesuffix("# EOF\n"))
        self.assertEqual(types["vllm:prompt_tokens"], "counter")
        self.assertIn("vllm:prompt_tokens_total", {name for name, _ in samples})
        packed = self.metrics(headers={"Accept-Encoding": "gzip, deflate"})
        self.assertEqual(packed.headers["content-encoding"], "gzip")
        self.assertLess(len(packed.body), len(plain.body) / 4)
        types, _ = parse(gzip.decompress(packed.body).decode())
        self.assertIn("vllm:num_requests_running", types)

    def test_status_keeps_to_its_schema(self):
        with open(os.path.join(ROOT, "docs", "status.schema.json")) as page:
            schema = json.load(page)
        self.assertNotEqual(schema_errors({}, schema, schema), [])
        operator = self.group.get("/status", admin=True).json()
        client = self.group.get("/status").json()
        for status in (operator, client):
            self.assertEqual(schema_errors(status, schema, schema), [])
        for secret in (MODEL, str(operator["pid"]), self.group.directory):
            self.assertNotIn(secret, json.dumps(client))
        self.assertEqual(operator["layout"], "tp")
        self.assertEqual(operator["limits"]["max_running"], 256)
        self.assertEqual([kv["layout"] for kv in operator["kv"]], ["tp", "ep"])
        last = operator["switches"]["recent"][0]
        self.assertEqual(last, operator["switches"]["last"])
        self.assertEqual((last["to"], last["cause"], last["done"]),
                         ("tp", "operator", True))
        self.assertLessEqual(last["began_unix_ms"], last["ended_unix_ms"])
        self.assertLess(abs(last["ended_unix_ms"] / 1e3 - time.time()), 300)
        self.assertFalse(operator["policy"]["automatic"])
        self.assertEqual(operator["instance_id"],
                         os.path.basename(self.group.directory))

    @unittest.skipUnless(shutil.which("promtool"), "there is no promtool")
    def test_promtool_has_no_error(self):
        # What it has against names is style: vLLM's are what they are.
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=self.metrics().body,
            capture_output=True, check=False)
        self.assertNotIn(b"error while linting", checked.stderr)


if __name__ == "__main__":
    unittest.main()
