"""Control calls that can be repeated: what is asked for under an operation_id
is done once, and who asks again hears what became of it, also of a later
coordinator."""

import http.client
import os
import signal
import threading
import time
import unittest

from group import Group

DIED = (http.client.HTTPException, ConnectionError)


class Operations:
    """Control calls of one group."""

    def __init__(self, group):
        self.group = group

    def post(self, what, operation_id, **body):
        return self.group.post(f"/admin/{what}",
                               {"operation_id": operation_id, **body},
                               admin=True)

    def repeat(self, what, operation_id, timeout_s=60, **body):
        """The same until there is a coordinator that answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self.post(what, operation_id, **body)
                if answer.status != 503:
                    return answer
            except DIED:
                pass
            if time.monotonic() > deadline:
                raise AssertionError("no answer")
            time.sleep(0.05)

    def get(self, operation_id):
        return self.group.get(f"/admin/operations/{operation_id}", admin=True)


class OperationsTest(unittest.TestCase):
    def test_a_repeated_call_is_answered_as_the_first_was(self):
        with Group(["--workers", "2", "--layout", "ep"]) as group:
            calls = Operations(group)
            first = calls.post("layout", "a-1", layout="tp")
            self.assertEqual(first.status, 200)
            self.assertTrue(first.json()["done"])
            again = calls.post("layout", "a-1", layout="tp")
            self.assertEqual((again.status, again.body), (200, first.body))
            self.assertEqual(group.status()["switches"]["total"], 1)

            other = calls.post("layout", "a-1", layout="ep")
            self.assertEqual(other.status, 409)
            self.assertEqual(other.json()["error"]["code"],
                             "operation_id_reused")
            self.assertEqual(other.json()["operation"]["layout"], "tp")

            state = calls.get("a-1").json()
            self.assertEqual((state["kind"], state["state"],
                              state["http_status"]), ("layout", "ended", 200))
            self.assertEqual(state["answer"], first.json())
            self.assertEqual(calls.get("a-2").status, 404)
            for bad in ("a b", "x" * 129, "ä"):
                self.assertEqual(calls.post("drain", bad).status, 400)
            group.stop()

    def test_another_instance_is_not_controlled(self):
        with Group(["--workers", "1"]) as group:
            ours = group.status()["instance_id"]
            for what, body in (("layout", {"layout": "ep"}), ("drain", {}),
                               ("undrain", {})):
                wrong = group.post(f"/admin/{what}", {
                    "expected_instance_id": "moebius-1-x", **body}, admin=True)
                self.assertEqual(wrong.status, 409)
                self.assertEqual(wrong.json()["error"]["code"],
                                 "instance_changed")
                right = group.post(f"/admin/{what}", {
                    "expected_instance_id": ours, **body}, admin=True)
                self.assertEqual(right.status, 200, right.body)
            group.stop()

    def test_a_drain_outlives_its_coordinator(self):
        with Group(["--workers", "2", "--layout", "ep"]) as group:
            calls = Operations(group)
            stream = group.stream({"prompt": "a", "max_tokens": 3000,
                                   "ignore_eos": True})
            next(iter(stream))
            begun = calls.post("drain", "d-1", wait=False)
            self.assertEqual(begun.status, 202)
            self.assertEqual(begun.headers["location"],
                             "/admin/operations/d-1")
            self.assertEqual(begun.json()["state"], "running")
            busy = calls.post("drain", "d-2")
            self.assertEqual(busy.status, 409)
            self.assertEqual(busy.json()["error"]["code"], "operation_running")
            self.assertEqual(busy.json()["operation"]["operation_id"], "d-1")

            os.kill(group.status()["pid"], signal.SIGKILL)
            ended = calls.repeat("drain", "d-1")
            self.assertEqual((ended.status, ended.json()),
                             (200, {"draining": True, "drained": True}))
            status = group.status()
            self.assertEqual((status["term"], status["draining"]), (2, True))
            self.assertEqual(calls.post("undrain", "u-1").status, 200)
            self.assertFalse(group.status()["draining"])
            self.assertEqual(calls.post("drain", "d-1").json(), ended.json())
            self.assertFalse(group.status()["draining"])
            stream.close()
            group.note_processes()
            group.stop()

    def test_an_undrain_ends_a_drain(self):
        with Group(["--workers", "1"]) as group:
            calls = Operations(group)
            stream = group.stream({"prompt": "a", "max_tokens": 4000,
                                   "ignore_eos": True})
            next(iter(stream))
            answers = []
            waiter = threading.Thread(target=lambda: answers.append(
                calls.post("drain", "d")))
            waiter.start()
            while calls.get("d").status == 404:
                time.sleep(0.01)
            self.assertEqual(calls.post("undrain", "u").status, 200)
            waiter.join()
            self.assertEqual(answers[0].json(),
                             {"draining": False, "drained": False})
            stream.close()
            group.stop()

    def test_a_switch_outlives_its_coordinator(self):
        for point in ("prepared", "decided", "committing", "delivered"):
            with self.subTest(point):
                self.switch_and_die(point)

    def switch_and_die(self, point):
        with Group(["--workers", "2", "--layout", "ep", "--set",
                    "faults.enabled=true"]) as group:
            calls = Operations(group)
            if point == "delivered":
                first = calls.post("layout", "s", layout="tp")
                os.kill(group.status()["pid"], signal.SIGKILL)
                again = calls.repeat("layout", "s", layout="tp")
                self.assertEqual(again.body, first.body)
            else:
                armed = group.post("/admin/faults", {"arm": [
                    f"coordinator.{point}@coordinator=crash"]}, admin=True)
                self.assertEqual(armed.status, 200, armed.body)
                with self.assertRaises(DIED):
                    calls.post("layout", "s", layout="tp")
                again = calls.repeat("layout", "s", layout="tp")
            self.assertEqual(again.status, 200, again.body)
            self.assertTrue(again.json()["done"], again.body)
            self.assertEqual(again.json()["to"], "tp")
            status = group.status()
            self.assertEqual((status["layout"], status["term"]), ("tp", 2))
            group.note_processes()
            group.stop()


if __name__ == "__main__":
    unittest.main()
