"""docs/openapi.json against a running group: what it describes is sent and
answered as it says, and what it does not is refused."""

import json
import os
import unittest

from group import Group, ROOT

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool,
         "integer": int, "number": (int, float)}
WRONG = {"object": 5, "array": True, "string": [], "boolean": "yes",
         "integer": "many", "number": "much"}


def load():
    with open(os.path.join(ROOT, "docs", "openapi.json")) as page:
        return json.load(page)


def operations(document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for listener in operation["x-listeners"]:
                yield path, method.upper(), operation, listener


def url_of(path, operation):
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            path = path.replace("{%s}" % parameter["name"],
                                str(parameter["example"]))
    return path


class OpenApiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.document = load()
        cls.group = Group(["--workers", "2", "--layout", "ep"])

    @classmethod
    def tearDownClass(cls):
        cls.group.stop()

    def resolve(self, schema):
        if "$ref" not in schema:
            return schema
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return self.document["components"]["schemas"][name]

    def check(self, value, schema, where):
        schema = self.resolve(schema)
        if value is None and schema.get("nullable"):
            return
        kind = schema.get("type")
        if kind:
            self.assertIsInstance(value, KINDS[kind], where)
            if kind != "boolean":
                self.assertNotIsInstance(value, bool, where)
        if "enum" in schema:
            self.assertIn(value, schema["enum"], where)
        if "minimum" in schema:
            self.assertGreaterEqual(value, schema["minimum"], where)
        if "maximum" in schema:
            self.assertLessEqual(value, schema["maximum"], where)
        if isinstance(value, list):
            for item in value:
                self.check(item, schema.get("items", {}), where + "[]")
        if isinstance(value, dict):
            for name in schema.get("required", []):
                self.assertIn(name, value, where)
            for name, inner in schema.get("properties", {}).items():
                if name in value:
                    self.check(value[name], inner, f"{where}.{name}")

    def check_answer(self, answer, operation, where):
        described = operation["responses"].get(str(answer.status))
        self.assertIsNotNone(described, f"{where}: {answer.status}")
        for kind, content in described.get("content", {}).items():
            self.assertEqual(
                answer.headers["content-type"].partition(";")[0], kind, where)
            if kind == "application/json":
                self.check(answer.json(), content["schema"], where)

    def send(self, listener, method, path, body=None):
        return self.group.request(method, path, body,
                                  admin=listener == "admin")

    def test_it_is_served_on_both_listeners(self):
        for listener in ("api", "admin"):
            answer = self.send(listener, "GET", "/openapi.json")
            self.assertEqual((answer.status, answer.json()),
                             (200, self.document))

    def test_each_operation_is_answered_as_described(self):
        for path, method, operation, listener in operations(self.document):
            where = f"{listener} {method} {path}"
            body = None
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]
                body = content["application/json"]["example"]
            answer = self.send(listener, method, url_of(path, operation), body)
            self.check_answer(answer, operation, where)
            expected = {"/admin/operations/{operation_id}": 404}
            self.assertEqual(answer.status, expected.get(path, 200), where)
            if method == "GET":
                head = self.send(listener, "HEAD", url_of(path, operation))
                self.assertEqual((head.status, head.body),
                                 (answer.status, b""), where)
        self.assertEqual(self.group.get("/ready").status, 200)

    def test_methods_and_paths_that_it_does_not_have_are_refused(self):
        for path, _, operation, listener in operations(self.document):
            for method in METHODS:
                if method.lower() in self.document["paths"][path]:
                    continue
                answer = self.send(listener, method, url_of(path, operation),
                                   {} if method != "GET" else None)
                self.assertEqual(answer.status, 405, f"{method} {path}")
        for listener, other in (("api", "admin"), ("admin", "api")):
            for path, method, operation, has in operations(self.document):
                if has == listener and other not in operation["x-listeners"]:
                    answer = self.send(other, method, url_of(path, operation),
                                       {} if method == "POST" else None)
                    self.assertEqual(answer.status, 404, f"{other} {path}")

    def test_bodies_that_it_does_not_allow_are_refused_by_their_field(self):
        checked = 0
        for path, method, operation, listener in operations(self.document):
            if "requestBody" not in operation:
                continue
            content = operation["requestBody"]["content"]["application/json"]
            schema = self.resolve(content["schema"])
            example = content["example"]
            for name in schema.get("required", []):
                body = {k: v for k, v in example.items() if k != name}
                self.refused(listener, path, operation, body, name)
            for name, field in schema["properties"].items():
                for value in self.wrong_values(field):
                    self.refused(listener, path, operation,
                                 {**example, name: value}, name)
                    checked += 1
        self.assertGreater(checked, 80)
        self.assertEqual(self.group.get("/ready").status, 200)

    @staticmethod
    def wrong_values(field):
        if "type" in field:
            yield WRONG[field["type"]]
        if "minimum" in field and not field.get("exclusiveMinimum"):
            yield field["minimum"] - 1
        elif "minimum" in field:
            yield field["minimum"]
        if "maximum" in field:
            yield field["maximum"] + 1
        if "maxLength" in field:
            yield "x" * (field["maxLength"] + 1)
        if "enum" in field:
            yield "none of these"

    def refused(self, listener, path, operation, body, name):
        where = f"{listener} POST {path} {name}: {str(body)[:200]}"
        answer = self.send(listener, "POST", path, body)
        self.assertEqual(answer.status, 400, f"{where}: {answer.body}")
        self.check_answer(answer, operation, where)
        self.assertTrue(answer.json()["error"]["param"].startswith(name),
                        f"{where}: {answer.body}")


if __name__ == "__main__":
    unittest.main()
